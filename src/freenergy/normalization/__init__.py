"""Keeping weights and activations in range: constraints on norms."""

from freenergy.normalization.constraints import (
    apply_constraint,
    project_l1,
    project_l2,
    rescale_norm,
)

__all__ = ["apply_constraint", "project_l1", "project_l2", "rescale_norm"]
