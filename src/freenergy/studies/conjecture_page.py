"""The page of the study "conjecture"."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from freenergy.report import Block, Curve, LineChart, Page, Section, Table, Text, Verdict
from freenergy.report.page import Status
from freenergy.studies.blocks import provenance, unfinished
from freenergy.studies.conjecture import ConjectureStudy
from freenergy.studies.conjecture_claims import (
    ALIGNS,
    DIFFERENCE,
    FALLS,
    RANDOM,
    SHUFFLED,
    WALK,
    History,
    StationResult,
    curve,
)
from freenergy.studies.run_data import rows_in_words
from freenergy.studies.verdict import Interval, Judgement, listed

__all__ = ["answer", "conjecture_page", "conjecture_sections", "verdict"]

_CONTROLS = (WALK, SHUFFLED, RANDOM)
_POSITIVE_CONTROL = "EMF (TAP2)"
_BY_PARAMETER = {
    "weight": "weights",
    "hidden_bias": "hidden biases",
    "visible_bias": "visible biases",
}


def conjecture_page(study: ConjectureStudy) -> Page:
    """Compose the report of a study from its result."""
    return Page(
        title="The conjecture",
        question="Does backpropagation do what the extended mean field does: lower a free energy?",
        verdict=verdict(study),
        sections=[*unfinished(study.missing), *conjecture_sections(study)],
        provenance=provenance(study.data, study.versions, study.command, study.settings.seeds),
    )


def conjecture_sections(study: ConjectureStudy) -> list[Section]:
    """The evidence, for a page of its own or beside that of other studies."""
    return [
        _claims(study),
        _free_energies(study),
        *(_controls(study, station) for station in study.stations),
        *(_directions(study, station) for station in study.stations),
        _steps(study),
        _reading(study),
    ]


# ---- the verdict ---------------------------------------------------------------------------------


def verdict(study: ConjectureStudy) -> Verdict:
    """What the claims say of backpropagation, in words that follow from the numbers.

    The conjecture is about every net: one station that contradicts it is enough.
    """
    status, paragraphs = _judged(study)
    return Verdict(status, " ".join(paragraphs))


def answer(study: ConjectureStudy) -> list[str]:
    """The verdict as paragraphs, for a page of many questions."""
    status, (first, *rest) = _judged(study)
    return [f"**{status.capitalize()}.** {first}", *rest]


def _judged(study: ConjectureStudy) -> tuple[Status, list[str]]:
    names = [s.name for s in study.stations if s.backpropagation]
    if not names:
        return "info", ["The study ran no station that learns by backpropagation."]
    statuses = {name: study.status(name) for name in names}
    against = [name for name in names if statuses[name] == "contradicted"]
    first, *others = (_sentence(study, name) for name in names)
    remarks = [_remark_on_free_energy(study, names), _positive_control(study), _family(study)]
    words = [
        f"On {study.data['name']}, of the RBM that the weights define: {first}",
        *others,
        " ".join(remark for remark in remarks if remark),
    ]
    if against:
        does = "does" if len(against) == 1 else "do"
        return "contradicted", [f"No, not always: {listed(against)} {does} otherwise.", *words]
    if all(status == "supported" for status in statuses.values()):
        return "supported", ["Yes.", *words]
    return "undecided", ["These runs cannot tell.", *words]


def _sentence(study: ConjectureStudy, name: str) -> str:
    fall, step = (study.judgement(name, claim) for claim in (DIFFERENCE, ALIGNS))
    return (
        f"{name} {'lowers' if fall.effect.mean > 0 else 'raises'} the free-energy difference "
        f"ΔF by {abs(fall.effect.mean):.2f} nats ({_status(fall)}); its steps have a mean cosine "
        f"of {_signed(step.effect.mean)} with those of the mean field ({_status(step)})."
    )


def _signed(value: float) -> str:
    """Two places with a sign, and none for what rounds to zero."""
    return f"{round(value, 2) + 0.0:+.2f}"


def _status(judgement: Judgement) -> str:
    reason = judgement.reason.rstrip(".").replace(": ", ", ")
    return f"{judgement.status}: {reason[0].lower()}{reason[1:]}"


def _remark_on_free_energy(study: ConjectureStudy, names: Sequence[str]) -> str:
    """That F alone tells of growing weights, where it falls without learning the data."""
    misled = [
        name
        for name in names
        if study.judgement(name, FALLS).effect.mean > 0
        and study.judgement(name, DIFFERENCE).effect.mean < 0
    ]
    if not misled:
        return ""
    return (
        f"The free energy F = −ln Z alone falls for {listed(misled)}, but as weights grow it "
        "does so whatever they learn; the free energy of the data falls less."
    )


def _positive_control(study: ConjectureStudy) -> str:
    if all(s.name != _POSITIVE_CONTROL for s in study.stations):
        return ""
    fall, step = (study.judgement(_POSITIVE_CONTROL, claim) for claim in (DIFFERENCE, ALIGNS))
    return (
        f"For comparison, {_POSITIVE_CONTROL} itself: ΔF {-fall.effect.mean:+.2f} nats "
        f"({fall.status}), cosine {step.effect.mean:+.2f} ({step.status})."
    )


def _family(study: ConjectureStudy) -> str:
    n = sum(j.claim.n_intervals for j in study.judgements)
    return (
        f"{len(study.judgements)} claims with {n} intervals over {len(study.settings.seeds)} "
        f"seeds are judged together, at {100 * study.settings.confidence:g} % for all."
    )


# ---- the evidence --------------------------------------------------------------------------------


def _claims(study: ConjectureStudy) -> Section:
    columns = ["station", "claim", "verdict", "effect", "more than its controls", "why"]
    rows = [
        [
            j.claim.subject,
            j.claim.statement,
            j.status,
            _words(j.effect, j.claim.unit),
            "; ".join(f"{c}: {_words(j.excess[c])}" for c in _CONTROLS if c in j.excess),
            j.reason,
        ]
        for j in study.judgements
    ]
    settings, data = study.settings, study.data
    n = sum(j.claim.n_intervals for j in study.judgements)
    note = (
        f"Means over {len(settings.seeds)} seeds with intervals in brackets, paired by seed. All "
        f"{n} intervals of the {len(rows)} claims hold together with "
        f"{100 * settings.confidence:g} % confidence (Bonferroni), so none was picked. A claim is "
        "supported when its effect and its "
        "excess over every control are clear of zero, contradicted when one of them is clearly "
        "below. Falls are first reading less last, positive where the quantity falls; cosines are "
        "means over the readings since training began."
    )
    intro = (
        f"{data['name']}: {rows_in_words(data)}, "
        f"{data['n_visible']} visible and {settings.n_hidden} hidden units, {settings.n_epochs} "
        f"epochs, batches of {settings.batch_size}; nets of {settings.depth} sweeps. All stations "
        "of a seed start from the same weights and see the rows in the same order. "
    )
    intro += (
        "Free energies and the steps that lower them are exact."
        if study.exact
        else "Free energies are those of the mean field (TAP2), the model being too large to sum."
    )
    return Section("The claims", [Table(columns, rows, note=note)], intro=intro)


def _words(interval: Interval, unit: str = "") -> str:
    text = f"{interval.mean:+.3g} {unit}".rstrip()
    if np.isnan(interval.lower):
        return text
    return f"{text} ({interval.lower:+.3g} to {interval.upper:+.3g})"


def _free_energies(study: ConjectureStudy) -> Section:
    source = study.source
    wanted = [
        (f"{source}_difference", "Free-energy difference ΔF = ⟨F(v)⟩ − F, held out", "nats"),
        (f"{source}_free_energy", "Free energy F = −ln Z", "nats"),
        ("data_free_energy", "Free energy of held-out rows, ⟨F(v)⟩", "nats"),
        (f"{source}_energy", "Energy U", "nats"),
        (f"{source}_entropy", "Entropy S", "nats"),
        ("weight_norm", "Norm of the weights", "‖W‖"),
        ("accuracy", "Held-out accuracy", "share"),
        ("cross_entropy", "Held-out cross-entropy, the loss of backpropagation", "nats"),
    ]
    charts: list[Block] = []
    for key, title, unit in wanted:
        curves = [c for s in study.stations for c in _band(s.name, s.trained, key)]
        if curves:
            charts.append(LineChart(title, "epoch", unit, curves))
    return Section(
        "What they do to the free energies",
        charts,
        intro=(
            "Of the RBM that the weights define at each epoch. Lines are means over seeds, bands "
            "their range. The accuracy is that of the softmax; where there is none, of a linear "
            "readout of the hidden units. The cross-entropy of the discriminative RBM is itself a "
            "free-energy difference, F(v, y) − F(v): of the label given the row, not of the row."
        ),
    )


def _controls(study: ConjectureStudy, station: StationResult) -> Section:
    difference, free_energy = (f"{study.source}_{k}" for k in ("difference", "free_energy"))
    charts: list[Block] = [
        LineChart(f"ΔF, {station.name}", "epoch", "nats", _against(station, difference)),
        LineChart(f"F, {station.name}", "epoch", "nats", _against(station, free_energy)),
        LineChart(
            f"S, {station.name}", "epoch", "nats", _against(station, f"{study.source}_entropy")
        ),
        LineChart(f"Accuracy, {station.name}", "epoch", "share", _against(station, "accuracy")),
    ]
    if study.exact:
        curves = [
            *_band("exact", station.trained, "exact_difference"),
            *_band("TAP2", station.trained, "tap_difference", dash=True),
        ]
        charts.append(LineChart(f"ΔF, exact and TAP2, {station.name}", "epoch", "nats", curves))
    return Section(
        f"Against the controls: {station.name}",
        charts,
        intro="Dashed: the controls. A walk goes as far as the training from reading to reading.",
    )


def _against(station: StationResult, key: str) -> list[Curve]:
    return [
        *_band("trained", station.trained, key),
        *_band(SHUFFLED, station.shuffled, key, dash=True),
        *_band("random walk", station.walk, key, dash=True),
    ]


def _directions(study: ConjectureStudy, station: StationResult) -> Section:
    key = f"{study.source}_cosine"
    charts: list[Block] = []
    for suffix, title in (("", "all parameters"), ("_centred", "weights beyond the common means")):
        curves = _band("true labels", station.trained, f"{key}{suffix}")
        if station.shuffled:
            shuffled = f"{key}{suffix}_shuffled"
            curves += _band(SHUFFLED, station.trained, shuffled, dash=True)
        curves += [_chance(study, station, suffix)]
        charts.append(LineChart(f"Cosine, {title}: {station.name}", "epoch", "cosine", curves))
    parts = [
        *((f"{key}_{name}", words) for name, words in _BY_PARAMETER.items()),
        *((f"{key}_layer{i}", f"weights of layer {i}") for i in range(1, study.settings.depth + 1)),
    ]
    curves = [c for part, words in parts for c in _band(words, station.trained, part)]
    charts.append(LineChart(f"Cosine, part by part: {station.name}", "epoch", "cosine", curves))
    return Section(
        f"Where the steps point: {station.name}",
        charts,
        intro=(
            "Cosine of the station's step, for a fixed batch, with the step that lowers ΔF on the "
            "same rows. The band is twice the spread of random directions. What depends on a "
            "parameter not at all has no step there, and no cosine."
        ),
    )


def _chance(study: ConjectureStudy, station: StationResult, suffix: str) -> Curve:
    """Twice the spread of random directions about zero."""
    epochs, spreads = curve(station.trained, f"{study.source}_spread{suffix}")
    spread = 2 * spreads.mean(0)
    zero = np.zeros_like(spread)
    return Curve(RANDOM, epochs, zero, lower=-spread, upper=spread, dash=True)


def _steps(study: ConjectureStudy) -> Section:
    charts: list[Block] = []
    for station in study.stations:
        curves = [
            *_band("after one step", station.trained, "drop"),
            *_band("promised by the slope", station.trained, "predicted_drop", dash=True),
        ]
        charts.append(LineChart(f"Fall of ΔF: {station.name}", "epoch", "nats", curves))
    fidelity = [c for s in study.stations for c in _band(s.name, s.trained, "tap_fidelity")]
    if study.exact:
        title = "Cosine of the mean-field step with the exact one"
        charts.append(LineChart(title, "epoch", "cosine", fidelity))
    return Section(
        "What one step does",
        charts,
        intro=(
            "How far a step of the station's own length lowers ΔF on the batch that it is made "
            "for. Where it falls short of its slope's promise, the step is long for the landscape."
        ),
    )


def _reading(study: ConjectureStudy) -> Section:
    paragraphs = [
        "**F** = −ln Z is the free energy of the model, ⟨F(v)⟩ that of rows with the hidden units "
        "summed out. Their difference **ΔF** is −⟨ln p(v)⟩, which EMF and PCD lower. F alone falls "
        "as soon as weights grow, so a falling F is no sign of learning: look at ΔF and at the "
        "walk.",
        "**Untied** nets define the RBM of their mean weights. The loss of the **discriminative "
        "RBM** does not depend on the visible biases, which stay where they started, at the "
        "means of the data.",
        "**Beyond the common means**: weight steps without their component along the mean row and "
        "without what is common to all hidden units, both of which any two gradients share.",
        "**Shuffled labels**: over training, the same training on labels in a random order; of "
        "steps, the step of the same weights for a batch with its labels shuffled.",
    ]
    if not study.exact:
        paragraphs.append(
            "The mean-field free energy is no bound. Where no state converged, an entropy is "
            "negative or Plefka's condition fails at any reading, claims that rest on it are left "
            "undecided."
        )
    return Section("How to read these figures", [Text(paragraphs)])


def _band(name: str, histories: list[History], key: str, dash: bool = False) -> list[Curve]:
    """The mean over seeds with the range of the seeds as its band; nothing without readings."""
    epochs, values = curve(histories, key)
    if epochs.size == 0 or not np.isfinite(values).any():
        return []
    if len(values) == 1:
        return [Curve(name, epochs, values[0], dash=dash)]
    return [
        Curve(name, epochs, values.mean(0), lower=values.min(0), upper=values.max(0), dash=dash)
    ]
