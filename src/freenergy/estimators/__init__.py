"""The scikit-learn face: validation and conversion, nothing else."""

from freenergy.estimators.bernoulli_rbm import BernoulliRBM
from freenergy.estimators.rbm_classifier import RBMClassifier
from freenergy.estimators.unrolled_rbm_classifier import UnrolledRBMClassifier
from freenergy.estimators.variational_autoencoder import VariationalAutoencoder

__all__ = [
    "BernoulliRBM",
    "RBMClassifier",
    "UnrolledRBMClassifier",
    "VariationalAutoencoder",
]
