"""Intervals and tests against closed forms, tables and brute force."""

import math
from itertools import product

import numpy as np
import pytest
from scipy import stats

from r2q.report import statistics


def test_wilson_at_the_end_of_the_scale():
    low, high = statistics.wilson(8, 8)
    z = 1.959964
    assert (low, high) == pytest.approx((8 / (8 + z**2), 1.0), rel=1e-5)  # closed form for k = n


def test_mcnemar_is_the_sign_test_of_the_items_that_changed():
    a, b = np.array([1, 1, 1, 0, 0, 1]), np.array([0, 0, 0, 1, 0, 1])
    tails = sum(math.comb(4, k) for k in (0, 1, 3, 4)) / 2**4
    assert statistics.mcnemar(a, b).p == pytest.approx(tails)
    assert statistics.mcnemar(a, a).p == 1


def test_paired_bootstrap_agrees_with_all_resamples():
    a, b = np.zeros(5), np.array([1.0, 2.0, -1.0, 0.5, 3.0])
    change = b - a
    means = np.array([change[list(draw)].mean() for draw in product(range(5), repeat=5)])
    exact = (np.abs(means - change.mean()) >= abs(change.mean())).mean()
    assert statistics.paired_bootstrap(a, b).p == pytest.approx(exact, abs=0.02)


@pytest.mark.parametrize("items", [2, 4, 12, 64])
def test_an_interval_of_paired_items_holds_the_truth_as_often_as_it_says(items):
    """Also of few windows of text, of which resampling gave too narrow ones: of two, it held three times in five."""
    change = np.random.default_rng(0).normal(1.0, 2.0, (4000, items))
    halves = np.array([statistics.paired_half(np.zeros(items), row) for row in change])
    assert (np.abs(change.mean(1) - 1.0) <= halves).mean() == pytest.approx(0.95, abs=0.012)


@pytest.mark.parametrize("items", [1, 2, 8])
def test_items_that_all_changed_alike_have_no_interval(items):
    a, b = np.arange(items), np.arange(items) + 0.1
    assert statistics.paired_bootstrap(a, b).p == pytest.approx(0.5 ** (items - 1))
    assert math.isnan(statistics.paired_half(a, b))
    assert statistics.paired_half(a, a) == 0


def test_a_paired_bootstrap_goes_on_where_its_draws_end():
    """64 windows, all worse: in a comparison of a thousand numbers, 1 / 2001 would be no difference."""
    change = np.random.default_rng(0).normal(1.0, 0.3, 64)
    p = statistics.paired_bootstrap(np.zeros(64), change).p
    t = change.mean() / (change.std(ddof=1) / 8)
    assert p == pytest.approx(max(2 * stats.t.sf(t, 63), 0.5**63))
    assert statistics.holm([p] * 1000)[0] < 1e-6
    few = np.array([1.0, 1.1, 0.9, 1.0, 1.2])  # five of a kind: what a sign test gives, 1 / 16
    assert statistics.paired_bootstrap(np.zeros(5), few).p == 1 / 16


def test_holm_by_hand():
    assert statistics.holm([0.01, 0.04, math.nan, 0.03]) == pytest.approx([0.03, 0.06, math.nan, 0.06], nan_ok=True)


def test_student_by_the_table():
    mean, half = statistics.student([1.0, 2.0, 3.0])
    assert (mean, half) == pytest.approx((2.0, 4.3027 / math.sqrt(3)), rel=1e-4)
    assert math.isnan(statistics.student([1.0])[1])


def test_a_detectable_effect_is_found_as_often_as_it_says():
    effect = statistics.detectable(1.0, 12)
    draws = np.random.default_rng(0).normal(effect, 1.0, (4000, 12))
    found = np.mean([statistics.one_sample_t(list(row)).p < 0.05 for row in draws[:800]])
    assert found == pytest.approx(0.8, abs=0.05)


@pytest.mark.parametrize(("n", "power"), [(2, 0.73), (3, 0.77), (5, 0.79)])
def test_of_few_pairs_a_detectable_effect_is_found_as_often_as_is_said(n: int, power: float) -> None:
    draws = np.random.default_rng(n).normal(statistics.detectable(1.0, n), 1.0, (200_000, n))
    t = draws.mean(1) / draws.std(1, ddof=1) * math.sqrt(n)
    assert np.mean(np.abs(t) > statistics.of_few(n)) == pytest.approx(power, abs=0.006)


def test_newcombe_holds_where_the_normal_interval_collapses():
    assert statistics.newcombe(10, 10, 10, 10) > 0.25
    p, n = 0.5, 10_000
    assert statistics.newcombe(5000, n, 5000, n) == pytest.approx(1.96 * math.sqrt(2 * p * (1 - p) / n), rel=0.01)
