"""Instruments: they read a model and never train it."""

from freenergy.thermodynamics.curves import Thermodynamics, energy_curve, thermodynamics
from freenergy.thermodynamics.landscape import (
    Barrier,
    Descent,
    DistinctCount,
    EnergyMinima,
    FixedPoints,
    Landscape,
    barrier,
    descend,
    free_energy_barrier,
    landscape,
)
from freenergy.thermodynamics.monitor import RBMMonitor, TemperatureMonitor
from freenergy.thermodynamics.temperature import EffectiveTemperature, effective_temperature

__all__ = [
    "Barrier",
    "Descent",
    "DistinctCount",
    "EffectiveTemperature",
    "EnergyMinima",
    "FixedPoints",
    "Landscape",
    "RBMMonitor",
    "TemperatureMonitor",
    "Thermodynamics",
    "barrier",
    "descend",
    "effective_temperature",
    "energy_curve",
    "free_energy_barrier",
    "landscape",
    "thermodynamics",
]
