"""The page of a run of an estimator."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from freenergy.models.vae import VAE
from freenergy.random import RandomStream
from freenergy.report import (
    BarChart,
    Block,
    Curve,
    ImageGrid,
    LineChart,
    Page,
    Section,
    Table,
    Text,
    Verdict,
)
from freenergy.studies.blocks import provenance
from freenergy.studies.estimator_data import ModelData
from freenergy.studies.estimator_models import written
from freenergy.studies.estimator_run import EstimatorConfig
from freenergy.studies.estimator_scores import Scores

__all__ = ["Pictures", "estimator_page", "pictures_of"]

_SHOWN, _COLUMNS = 48, 8
_RATE = "learning_rate"
_QUESTIONS = {
    "classes": "How well does it tell the classes of rows that it has not seen?",
    "numbers": "How well does it predict rows that it has not seen?",
    "rows": "How well does it describe rows that it has not seen?",
}
# Title, axis, and the curves: a name in the legend and the number of the history that it shows.
_CHARTS: tuple[tuple[str, str, tuple[tuple[str, str], ...]], ...] = (
    (
        "Loss",
        "nats",
        (("train", "loss"), ("validation", "loss_held_out"), ("held out", "loss_test")),
    ),
    (
        "Accuracy",
        "share of the rows",
        (
            ("train", "accuracy"),
            ("validation", "accuracy_held_out"),
            ("held out", "accuracy_test"),
        ),
    ),
    ("Score of the validation rows", "score", (("validation", "score_held_out"),)),
    ("Coefficient of determination", "R²", (("held out", "r2_test"),)),
    (
        "Free energy",
        "nats",
        (
            ("train", "free_energy"),
            ("validation", "free_energy_held_out"),
            ("held out", "free_energy_test"),
        ),
    ),
    ("Energy", "nats", (("train", "energy"), ("validation", "energy_held_out"))),
    ("Entropy", "nats", (("train", "entropy"), ("validation", "entropy_held_out"))),
    ("Free energy of the RBM in the net", "units of the energy", (("train", "rbm_free_energy"),)),
    ("Pseudo-likelihood of that RBM", "nats", (("train", "rbm_pseudo_likelihood"),)),
    ("Norm of its weights", "‖W‖", (("train", "rbm_weight_norm"),)),
    ("Learning rate", "rate", (("rate", _RATE),)),
)


@dataclass(frozen=True, eq=False)
class Pictures:
    """Rows as images: drawn from a model, held out, and what the model makes of those.

    Attributes
    ----------
    drawn, given, rebuilt : ndarray of shape (n, height, width) or (n, height, width, 3)
        The last two are empty where the data are not at hand.
    """

    drawn: np.ndarray
    given: np.ndarray
    rebuilt: np.ndarray


def pictures_of(
    config: EstimatorConfig, estimator: Any, found: ModelData | None
) -> Pictures | None:
    """What an autoencoder of images draws and rebuilds; None of any other model.

    Parameters
    ----------
    config : EstimatorConfig
    estimator : TorchEstimator
        Fitted.
    found : ModelData or None
        None where the data are not at hand.
    """
    shape = config.data.get("image_shape")
    if config.kind.learns != "rows" or shape is None:
        return None
    means = estimator.inverse_transform(_prior_draws(estimator.model_, config.seed))
    given = np.empty((0, means.shape[1]))
    if found is not None:
        given = np.asarray(found.x_held_out)[:_SHOWN]
    rebuilt = estimator.inverse_transform(estimator.transform(given)) if len(given) else given
    images = [_images(rows, shape) for rows in (means, given, rebuilt)]
    if any(image is None for image in images):
        return None
    return Pictures(*(image for image in images if image is not None))


@torch.no_grad()
def _prior_draws(model: VAE, seed: int) -> np.ndarray:
    """Latent states of the model's own distribution."""
    noise = model.noise(RandomStream(seed, next(model.parameters()).device), (_SHOWN,))
    return model.place(model.prior(), noise).cpu().numpy()


def _images(rows: np.ndarray, shape: Sequence[int]) -> np.ndarray | None:
    """Rows as grey or colour images; None where they are neither."""
    rows = np.asarray(rows, dtype=np.float64)
    if len(shape) == 2:
        return rows.reshape(-1, *shape)
    if len(shape) == 3 and shape[0] == 3:
        return rows.reshape(-1, *shape).transpose(0, 2, 3, 1)
    return None


def estimator_page(
    config: EstimatorConfig,
    history: Sequence[dict[str, Any]],
    scores: Scores | None,
    pictures: Pictures | None = None,
    n_before: int = 0,
) -> Page:
    """Compose the report of one run.

    Parameters
    ----------
    config : EstimatorConfig
    history : sequence of dict
        The records of the passes.
    scores : Scores or None
        Of the held-out rows.
    pictures : Pictures or None, default=None
    n_before : int, default=0
        Epochs of a pretraining.

    Returns
    -------
    Page
    """
    curves = _curves(history) or [Text("No epoch left a curve.")]
    sections = [Section("How learning goes", curves, _held_out_words(config, n_before))]
    if scores is not None:
        sections += _score_sections(scores)
    if pictures is not None:
        sections.append(_picture_section(pictures))
    rows = [[name, written(value)] for name, value in config.parameters.items()]
    sections.append(Section("Parameters", [Table(["parameter", "value"], rows)]))
    name = config.kind.kind.__name__
    return Page(
        title=f"{name} on {config.data['name']}",
        question=_QUESTIONS[config.kind.learns],
        verdict=Verdict("info", _verdict(config, len(history), scores)),
        sections=sections,
        provenance=provenance(config.data, config.versions, config.command, [config.seed]),
    )


def _verdict(config: EstimatorConfig, n_done: int, scores: Scores | None) -> str:
    passes = f"{config.kind.kind.__name__}, {n_done} of at most {config.n_passes} epochs."
    if not n_done:
        passes = f"{config.kind.kind.__name__}."
    if scores is None:
        return f"{passes} Not measured yet: `freenergy evaluate` does it."
    return f"**{scores.words}** {passes}"


def _held_out_words(config: EstimatorConfig, n_before: int) -> str:
    before = f"The RBM that was unrolled was trained for {n_before} epochs before. "
    return (before if n_before else "") + (
        f"Held out is {config.data['held_out']}; nothing was learned or chosen by it. The curves "
        "of held-out rows are of up to 1000 of them. Rows for validation, where there are any, "
        "are others: they decide on the end of training."
    )


def _curves(history: Sequence[dict[str, Any]]) -> list[Block]:
    charts: list[Block] = []
    for title, label, curves in _CHARTS:
        found = []
        for name, key in curves:
            records = [record for record in history if record.get(key) is not None]
            x, y = [r["epoch"] for r in records], [r[key] for r in records]
            if y and (key != _RATE or min(y) < max(y)):
                found.append(Curve(name, x, y, dash=name == "validation"))
        if found:
            charts.append(LineChart(title, "epoch", label, found))
    return charts


def _score_sections(scores: Scores) -> list[Section]:
    rows = [
        [s.name, s.value, _or_none(s.lower), _or_none(s.upper), s.unit, s.how]
        for s in scores.scores
    ]
    table = Table(
        ["quantity", "value", "lower", "upper", "unit", "interval"],
        rows,
        caption=f"{scores.rows} rows of {scores.data}",
        note="95 % intervals.",
    )
    blocks: list[Block] = [table]
    if scores.remarks:
        blocks.append(Text(scores.remarks))
    sections = [Section("On rows held out", blocks)]
    if scores.confusion:
        sections.append(_class_section(scores))
    return sections


def _or_none(value: float) -> float | None:
    return value if np.isfinite(value) else None


def _class_section(scores: Scores) -> Section:
    recalls = scores.recalls
    bars = BarChart(
        "Recall of each class",
        "share of its rows",
        [s.name for s in recalls],
        [s.value for s in recalls],
        lower=[s.lower for s in recalls],
        upper=[s.upper for s in recalls],
    )
    rows = [[name, *counts] for name, counts in zip(scores.classes, scores.confusion, strict=True)]
    matrix = Table(
        ["class", *scores.classes],
        rows,
        caption="Held-out rows of each class (down) by the class that was predicted (across)",
    )
    return Section("Which classes are mistaken for which?", [bars, matrix])


def _picture_section(pictures: Pictures) -> Section:
    shown = [("Drawn from the model", pictures.drawn)]
    if len(pictures.given):
        shown = [
            ("Held-out rows", pictures.given),
            ("The same rows, rebuilt", pictures.rebuilt),
            *shown,
        ]
    return Section(
        "What was learned",
        [ImageGrid(title, images, n_columns=_COLUMNS) for title, images in shown],
        "Means of the pixels. A row is rebuilt from the means of its latent units.",
    )
