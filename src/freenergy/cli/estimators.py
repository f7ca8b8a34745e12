"""Models that estimators train, as the commands make, go on with, measure and show them."""

from __future__ import annotations

import io
import shlex
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from freenergy import data, distributed
from freenergy.cli.labels import common_labels, lasting_labels
from freenergy.cli.options import (
    Interrupted,
    absolute,
    checked_device,
    checked_dtype,
    command_line,
    new_folder,
    read_threshold,
    tell_binarized,
    typed_options,
)
from freenergy.estimators.loading import load, saved_class
from freenergy.files import write_atomically
from freenergy.names import did_you_mean
from freenergy.progress import Reporter
from freenergy.report import write
from freenergy.studies.estimator_data import ModelData, given_rows, open_model_data
from freenergy.studies.estimator_models import MODELS, RBM_MODEL, Model
from freenergy.studies.estimator_page import estimator_page, pictures_of
from freenergy.studies.estimator_run import (
    EstimatorConfig,
    EstimatorRun,
    data_of,
    is_estimator_run,
    records_of,
    train_estimator,
)
from freenergy.studies.estimator_scores import Scores, score
from freenergy.training import CheckpointError, DivergenceError, RunError

__all__ = [
    "evaluate_estimator",
    "holds_estimator",
    "list_parameters",
    "model_named",
    "resume_estimator",
    "sample_estimator",
    "start_estimator",
    "write_estimator_report",
]

# Parameters that options of other names stand for, the first that the estimator has.
_PARAMETERS = {
    "chains": ("n_chains",),
    "epochs": ("max_iter", "n_iter"),
    "learning_rate": ("learning_rate_init", "learning_rate"),
    "optimizer": ("solver", "optimizer"),
    "steps": ("n_steps",),
}
_HIDDEN = {"rbm-classifier": "n_components", "unrolled-classifier": "rbm__n_components"}
# Of the run, not of its estimator.
_OF_THE_RUN = frozenset(
    {"binarize", "data_name", "device", "dtype", "labels", "model", "out", "seed", "settings"}
)
_THRESHOLD = 0.5
# Of latent states, where nothing waits for it.
_DRAWS = 1000


def model_named(name: str) -> Model | None:
    """The model of that name; None of an RBM.

    Raises
    ------
    ValueError
        When there is none.
    """
    if name == RBM_MODEL:
        return None
    if name not in MODELS:
        known = [RBM_MODEL, *MODELS]
        raise ValueError(
            f"--model takes {', '.join(known[:-1])} or {known[-1]}, got {name!r}; "
            f"{did_you_mean(name, known)}".rstrip("; ")
        )
    return MODELS[name]


def holds_estimator(path: Path) -> bool:
    """Whether a folder is a run of an estimator, or a file a saved one that is no RBM."""
    if path.is_dir():
        return is_estimator_run(path)
    try:
        return saved_class(path) not in (None, "BernoulliRBM")
    except CheckpointError:
        return False


def list_parameters(model: Model) -> None:
    """Print what ``--set`` takes."""
    console = Console()
    table = Table("--set", "default", "meaning", title=f"{model.name}: {model.kind.__name__}")
    for row in model.described():
        table.add_row(*map(Text, row))
    console.print(table)


# ---- train ---------------------------------------------------------------------------------------


def start_estimator(context: typer.Context, model: Model) -> None:
    """Start a run, by the options of ``freenergy train``."""
    values, typed = context.params, typed_options(context)
    settings = _settings(model, typed, values)
    found, config = _configured(model, settings, values, "binarize" in typed)
    run = EstimatorRun(values["out"] or new_folder(f"train-{model.name}-{found.name}"))
    reporter = Reporter()
    with distributed.session(config.parameters["device"]) as group:
        if group.rank == 0:
            run.create(config, or_open=distributed.is_launched())
            if found.is_binarized:
                tell_binarized(found.name, config.data["binarize"], reporter)
        try:
            estimator = _fitted(run, config, found, reporter)
        except (ValueError, DivergenceError):
            if group.rank == 0:
                run.withdraw()
            raise
    if group.rank == 0:
        _conclude(run, config, found, estimator, reporter)


def resume_estimator(path: Path, epochs: int | None) -> None:
    """Go on with a run, perhaps to a new total of epochs."""
    run = EstimatorRun(path)
    before = run.config()
    found, config = data_of(before), before
    done = run.n_done()
    if epochs is not None and epochs != before.n_passes:
        if epochs < done:
            raise RunError(f"{path} has {done} epochs already, more than --epochs {epochs}")
        if not run.is_extendable():
            raise RunError(
                f"all epochs of {path} depend on their number, {before.n_passes}: start another "
                f"run for --epochs {epochs}"
            )
        config = before.with_passes(epochs)
    reporter = Reporter()
    with distributed.session(config.parameters["device"]) as group:
        try:
            if group.rank == 0 and config != before:
                run.write_config(config)
            estimator = _fitted(run, config, found, reporter)
        except ValueError:
            if group.rank == 0 and config != before:
                run.write_config(before)
            raise
    if group.rank == 0:
        if run.n_done() == done:
            reporter.line(f"The training ended after {done} epochs: nothing was added to it.")
        _conclude(run, config, found, estimator, reporter)


def _fitted(
    run: EstimatorRun, config: EstimatorConfig, found: ModelData, reporter: Reporter
) -> Any:
    """The estimator once it is fitted, or what to type where it is not."""
    try:
        estimator, complete = train_estimator(run, config, found, reporter)
    except KeyboardInterrupt:
        complete = False
    except DivergenceError as error:
        raise DivergenceError(
            f"{error}. A run keeps its parameters: start another with freenergy train --out"
        ) from None
    if not complete:
        raise Interrupted(
            f"stopped after epoch {run.n_done()} of {config.n_passes}; go on with: freenergy train "
            f"--resume {shlex.quote(str(run.path))}"
        )
    return estimator


def _conclude(
    run: EstimatorRun,
    config: EstimatorConfig,
    found: ModelData,
    estimator: Any,
    reporter: Reporter,
) -> None:
    """Measure what was trained, and show it."""
    try:
        scores = score(config.kind, estimator, found.name, found.x_held_out, found.y_held_out)
    except ValueError as error:
        # What was trained is there all the same.
        reporter.line(f"The model is not measured: {error}")
    else:
        write_atomically(run.scores_path, scores.to_json())
        reporter.line(scores.words)
    print(f"run: {run.path}")
    print(f"report: {_write_report(run, config, estimator, found)}")


def _configured(
    model: Model, settings: dict[str, Any], values: Mapping[str, Any], is_binarize_given: bool
) -> tuple[ModelData, EstimatorConfig]:
    """The data of a run, and its configuration."""
    threshold = _threshold_for(model, settings)
    if is_binarize_given:
        threshold = read_threshold(values["binarize"])
    name, labels, dtype = values["data_name"], values["labels"], checked_dtype(values["dtype"])
    found = open_model_data(
        model,
        name,
        labels=labels,
        binarize=threshold,
        dtype=dtype,
        settings=settings,
    )
    about = {
        "name": absolute(name),
        "labels": lasting_labels(name, labels),
        "binarize": threshold,
        "fingerprint": found.fingerprint,
        "held_out": found.held_out,
        "image_shape": found.image_shape,
    }
    settings |= {"random_state": values["seed"], "device": checked_device(values["device"])}
    return found, EstimatorConfig.of(
        model, settings, data=about, dtype=found.dtype, command=command_line()
    )


def _threshold_for(model: Model, settings: Mapping[str, Any]) -> float | None:
    """What is taken where nobody says: zeros and ones for units that have only those."""
    likelihood = settings.get("likelihood", model.parameters.get("likelihood"))
    return _THRESHOLD if likelihood == "bernoulli" else None


def _settings(model: Model, typed: Mapping[str, str], values: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters by ``--set`` and by the options that all models share."""
    settings = model.settings(values["settings"] or ())
    for option, flag in typed.items():
        if option in _OF_THE_RUN:
            continue
        name = _parameter_for(model, option)
        if name is None:
            near = [n for n in model.parameters if n.endswith(f"__{option}")]
            instead = f", or --set {near[0]}=... for its pretraining" if near else ""
            raise ValueError(
                f"{flag} has no meaning for --model {model.name}: drop it{instead} "
                f"(freenergy train --model {model.name} --help-options lists what it takes)"
            )
        if name in settings:
            raise ValueError(f"{flag} and --set {name} are the same: drop one of them")
        value = values[option]
        settings[name] = (value,) if name == "hidden_layer_sizes" else value
    is_idle = "normalization" in model.parameters and settings.get("normalization") != "max_norm"
    if "max_norm" in typed and is_idle:
        raise ValueError("--max-norm needs --set normalization=max_norm")
    return settings


def _parameter_for(model: Model, option: str) -> str | None:
    if option == "hidden":
        return _HIDDEN.get(model.name, "hidden_layer_sizes")
    names = _PARAMETERS.get(option, (option,))
    return next((name for name in names if name in model.parameters), None)


# ---- report --------------------------------------------------------------------------------------


def write_estimator_report(path: Path) -> Path:
    """Write the page of a run again, from what lies in its folder."""
    run = EstimatorRun(path)
    config, estimator = run.config(), run.estimator()
    found = None
    if config.kind.learns == "rows" and config.data.get("image_shape"):
        try:
            found = data_of(config)
        except (data.DataError, RunError) as error:
            warnings.warn(f"the page shows no rows of the data ({error})", stacklevel=2)
    return _write_report(run, config, estimator, found)


def _write_report(
    run: EstimatorRun, config: EstimatorConfig, estimator: Any, found: ModelData | None
) -> Path:
    page = estimator_page(
        config,
        records_of(estimator),
        run.scores(),
        pictures_of(config, estimator, found),
        len(getattr(estimator, "pretraining_history_", {}).get("epoch", ())),
    )
    return write(page, run.report_path)


# ---- evaluate and sample -------------------------------------------------------------------------


def evaluate_estimator(context: typer.Context, path: Path, given: str | None) -> None:
    """Judge a run, or a saved estimator, by its held-out rows or by given ones."""
    values = context.params
    _refuse(context, ("beta", "time_budget", "width"), "a run of an estimator")
    run = EstimatorRun(path) if path.is_dir() else None
    config = run.config() if run is not None else None
    estimator = load(path, device="cpu") if run is None else run.estimator()
    model = _model_of(estimator)
    if given is None:
        if config is None:
            raise ValueError("a saved model does not name its data: give DATA")
        for option in ("binarize", "labels"):
            if values[option] is not None:
                raise ValueError(f"the run's own rows are as they were: drop --{option}")
        found = data_of(config)
        name, x, y = found.name, found.x_held_out, found.y_held_out
    else:
        name, x, y = _given(model, config, estimator, given, values)
    _check_width(estimator, name, x)
    scores = score(model, estimator, name, x, y, n_draws=_DRAWS, seed=values["seed"])
    if run is not None and given is None:
        write_atomically(run.scores_path, scores.to_json())
    if values["as_json"]:
        print(scores.to_json(), end="")
    else:
        _print_scores(scores, f"{path} on {name}")


def _given(
    model: Model,
    config: EstimatorConfig | None,
    estimator: Any,
    name: str,
    values: Mapping[str, Any],
) -> tuple[str, Any, np.ndarray | None]:
    """Rows that were named, read as those of the run where nothing else is said."""
    own = _threshold_for(model, estimator.get_params(deep=False))
    if config is not None:
        own = config.data["binarize"]
    threshold = own if values["binarize"] is None else read_threshold(values["binarize"])
    labels = values["labels"]
    if labels is None and config is not None:
        labels = common_labels(config.data, name)
    return given_rows(
        model,
        name,
        labels=labels,
        binarize=threshold,
        dtype="float32" if config is None else config.dtype,
    )


def _check_width(estimator: Any, name: str, x: Any) -> None:
    if x.shape[1] != estimator.n_features_in_:
        raise ValueError(
            f"{name} has {x.shape[1]} columns, but the model takes {estimator.n_features_in_}"
        )


def _model_of(estimator: Any) -> Model:
    return next(model for model in MODELS.values() if type(estimator) is model.kind)


def _print_scores(scores: Scores, title: str) -> None:
    console = Console()
    table = Table("quantity", "value", "95 % interval", "interval of", title=title)
    for s in (*scores.scores, *scores.recalls):
        of_class = s not in scores.scores
        interval = f"{s.lower:.4g} … {s.upper:.4g}" if np.isfinite(s.lower) else "–"
        interval += "" if s.trusted else " (not trusted)"
        name = f"recall of class {s.name}" if of_class else s.name
        table.add_row(Text(name), f"{s.value:.4g} {s.unit}".strip(), interval, s.how)
    console.print(table)
    for remark in (f"{scores.rows} rows.", *scores.remarks):
        console.print(remark, highlight=False, markup=False)


def sample_estimator(context: typer.Context, path: Path) -> None:
    """Draw rows from a model that has a distribution of them."""
    values = context.params
    estimator = load(path, device="cpu") if not path.is_dir() else EstimatorRun(path).estimator()
    if not hasattr(estimator, "sample"):
        raise ValueError(
            f"{path} holds a {type(estimator).__name__}, which predicts and has no distribution of "
            "rows to draw from; rbm and vae have one"
        )
    _refuse(context, ("steps", "beta"), "independent draws")
    if values["n"] < 1:
        raise ValueError(f"--n must be at least 1, got {values['n']}")
    rows = estimator.sample(values["n"], random_state=values["seed"])
    buffer = io.BytesIO()
    np.save(buffer, rows, allow_pickle=False)
    write_atomically(values["out"], buffer.getvalue())
    print(f"samples: {values['out']} ({len(rows)} rows of {rows.shape[1]})")


def _refuse(context: typer.Context, options: tuple[str, ...], what: str) -> None:
    """What has no meaning is refused, since it would be passed over in silence."""
    for name, flag in typed_options(context).items():
        if name in options:
            raise ValueError(f"{flag} has no meaning for {what}: drop it")
