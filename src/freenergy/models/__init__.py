"""What the energy is: unit types and energy-based models, as modules without loops."""

from freenergy.models.boltzmann import BoltzmannMachine
from freenergy.models.discriminative import DiscriminativeRBM
from freenergy.models.mlp import initialize_perceptron, multilayer_perceptron
from freenergy.models.rbm import RBM
from freenergy.models.units import Bernoulli, Binomial, Spin, Unit, get_unit
from freenergy.models.unrolled import UnrolledRBM, fold, unroll
from freenergy.models.vae import VAE, VariationalFreeEnergy, unravel

__all__ = [
    "RBM",
    "VAE",
    "Bernoulli",
    "Binomial",
    "BoltzmannMachine",
    "DiscriminativeRBM",
    "Spin",
    "Unit",
    "UnrolledRBM",
    "VariationalFreeEnergy",
    "fold",
    "get_unit",
    "initialize_perceptron",
    "multilayer_perceptron",
    "unravel",
    "unroll",
]
