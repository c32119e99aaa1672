"""Means, intervals and t-tests, through SciPy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from nestedseg.base.extras import require

LEVEL = 0.95  # of intervals
ALPHA = 0.05  # below which a p-value is called significant, as in the paper


@dataclass(frozen=True)
class Summary:
    """What independent trials gave.

    Args:
        mean: of the trials.
        sd: their standard deviation, with n - 1; nan of one trial.
        low: where the 95 % interval of the mean begins (Student's t); nan of one trial.
        high: where it ends.
        n: how many they are.
    """

    mean: float
    sd: float
    low: float
    high: float
    n: int


def summarise(values: Sequence[float]) -> Summary:
    """The summary of at least one value."""
    n, mean = len(values), float(np.mean(values))
    if n < 2:
        return Summary(mean, math.nan, math.nan, math.nan, n)
    sd = float(np.std(values, ddof=1))
    half = _stats().t.ppf((1 + LEVEL) / 2, n - 1) * sd / math.sqrt(n)
    return Summary(mean, sd, mean - half, mean + half, n)


@dataclass(frozen=True)
class Comparison:
    """A difference of two means, its 95 % interval, and its p-value; nan with too few trials."""

    difference: float
    low: float = math.nan
    high: float = math.nan
    p: float = math.nan

    @property
    def verdict(self) -> str:
        """Of the claim that the difference is above 0."""
        if not self.p < ALPHA:
            return "cannot tell"
        return "agrees" if self.difference > 0 else "disagrees"


def compare(a: Sequence[float], b: Sequence[float]) -> Comparison:
    """Is the mean of ``a`` another than that of ``b``? Welch's two-sample t-test, two-sided.

    It is the paper's test without its assumption that both spread alike.
    """
    difference = float(np.mean(a) - np.mean(b))
    if min(len(a), len(b)) < 2 or np.std(a) + np.std(b) == 0:
        return Comparison(difference)
    test = _stats().ttest_ind(a, b, equal_var=False)
    low, high = test.confidence_interval(LEVEL)
    return Comparison(difference, float(low), float(high), float(test.pvalue))


def within(losses: Sequence[float], margin: float) -> Comparison:
    """Is the mean loss less than a margin? What is left of the margin, by a one-sample t-test.

    Args:
        losses: one for each trial, of two scores of the same network.
        margin: how much may be lost.
    """
    left = margin - np.asarray(losses)
    if len(left) < 2 or np.std(left) == 0:
        return Comparison(float(left.mean()))
    test = _stats().ttest_1samp(left, 0)
    low, high = test.confidence_interval(LEVEL)
    return Comparison(float(left.mean()), float(low), float(high), float(test.pvalue))


def together(comparisons: Sequence[Comparison]) -> str:
    """The verdict on a claim that each of several comparisons has to bear out.

    All agree, or it does not. One is enough to disagree, but of many, one does so by chance: its
    p-value has to be below `ALPHA` divided by their number (Bonferroni).
    """
    if all(each.verdict == "agrees" for each in comparisons):
        return "agrees"
    against = [each.p for each in comparisons if each.verdict == "disagrees"]
    return "disagrees" if min(against, default=1) < ALPHA / len(comparisons) else "cannot tell"


def _stats():
    return require("scipy.stats", "medical")
