"""Chance level and majority rate against items counted by hand, and standard errors against closed forms."""

import math

import numpy as np
import pytest

from r2q.evaluation.chance import Items, levels
from r2q.evaluation.errors import bootstrap, delta_exp_mean

FOUR = ["a", "b", "c", "d"]


def test_chance_is_the_mean_over_items_with_different_numbers_of_choices() -> None:
    items = Items([FOUR, FOUR, ["a", "b", "c"], ["a", "b"]], [[0], [3], [1], [0]])
    assert items.chance == pytest.approx((1 / 4 + 1 / 4 + 1 / 3 + 1 / 2) / 4)
    assert items.majority == 0.5  # index 0 in two of four


def test_items_with_several_right_choices_and_with_none() -> None:
    items = Items([FOUR, FOUR], [[0, 2], []])
    assert items.chance == 0.25
    assert items.majority == 0.5


def test_yes_no_majority() -> None:
    items = Items([["no", "yes"]] * 8, [[1]] * 5 + [[0]] * 3)
    assert (items.chance, items.majority) == (0.5, 0.625)
    assert Items([["no", "yes"]] * 3, [[1]] * 3).majority == 1.0  # the labels mean the same in every item


def test_a_file_that_lists_the_right_choice_first_has_no_majority_answer() -> None:
    assert Items([["x", "y"], ["z", "w"]], [[0], [0]]).majority is None


def test_levels_by_kind_of_score() -> None:
    items = Items([["no", "yes"]] * 2, [[1], [0]])
    assert levels(items, "multiple_choice", "acc_norm") == (0.5, 0.5)
    assert levels(items, "multiple_choice", "brier_score") == (None, None)
    assert levels(None, "generate_until", "exact_match") == (0.0, None)
    assert levels(None, "loglikelihood", "acc") == (0.0, None)
    assert levels(None, "loglikelihood", "perplexity") == (None, None)
    assert levels(None, "loglikelihood_rolling", "word_perplexity") == (None, None)


def test_bootstrap_of_a_mean_is_its_closed_form() -> None:
    """Equal lengths make bits per byte a mean; then sd / sqrt(n) is known."""
    values = np.random.default_rng(0).normal(-100, 20, size=400)
    pairs = [(float(v), 50.0) for v in values]
    expected = values.std() / math.sqrt(400) / 50 / math.log(2)
    assert bootstrap(pairs, "bits_per_byte") == pytest.approx(expected, rel=0.08)  # 1000 resamples: 2 % each side


def test_bootstrap_of_a_perplexity_agrees_with_the_delta_method() -> None:
    random = np.random.default_rng(1)
    words = random.integers(50, 400, size=300)
    logs = -words * random.normal(4.0, 0.2, size=300)
    ratio = logs.sum() / words.sum()
    residual = logs - ratio * words
    expected = math.exp(-ratio) * math.sqrt(300 / 299 * (residual**2).sum()) / words.sum()
    pairs = list(zip(logs.tolist(), words.tolist(), strict=True))
    assert bootstrap(pairs, "word_perplexity") == pytest.approx(expected, rel=0.08)
    assert bootstrap(pairs, "word_perplexity") == bootstrap(pairs, "word_perplexity")  # seeded
    assert bootstrap(pairs[:1], "word_perplexity") is None


def test_bootstrap_in_parts_draws_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = [(-float(i), 3.0) for i in range(1, 30)]
    whole = bootstrap(pairs, "byte_perplexity")
    monkeypatch.setattr("r2q.evaluation.errors.CHUNK", 29 * 7)
    assert bootstrap(pairs, "byte_perplexity") == pytest.approx(whole, rel=1e-12)


def test_delta_method() -> None:
    values = [1.0, 1.2, 0.9, 1.1]
    assert delta_exp_mean(values) == pytest.approx(math.exp(1.05) * np.std(values, ddof=1) / 2)
    assert delta_exp_mean([1.0]) is None
