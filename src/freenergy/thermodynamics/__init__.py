"""Instruments: they read a model and never train it."""

from freenergy.thermodynamics.monitor import RBMMonitor, TemperatureMonitor
from freenergy.thermodynamics.temperature import EffectiveTemperature, effective_temperature

__all__ = ["EffectiveTemperature", "RBMMonitor", "TemperatureMonitor", "effective_temperature"]
