"""Instruments: they read a model and never train it."""

from freenergy.thermodynamics.monitor import RBMMonitor
from freenergy.thermodynamics.temperature import EffectiveTemperature, effective_temperature

__all__ = ["EffectiveTemperature", "RBMMonitor", "effective_temperature"]
