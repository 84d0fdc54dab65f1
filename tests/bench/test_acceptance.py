"""Drafting along an answer, on a network that writes by a rule and errs at known places when it is quantized."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from mixquant_agents.bench.acceptance import EMULATION, _along, _judged, known_formats
from mixquant_agents.bench.fidelity.answers import Prompt
from mixquant_agents.errors import ConfigError
from mixquant_agents.precision.formats import NumberFormat
from mixquant_agents.precision.plan import Mode
from mixquant_agents.precision.policy import PrecisionPolicy
from mixquant_agents.precision.resolve import resolve
from mixquant_agents.quant.calibration.network import routed
from mixquant_agents.quant.step import EXACT, StepPlan

VOCABULARY = 11


class Network:
    """Writes the sum of what it reads; quantized, it is one off behind every fifth position.

    Attributes:
        read: of each pass the mask, where one was given.
    """

    device = torch.device("cpu")
    dtype = torch.float32

    def __init__(self) -> None:
        self.step = EXACT
        self.held: list[tuple[int, bool]] = []
        self.read: list[torch.Tensor] = []

    def plan(self, step: StepPlan) -> None:
        self.step = step

    def __call__(
        self,
        ids: torch.Tensor,
        past_key_values: Any,
        position_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        **settings: Any,
    ) -> Any:
        rows = ids[0].tolist()
        before = len(self.held)
        self.held += [(token, self.step.mode is Mode.EXACT) for token in rows]
        if attention_mask is None or position_ids is None:
            return SimpleNamespace(logits=None)
        mask = attention_mask[0, 0] == 0
        self.read.append(mask)
        logits = torch.zeros(1, len(rows), VOCABULARY)
        for row, position in enumerate(position_ids[0].tolist()):
            read = [token for (token, _), seen in zip(self.held, mask[row].tolist(), strict=True) if seen]
            assert mask[row, before + row], "a row reads itself"
            assert len(read) == position + 1, "a position has so many tokens up to it"
            logits[0, row, (sum(read) + ((position + 1) % 5 == 0)) % VOCABULARY] = 1
        return SimpleNamespace(logits=logits)


def written(prompt: list[int], tokens: int) -> tuple[int, ...]:
    whole = list(prompt)
    for _ in range(tokens):
        whole.append(sum(whole) % VOCABULARY)
    return tuple(whole[len(prompt) :])


def test_drafts_read_the_exact_cache_and_their_own_rows() -> None:
    network = Network()
    prompt = Prompt("plain", (3, 1, 4), 0, written([3, 1, 4], 12))
    right = _along(network, network.plan, prompt, 3)
    expected = [next((step for step in range(3) if (begin + step + 1) % 5 == 0), 3) for begin in range(3, 12)]
    assert right == expected
    assert len(network.read) == 3, "a pass for each draft, however many cycles there are"
    for mask in network.read:
        for row in range(9):
            exact = [is_exact for (_, is_exact), seen in zip(network.held, mask[row].tolist(), strict=False) if seen]
            own = exact.count(False)
            assert exact == [True] * (3 + row) + [False] * own
            assert 1 <= own <= 3


def test_answer_shorter_than_a_cycle_has_none() -> None:
    network = Network()
    assert _along(network, network.plan, Prompt("plain", (3,), 0, (3, 6)), 3) == []


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


def test_passes_of_all_cycles_draft_as_single_rows_do() -> None:
    """A real network: what a mask lets rows of one pass read is what one row at a time reads."""
    from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=17, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2,
    )  # fmt: skip
    network: Any = LlamaForCausalLM(config).eval()
    resolved = resolve(PrecisionPolicy(prefill_format=NumberFormat.NVFP4), EMULATION)
    prompt = tuple(torch.randint(0, 17, (9,)).tolist())
    with torch.inference_mode(), routed(network, resolved) as plan:
        plan(EXACT)
        whole = network.generate(torch.tensor([prompt]), max_new_tokens=16, do_sample=False)[0].tolist()
        together = _along(network, plan, Prompt("plain", prompt, 0, tuple(whole[9:])), 3)
        singly = []
        for begin in range(9, len(whole) - 3):
            plan(EXACT)
            cache = DynamicCache()
            network(torch.tensor([whole[:begin]]), past_key_values=cache, use_cache=True)
            plan(StepPlan(Mode.QUANTIZED))
            token, right = torch.tensor([[whole[begin]]]), 0
            for step in range(3):
                token = network(token, past_key_values=cache, use_cache=True).logits.argmax(-1)
                if int(token) != whole[begin + 1 + step]:
                    break
                right += 1
            singly.append(right)
    assert together == singly
    assert len(set(singly)) > 1, "some cycles end early"
