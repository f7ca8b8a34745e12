"""The run directory: the unit of long work, which a killed process leaves resumable.

======================  ==========================================================================
``run.json``            configuration, versions, seed and command
``model.safetensors``   parameters and all that the next update depends on; after every epoch
``metrics.jsonl``       one line of numbers for each epoch
``assessment.json``     how good the model is, where that was measured
``report.html``         the page that ``freenergy report`` writes
======================  ==========================================================================
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import platform
from dataclasses import asdict, dataclass, field
from operator import methodcaller
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils import skip_init

from freenergy._version import __version__
from freenergy.distributed import group_now
from freenergy.files import write_atomically
from freenergy.inference import Ladder
from freenergy.models import RBM, get_unit
from freenergy.random import RandomStream
from freenergy.training.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from freenergy.training.options import TrainingOptions, check_whole
from freenergy.training.precision import check_precision
from freenergy.training.rows import Rows
from freenergy.training.run_folder import RunFolder
from freenergy.training.trainer import Monitor, Trainer, initialize
from freenergy.training.trajectory import ladder_of

__all__ = ["RunConfig", "RunDirectory", "load_model", "versions"]


def versions() -> dict[str, str]:
    """Versions and hardware that the bits of a run depend on."""
    return {
        "freenergy": __version__,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "numpy": np.__version__,
        "platform": f"{platform.system()} {platform.machine()}",
        "threads": str(torch.get_num_threads()),
    }


@dataclass(frozen=True)
class RunConfig:
    """What makes a run: with it and the data, the run can be repeated to the bit.

    Attributes
    ----------
    data : dict
        ``name``, ``binarize`` and ``fingerprint`` of the data set.
    n_visible, n_hidden : int
    options : TrainingOptions
    seed : int
    visible, hidden : str
        Unit types.
    dtype : str
        ``"float32"`` or ``"float64"``.
    device : str
    command : str
        As typed.
    versions : dict of str

    Raises
    ------
    ValueError
        When something is impossible; the message names it.
    """

    data: dict[str, Any]
    n_visible: int
    n_hidden: int
    options: TrainingOptions
    seed: int
    visible: str = "bernoulli"
    hidden: str = "bernoulli"
    dtype: str = "float32"
    device: str = "cpu"
    command: str = ""
    versions: dict[str, str] = field(default_factory=versions)

    def __post_init__(self) -> None:
        if "name" not in self.data:
            raise ValueError("data must have a name")
        for name in ("n_visible", "n_hidden"):
            check_whole(name, getattr(self, name), 1)
        check_whole("seed", self.seed, 0)
        for unit in (self.visible, self.hidden):
            get_unit(unit)
        if self.dtype not in ("float32", "float64"):
            raise ValueError(f"dtype must be 'float32' or 'float64', got {self.dtype!r}")
        check_precision(self.options.precision, getattr(torch, self.dtype))

    def to_json(self) -> str:
        """The configuration as indented JSON."""
        # NumPy's numbers, from a grid of options perhaps, are written as plain ones.
        return json.dumps(asdict(self), indent=2, default=methodcaller("item")) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Self:
        """The configuration that :meth:`to_json` gave."""
        values = json.loads(text)
        values["options"] = TrainingOptions.from_dict(values["options"])
        return cls(**values)

    def same_training(self, other: RunConfig) -> bool:
        """Whether another configuration trains the same model, by whatever command and versions."""
        mine, others = (
            json.loads(config.to_json()) | {"command": None, "versions": None}
            for config in (self, other)
        )
        return bool(mine == others)

    def build(
        self, rows: Rows, monitors: tuple[Monitor, ...] = (), monitor_every: int = 1
    ) -> Trainer:
        """A trainer at the start of this run."""
        dtype, device = getattr(torch, self.dtype), torch.device(self.device)
        # The module's own initial draws would come from torch's global stream, and be replaced.
        model = skip_init(
            RBM,
            self.n_visible,
            self.n_hidden,
            visible=self.visible,
            hidden=self.hidden,
            dtype=dtype,
            device=device,
        )
        random = RandomStream(self.seed, device)
        initialize(model, rows, random, self.options.beta)
        order = RandomStream(np.random.SeedSequence([self.seed, 1]))
        return Trainer(
            model, self.options, random, order=order, monitors=monitors, monitor_every=monitor_every
        )


class RunDirectory(RunFolder):
    """A folder that holds one run of an RBM.

    Parameters
    ----------
    path : path-like

    Examples
    --------
    >>> import tempfile, torch
    >>> from freenergy.training import TrainingOptions, as_rows
    >>> rows = as_rows(torch.eye(8), like=torch.empty(0))
    >>> config = RunConfig({"name": "eye"}, 8, 4, TrainingOptions(n_epochs=2), seed=0)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     run = RunDirectory.create(folder + "/run", config)
    ...     trainer = config.build(rows)
    ...     run.train(trainer, rows)
    ...     load_model(run.path)
    RBM(n_visible=8, n_hidden=4, visible='bernoulli', hidden='bernoulli')
    """

    @property
    def checkpoint_path(self) -> Path:
        """The model and the trainer's state."""
        return self.model_path

    @property
    def assessment_path(self) -> Path:
        """How good the model is, as far as that was measured."""
        return self.path / "assessment.json"

    @classmethod
    def create(cls, path: str | os.PathLike[str], config: RunConfig) -> Self:
        """Start a run in a folder that holds none.

        Raises
        ------
        RunError
            When the folder holds a run already, or cannot be written.
        """
        run = cls(path)
        run.begin(config.to_json())
        return run

    @classmethod
    def create_or_open(cls, path: str | os.PathLike[str], config: RunConfig) -> Self:
        """The run of this configuration in a folder: the one that is there, or a new one.

        For processes that are started again by the same command.

        Raises
        ------
        RunError
            When the folder holds another run, or cannot be written.
        """
        run = cls(path)
        if run.config_path.exists() and run.config().same_training(config):
            return run
        return cls.create(path, config)

    def config(self) -> RunConfig:
        """The configuration of the run.

        Raises
        ------
        RunError
            When the folder is no run, or its configuration is damaged.
        """
        return self.read_config(RunConfig.from_json)

    def save(self, trainer: Trainer) -> None:
        """Store the state of a trainer; killed at any moment, the run keeps the last state.

        Of several processes, the first one writes.
        """
        if group_now().rank > 0:
            return
        tensors, values = trainer.state()
        save_checkpoint(
            self.checkpoint_path, tensors, values | {"model": model_spec(trainer.model)}
        )

    def restore(self, trainer: Trainer) -> bool:
        """Bring a trainer to the stored state; False when none was stored yet.

        Raises
        ------
        CheckpointError
            When the checkpoint is damaged.
        """
        if not self.checkpoint_path.exists():
            return False
        tensors, values = load_checkpoint(self.checkpoint_path)
        try:
            stored = TrainingOptions.from_dict(values["options"])
            if dataclasses.replace(stored, n_epochs=trainer.options.n_epochs) != trainer.options:
                raise RuntimeError("they were written with other options")
            trainer.restore(tensors, values)
        except (KeyError, RuntimeError) as error:
            raise CheckpointError(
                f"{self.checkpoint_path} does not fit {self.config_path} ({error})"
            ) from error
        return True

    def train(
        self, trainer: Trainer, rows: Rows, *, checkpoint_every: int = 1, **hooks: Any
    ) -> None:
        """Train to the end with a line of metrics after each epoch, and a checkpoint.

        Continues from the stored state where there is one. ``checkpoint_every`` is the number of
        epochs that a killed process may lose; whatever else ends the training early is preceded
        by a checkpoint. ``hooks`` are those of
        :meth:`Trainer.fit <freenergy.training.Trainer.fit>`.

        Of several processes, the first one alone reads and writes the folder.
        """
        first = group_now().rank == 0
        if first:
            self._begin(trainer)
        on_epoch = hooks.pop("on_epoch", None)
        stored = trainer.epoch

        def after_epoch(trainer: Trainer) -> None:
            nonlocal stored
            if first:
                # Of an earlier model, which is no more.
                self.assessment_path.unlink(missing_ok=True)
            if trainer.epoch % checkpoint_every == 0:
                self.save(trainer)
                stored = trainer.epoch
            if first:
                self._append_metrics(trainer.history[-1])
            if on_epoch is not None:
                on_epoch(trainer)

        try:
            trainer.fit(rows, on_epoch=after_epoch, **hooks)
        finally:
            if trainer.epoch != stored:
                self.save(trainer)

    def _begin(self, trainer: Trainer) -> None:
        """Bring a trainer to the stored state, or store the state at its start."""
        for leftover in self.path.glob(".*.tmp"):  # of a process killed while it wrote
            leftover.unlink()
        if not self.restore(trainer):
            self.save(trainer)
        self._write_metrics(trainer.history)

    def ladder(self) -> Ladder | None:
        """The models that training passed through, the last one on top; None where none are kept.

        Only ``method="ptt"`` keeps them.
        """
        tensors, _ = load_checkpoint(self.checkpoint_path)
        if "gradient.ladder_weight" not in tensors:
            return None
        model = load_model(self.path)
        state = {name.removeprefix("gradient."): t for name, t in tensors.items()}
        ladder = ladder_of(state, model)
        ladder.set_top(model, self.config().options.beta)
        return ladder

    def chains(self) -> Tensor | None:
        """Hidden states of the persistent chains of the training; None where there are none."""
        tensors, _ = load_checkpoint(self.checkpoint_path)
        return tensors.get("gradient.chain")

    def certificate(self) -> dict[str, Any] | None:
        """The certificate of equilibrium of the stored model; None where none was made."""
        _, values = load_checkpoint(self.checkpoint_path)
        return values.get("certificate")

    def history(self) -> list[dict[str, Any]]:
        """The records of the epochs so far."""
        _, values = load_checkpoint(self.checkpoint_path)
        return list(values["history"])

    def _write_metrics(self, history: list[dict[str, Any]]) -> None:
        write_atomically(self.metrics_path, "".join(map(_line, history)))

    def _append_metrics(self, record: dict[str, Any]) -> None:
        with self.metrics_path.open("a", encoding="utf-8") as file:
            file.write(_line(record))


def _line(record: dict[str, Any]) -> str:
    finite = {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in record.items()
    }
    return json.dumps(finite) + "\n"


def model_spec(model: RBM) -> dict[str, Any]:
    """What is needed to build a model of the same shape."""
    return {
        "n_visible": model.n_visible,
        "n_hidden": model.n_hidden,
        "visible": model.visible.name,
        "hidden": model.hidden.name,
    }


def load_model(path: str | os.PathLike[str]) -> RBM:
    """The model of a run directory or of a checkpoint file, on the CPU.

    Parameters
    ----------
    path : path-like
        A run directory, or a ``.safetensors`` file that freenergy wrote.

    Returns
    -------
    RBM

    Raises
    ------
    CheckpointError
        When the file is missing or damaged; the message names it.

    Examples
    --------
    >>> import tempfile
    >>> import numpy as np
    >>> import freenergy as fe
    >>> rbm = fe.BernoulliRBM(3, n_iter=1, random_state=0).fit(np.eye(4))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     rbm.save(f"{folder}/rbm.safetensors")
    ...     load_model(f"{folder}/rbm.safetensors")
    RBM(n_visible=4, n_hidden=3, visible='bernoulli', hidden='bernoulli')
    """
    path = Path(path)
    file = path / "model.safetensors" if path.is_dir() else path
    tensors, values = load_checkpoint(file)
    try:
        model = skip_init(RBM, **values["model"], dtype=tensors["model.weight"].dtype)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_(tensors[f"model.{name}"])
    except (KeyError, TypeError, RuntimeError, ValueError) as error:
        raise CheckpointError(f"{file} holds no RBM ({error})") from error
    return model
