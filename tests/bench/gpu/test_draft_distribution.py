"""The statistic by which sampled drafts are judged: right samples pass, wrong ones do not."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from mixquant_agents.bench.gpu.draft_distribution import by_context, chi_square, p_value

TRUE = np.array([0.4, 0.3, 0.15, 0.1, 0.04, 0.01])


def p_of(drawn_from: np.ndarray) -> float:
    random = np.random.default_rng(1)
    counts = {(context,): Counter(random.choice(6, size=4000, p=drawn_from).tolist()) for context in range(5)}
    return p_value(*chi_square(counts, dict.fromkeys(counts, TRUE)))


def test_right_samples_pass_and_wrong_ones_do_not() -> None:
    assert p_of(TRUE) > 0.01
    wrong = TRUE + np.array([0.02, -0.02, 0, 0, 0, 0])
    assert p_of(wrong) < 0.01


@pytest.mark.parametrize(("freedom", "at_five_percent"), [(10, 18.307), (30, 43.773), (100, 124.342)])
def test_p_value_is_that_of_the_tables(freedom: int, at_five_percent: float) -> None:
    assert p_value(at_five_percent, freedom) == pytest.approx(0.05, rel=0.02)


def test_contexts_are_the_answers_own_beginnings() -> None:
    found = by_context([[1, 2, 3]] * 200 + [[1, 4, 3]] * 100)
    assert found == {(1,): Counter({2: 200, 4: 100}), (1, 2): Counter({3: 200})}
