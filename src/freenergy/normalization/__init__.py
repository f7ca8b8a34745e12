"""Keeping weights and activations in range: constraints on norms, and the moment map of a net.

The moment map needs NumPy and SciPy alone: no module of it imports torch, only
:mod:`~freenergy.normalization.constraints` does.
"""

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
from freenergy.normalization.constraints import (
    apply_constraint,
    project_l1,
    project_l2,
    rescale_norm,
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
