"""Pieces that the pages of several studies share: curves, thermodynamics, pictures, origin."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from freenergy.report import Block, Curve, ImageGrid, LineChart, Section, Text
from freenergy.studies.results import MethodResult

__all__ = [
    "band",
    "filter_grid",
    "provenance",
    "reading_section",
    "sample_grid",
    "temperature_sections",
    "thermodynamics_section",
    "unfinished",
]

FILTERS_NOTE = (
    "Weights of the hidden units with the largest norm. Red raises a pixel, blue lowers it."
)
SAMPLES_NOTE = (
    "Probabilities of the pixels in chains that started at random, after 1000 Gibbs steps. "
    "Chains that all show one picture have not left a valley."
)


def unfinished(*missing: str) -> list[Section]:
    """What a study lacks that was stopped, and how it goes on; nothing where it lacks nothing."""
    left = [words for words in missing if words]
    if not left:
        return []
    return [
        Section(
            "Not finished",
            [Text([f"{words[0].upper()}{words[1:].removesuffix('.')}." for words in left])],
            intro=(
                "This page shows what is done so far. Run the study again with the same options "
                "and `--out`: it goes on with what is missing:"
            ),
        )
    ]


def band(name: str, method: MethodResult, key: str, dash: bool = False) -> list[Curve]:
    """A curve of the mean over seeds, with the range of the seeds as its band."""
    epochs, values = method.curve(key)
    if epochs.size == 0:
        return []
    if len(values) == 1:
        return [Curve(name, epochs, values[0], dash=dash)]
    return [
        Curve(name, epochs, values.mean(0), lower=values.min(0), upper=values.max(0), dash=dash)
    ]


def thermodynamics_section(method: MethodResult) -> Section:
    """F, U and S over the epochs, each order of the mean field apart."""
    charts: list[Block] = []
    for quantity, title in (("free_energy", "F"), ("energy", "U"), ("entropy", "S")):
        curves = []
        for order, label in ((1, "naive"), (2, "TAP2"), (3, "TAP3")):
            curves += band(label, method, f"tap{order}_{quantity}")
        curves += band("exact", method, f"exact_{quantity}", dash=True)
        unit = "nats" if quantity == "entropy" else "units of the energy"
        charts.append(LineChart(f"{title}, trained by {method.name}", "epoch", unit, curves))
    return Section(f"Free energy, energy and entropy: {method.name}", charts)


def temperature_sections(*methods: MethodResult) -> list[Section]:
    """The effective temperature over the epochs and over the norm of the weights."""
    over_epochs, over_norm = [], []
    for method in methods:
        records = [r for r in method.histories[0] if "temperature" in r]
        if not records:
            continue
        y = [r["temperature"] for r in records]
        lower = [r["temperature_lower"] for r in records]
        upper = [r["temperature_upper"] for r in records]
        epochs = [r["epoch"] for r in records]
        over_epochs.append(Curve(method.name, epochs, y, lower=lower, upper=upper))
        order = sorted(range(len(records)), key=lambda i: records[i]["weight_norm"])
        norm = [records[i]["weight_norm"] for i in order]
        over_norm.append(Curve(method.name, norm, [y[i] for i in order]))
    if not over_epochs:
        return []
    label = "effective temperature"
    return [
        Section(
            "How warm is the model?",
            [
                LineChart("Effective temperature over training", "epoch", label, over_epochs),
                LineChart("Norm and temperature", "norm of the weights ‖W‖", label, over_norm),
            ],
            intro=(
                "The temperature at which the model explains held-out rows best, by maximum "
                "pseudo-likelihood, where 1 is the temperature of the training; bands are 95 % "
                "intervals over the rows, of the first seed. Above 1 the couplings are too strong "
                "for the data, below 1 too weak."
            ),
        )
    ]


def reading_section(exact: bool) -> Section:
    """What the quantities mean and when not to believe them."""
    paragraphs = [
        "**F, U and S** of the mean-field orders are means over states that started at rows of "
        "the data: they describe the valleys that hold the data. The exact values, where given, "
        "are those of the whole model. F = U − S/β in each order.",
        "A **negative entropy**, or states that do not converge, mean that the couplings are too "
        "strong for the expansion: do not trust its free energy there. The TAP free energy is no "
        "bound on the exact one.",
    ]
    if not exact:
        paragraphs.append(
            "The partition function of this model cannot be enumerated, so no likelihood is "
            "claimed here; the pseudo-likelihood compares models of one size only loosely."
        )
    return Section("How to read this page", [Text(paragraphs)])


def _grey_shape(shape: Sequence[int] | None) -> tuple[int, int] | None:
    if shape is None or len(shape) != 2:
        return None
    return int(shape[0]), int(shape[1])


def filter_grid(method: MethodResult, shape: Sequence[int] | None) -> list[Block]:
    """The filters as images, where rows are grey images."""
    grey = _grey_shape(shape)
    if grey is None:
        return []
    images = method.filters.reshape(-1, *grey)
    return [ImageGrid(f"Filters, {method.name}", images, symmetric=True)]


def sample_grid(method: MethodResult, shape: Sequence[int] | None) -> list[Block]:
    """The samples as images, where rows are grey images."""
    grey = _grey_shape(shape)
    if grey is None:
        return []
    return [ImageGrid(f"Samples, {method.name}", method.samples.reshape(-1, *grey))]


def provenance(
    data: dict[str, Any], versions: Mapping[str, str], command: str, seeds: Sequence[int]
) -> dict[str, object]:
    """Where the figures of a page come from, for its foot."""
    return {
        "data": f"{data['name']} (sha256 {str(data.get('fingerprint', ''))[:12]}…)",
        "binarised above": data.get("binarize"),
        "seeds": ", ".join(map(str, seeds)),
        "command": command or "(from Python)",
        **versions,
    }
