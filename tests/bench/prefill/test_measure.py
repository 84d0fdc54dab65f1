"""What is measured on one engine, on a stand-in that gives each request one token a step."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from mixquant_agents.bench.prefill.measure import Measurements


class StepEngine:
    """Of vLLM's engine what the measurements use; every running request gets a token in each step."""

    def __init__(self) -> None:
        self.running: dict[str, int] = {}
        self.most = 0
        self.added: list[tuple[str, int, int]] = []
        self.aborted: list[str] = []

    def add_request(self, name: str, prompt: dict[str, Any], params: Any, lora_request: Any = None) -> None:
        self.running[name] = params.max_tokens
        self.added.append((name, len(prompt["prompt_token_ids"]), params.max_tokens))

    def has_unfinished_requests(self) -> bool:
        return bool(self.running)

    def abort_request(self, names: list[str]) -> None:
        self.aborted += [name for name in names if self.running.pop(name, None)]

    def step(self) -> list[Any]:
        self.most = max(self.most, len(self.running))
        outputs = []
        for name in list(self.running):
            self.running[name] -= 1
            finished = self.running[name] == 0
            if finished:
                del self.running[name]
            answer = SimpleNamespace(token_ids=[1], logprobs=None)
            outputs.append(
                SimpleNamespace(request_id=f"{name}-0", outputs=[answer], finished=finished, num_cached_tokens=0)
            )
        return outputs


@pytest.fixture
def measurements() -> Measurements:
    made = Measurements.__new__(Measurements)
    made.engine = StepEngine()
    made._vocabulary, made._random, made._count = 5000, np.random.default_rng(0), 0
    return made


def test_closed_loop_gives_each_agent_its_turns(measurements: Measurements) -> None:
    result = measurements.agents(4, 0.0, shared=20, own=5, new=3, answer=6, turns_each=3)
    engine = measurements.engine
    asked = [added for added in engine.added if added[2] == 6]
    assert len(asked) == result["turns"] == 12
    assert {length for _, length, _ in asked} == {28}
    assert engine.most == 4, "an agent asks again only once it was answered"
    assert len(result["ttft_ms"]) == 12
    assert len(result["itl_ms"]) == 12 * 5
    assert result["tokens_per_s"] > 0
    assert not engine.aborted


def test_open_loop_leaves_the_first_fifth_out(measurements: Measurements) -> None:
    result = measurements.agents(4, 0.2, shared=20, own=5, new=3, answer=6, rate=200.0, seed=3)
    engine = measurements.engine
    asked = [added for added in engine.added if added[2] == 6]
    assert 15 < len(asked) < 80
    assert 0 < result["turns"] < len(asked)
    assert all(first >= 0 for first in result["ttft_ms"])
    assert not engine.running, "what was still running at the end is taken back"


def test_decode_counts_tokens_per_request(measurements: Measurements) -> None:
    assert measurements.decode(3, tokens=20)["ms"] > 0
    assert measurements.engine.most == 3


def test_prefill_reads_a_known_prefix(measurements: Measurements) -> None:
    result = measurements.prefill(64, cached=128, repeats=3)
    assert len(result["ms"]) == len(result["cached"]) == 3
    assert [length for _, length, _ in measurements.engine.added] == [144, 192, 192, 192]
