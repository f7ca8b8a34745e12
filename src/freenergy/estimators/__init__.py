"""The scikit-learn face: validation and conversion, nothing else."""

from freenergy.estimators.bernoulli_rbm import BernoulliRBM
from freenergy.estimators.loading import load
from freenergy.estimators.mlp_classifier import MLPClassifier
from freenergy.estimators.mlp_regressor import MLPRegressor
from freenergy.estimators.rbm_classifier import RBMClassifier
from freenergy.estimators.unrolled_rbm_classifier import UnrolledRBMClassifier
from freenergy.estimators.variational_autoencoder import VariationalAutoencoder

__all__ = [
    "BernoulliRBM",
    "MLPClassifier",
    "MLPRegressor",
    "RBMClassifier",
    "UnrolledRBMClassifier",
    "VariationalAutoencoder",
    "load",
]
