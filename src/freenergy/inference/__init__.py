"""States of a model at an inverse temperature: exact sums, Gibbs chains, mean field."""

from freenergy.inference.exact import ExactStatistics, exact, is_enumerable
from freenergy.inference.gibbs import ChainState, gibbs
from freenergy.inference.mean_field import (
    MeanField,
    MeanFieldGradient,
    MeanFieldWarning,
    NegativeEntropyWarning,
    NotConvergedWarning,
    mean_field,
    mean_field_gradient,
)
from freenergy.inference.pseudo_likelihood import (
    pseudo_log_likelihood,
    stochastic_pseudo_log_likelihood,
)

__all__ = [
    "ChainState",
    "ExactStatistics",
    "MeanField",
    "MeanFieldGradient",
    "MeanFieldWarning",
    "NegativeEntropyWarning",
    "NotConvergedWarning",
    "exact",
    "gibbs",
    "is_enumerable",
    "mean_field",
    "mean_field_gradient",
    "pseudo_log_likelihood",
    "stochastic_pseudo_log_likelihood",
]
