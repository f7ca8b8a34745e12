"""The models that the command line trains through estimators, and what can be set of them."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from freenergy.estimators import (
    BernoulliRBM,
    MLPClassifier,
    MLPRegressor,
    RBMClassifier,
    UnrolledRBMClassifier,
    VariationalAutoencoder,
)
from freenergy.estimators.unrolled_rbm_classifier import PRETRAINING
from freenergy.names import did_you_mean

__all__ = ["MODELS", "RBM_MODEL", "Model", "parsed"]

RBM_MODEL = "rbm"
"""The model that needs no estimator."""

# Code, what the command line has options of its own for, and what a run has no use for.
_NOT_SET = frozenset(
    {
        "callback",
        "checkpoint_dir",
        "device",
        "monitors",
        "random_state",
        "rbm",
        "start",
        "verbose",
        "warm_start",
    }
)
_PART = "rbm__"
_COLUMNS = "categorical_features"
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?|[+-]?inf", re.IGNORECASE)


@dataclass(frozen=True)
class Model:
    """A model that an estimator trains.

    Attributes
    ----------
    name : str
        As ``--model`` has it.
    kind : type
        Class of the estimator.
    learns : {"classes", "numbers", "rows"}
        What of the data: labels that are classes or numbers, or the rows alone.

    Examples
    --------
    >>> model = MODELS["mlp-classifier"]
    >>> model.parameters["hidden_layer_sizes"], model.passes
    ((100,), 'max_iter')
    >>> model.estimator({"max_iter": 5, "random_state": 0})
    MLPClassifier(max_iter=5, random_state=0)
    """

    name: str
    kind: type[Any]
    learns: str

    @cached_property
    def parameters(self) -> dict[str, Any]:
        """What can be set, with its default."""
        found = self.estimator({}).get_params(deep=True)
        return {
            name: value
            for name, value in sorted(found.items(), key=lambda pair: pair[0].startswith(_PART))
            if name.removeprefix(_PART) not in _NOT_SET
        }

    @property
    def passes(self) -> str:
        """The parameter that is the number of passes."""
        return str(self.kind._passes)

    @property
    def learns_labels(self) -> bool:
        """Whether rows alone are not enough."""
        return self.learns != "rows"

    def estimator(self, parameters: Mapping[str, Any]) -> Any:
        """The estimator with these parameters, and the defaults for the rest."""
        if self.kind is UnrolledRBMClassifier:
            # Given in full, so that its parameters can be set one by one.
            return self.kind(BernoulliRBM(**PRETRAINING)).set_params(**parameters)
        return self.kind(**parameters)

    def settings(self, given: Iterable[str]) -> dict[str, Any]:
        """Parameters by what was typed, ``name=value`` each.

        Raises
        ------
        ValueError
            When a name is unknown or comes twice, or a value is of a kind that it never takes.

        Examples
        --------
        >>> MODELS["vae"].settings(["hidden_layer_sizes=64,64", "beta=0.5", "n_draws=none"])
        {'hidden_layer_sizes': (64, 64), 'beta': 0.5, 'n_draws': None}
        >>> MODELS["vae"].settings(["n_component=3"])
        Traceback (most recent call last):
            ...
        ValueError: VariationalAutoencoder has no parameter 'n_component'; did you mean
        'n_components'? --help-options lists them
        """
        found: dict[str, Any] = {}
        for text in given:
            name, equals, value = text.partition("=")
            name = name.strip()
            if not equals:
                raise ValueError(f"--set takes name=value, got {text!r}")
            if name not in self.parameters:
                raise ValueError(self._unknown(name))
            if name in found:
                raise ValueError(f"--set {name} is given twice")
            found[name] = self._fitting(name, parsed(value, pairs=name == "class_weight"))
        return found

    def _unknown(self, name: str) -> str:
        own = {"random_state": "--seed", "device": "--device"}
        if name in own:
            return f"{name} has an option of its own: {own[name]}"
        return (
            f"{self.kind.__name__} has no parameter {name!r}; "
            f"{did_you_mean(name, self.parameters)}--help-options lists them"
        )

    def _fitting(self, name: str, value: Any) -> Any:
        """A value of the kind of the default, where that tells the kind."""
        default = self.parameters[name]
        of_several = isinstance(default, tuple) or (name == _COLUMNS and value != default)
        if of_several and value is not None:
            return value if isinstance(value, tuple) else (value,)
        wanted = ""
        if isinstance(default, bool):
            wanted = "" if isinstance(value, bool) else "true or false"
        elif isinstance(default, int | float):
            number = isinstance(value, int | float) and not isinstance(value, bool)
            wanted = "" if number else "a number"
        elif isinstance(default, str) and isinstance(value, tuple):
            wanted = "one value"
        if wanted:
            raise ValueError(f"--set {name} takes {wanted}, got {value!r}")
        return value

    def described(self) -> list[tuple[str, str, str]]:
        """Name, default and meaning of each parameter, as the estimators' own texts have it."""
        texts = _texts(self.kind)
        part = _texts(BernoulliRBM)
        rows = []
        for name, default in self.parameters.items():
            of_part = name.startswith(_PART)
            text = (part if of_part else texts).get(name.removeprefix(_PART), "")
            rows.append((name, written(default), f"Pretraining: {text}" if of_part else text))
        return rows


MODELS = {
    model.name: model
    for model in (
        Model("rbm-classifier", RBMClassifier, "classes"),
        Model("unrolled-classifier", UnrolledRBMClassifier, "classes"),
        Model("mlp-classifier", MLPClassifier, "classes"),
        Model("mlp-regressor", MLPRegressor, "numbers"),
        Model("vae", VariationalAutoencoder, "rows"),
    )
}
"""By the name that ``--model`` takes."""


def parsed(text: str, *, pairs: bool = False) -> Any:
    """A value as it is typed: a number, true, false, none, a word, or several between commas.

    Parameters
    ----------
    text : str
    pairs : bool, default=False
        Whether ``key:value`` between commas is a dict.

    Examples
    --------
    >>> [parsed(text) for text in ("3", "1e-3", "true", "none", "selu", "256,64", "256,", "")]
    [3, 0.001, True, None, 'selu', (256, 64), (256,), ()]
    >>> parsed("0:1,1:2.5", pairs=True)
    {0: 1, 1: 2.5}
    """
    text = text.strip()
    if pairs and ":" in text:
        items = [item.rpartition(":") for item in text.split(",")]
        return {_one(key): _one(value) for key, _, value in items}
    if text.startswith("(") and text.endswith(")"):
        text = text[1:-1] if "," in text or text == "()" else text[1:-1] + ","
    if "," in text or not text:
        return tuple(_one(item) for item in text.split(",") if item.strip())
    return _one(text)


def _one(text: str) -> Any:
    text = text.strip()
    words = {"none": None, "true": True, "false": False}
    if text.lower() in words:
        return words[text.lower()]
    if re.fullmatch(r"[+-]?\d+", text):
        return int(text)
    return float(text) if _NUMBER.fullmatch(text) else text


def written(value: Any) -> str:
    """A value as :func:`parsed` reads it.

    Examples
    --------
    >>> [written(value) for value in (None, True, 0.5, (256,), (64, 32), "selu")]
    ['none', 'true', '0.5', '256', '64,32', 'selu']
    """
    if isinstance(value, list | tuple):
        return ",".join(map(written, value))
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)


def _texts(kind: type) -> dict[str, str]:
    """What the docstring of a class says of its parameters."""
    doc = inspect.cleandoc(kind.__doc__ or "")
    section = re.search(r"Parameters\n-+\n(.*?)\n\n\w+\n-+\n", doc, re.DOTALL)
    found: dict[str, str] = {}
    names: list[str] = []
    for line in section[1].splitlines() if section else ():
        head = re.match(r"([\w, ]+) : (.*)", line)
        if head is not None:
            names = [name.strip() for name in head[1].split(",")]
            found |= dict.fromkeys(names, f"{head[2].partition(', default=')[0]}.")
        else:
            found |= {name: f"{found[name]} {line.strip()}" for name in names}
    return {name: _plain(text) for name, text in found.items()}


def _plain(text: str) -> str:
    """Without the marks that are for pages."""
    text = re.sub(r":\w+:`~?(?:[\w.]*\.)?([^`<]*)(?:<[^`]*>)?`", r"\1", text)
    return re.sub(r"\*(\w+)\*", r"\1", text.replace("``", "")).strip()
