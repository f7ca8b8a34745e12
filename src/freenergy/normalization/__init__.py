"""Keeping weights and activations in range: constraints on norms, and the moment map of a net.

The moment map needs NumPy and SciPy alone and is imported without torch, which only the
constraints need: they are imported when they are first used.
"""

from typing import TYPE_CHECKING, Any

from freenergy.normalization.activations import (
    SELU_ALPHA,
    SELU_SCALE,
    Activation,
    CallableActivation,
    GaussianResponse,
    PiecewiseLinear,
    ScaledELU,
    Sigmoid,
    Tanh,
    get_activation,
)
from freenergy.normalization.depth import DepthProfile, predict_depth
from freenergy.normalization.designer import (
    AlphaDropout,
    SELUParameters,
    alpha_dropout,
    design_selu,
)
from freenergy.normalization.fixed_point import (
    Basin,
    FixedPoint,
    basin,
    critical_weight_square_sum,
    fixed_point,
)
from freenergy.normalization.moments import (
    Moments,
    backward_gain,
    moment_jacobian,
    moment_map,
)

if TYPE_CHECKING:
    from freenergy.normalization.constraints import (
        apply_constraint,
        project_l1,
        project_l2,
        rescale_norm,
    )

__all__ = [
    "SELU_ALPHA",
    "SELU_SCALE",
    "Activation",
    "AlphaDropout",
    "Basin",
    "CallableActivation",
    "DepthProfile",
    "FixedPoint",
    "GaussianResponse",
    "Moments",
    "PiecewiseLinear",
    "SELUParameters",
    "ScaledELU",
    "Sigmoid",
    "Tanh",
    "alpha_dropout",
    "apply_constraint",
    "backward_gain",
    "basin",
    "critical_weight_square_sum",
    "design_selu",
    "fixed_point",
    "get_activation",
    "moment_jacobian",
    "moment_map",
    "predict_depth",
    "project_l1",
    "project_l2",
    "rescale_norm",
]

_WITH_TORCH = ("apply_constraint", "project_l1", "project_l2", "rescale_norm")


def __getattr__(name: str) -> Any:
    if name not in _WITH_TORCH:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from freenergy.normalization import constraints

    return getattr(constraints, name)
