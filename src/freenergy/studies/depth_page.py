"""The page of the study "depth"."""

from __future__ import annotations

import math
from typing import Any

from scipy.stats import norm

from freenergy.report import Block, Curve, LineChart, Page, Section, Table, Text, Verdict
from freenergy.studies.blocks import provenance, unfinished
from freenergy.studies.depth import DepthStudy
from freenergy.studies.depth_nets import KINDS, in_prose
from freenergy.studies.run_data import rows_in_words
from freenergy.studies.verdict import listed
from freenergy.thermodynamics.watching.diffusion import compare_growth
from freenergy.thermodynamics.watching.readings import PERCENTILES

__all__ = ["depth_page", "depth_sections", "depth_verdict"]

_Z = float(norm.ppf(PERCENTILES[-1] / 100))
_CONFIDENCE = 0.999


def depth_page(study: DepthStudy) -> Page:
    """Compose the report of a study from its result."""
    plan = study.plan
    return Page(
        title="Depth",
        question="What keeps a deep net trainable?",
        verdict=depth_verdict(study),
        sections=[*unfinished(study.missing), *depth_sections(study)],
        provenance=provenance(plan.data, plan.versions, plan.command, [plan.settings.seed]),
    )


def depth_sections(study: DepthStudy) -> list[Section]:
    """The evidence, for a page of its own or beside that of other studies."""
    return [
        *_race(study),
        _losses(study),
        _signal(study),
        *_dropout(study),
        *_batches(study),
    ]


# ---- the verdict ---------------------------------------------------------------------------------


def depth_verdict(study: DepthStudy) -> Verdict:
    """Which of the deepest nets learned, and which stayed at chance."""
    depth = study.depths[-1]
    nets = _nets_of(study, depth)
    diverged = [kind for kind, net in nets.items() if net["diverged"]]
    at_chance = [
        kind for kind, net in nets.items() if kind not in diverged and _is_at_chance(net, study)
    ]
    learned = [
        f"{in_prose(kind)} ({100 * net['final_accuracy']:.1f} %)"
        for kind, net in nets.items()
        if kind not in diverged + at_chance
    ]
    words = f"On {study.data['name']} with {depth} hidden layers of {study.settings.width}: "
    words += f"{listed(learned)} learned" if learned else "no net learned"
    if at_chance:
        chance = 100 * next(iter(nets.values()))["chance"]
        words += f"; {listed(map(in_prose, at_chance))} stayed at chance ({chance:.1f} %)"
    if diverged:
        words += f"; {listed(map(in_prose, diverged))} diverged"
    words += "."
    if study.race:
        results = [
            f"{kind} reaches {100 * net['final_accuracy']:.2f} % in {sum(net['seconds']):.0f} s"
            for kind, net in study.race.items()
        ]
        words += f" On all {study.data['n_train']} rows, {listed(results)}."
    if "drawn" in study.data:
        words += f" The data: {rows_in_words(study.data)}."
    words += " Of one seed: nets that all learned are not ranked by this."
    return Verdict("info", words)


def _nets_of(study: DepthStudy, depth: int, max_norm: bool = False) -> dict[str, dict[str, Any]]:
    """The nets of a depth that are trained, by their kinds."""
    nets = {kind: study.net(kind, depth, max_norm) for kind in KINDS}
    return {kind: net for kind, net in nets.items() if net is not None}


def _is_at_chance(net: dict[str, Any], study: DepthStudy) -> bool:
    """Whether the share of held-out rows that are right could be that of the largest class."""
    chance, n = net["chance"], study.data["n_held_out"]
    margin = float(norm.ppf(_CONFIDENCE)) * math.sqrt(chance * (1 - chance) / n)
    return bool(net["final_accuracy"] <= chance + margin)


# ---- sections ------------------------------------------------------------------------------------


def _race(study: DepthStudy) -> list[Section]:
    if not study.race:
        return []
    chance = next(iter(study.race.values()))["chance"]
    epochs = range(1, study.settings.race_epochs + 1)
    accuracy = [
        Curve(kind, list(epochs)[: len(net["accuracy"])], _percent(net["accuracy"]))
        for kind, net in study.race.items()
    ]
    level = Curve("chance", [1, len(epochs)], [100 * chance] * 2, dash=True)
    depth = max(study.settings.depths)
    return [
        Section(
            f"{depth} layers on all rows",
            [
                LineChart("Held-out accuracy", "pass", "accuracy (%)", [*accuracy, level]),
                _loss_chart("Training loss", study.race),
                Table(
                    ["net", "accuracy (%)", "seconds", "passes"],
                    [
                        [kind, 100 * net["final_accuracy"], sum(net["seconds"]), len(net["loss"])]
                        for kind, net in study.race.items()
                    ],
                ),
            ],
            intro=(
                f"{depth} hidden layers of {study.settings.width} units, Adam at "
                f"{study.settings.race_rate:g} down to zero along a cosine, batches of "
                f"{study.settings.batch_size}, one thread."
            ),
        )
    ]


def _losses(study: DepthStudy) -> Section:
    charts: list[Block] = []
    for depth in study.depths:
        curves = []
        for kind in KINDS:
            for bound in (False, True):
                net = study.net(kind, depth, bound)
                name = "norm held" if bound else "free"
                if net is not None:
                    curves.append(_curve(name, net["loss"], group=kind, dash=bound))
        charts.append(LineChart(f"{depth} layers", "pass", "training loss (nats)", curves))
    rows: list[list[object]] = []
    for kind in KINDS:
        for depth in study.depths:
            free, held = study.net(kind, depth), study.net(kind, depth, True)
            if free is not None:
                remark = free["diverged"] or (held or {}).get("diverged") or ""
                rate = f"{free['spec']['learning_rate']:g}"
                rows.append([kind, depth, rate, *_end(free), *_end(held), remark])
    columns = ["net", "layers", "rate", "loss", "accuracy (%)"]
    columns += ["loss, norm held", "accuracy (%), norm held"]
    if any(row[-1] for row in rows):
        columns.append("remark")
    else:
        rows = [row[:-1] for row in rows]
    rates = [f"{rate:g}" for rate in study.settings.learning_rates]
    best = f"with the best of the learning rates {', '.join(rates)} by the last training loss"
    table = Table(columns, rows, caption="After the last pass; accuracy on held-out rows")
    return Section(
        "How deep can it be trained?",
        [*charts, table],
        intro=(
            f"Nets of {study.settings.width} units in each hidden layer, Adam "
            f"{best if len(rates) > 1 else f'at {rates[0]}'}, batches of "
            f"{study.settings.batch_size}. **Norm held**: at the same rate, after each update the "
            "weights of every hidden unit are projected on the ball whose radius is the norm of "
            "their start, so that the temperature of a unit cannot fall."
        ),
    )


def _signal(study: DepthStudy) -> Section:
    depth = study.depths[-1]
    charts: list[Block] = []
    for kind, net in _nets_of(study, depth).items():
        layers = list(range(1, depth + 1))
        curves = []
        for name, key in (("at the start", "percentiles_start"), ("trained", "percentiles_end")):
            low, middle, high = zip(*net[key], strict=True)
            curves.append(Curve(name, layers, middle, lower=low, upper=high))
        if net["predicted_deviation"] is not None:
            edge = [_Z * s for s in net["predicted_deviation"]]
            # One curve, with a gap between its two branches: one name in the legend.
            branches = [*edge, math.nan, *(-e for e in edge)]
            curves.append(Curve("predicted", [*layers, depth, *layers], branches, dash=True))
        charts.append(LineChart(kind, "layer", "pre-activation", curves))
    return Section(
        "What becomes of the signal",
        charts,
        intro=(
            f"Pre-activations of the {depth} hidden layers over units and rows: the median, and "
            "the band from the 15th to the 85th percentile. Dashed: where the moment map of an "
            "infinitely wide net puts the ends of that band before training. Behind batch "
            "normalisation they are normalised whatever comes before, which the moment map does "
            "not describe."
        ),
    )


def _dropout(study: DepthStudy) -> list[Section]:
    if len(study.dropout) < 2:
        return []
    depth = min(study.settings.depths)
    accuracy = [_curve(name, _percent(net["accuracy"])) for name, net in study.dropout.items()]
    return [
        Section(
            "Two kinds of dropout in SELU nets",
            [
                _loss_chart("Training loss", study.dropout),
                LineChart("Held-out accuracy", "pass", "accuracy (%)", accuracy),
            ],
            intro=(
                f"{depth} layers, {100 * study.settings.dropout:g} % of the units dropped in each. "
                "Alpha dropout sends units to the negative plateau of SELU and corrects mean and "
                "variance; plain dropout sends them to zero, which is not where an idle unit is."
            ),
        )
    ]


def _batches(study: DepthStudy) -> list[Section]:
    if not study.batches:
        return []
    depth = min(study.settings.depths)
    accuracy = [_curve(name, _percent(net["accuracy"])) for name, net in study.batches.items()]
    distance, words = [], []
    for name, net in study.batches.items():
        updates, values = ([pair[i] for pair in net["distance"]] for i in (0, 1))
        distance.append(Curve(name, updates, values))
        words.append(f"**{name[0].upper()}{name[1:]}**: {compare_growth(updates, values).words}")
    return [
        Section(
            "Small and large batches",
            [
                LineChart("Held-out accuracy", "pass", "accuracy (%)", accuracy),
                LineChart(
                    "Distance from the start",
                    "updates t",
                    "‖w_t − w_0‖",
                    distance,
                    log_x=True,
                    note="A straight line is growth as log t.",
                ),
                Text(words),
            ],
            intro=(
                f"ReLU with batch normalisation, {depth} layers, the same number of passes, the "
                "rate grown with the root of the batch. A ghost batch is normalised by its own "
                "mean and variance."
            ),
        )
    ]


# ---- pieces --------------------------------------------------------------------------------------


def _curve(name: str, values: list[float], **style: Any) -> Curve:
    return Curve(name, list(range(1, len(values) + 1)), values, **style)


def _loss_chart(title: str, nets: dict[str, dict[str, Any]]) -> LineChart:
    curves = [_curve(name, net["loss"]) for name, net in nets.items()]
    return LineChart(title, "pass", "loss (nats)", curves)


def _percent(values: list[float]) -> list[float]:
    return [100 * value for value in values]


def _end(net: dict[str, Any] | None) -> list[object]:
    """Loss of the last pass and accuracy, where there are any."""
    if net is None:
        return [None, None]
    loss = net["loss"][-1] if net["loss"] else None
    return [loss, f"{100 * net['final_accuracy']:.1f}"]
