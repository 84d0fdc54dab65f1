"""vLLM's kernels of experts as the plugin runs them: near their emulation, and routed in CUDA graphs. Needs vLLM."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch

from mixquant_agents.precision.formats import NumberFormat
from mixquant_agents.precision.plan import Mode
from mixquant_agents.precision.resolve import LayerFormat
from mixquant_agents.quant.experts.layer import ExpertRows, ExpertShape
from mixquant_agents.quant.experts.routing import routed_experts
from mixquant_agents.quant.experts.trial import ExpertsTrial
from mixquant_agents.quant.step import EXACT, QUANTIZED, StepPlan
from mixquant_agents.quant.timing import capture

pytestmark = pytest.mark.gpu
SHAPE = ExpertShape(experts=16, hidden=512, inner=256, gated=True, chosen=4)
FORMATS = {"fp8": (NumberFormat.FP8, torch.float8_e4m3fn), "int8": (NumberFormat.INT8, torch.int8)}


@pytest.fixture(scope="module", autouse=True)
def vllm_alone() -> Iterator[None]:
    from mixquant_agents.bench.gpu import experts

    with experts.vllm_alone(), torch.inference_mode():
        yield


class Layer:
    """One layer, its twin in a format, and vLLM's exact kernel."""

    def __init__(self, name: str, activation: str) -> None:
        from vllm.model_executor.layers.fused_moe.config import FusedMoEQuantConfig
        from vllm.model_executor.layers.fused_moe.experts.triton_moe import TritonExperts

        from mixquant_agents.bench.gpu import experts
        from mixquant_agents.quant.vllm.experts.kernels import RowwiseExperts, modular_kernel, run_kernel

        torch.manual_seed(0)
        number_format, dtype = FORMATS[name]
        self.format = LayerFormat(number_format, emulated=False)
        self.layer = experts.layer_of(SHAPE, activation)
        self.weights = experts.random_weights(SHAPE)
        self.twin = RowwiseExperts(self.format.name, dtype)
        self.twin.prepare(self.layer)
        self.state = self.twin.build(self.weights, self.layer)
        exact = modular_kernel(TritonExperts, FusedMoEQuantConfig.make(), self.layer.own)
        self.exact: Callable[[ExpertRows], torch.Tensor] = lambda rows: run_kernel(
            exact, self.weights.up, self.weights.down, rows, self.layer.own
        )

    def quantized(self, rows: ExpertRows) -> torch.Tensor:
        return self.twin.product(rows, self.state, self.layer)

    def run(self, rows: ExpertRows, step: StepPlan) -> torch.Tensor:
        return routed_experts(rows, step, self.exact, self.quantized)

    def rows(self, m: int) -> ExpertRows:
        from mixquant_agents.quant.vllm.experts.kernels import some_rows

        return some_rows(self.layer, torch.randn(m, SHAPE.hidden, device="cuda", dtype=torch.bfloat16))


@pytest.mark.parametrize("activation", ["silu", "gelu_tanh"])
@pytest.mark.parametrize("name", list(FORMATS))
def test_every_kernel_is_near_the_emulation(name: str, activation: str) -> None:
    layer = Layer(name, activation)
    assert len(layer.state.kernels) >= 2
    for kernel in layer.state.kernels:
        layer.twin.only(kernel)
        error = ExpertsTrial(layer.layer, layer.format, layer.twin, layer.state, layer.weights).error()
        assert 0 < error < 0.08, kernel


@pytest.mark.parametrize("name", list(FORMATS))
def test_captured_mixed_step_replays_with_other_rows_and_gives_each_its_own_bits(name: str) -> None:
    layer = Layer(name, "silu")
    rows = layer.rows(300)
    slot = torch.full((16,), -1, dtype=torch.int32, device="cuda")
    layer.run(rows, EXACT)  # buffers grow before anything is captured
    graph, out = capture(lambda: layer.run(rows, StepPlan(Mode.MIXED, 300, exact_rows=slot)))
    quantized = layer.run(rows, QUANTIZED).clone()
    for chosen in ([0], [7, 8, 299], list(range(3, 19))):
        slot.fill_(-1)
        slot[: len(chosen)] = torch.tensor(chosen, dtype=torch.int32)
        graph.replay()
        used = torch.tensor([*chosen, *[chosen[0]] * (16 - len(chosen))], device="cuda")
        exact = layer.exact(rows.take(used))[: len(chosen)]
        others = torch.tensor([row for row in range(300) if row not in chosen], device="cuda")
        assert torch.equal(out[chosen], exact)
        assert torch.equal(out[others], quantized[others])


@pytest.mark.parametrize("name", list(FORMATS))
def test_row_is_the_same_whatever_the_others_hold(name: str) -> None:
    """With a scale of the whole tensor one large row would change all others."""
    layer = Layer(name, "silu")
    rows = layer.rows(64)
    before = layer.quantized(rows).clone()
    x = rows.x.clone()
    x[5] *= 1000
    after = layer.quantized(rows._replace(x=x))
    others = [row for row in range(64) if row != 5]
    assert torch.equal(before[others], after[others])
