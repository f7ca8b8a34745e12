"""The instrument that watches any module while it trains: see :func:`watch`."""

from freenergy.thermodynamics.watching.diffusion import Diffusion, compare_growth
from freenergy.thermodynamics.watching.findings import Finding
from freenergy.thermodynamics.watching.instrument import Watch, watch
from freenergy.thermodynamics.watching.results import Cost

__all__ = ["Cost", "Diffusion", "Finding", "Watch", "compare_growth", "watch"]
