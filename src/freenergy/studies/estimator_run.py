"""Runs of estimators: a folder for one fit, which a killed process leaves resumable.

======================  ==========================================================================
``run.json``            model, parameters, data, versions, seed and command
``checkpoint/``         the state of the fit after each pass, see :mod:`freenergy.estimators`
``metrics.jsonl``       one line of numbers for each pass
``model.safetensors``   the fitted estimator, for :func:`freenergy.load`
``scores.json``         how good it is on rows held out
``report.html``         the page that ``freenergy report`` writes
======================  ==========================================================================
"""

from __future__ import annotations

import dataclasses
import io
import json
import os
import signal
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from freenergy import distributed
from freenergy.estimators.loading import load
from freenergy.estimators.snapshot import snapshot
from freenergy.files import as_json, write_atomically
from freenergy.progress import Reporter
from freenergy.studies.estimator_data import ModelData, open_model_data
from freenergy.studies.estimator_models import MODELS, Model
from freenergy.studies.estimator_scores import Scores, quick_scores
from freenergy.training import RunError, RunFolder, load_checkpoint
from freenergy.training.run import versions
from freenergy.training.trainer import Trainer

__all__ = [
    "EstimatorConfig",
    "EstimatorRun",
    "data_of",
    "is_estimator_run",
    "records_of",
    "train_estimator",
]

# Code, and what does not concern the result.
_NOT_STORED = frozenset(
    {"callback", "checkpoint_dir", "monitors", "rbm", "start", "verbose", "warm_start"}
)
_PART = "rbm__"


@dataclass(frozen=True)
class EstimatorConfig:
    """What makes a run: with it and the data, the run can be repeated to the bit.

    Attributes
    ----------
    model : str
        As ``--model`` has it.
    parameters : dict
        All that the estimator depends on, as JSON can hold it.
    data : dict
        ``name``, ``labels``, ``binarize``, ``fingerprint``, ``held_out`` and ``image_shape``.
    dtype : str
    command : str
        As typed.
    versions : dict of str
    """

    model: str
    parameters: dict[str, Any]
    data: dict[str, Any]
    dtype: str = "float32"
    command: str = ""
    versions: dict[str, str] = field(default_factory=versions)

    @classmethod
    def of(cls, model: Model, settings: dict[str, Any], **others: Any) -> Self:
        """The configuration of a model with some settings, and the defaults for the rest."""
        parameters = {
            name: _listed(value)
            for name, value in model.estimator(settings).get_params(deep=True).items()
            if name.removeprefix(_PART) not in _NOT_STORED
        }
        return cls(model.name, parameters, **others)

    @property
    def kind(self) -> Model:
        """The model."""
        return MODELS[self.model]

    @property
    def seed(self) -> int:
        """Of every random number."""
        return int(self.parameters["random_state"])

    @property
    def n_passes(self) -> int:
        """Passes over the data, at most."""
        return int(self.parameters[self.kind.passes])

    def with_passes(self, n: int) -> Self:
        """The same with another number of passes."""
        return dataclasses.replace(self, parameters=self.parameters | {self.kind.passes: n})

    def estimator(self) -> Any:
        """The estimator, not fitted."""
        return self.kind.estimator({k: _unlisted(v) for k, v in self.parameters.items()})

    def to_json(self) -> str:
        """The configuration as indented JSON."""
        values = dataclasses.asdict(self)
        own = {"estimator": self.kind.kind.__name__, "seed": self.seed}
        return json.dumps({"model": values.pop("model")} | own | values, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Self:
        """The configuration that :meth:`to_json` gave."""
        values = json.loads(text)
        for name in ("estimator", "seed"):
            del values[name]
        if values["model"] not in MODELS:
            raise ValueError(f"unknown model {values['model']!r}")
        return cls(**values)

    def same_training(self, other: EstimatorConfig) -> bool:
        """Whether another configuration trains the same model, by whatever command and versions."""
        mine, others = (
            json.loads(config.to_json()) | {"command": None, "versions": None}
            for config in (self, other)
        )
        return bool(mine == others)


class EstimatorRun(RunFolder):
    """A folder that holds one run of an estimator.

    Parameters
    ----------
    path : path-like
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        super().__init__(path)
        self.checkpoint_dir = self.path / "checkpoint"
        self.checkpoint_path = self.checkpoint_dir / "fit.safetensors"
        self.scores_path = self.path / "scores.json"

    def create(self, config: EstimatorConfig, *, or_open: bool = False) -> None:
        """Start a run in a folder that holds none, ``or_open`` the same one.

        Raises
        ------
        RunError
            When the folder holds a run already, or cannot be written.
        """
        if or_open and is_estimator_run(self.path) and self.config().same_training(config):
            return
        self.begin(config.to_json())

    def write_config(self, config: EstimatorConfig) -> None:
        """Replace the configuration."""
        self.replace_config(config.to_json())

    def withdraw(self) -> None:
        """Leave nothing of a run that was refused before its first pass."""
        if self.model_path.exists() or any(self.checkpoint_dir.rglob("*.safetensors")):
            return
        for file in (self.config_path, self.checkpoint_dir / "fit.json", self.metrics_path):
            file.unlink(missing_ok=True)
        for folder in (self.checkpoint_dir / "pretraining", self.checkpoint_dir, self.path):
            (folder / "fit.json").unlink(missing_ok=True)
            with suppress(OSError):  # Where something else lies in it, it stays.
                folder.rmdir()

    def config(self) -> EstimatorConfig:
        """The configuration of the run.

        Raises
        ------
        RunError
            When the folder is no run, or its configuration is damaged.
        """
        return self.read_config(EstimatorConfig.from_json)

    def n_done(self) -> int:
        """Passes that are stored, those of a pretraining not counted."""
        if not self.checkpoint_path.exists():
            return 0
        return int(load_checkpoint(self.checkpoint_path)[1]["epoch"])

    def is_extendable(self) -> bool:
        """Whether a longer run makes the same passes first."""
        if not self.checkpoint_path.exists():
            return True
        return bool(load_checkpoint(self.checkpoint_path)[1]["fit"]["extendable"])

    def estimator(self) -> Any:
        """The fitted estimator.

        Raises
        ------
        RunError
            When the run has none yet.
        """
        if not self.model_path.exists():
            raise RunError(
                f"{self.path} has no fitted model yet: go on with freenergy train --resume "
                f"{self.path}"
            )
        return load(self.model_path, device="cpu")

    def scores(self) -> Scores | None:
        """How good the model is on rows held out, where that was measured.

        Raises
        ------
        RunError
            When the file is damaged.
        """
        if not self.scores_path.exists():
            return None
        try:
            return Scores.from_json(self.scores_path.read_text(encoding="utf-8"))
        except (RunError, ValueError) as error:
            raise RunError(
                f"{self.scores_path} is damaged: delete it and evaluate again ({error})"
            ) from error

    def write_metrics(self, history: list[dict[str, Any]]) -> None:
        """Replace the lines of all passes."""
        write_atomically(self.metrics_path, "".join(map(_line, history)))

    def append_metrics(self, record: dict[str, Any]) -> None:
        """Add the line of one pass."""
        with self.metrics_path.open("a", encoding="utf-8") as file:
            file.write(_line(record))


def is_estimator_run(path: str | os.PathLike[str]) -> bool:
    """Whether a folder holds a run of an estimator, and not one of an RBM, or none."""
    file = Path(path) / "run.json"
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(values, dict) and "estimator" in values


def data_of(config: EstimatorConfig) -> ModelData:
    """The data of a run, as they were when the run started.

    Raises
    ------
    RunError
        When they are others by now.
    """
    stored = config.data
    found = open_model_data(
        config.kind,
        stored["name"],
        labels=stored["labels"],
        binarize=stored["binarize"],
        dtype=config.dtype,
    )
    if found.fingerprint != stored["fingerprint"]:
        raise RunError(f"the data {stored['name']!r} is not what the run started with")
    return found


def train_estimator(
    run: EstimatorRun, config: EstimatorConfig, found: ModelData, reporter: Reporter
) -> tuple[Any, bool]:
    """Fit to the end, from wherever the run is; of several processes, the first one writes.

    Parameters
    ----------
    run : EstimatorRun
    config : EstimatorConfig
    found : ModelData
    reporter : Reporter
        Told of each pass.

    Returns
    -------
    estimator
        Fitted, and saved in the folder where at least one pass is made.
    complete : bool
        False after Ctrl-C.
    """
    first = distributed.group_now().rank == 0
    if not first:
        reporter = Reporter(io.StringIO())
    estimator = config.estimator()
    n_before = _passes_before(estimator)
    with reporter.task(str(run.path), n_before + config.n_passes, "epochs") as advance:
        place = run if first else None
        course = _Course(place, config.kind, estimator, found, advance, n_before)
        estimator.set_params(callback=course, checkpoint_dir=run.checkpoint_dir)
        if n_before:
            estimator.rbm.set_params(callback=_Pretraining(course))
        with _noting_interrupts(course), _without_notes():
            estimator.fit(found.x, found.y)
    if first and (not course.interrupted or estimator.history_):
        run.write_metrics(records_of(estimator))
        estimator.save(run.model_path)
    return estimator, not course.interrupted


def _passes_before(estimator: Any) -> int:
    """Passes of a training before the one that counts."""
    rbm = getattr(estimator, "rbm", None)
    return int(rbm.n_iter) if rbm is not None and estimator.pretrain else 0


def records_of(estimator: Any) -> list[dict[str, Any]]:
    """The history of a fitted estimator, pass by pass."""
    columns = estimator.history_
    n = max(map(len, columns.values()), default=0)
    rows = ({name: column[i] for name, column in columns.items()} for i in range(n))
    return [{name: x for name, x in row.items() if x is not None} for row in rows]


class _Course:
    """Callback of a fit: its metrics, its progress, and numbers of rows held out."""

    def __init__(
        self,
        run: EstimatorRun | None,
        model: Model,
        estimator: Any,
        found: ModelData,
        advance: Callable[..., None],
        n_before: int,
    ) -> None:
        self.run = run
        self.estimator = estimator
        self.measure = quick_scores(model, found.x_held_out, found.y_held_out)
        self.advance = advance
        self.n_before = n_before
        self.done = 0
        self.interrupted = False

    def on_train_begin(self, trainer: Trainer) -> None:
        reading = snapshot(self.estimator, trainer)
        trainer.monitors = (*trainer.monitors, lambda model: self.measure(reading))
        self.reach(self.n_before + trainer.epoch)
        if self.run is not None:
            # A killed process may have left the line of a pass that it did not store.
            self.run.write_metrics(trainer.history)

    def __call__(self, trainer: Trainer) -> None:
        record = trainer.history[-1]
        self.reach(self.n_before + trainer.epoch, _described(record))
        if self.run is not None:
            # Of an earlier model, which is no more.
            self.run.scores_path.unlink(missing_ok=True)
            self.run.append_metrics(record)

    def reach(self, epoch: int, note: str = "") -> None:
        """Show that so many passes are made."""
        self.advance(epoch - self.done, note)
        self.done = epoch

    def __deepcopy__(self, memo: Any) -> Self:
        return self


class _Pretraining:
    """Callback of the training before the one that counts."""

    def __init__(self, course: _Course) -> None:
        self.course = course

    def on_train_begin(self, trainer: Trainer) -> None:
        self.course.reach(trainer.epoch)

    def __call__(self, trainer: Trainer) -> None:
        self.course.reach(trainer.epoch, "pretraining")

    def __deepcopy__(self, memo: Any) -> Self:
        return self  # Estimators are cloned before they are fitted, and this is to be told.


@contextmanager
def _noting_interrupts(course: _Course) -> Iterator[None]:
    """Note Ctrl-C, after which a fit keeps its last pass and returns as if it were complete."""
    try:
        before = signal.getsignal(signal.SIGINT)
        if before is signal.default_int_handler:
            signal.signal(signal.SIGINT, lambda *_: _interrupt(course))
    except ValueError:  # Not in the main thread, which Ctrl-C alone reaches.
        before = None
    try:
        yield
    finally:
        if before is signal.default_int_handler:
            signal.signal(signal.SIGINT, before)


def _interrupt(course: _Course) -> None:
    course.interrupted = True
    raise KeyboardInterrupt


@contextmanager
def _without_notes() -> Iterator[None]:
    """Without warnings of what the command line says otherwise, or was asked for."""
    with warnings.catch_warnings():
        for note in ("training was interrupted", "Stochastic Optimizer: Maximum iterations"):
            warnings.filterwarnings("ignore", note)
        yield


def _described(record: dict[str, Any]) -> str:
    """The most telling numbers of a pass, in words."""
    words = []
    for key, text in (
        ("loss", "loss {:.4g}"),
        ("free_energy", "free energy {:.2f}"),
        ("accuracy_test", "held-out accuracy {:.4f}"),
        ("r2_test", "held-out R² {:.4f}"),
        ("free_energy_test", "held-out free energy {:.2f}"),
    ):
        if key in record:
            words.append(text.format(record[key]))
    return ", ".join(words)


def _line(record: dict[str, Any]) -> str:
    return json.dumps(as_json(record)) + "\n"


def _listed(value: Any) -> Any:
    if isinstance(value, dict):
        # As pairs: the keys of a JSON object are strings, those of classes need not be.
        return {"pairs": [[_listed(k), _listed(v)] for k, v in value.items()]}
    return [_listed(item) for item in value] if isinstance(value, list | tuple) else value


def _unlisted(value: Any) -> Any:
    if isinstance(value, dict):
        return dict(value["pairs"])
    return tuple(value) if isinstance(value, list) else value
