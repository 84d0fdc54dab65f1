"""Which layers of experts have twins."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from mixquant_agents.quant.experts.memory import GIB, ExpertsMemory, Offer


def names(*numbers: int) -> frozenset[str]:
    return frozenset(f"model.layers.{number}.mlp.experts" for number in numbers)


def offers(*sizes: tuple[int, int]) -> ExpertsMemory:
    layers = [Offer(f"model.layers.{i}.mlp.experts", nbytes, work) for i, (nbytes, work) in enumerate(sizes)]
    return ExpertsMemory(layers)


def test_all_fit() -> None:
    memory = offers((10, 1), (10, 1))
    assert memory.settle(20) == frozenset()
    assert memory.describe() == ""
    assert memory.status()["expert_layers"]["exact"] == []


def test_no_limit_keeps_all() -> None:
    assert offers((10, 1), (10, 1)).settle(None) == frozenset()


def test_last_layers_are_first_among_equals() -> None:
    memory = offers(*[(GIB, 1)] * 4)
    assert memory.settle(2 * GIB + 1) == names(0, 1)
    assert memory.describe() == (
        "2 of 4 layers of experts have a quantized twin: 2.0 GiB are left for them, and all need 4.0 GiB; the others "
        "run exact"
    )
    status = memory.status()["expert_layers"]
    assert status["exact"] == sorted(names(0, 1))
    assert status["quantized"] == sorted(names(2, 3))
    assert status["reason"] == memory.describe()


def test_costliest_for_their_size_go_first() -> None:
    assert offers((10, 5), (10, 9), (10, 5)).settle(10) == names(0, 2)


def test_model_without_experts_says_nothing_of_them() -> None:
    assert ExpertsMemory().status() == {}


@given(st.lists(st.tuples(st.integers(1, 50), st.integers(1, 50)), min_size=1, max_size=12), st.integers(0, 300))
def test_twins_fit_and_no_other_would(sizes: list[tuple[int, int]], room: int) -> None:
    memory = offers(*sizes)
    exact = memory.settle(room)
    taken = sum(offer.nbytes for offer in memory.offers if offer.prefix not in exact)
    assert taken <= room
    assert all(taken + offer.nbytes > room for offer in memory.offers if offer.prefix in exact)
