"""States of a model at an inverse temperature: sums, chains, mean field, ladders of models."""

from freenergy.inference.deterministic_annealing import (
    AnnealedMeanField,
    LinearResponse,
    anneal_mean_field,
    linear_response,
)
from freenergy.inference.equilibrium import Certificate, certify
from freenergy.inference.exact import ExactStatistics, exact, is_enumerable
from freenergy.inference.exact_boltzmann import ExactBoltzmann, exact_boltzmann
from freenergy.inference.gibbs import ChainState, gibbs
from freenergy.inference.importance import ImportanceLogLikelihood, importance_log_likelihood
from freenergy.inference.ladder import (
    Ladder,
    annealing_ladder,
    independent_model,
    temperature_ladder,
)
from freenergy.inference.likelihood import LogLikelihood, check_states, log_likelihood
from freenergy.inference.mean_field import (
    MeanField,
    MeanFieldGradient,
    MeanFieldWarning,
    NegativeEntropyWarning,
    NotConvergedWarning,
    mean_field,
    mean_field_gradient,
)
from freenergy.inference.partition import LogPartition, log_partition
from freenergy.inference.pseudo_likelihood import (
    pseudo_log_likelihood,
    stochastic_pseudo_log_likelihood,
)
from freenergy.inference.states import MeanFieldStates, mean_field_states
from freenergy.inference.tempering import Tempering

__all__ = [
    "AnnealedMeanField",
    "Certificate",
    "ChainState",
    "ExactBoltzmann",
    "ExactStatistics",
    "ImportanceLogLikelihood",
    "Ladder",
    "LinearResponse",
    "LogLikelihood",
    "LogPartition",
    "MeanField",
    "MeanFieldGradient",
    "MeanFieldStates",
    "MeanFieldWarning",
    "NegativeEntropyWarning",
    "NotConvergedWarning",
    "Tempering",
    "anneal_mean_field",
    "annealing_ladder",
    "certify",
    "check_states",
    "exact",
    "exact_boltzmann",
    "gibbs",
    "importance_log_likelihood",
    "independent_model",
    "is_enumerable",
    "linear_response",
    "log_likelihood",
    "log_partition",
    "mean_field",
    "mean_field_gradient",
    "mean_field_states",
    "pseudo_log_likelihood",
    "stochastic_pseudo_log_likelihood",
    "temperature_ladder",
]
