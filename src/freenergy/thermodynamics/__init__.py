"""Instruments: they read a model and never train it."""

from freenergy.thermodynamics.monitor import RBMMonitor

__all__ = ["RBMMonitor"]
