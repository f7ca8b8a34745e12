r"""Claims judged by their intervals over seeds, against controls, all at one family-wise level.

A claim is an effect that should be positive and should exceed what the same measurement gives
where there is nothing to find. It is

* **supported** when the interval of the effect and those of its excess over every control lie
  above zero,
* **contradicted** when one of them lies below zero,
* **undecided** otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import t as student_t

__all__ = ["Claim", "Interval", "Judgement", "Status", "judge", "judge_all", "listed"]

Status: TypeAlias = Literal["supported", "contradicted", "undecided"]


@dataclass(frozen=True)
class Interval:
    """A mean over seeds and the ends of its interval; NaN ends where it has none.

    Examples
    --------
    >>> Interval.of([1.0, 2.0, 3.0], confidence=0.95)
    Interval(+2 from -0.4841 to +4.484)
    >>> Interval.of([1.0]).decided
    False
    """

    mean: float
    lower: float
    upper: float

    @classmethod
    def of(cls, values: ArrayLike, confidence: float = 0.95) -> Interval:
        r"""Student's interval of a mean, :math:`\bar x \pm t_{n-1} s/\sqrt{n}`.

        Parameters
        ----------
        values : array-like of shape (n,)
            One value for each seed; differences of two methods where seeds are paired.
        confidence : float, default=0.95
            Between 0 and 1.
        """
        x = np.asarray(values, dtype=float)
        mean = float(x.mean()) if len(x) else math.nan
        if len(x) < 2 or not np.isfinite(x).all():
            return cls(mean, math.nan, math.nan)
        quantile = student_t.ppf((1 + confidence) / 2, len(x) - 1)
        width = float(quantile * x.std(ddof=1) / math.sqrt(len(x)))
        return cls(mean, mean - width, mean + width)

    @property
    def decided(self) -> bool:
        """Whether the interval lies on one side of zero."""
        return self.lower > 0 or self.upper < 0

    def __repr__(self) -> str:
        return f"Interval({self.mean:+.4g} from {self.lower:+.4g} to {self.upper:+.4g})"


@dataclass(frozen=True, eq=False)
class Claim:
    """What is claimed of a subject, and the numbers that decide it.

    Parameters
    ----------
    subject : str
        What it is claimed of.
    statement : str
        What is claimed, as a verb phrase: ``"lowers the free energy"``.
    effect : array-like of shape (n_seeds,)
        Positive where the claim holds.
    controls : mapping of str to array-like of shape (n_seeds,)
        The same measurement where there is nothing to find, paired with the effect by seed.
    unit : str, default=""
    doubt : str, default=""
        A reason not to trust the numbers; a claim with one is undecided.

    Raises
    ------
    ValueError
        When a control has not one value for each seed.
    """

    subject: str
    statement: str
    effect: ArrayLike
    controls: Mapping[str, ArrayLike] = field(default_factory=dict)
    unit: str = ""
    doubt: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "effect", np.asarray(self.effect, dtype=float))
        controls = {name: np.asarray(x, dtype=float) for name, x in self.controls.items()}
        object.__setattr__(self, "controls", controls)
        for name, values in controls.items():
            if values.shape != np.shape(self.effect):
                raise ValueError(
                    f"the control {name!r} has shape {values.shape} where the effect has "
                    f"{np.shape(self.effect)}: they are paired by seed"
                )

    @property
    def n_intervals(self) -> int:
        """Intervals that decide the claim: of the effect, and of its excess over each control."""
        return 1 + len(self.controls)


@dataclass(frozen=True)
class Judgement:
    """A claim and what became of it.

    Attributes
    ----------
    claim : Claim
    effect : Interval
    excess : dict of str to Interval
        Effect less control, for each control.
    status : {"supported", "contradicted", "undecided"}
    reason : str
        A sentence that follows from the intervals.
    """

    claim: Claim
    effect: Interval
    excess: dict[str, Interval]
    status: Status
    reason: str

    def __repr__(self) -> str:
        return (
            f"Judgement({self.claim.subject} {self.claim.statement}: {self.status}, "
            f"effect={self.effect}, excess={self.excess})"
        )


def judge(effect: Interval, excess: Mapping[str, Interval], doubt: str = "") -> tuple[Status, str]:
    """What intervals say of a claim, and why.

    Parameters
    ----------
    effect : Interval
        Of the effect that should be positive.
    excess : mapping of str to Interval
        Of the effect less each control.
    doubt : str, default=""
        A reason not to trust the numbers.

    Returns
    -------
    tuple of str
        Status, and a sentence.

    Examples
    --------
    >>> judge(Interval(2, 1, 3), {"a random walk": Interval(1.5, 0.5, 2.5)})[0]
    'supported'
    >>> judge(Interval(2, 1, 3), {"a random walk": Interval(-1.5, -2.5, -0.5)})
    ('contradicted', 'Above zero, but below a random walk.')
    """
    if doubt:
        return "undecided", doubt
    if math.isnan(effect.mean) or any(math.isnan(x.mean) for x in excess.values()):
        return "undecided", "Some readings are not a number."
    if math.isnan(effect.lower):
        return "undecided", "One seed gives no interval; run more."
    if effect.upper < 0:
        return "contradicted", "Below zero: the opposite holds."
    below = listed(name for name, x in excess.items() if x.upper < 0)
    if below:
        start = "Above zero, but" if effect.lower > 0 else "Not clearly above zero, and"
        return "contradicted", f"{start} below {below}."
    if not effect.lower > 0:
        return "undecided", "The interval holds zero."
    unclear = listed(name for name, x in excess.items() if not x.lower > 0)
    if unclear:
        return "undecided", f"Above zero, but not clearly above {unclear}."
    beyond = f", and above {listed(excess)}" if excess else ""
    return "supported", f"Above zero{beyond}."


def listed(names: Iterable[str]) -> str:
    """Names as a sentence lists them.

    Examples
    --------
    >>> listed(["one", "another", "a third"])
    'one, another and a third'
    """
    *others, last = [*names] or [""]
    return f"{', '.join(others)} and {last}" if others else last


def judge_all(claims: Sequence[Claim], confidence: float = 0.95) -> list[Judgement]:
    r"""Judge claims together, so that with this confidence no interval misses its true value.

    Each of the *m* intervals of all claims gets the level :math:`1 - (1 - c)/m` (Bonferroni), so
    that a verdict cannot be had by asking often enough.

    Parameters
    ----------
    claims : sequence of Claim
    confidence : float, default=0.95
        Of all intervals together.

    Returns
    -------
    list of Judgement

    References
    ----------
    Dunn, *Multiple comparisons among means*, J. Am. Stat. Assoc. 56, 1961.

    Examples
    --------
    >>> claim = Claim("descent", "falls", [2.0, 2.1, 1.9], {"a walk": [0.1, -0.1, 0.0]})
    >>> judge_all([claim])[0].status
    'supported'
    """
    n_intervals = sum(claim.n_intervals for claim in claims)
    level = 1 - (1 - confidence) / max(n_intervals, 1)
    return [_judged(claim, level) for claim in claims]


def _judged(claim: Claim, level: float) -> Judgement:
    values = np.asarray(claim.effect)
    effect = Interval.of(values, level)
    excess = {
        name: Interval.of(values - np.asarray(control), level)
        for name, control in claim.controls.items()
    }
    return Judgement(claim, effect, excess, *judge(effect, excess, claim.doubt))
