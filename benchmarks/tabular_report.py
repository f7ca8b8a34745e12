"""Ranks, wins and tests of several methods on several data sets, and their tables.

``benchmarks/tabular.py`` measures; this only reads an array of accuracies, one row for each set
and one column for each method, in which equal counts of right answers are equal numbers.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import friedmanchisquare, rankdata, wilcoxon

LEVEL = 0.05


@dataclass(frozen=True)
class Comparison:
    """Two methods on the same sets.

    Attributes
    ----------
    first, second : str
    wins, ties, losses : int
        Sets on which the first is better, equal, worse.
    p_value : float
        Of Wilcoxon's signed-rank test, two-sided; equal sets count half for each side.
    adjusted : float
        The same after Holm's correction for all pairs.
    """

    first: str
    second: str
    wins: int
    ties: int
    losses: int
    p_value: float
    adjusted: float


def ranks(accuracies: np.ndarray) -> np.ndarray:
    """Rank of each method on each set, 1 for the best; equal ones share the mean of their ranks."""
    return np.asarray(rankdata(-accuracies, axis=1))


def holm(p_values: Sequence[float]) -> np.ndarray:
    """p-values that bound the chance of any false finding among all of them (Holm 1979)."""
    p = np.asarray(p_values, dtype=float)
    order = np.argsort(p)
    steps = p[order] * np.arange(len(p), 0, -1)
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return adjusted


def signed_rank_p(first: np.ndarray, second: np.ndarray) -> float:
    """Two-sided p-value of Wilcoxon's signed-rank test for paired accuracies.

    The ranks of equal sets go to both sides in halves, as Demšar, *Statistical comparisons of
    classifiers over multiple data sets*, JMLR 2006, has it.
    """
    if np.array_equal(first, second):
        return 1.0
    return float(wilcoxon(first, second, zero_method="zsplit", method="asymptotic").pvalue)


def compare_all(methods: Sequence[str], accuracies: np.ndarray) -> list[Comparison]:
    """Every pair of methods, in the order of the columns."""
    pairs = list(itertools.combinations(range(len(methods)), 2))
    p_values = [signed_rank_p(accuracies[:, i], accuracies[:, j]) for i, j in pairs]
    found = []
    for (i, j), p, adjusted in zip(pairs, p_values, holm(p_values), strict=True):
        signs = np.sign(accuracies[:, i] - accuracies[:, j])
        counts = (int((signs == sign).sum()) for sign in (1, 0, -1))
        found.append(Comparison(methods[i], methods[j], *counts, p, float(adjusted)))
    return found


def friedman_p(accuracies: np.ndarray) -> float:
    """p-value of Friedman's test that all methods have the same ranks; 1 where nothing differs."""
    if (accuracies == accuracies[:, :1]).all():
        return 1.0
    return float(friedmanchisquare(*accuracies.T).pvalue)


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table whose first column is text and whose others are numbers."""
    rule = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (head, rule, *rows))


def accuracy_table(
    sets: Sequence[str], sizes: Sequence[str], methods: Sequence[str], accuracies: np.ndarray
) -> str:
    """Test accuracy in per cent of each set, the highest of each row in bold."""
    rows = []
    for name, size, values in zip(sets, sizes, accuracies, strict=True):
        cells = [f"{100 * value:.1f}" for value in values]
        best = values.max()
        marked = [f"**{c}**" if v == best else c for c, v in zip(cells, values, strict=True)]
        rows.append([name, size, *marked])
    return markdown(["set", "rows, columns, classes", *methods], rows)


def rank_table(methods: Sequence[str], accuracies: np.ndarray) -> str:
    """Average rank, average accuracy and number of first places, the best method first."""
    mean_ranks = ranks(accuracies).mean(0)
    first = (accuracies == accuracies.max(1, keepdims=True)).sum(0)
    rows = [
        [methods[k], f"{mean_ranks[k]:.2f}", f"{100 * accuracies[:, k].mean():.1f}", str(first[k])]
        for k in np.argsort(mean_ranks, kind="stable")
    ]
    return markdown(["method", "average rank", "average accuracy, %", "best or equal best"], rows)


def size_table(
    methods: Sequence[str], accuracies: np.ndarray, n_train: np.ndarray, limits: Sequence[int]
) -> str:
    """Average ranks of the sets of up to so many training rows, and of larger ones."""
    found = ranks(accuracies)
    group = np.searchsorted(limits, n_train)
    names = [f"up to {limit}" for limit in limits] + ["more"]
    rows = [
        [names[k], str((group == k).sum()), *[f"{mean:.2f}" for mean in found[group == k].mean(0)]]
        for k in np.unique(group)
    ]
    return markdown(["training rows", "sets", *methods], rows)


def win_table(methods: Sequence[str], comparisons: Sequence[Comparison]) -> str:
    """Sets won, equal and lost by the method of the row against that of the column."""
    cells = {(name, name): "–" for name in methods}
    for c in comparisons:
        cells[c.first, c.second] = f"{c.wins}/{c.ties}/{c.losses}"
        cells[c.second, c.first] = f"{c.losses}/{c.ties}/{c.wins}"
    rows = [[row, *[cells[row, column] for column in methods]] for row in methods]
    return markdown(["won/equal/lost", *methods], rows)


def p_value_table(comparisons: Sequence[Comparison]) -> str:
    """p-values of all pairs, the smallest first."""
    ordered = sorted(comparisons, key=lambda c: c.p_value)
    rows = [[f"{c.first} – {c.second}", f"{c.p_value:.2g}", f"{c.adjusted:.2g}"] for c in ordered]
    return markdown(["pair", "p", "p after Holm"], rows)


def in_words(methods: Sequence[str], accuracies: np.ndarray) -> str:
    """What the tests say, and what they do not."""
    comparisons = compare_all(methods, accuracies)
    found = [c for c in comparisons if c.adjusted < LEVEL]
    sentences = []
    if len(methods) > 2:
        p = friedman_p(accuracies)
        verdict = "the methods do not all rank alike" if p < LEVEL else "no difference is shown"
        sentences.append(f"Friedman's test over {len(accuracies)} sets: p = {p:.2g}, {verdict}.")
    # The side of the smaller ranks, not of the greater number of sets: that is what is tested.
    mean_ranks = dict(zip(methods, ranks(accuracies).mean(0), strict=True))
    for c in sorted(found, key=lambda c: c.adjusted):
        better, worse = sorted((c.first, c.second), key=mean_ranks.__getitem__)
        counts = (c.wins, c.ties, c.losses) if better == c.first else (c.losses, c.ties, c.wins)
        won, equal, lost = counts
        sentences.append(
            f"{better} is better than {worse} (won {won}, equal {equal}, lost {lost}; "
            f"p = {c.adjusted:.2g} after Holm's correction)."
        )
    rest = len(comparisons) - len(found)
    sentences.append(
        f"{rest} of the {len(comparisons)} pairs cannot be told apart at {LEVEL:.0%} after the "
        "correction; that is not a proof of equality."
    )
    return "\n".join(f"- {sentence}" for sentence in sentences)
