"""Graph rewriting: what is fused, what is left alone, and that the rewritten graph computes the same."""

from __future__ import annotations

import operator
from typing import Any

import torch
import vllm.ir.ops.layernorm  # noqa: F401 - registers torch.ops.vllm_ir
from torch import fx
from torch._functorch._aot_autograd.autograd_cache import check_cacheable

from mixquant_agents.quant import step as steps
from mixquant_agents.quant.ops.fusion import fuse
from mixquant_agents.quant.step import EXACT, QUANTIZED
from mixquant_agents.quant.twins.registry import RegisteredTwin, register
from mixquant_agents.quant.twins.rowwise import RowwiseTwin

K = 32
ops = torch.ops.mixquant
KEPT: list[RegisteredTwin] = []
TWIN = RowwiseTwin("fp8-native", torch.float8_e4m3fn, "torch")


def graph(*, readers_of_norm: int = 1, activation: object = torch.nn.functional.silu) -> fx.GraphModule:
    """A decoder block's tail as vLLM's compiled pieces hold it: add-norm, gate-up, SiLU-mul, down."""
    g = fx.Graph()
    x, residual, gamma, w1, w2 = (g.placeholder(n) for n in ["x", "residual", "gamma", "w1", "w2"])
    norm = g.call_function(torch.ops.vllm_ir.fused_add_rms_norm.maybe_inplace, (x, residual, gamma, 1e-6, None))
    y = g.call_function(operator.getitem, (norm, 0))
    total = g.call_function(operator.getitem, (norm, 1))
    wide = g.call_function(ops.gpu_linear, (y, w1, None))
    gate = g.call_function(operator.getitem, (wide, (..., slice(None, K, None))))
    up = g.call_function(operator.getitem, (wide, (..., slice(K, None, None))))
    active = g.call_function(activation, (gate,))  # type: ignore[arg-type]
    product = g.call_function(operator.mul, (active, up))
    out = g.call_function(ops.gpu_linear, (product, w2, None))
    g.output((out, total, y) if readers_of_norm > 1 else (out, total))
    return fx.GraphModule(torch.nn.Module(), g)


def inputs() -> list[torch.Tensor]:
    torch.manual_seed(0)
    w1, w2 = torch.randn(2 * K, K) / K**0.5, torch.randn(K, K) / K**0.5
    KEPT.extend(register(weight, TWIN, TWIN.build(weight)) for weight in (w1, w2))
    return [torch.randn(5, K), torch.randn(5, K), torch.rand(K) + 0.5, w1, w2]


def names(module: fx.GraphModule) -> list[str]:
    return [str(node.target) for node in module.graph.nodes if node.op == "call_function"]


def test_norm_and_activation_are_fused_and_the_result_is_the_same() -> None:
    plain = graph()
    fused, count = fuse(plain)
    assert count == 2
    assert any("gpu_add_norm_linear" in name for name in names(fused))
    assert any("gpu_silu_linear" in name for name in names(fused))
    assert not any("rms_norm" in name for name in names(fused)), "the norm may work in place, so it has to be gone"
    assert any("rms_norm" in name for name in names(plain)), "the original is not touched"
    for step in (EXACT, QUANTIZED):
        with steps.forced(step):
            want = [t.clone() for t in plain(*inputs())]
            for a, b in zip(fused(*inputs()), want, strict=True):
                torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


class Block(torch.nn.Module):
    """Two routed layers that read a norm, one that reads SiLU-mul; what they give is cut up by methods of tensors."""

    def forward(
        self, x: torch.Tensor, residual: torch.Tensor, gamma: torch.Tensor, w1: torch.Tensor, w2: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        y = torch.ops.vllm_ir.rms_norm(x, gamma, 1e-6, None)
        x = ops.gpu_linear(y, w1, None).split([K, K], dim=-1)[1]
        y, total = torch.ops.vllm_ir.fused_add_rms_norm.maybe_inplace(x, residual, gamma, 1e-6, None)
        wide = ops.gpu_linear(y, w1, None)
        left, _ = wide.split([K, K], dim=-1)
        product = torch.nn.functional.silu(wide[..., :K]) * wide[..., K:]
        return left.contiguous(), ops.gpu_linear(product, w2, None).view(-1), total.view(-1)


def captured(module: torch.nn.Module) -> fx.GraphModule:
    """As vLLM has it: from Dynamo, with example values."""
    found: list[fx.GraphModule] = []

    def keep(module: fx.GraphModule, _: list[torch.Tensor]) -> fx.GraphModule:
        found.append(module)
        return module

    with steps.forced(EXACT):
        torch.compile(module, backend=keep, fullgraph=True)(*inputs())
    return found[0]


def arguments(module: fx.GraphModule) -> list[torch.Tensor]:
    """``inputs``, in the order in which Dynamo met them."""
    known = dict(zip(("L_x_", "L_residual_", "L_gamma_", "L_w1_", "L_w2_"), inputs(), strict=True))
    return [known[str(node.target)] for node in module.graph.nodes if node.op == "placeholder"]


def test_rewritten_graph_has_a_key_of_its_own_in_the_compile_cache() -> None:
    """Without one PyTorch takes a random number, alike on all ranks: one could get the piece of another's GPU."""
    plain = captured(Block())
    fused, count = fuse(plain)
    assert count == 3
    check_cacheable(plain)
    check_cacheable(fused)
    tensors = [node for node in fused.graph.nodes if node.op == "call_method"]
    assert {node.target for node in tensors} == {"split", "contiguous", "view"}


class Examples(fx.Interpreter):
    """Runs a graph; compares each node's tensor with its example value."""

    seen = 0

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if isinstance(value, torch.Tensor):
            self.seen += 1
            example = n.meta["example_value"]
            assert (example.shape, example.dtype) == (value.shape, value.dtype), n.name
        return value


def test_tensors_of_a_rewritten_graph_have_their_example_values() -> None:
    fused, _ = fuse(captured(Block()))
    run = Examples(fused)
    with steps.forced(EXACT):
        run.run(*arguments(fused))
    assert run.seen > 13


class Embedded(torch.nn.Module):
    """How a shard of the embedding begins a model: rows of other shards are set to zero in place."""

    def forward(
        self, x: torch.Tensor, residual: torch.Tensor, gamma: torch.Tensor, w1: torch.Tensor, w2: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        rows = x + residual
        rows.masked_fill_(residual[:, :1] > 0, 0)
        return ops.gpu_linear(torch.ops.vllm_ir.rms_norm(rows, gamma, 1e-6, None), w1, None), rows


def test_in_place_methods_stay() -> None:
    """``Graph.eliminate_dead_code`` takes ``masked_fill_`` away: a rank then adds its own rows to another's."""
    plain = captured(Embedded())
    fused, count = fuse(plain)
    assert count == 1
    with steps.forced(EXACT):
        (y, rows), (want_y, want_rows) = fused(*arguments(fused)), plain(*arguments(plain))
    torch.testing.assert_close(rows, want_rows)
    torch.testing.assert_close(y, want_y, rtol=1e-4, atol=1e-4)
    assert (rows == 0).all(dim=1).any()


def test_norm_with_another_reader_is_left_alone() -> None:
    fused, count = fuse(graph(readers_of_norm=2))
    assert count == 1
    assert any("rms_norm" in name for name in names(fused))


def test_another_activation_is_left_alone() -> None:
    fused, count = fuse(graph(activation=torch.nn.functional.gelu))
    assert count == 1
    assert not any("gpu_silu_linear" in name for name in names(fused))


def test_graphs_without_routed_layers_come_back_as_they_are() -> None:
    g = fx.Graph()
    g.output(g.call_function(operator.mul, (g.placeholder("x"), 2)))
    module = fx.GraphModule(torch.nn.Module(), g)
    assert fuse(module) == (module, 0)
