"""What the energy is: unit types and energy-based models, as modules without loops."""

from freenergy.models.rbm import RBM
from freenergy.models.units import Bernoulli, Spin, Unit, get_unit

__all__ = ["RBM", "Bernoulli", "Spin", "Unit", "get_unit"]
