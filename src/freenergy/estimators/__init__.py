"""The scikit-learn face: validation and conversion, nothing else."""

from freenergy.estimators.bernoulli_rbm import BernoulliRBM

__all__ = ["BernoulliRBM"]
