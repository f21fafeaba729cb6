"""Intervals and tests of everything that is compared, by scipy; no number of a table is computed anywhere else.

Proportions (accuracies: right answers out of items) have Wilson's interval and exact tests: at 0 or 100 % their
standard error is 0, and a normal test would call any difference significant. Two recipes that answered the same items
are compared item by item (`paired`); the same difference is then worth more.
"""

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

CONFIDENCE = 0.95
RESAMPLES = 2000
Z = float(stats.norm.ppf((1 + CONFIDENCE) / 2))
COUNTED = 1e-6  # how far value x n may be from a whole number of right answers


class Test(NamedTuple):
    """A two-sided p value and how it was found."""

    p: float
    name: str
    paired: bool = False


def right_answers(value: float, n: int | None) -> int | None:
    """The count behind a share of `n` items; None where it is no share of so many (f1, a perplexity, ...)."""
    if n is None or n < 1 or not 0 <= value <= 1:
        return None
    count = round(value * n)
    return count if abs(value * n - count) <= COUNTED * n else None


def at_chance(value: float, stderr: float | None, levels: Iterable[float | None]) -> bool:
    """Whether a score is at most one standard error above the highest known level of guessing."""
    known = [level for level in levels if level is not None and not math.isnan(level)]
    error = 0.0 if stderr is None or math.isnan(stderr) else stderr
    return bool(known) and value <= max(known) + error


def wilson(count: int, n: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a proportion (Wilson 1927)."""
    interval = stats.binomtest(count, n).proportion_ci(CONFIDENCE, method="wilson")
    return float(interval.low), float(interval.high)


def student(values: Sequence[float]) -> tuple[float, float]:
    """Mean, and half the width of its 95 % interval by Student's t; NaN for what there is not."""
    n = len(values)
    if n < 2:
        return (float(values[0]) if n else math.nan), math.nan
    return float(np.mean(values)), of_few(n) * float(np.std(values, ddof=1)) / math.sqrt(n)


def of_few(n: int) -> float:
    """Standard errors of a mean of `n` numbers in half its 95 % interval, by Student's t; NaN for fewer than two."""
    return float(stats.t.ppf((1 + CONFIDENCE) / 2, n - 1))


def alike(changes: Sequence[float]) -> bool:
    """Whether several differences are one number but for the rounding of floats: their spread tells nothing.

    Of a few items each of two seeds has the same number more right before long.
    """
    return len(changes) > 1 and float(np.ptp(changes)) <= 1e-9 * float(np.max(np.abs(changes)))


def one_sample_t(changes: Sequence[float]) -> Test:
    """Student's test that the mean of paired differences is 0; NaN where they have no spread."""
    if len(changes) < 2 or alike(changes):
        return Test(math.nan, "t over seeds", True)
    return Test(float(stats.ttest_1samp(changes, 0).pvalue), "t over seeds", True)


def newcombe(count_a: int, n_a: int, count_b: int, n_b: int) -> float:
    """Half the width of the 95 % interval of the difference of two proportions (Newcombe 1998, method 10), the wider
    side: it holds at 0 and 100 %, where the usual standard error is 0."""
    (low_a, high_a), (low_b, high_b) = wilson(count_a, n_a), wilson(count_b, n_b)
    a, b = count_a / n_a, count_b / n_b
    return max(math.hypot(b - low_b, high_a - a), math.hypot(high_b - b, a - low_a))


def detectable(sd: float, n: int, power: float = 0.8) -> float:
    """The smallest true difference that `n` pairs with a standard deviation `sd` find with this power (normal theory
    about Student's t: (t_.975 + t_power) sd / sqrt n); NaN for fewer than two.

    Of few pairs the power is less than asked for: of 0.8 it is 0.73 for two, 0.77 for three, 0.79 for five.
    """
    if n < 2 or not math.isfinite(sd):
        return math.nan
    return (of_few(n) + float(stats.t.ppf(power, n - 1))) * sd / math.sqrt(n)


def fisher(count_a: int, n_a: int, count_b: int, n_b: int) -> Test:
    """Fisher's exact test of two independent proportions."""
    table = [[count_a, n_a - count_a], [count_b, n_b - count_b]]
    return Test(float(stats.fisher_exact(table).pvalue), "Fisher")


def mcnemar(a: np.ndarray, b: np.ndarray) -> Test:
    """McNemar's exact test of right and wrong answers `[items]` to the same items."""
    only_a, only_b = int(((a == 1) & (b == 0)).sum()), int(((a == 0) & (b == 1)).sum())
    if only_a + only_b == 0:
        return Test(1.0, "McNemar", True)
    return Test(float(stats.binomtest(only_a, only_a + only_b).pvalue), "McNemar", True)


def paired_bootstrap(a: np.ndarray, b: np.ndarray, seed: int = 0) -> Test:
    """Test of equal means of numbers `[items]` of the same items.

    Items are drawn again with replacement; p is the share of resampled differences, moved to be 0 on average, that are
    at least as large as the one found (Efron and Tibshirani 1993, chapter 16); where none is, Student's t test of the
    pairs tells how far beyond the draws it lies: correction for a thousand tests needs to know. p is at least what a
    sign test of so few pairs gives.
    """
    change = np.asarray(b, dtype=float) - np.asarray(a, dtype=float)
    if not change.any():
        return Test(1.0, "paired bootstrap", True)
    least = 0.5 ** (len(change) - 1)
    if len(change) == 1 or alike(list(change)):
        return Test(least, "paired bootstrap", True)
    draws = np.random.default_rng(seed).integers(0, len(change), (RESAMPLES, len(change)))
    means = change[draws].mean(1)
    beyond = int((np.abs(means - change.mean()) >= abs(change.mean())).sum())
    p = (beyond + 1) / (RESAMPLES + 1)
    if not beyond:
        p = min(p, one_sample_t(list(change)).p)
    return Test(max(least, p), "paired bootstrap", True)


def paired_half(a: np.ndarray, b: np.ndarray) -> float:
    """Half the width of the 95 % interval of the mean change of the same items from `a` to `b` `[items]`, by Student's
    t; 0 where nothing changed, NaN where all changed by one and the same number."""
    change = list(np.asarray(b, dtype=float) - np.asarray(a, dtype=float))
    if not any(change):
        return 0.0
    return math.nan if alike(change) else student(change)[1]


def z_test(difference: float, stderr: float) -> Test:
    """Two-sided normal test of a difference with a standard error; NaN where there is none."""
    if not stderr > 0:
        return Test(1.0 if difference == 0 else math.nan, "z")
    return Test(float(2 * stats.norm.sf(abs(difference) / stderr)), "z")


def holm(p: Sequence[float]) -> list[float]:
    """p values corrected for so many tests at once (Holm 1979); NaN counts for nothing and stays."""
    adjusted = [math.nan] * len(p)
    order = sorted((i for i, value in enumerate(p) if not math.isnan(value)), key=lambda i: p[i])
    least = 0.0
    for place, i in enumerate(order):
        least = max(least, min(1.0, (len(order) - place) * p[i]))
        adjusted[i] = least
    return adjusted
