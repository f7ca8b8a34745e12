"""Instruments: they read a model and never train it."""

from freenergy.thermodynamics.curves import Thermodynamics, energy_curve, thermodynamics
from freenergy.thermodynamics.monitor import RBMMonitor, TemperatureMonitor
from freenergy.thermodynamics.temperature import EffectiveTemperature, effective_temperature

__all__ = [
    "EffectiveTemperature",
    "RBMMonitor",
    "TemperatureMonitor",
    "Thermodynamics",
    "effective_temperature",
    "energy_curve",
    "thermodynamics",
]
