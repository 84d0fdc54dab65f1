"""Training of twins, on a small random model: it starts as GPTQ's, learns, and leaves the model as it was."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_llama import tiny_llama

from mixquant_agents.bench.fidelity.answers import Prompt, compare, greedy, reference
from mixquant_agents.precision.policy import PrecisionPolicy
from mixquant_agents.precision.resolve import resolve
from mixquant_agents.precision.support import DeviceInfo
from mixquant_agents.quant.calibration.collect import collect, layer_calibrations
from mixquant_agents.quant.calibration.distill import Lesson, Training, distill
from mixquant_agents.quant.calibration.network import batches, groups, routed
from mixquant_agents.quant.numerics import e2m1

pytestmark = pytest.mark.slow

KEYS_IN_FP8 = PrecisionPolicy(
    prefill_format="nvfp4", formats={"k_proj": "fp8"}, weight_rounding="gptq", calibration="x"
)


@pytest.fixture(scope="module")
def network() -> Any:
    return tiny_llama(302, end=1).eval()


@pytest.fixture(scope="module")
def lessons(network: Any) -> list[Prompt]:
    generator = torch.Generator().manual_seed(1)
    drawn = [torch.randint(2, 300, (length,), generator=generator).tolist() for length in (9, 21, 14, 28)]
    return greedy(network, [Prompt("question", tuple(ids), 0) for ids in drawn], 6, least=6)


def test_no_steps_leave_the_twin_as_it_was(network: Any, lessons: list[Prompt]) -> None:
    start = layer_calibrations(network, seen(network, lessons), twins=True)
    same, losses = distill(network, resolve(KEYS_IN_FP8, CPU), start, asked(lessons), Training(steps=0))
    assert losses == []
    for group in groups(network):
        before, after = start[group.name].twin, same[group.name].twin
        assert before is not None
        assert after is not None
        assert torch.equal(e2m1.unpack(before.packed), e2m1.unpack(after.packed))


def test_loss_falls_by_what_is_measured_without_gradients(network: Any, lessons: list[Prompt]) -> None:
    weights = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    start = layer_calibrations(network, seen(network, lessons), twins=True)
    resolved = resolve(KEYS_IN_FP8, CPU)
    trained, losses = distill(
        network, resolved, start, asked(lessons), Training(steps=16, rate=0.1, warm_up=2, cache=0.3)
    )
    before, after = measured(network, resolved, start, lessons), measured(network, resolved, trained, lessons)
    assert losses[0] == pytest.approx(before, rel=0.02)
    assert after < 0.7 * before
    assert all(torch.equal(tensor, weights[name]) for name, tensor in network.state_dict().items())
    assert all(parameter.requires_grad for parameter in network.parameters())
    qkv = groups(network)[0]
    codes = [each[qkv.name].twin.packed.split(list(qkv.widths)) for each in (start, trained)]  # type: ignore[union-attr] # all have twins
    changed = [not torch.equal(a, b) for a, b in zip(*codes, strict=True)]
    assert changed == [True, False, True]  # k_proj is in FP8, and does not learn


CPU = DeviceInfo("cpu", "emulation")


def seen(network: Any, lessons: list[Prompt]) -> Any:
    return collect(network, batches([prompt.ids for prompt in lessons], network.device), moments=True)


def asked(lessons: list[Prompt]) -> list[Lesson]:
    return [Lesson(prompt.whole, len(prompt.ids)) for prompt in lessons]


def measured(network: Any, resolved: Any, calibrations: Any, lessons: list[Prompt]) -> float:
    exact = reference(network, lessons)
    with routed(network, resolved, calibrations) as plan:
        found = compare(network, exact, plan, lambda prompt: [resolved.rule().interval(len(prompt.ids))])
    return float(torch.cat(list(found.kl.values())).mean())
