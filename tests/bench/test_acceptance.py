"""Drafting along an answer, on a network that writes by a rule and errs at known places when it is quantized."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from mixquant_agents.bench.acceptance import _along, _judged, known_formats
from mixquant_agents.bench.fidelity.answers import Prompt
from mixquant_agents.errors import ConfigError
from mixquant_agents.precision.plan import Mode
from mixquant_agents.quant.step import EXACT, StepPlan

VOCABULARY = 11


class Cache(list[tuple[int, bool]]):
    """Tokens read, and whether exactly."""

    def get_seq_length(self) -> int:
        return len(self)

    def crop(self, length: int) -> None:
        assert length < 0, "so many tokens are taken away"
        del self[length:]


class Network:
    """Writes the sum of what it has read; quantized, it is one off behind every fifth position."""

    device = torch.device("cpu")

    def __init__(self) -> None:
        self.step = EXACT
        self.read: list[list[bool]] = []

    def plan(self, step: StepPlan) -> None:
        self.step = step

    def __call__(self, ids: torch.Tensor, past_key_values: Cache | None = None, use_cache: bool = True) -> Any:
        cache = Cache() if past_key_values is None else past_key_values
        logits = torch.zeros(1, ids.shape[1], VOCABULARY)
        for row, token in enumerate(ids[0].tolist()):
            cache.append((token, self.step.mode is Mode.EXACT))
            error = self.step.mode is Mode.QUANTIZED and len(cache) % 5 == 0
            logits[0, row, (sum(each for each, _ in cache) + error) % VOCABULARY] = 1
        self.read.append([exact for _, exact in cache])
        return SimpleNamespace(logits=logits, past_key_values=cache)


def written(prompt: list[int], tokens: int) -> tuple[int, ...]:
    whole = list(prompt)
    for _ in range(tokens):
        whole.append(sum(whole) % VOCABULARY)
    return tuple(whole[len(prompt) :])


def test_drafts_read_the_exact_cache_and_their_own_rows() -> None:
    network = Network()
    prompt = Prompt("plain", (3, 1, 4), 0, written([3, 1, 4], 12))
    right = _along(network, network.plan, prompt, 3)
    expected = [  # by the token that is fed first
        next((step for step in range(3) if (begin + step + 1) % 5 == 0), 3) for begin in range(11, 2, -1)
    ]
    assert right == expected
    for exact in network.read[1:]:
        own = exact.count(False)
        assert exact == [True] * (len(exact) - own) + [False] * own
        assert 1 <= own <= 3


def test_rates_by_step_and_by_number_of_drafts() -> None:
    found = _judged([90, 72, 36], [100, 90, 72], share=0.7)
    assert found.by_step == (0.9, 0.8, 0.5)
    assert found.acceptance == {1: 0.9, 2: pytest.approx(162 / 190), 3: pytest.approx(198 / 262)}
    assert found.tokens_per_cycle[1] == pytest.approx(1.9)
    assert found.gain is not None
    assert found.gain[1] == pytest.approx(1.9 / 1.73)


def test_step_that_was_never_reached_is_unknown() -> None:
    assert _judged([0, 0], [10, 0], None).by_step == (0.0, None)


def test_unknown_format_is_named_with_those_there_are() -> None:
    assert [name.value for name in known_formats(["fp8"])] == ["fp8"]
    with pytest.raises(ConfigError, match=r"no format 'fp7'.*fp8"):
        known_formats(["fp7"])
