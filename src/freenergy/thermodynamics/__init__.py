"""Instruments: they read a model and never train it."""

from freenergy.thermodynamics.barriers import Barrier, barrier, free_energy_barrier
from freenergy.thermodynamics.counts import DistinctCount
from freenergy.thermodynamics.curves import Thermodynamics, energy_curve, thermodynamics
from freenergy.thermodynamics.descent import Descent, descend
from freenergy.thermodynamics.landscape import EnergyMinima, FixedPoints, Landscape, landscape
from freenergy.thermodynamics.monitor import RBMMonitor, TemperatureMonitor
from freenergy.thermodynamics.temperature import EffectiveTemperature, effective_temperature
from freenergy.thermodynamics.watching import Diffusion, Finding, Watch, compare_growth, watch

__all__ = [
    "Barrier",
    "Descent",
    "Diffusion",
    "DistinctCount",
    "EffectiveTemperature",
    "EnergyMinima",
    "Finding",
    "FixedPoints",
    "Landscape",
    "RBMMonitor",
    "TemperatureMonitor",
    "Thermodynamics",
    "Watch",
    "barrier",
    "compare_growth",
    "descend",
    "effective_temperature",
    "energy_curve",
    "free_energy_barrier",
    "landscape",
    "thermodynamics",
    "watch",
]
