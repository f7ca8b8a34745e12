"""What to do about a training that diverged, in the names of an estimator's own parameters."""

from __future__ import annotations

from typing import Any

from freenergy.training.trainer import DivergenceError

__all__ = ["advice_for_divergence", "in_own_words"]

_BALL, _CONSTRAINT = "normalization='max_norm'", "weight_constraint='l2' and max_norm"


def in_own_words(error: DivergenceError, estimator: Any) -> DivergenceError:
    """What a trainer said in the names of its options, in those of an estimator's parameters."""
    return DivergenceError(error.event, advice_for_divergence(estimator))


def advice_for_divergence(estimator: Any, *, of: str = "") -> str:
    """What to change: only parameters that the estimator has, and that its training heeds.

    Parameters
    ----------
    estimator : estimator
    of : str, default=""
        The parameter of a larger estimator that this one is.

    Examples
    --------
    >>> import freenergy as fe
    >>> advice_for_divergence(fe.BernoulliRBM())
    "Lower learning_rate (now 0.1), or set weight_constraint='l2' and max_norm"
    >>> advice_for_divergence(fe.BernoulliRBM(weight_constraint="l2", max_norm=3.0), of="rbm")
    'In rbm, lower learning_rate (now 0.1) or max_norm (now 3)'
    """
    parameters = estimator.get_params(deep=False)
    lower = ["learning_rate_init" if "learning_rate_init" in parameters else "learning_rate"]
    if parameters.get("momentum", 0.0) > 0 and parameters.get("solver") != "adam":
        lower.append("momentum")
    if _is_constrained(parameters):
        lower.append("max_norm")
    advice = f"In {of}, lower " if of else "Lower "
    advice += " or ".join(f"{name} (now {parameters[name]:g})" for name in lower)
    others = _others(parameters)
    if len(others) > 1:
        return f"{advice}, {', '.join(others[:-1])}, or {others[-1]}"
    return f"{advice}, or {others[0]}" if others else advice


def _others(parameters: dict[str, Any]) -> list[str]:
    """What may be done beside lowering a number."""
    found = []
    if _takes_any_number(parameters):
        found.append("standardise the columns of X")
    if "max_norm" in parameters and not _is_constrained(parameters):
        found.append(f"set {_BALL if 'normalization' in parameters else _CONSTRAINT}")
    return found


def _is_constrained(parameters: dict[str, Any]) -> bool:
    if "normalization" in parameters:
        return bool(parameters["normalization"] == "max_norm")
    return parameters.get("weight_constraint") is not None


def _takes_any_number(parameters: dict[str, Any]) -> bool:
    """Whether the columns may have any scale; those of most machines lie in [0, 1]."""
    return (
        "normalization" in parameters
        or parameters.get("likelihood") == "gaussian"
        or parameters.get("objective") == "discriminative"
    )
