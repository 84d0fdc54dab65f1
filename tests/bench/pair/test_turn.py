"""The figures of turns."""

import math

import pytest

from mixquant_agents.bench.pair.turn import MeasuredTurn, common_beginning, kl_divergence, latencies
from mixquant_agents.engine.base import TokenLogprob

LIKELY = TokenLogprob("a", math.log(0.8), (("a", math.log(0.8)), ("b", math.log(0.1))))
UNSURE = TokenLogprob("a", math.log(0.5), (("a", math.log(0.5)), ("b", math.log(0.4))))


def test_kl_is_a_lower_bound_over_what_both_list() -> None:
    assert kl_divergence(LIKELY, LIKELY) == 0
    whole = 0.8 * math.log(0.8 / 0.5) + 0.1 * math.log(0.1 / 0.4)
    assert kl_divergence(LIKELY, UNSURE) == pytest.approx(whole, abs=1e-6)
    other = TokenLogprob("a", math.log(0.8), (("a", math.log(0.8)), ("c", math.log(0.1))))
    assert kl_divergence(LIKELY, other) == pytest.approx(0.0), "b and c are both in the rest"


def test_latencies_of_answers_of_one_token_have_no_tpot() -> None:
    assert latencies([MeasuredTurn(1.0, [1.5]), MeasuredTurn(2.0, [2.1])]) == {
        "ttft_p50_ms": 300, "ttft_least_ms": 100, "ttft_most_ms": 500, "tpot_ms": None,
    }  # fmt: skip
    assert latencies([MeasuredTurn(1.0, [1.5, 1.6, 1.8])])["tpot_ms"] == pytest.approx(150)


def test_common_beginning_ends_with_the_shorter() -> None:
    assert common_beginning([1, 2, 3], [1, 2]) == 2
    assert common_beginning([1, 2, 3], [1, 9, 3]) == 1
    assert common_beginning([], [1]) == 0
