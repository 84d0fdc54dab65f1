"""What a layer of experts costs, exact and in 8 bits. ``python -m mixquant_agents.bench.gpu.experts OUT.json [SHAPE]``

vLLM's kernels as the plugin runs them, without an engine: exact, and each kernel that takes FP8 with one scale a row
(Triton's with several tiles); as replays of a CUDA graph over two layers of random weights. Also how far
each FP8 product is from its emulation (of a row's length).
"""

# ruff: noqa: T201 - a program
from __future__ import annotations

import argparse
import contextlib
import json
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from mixquant_agents.bench.shapes import SHAPES
from mixquant_agents.files import write_whole
from mixquant_agents.precision.formats import NumberFormat
from mixquant_agents.precision.resolve import LayerFormat
from mixquant_agents.quant.experts.activations import ACTIVATIONS
from mixquant_agents.quant.experts.estimate import shape_of
from mixquant_agents.quant.experts.layer import ExpertRows, ExpertShape, ExpertsLayer, ExpertWeights
from mixquant_agents.quant.experts.trial import ExpertsTrial
from mixquant_agents.quant.timing import replay_microseconds
from mixquant_agents.quant.vllm.experts.grouped import Cut, grouped_experts
from mixquant_agents.quant.vllm.experts.kernels import RowwiseExperts, modular_kernel, run_kernel, some_rows
from mixquant_agents.quant.vllm.experts.tiled import tiled_experts

ROWS = (1, 8, 16, 64, 128, 256, 512, 1024, 2048, 4096, 8192)
MORE = {
    "64x256x128": (64, 256, 128, 16, 8, 3),
    "128x128x64": (128, 128, 64, 16, 4, 4),
}
"""Tiles that the plugin does not try at start: rows, outputs and inputs, tiles of a group, warps, stages."""
MORE_CUTS = {
    "64 tall": Cut(64, (128, 128, 4, 2), (256, 128, 4, 2)),
    "64 deep": Cut(64, (128, 128, 8, 4), (128, 128, 4, 4)),
    "128 two": Cut(128, (64, 128, 4, 3), (128, 128, 4, 3)),
    "128 three": Cut(128, (128, 128, 8, 3), (128, 128, 8, 3)),
    "128 short": Cut(128, (128, 64, 8, 4), (128, 64, 4, 4)),
}
"""So of our own products."""
LAYERS = 2
FP8 = LayerFormat(NumberFormat.FP8, emulated=False)


@contextlib.contextmanager
def vllm_alone() -> Iterator[None]:
    """What vLLM's kernels of experts need of an engine."""
    from vllm.config import VllmConfig, set_current_vllm_config
    from vllm.v1.worker.workspace import init_workspace_manager

    init_workspace_manager(torch.device("cuda"))
    with set_current_vllm_config(VllmConfig()):
        yield


def layer_of(shape: ExpertShape, activation: str) -> ExpertsLayer:
    from vllm.model_executor.layers.fused_moe.activation import MoEActivation
    from vllm.model_executor.layers.fused_moe.config import FusedMoEConfig, FusedMoEParallelConfig, RoutingMethodType

    vllm_activation = MoEActivation.from_str(activation)
    moe = FusedMoEConfig(
        num_experts=shape.experts,
        experts_per_token=shape.chosen,
        hidden_dim=shape.hidden,
        intermediate_size=shape.inner,
        num_local_experts=shape.experts,
        num_logical_experts=shape.experts,
        activation=vllm_activation,
        device=torch.device("cuda"),
        routing_method=RoutingMethodType.Renormalize,
        moe_parallel_config=FusedMoEParallelConfig.make_no_parallel(),
        in_dtype=torch.bfloat16,
        max_num_tokens=max(ROWS),
    )
    own = SimpleNamespace(
        moe_config=moe,
        activation=vllm_activation,
        apply_router_weight_on_input=False,
        global_num_experts=shape.experts,
        expert_map=None,
        params_dtype=torch.bfloat16,
        swiglu_alpha=None,
        swiglu_beta=None,
        swiglu_limit=None,
    )
    return ExpertsLayer("experts", shape, ACTIVATIONS[activation], own=own)


def random_weights(shape: ExpertShape) -> ExpertWeights:
    up = torch.randn(shape.experts, shape.up, shape.hidden, device="cuda", dtype=torch.bfloat16) / shape.hidden**0.5
    down = torch.randn(shape.experts, shape.hidden, shape.inner, device="cuda", dtype=torch.bfloat16) / shape.inner**0.5
    return ExpertWeights(up, down)


class Layers:
    """Some equal layers, with every kernel that runs them."""

    def __init__(self, shape: ExpertShape, activation: str, more: bool) -> None:
        from vllm.model_executor.layers.fused_moe.config import FusedMoEQuantConfig
        from vllm.model_executor.layers.fused_moe.experts.triton_moe import TritonExperts

        self.layer = layer_of(shape, activation)
        self.twin = RowwiseExperts("fp8-native", torch.float8_e4m3fn)
        self.twin.prepare(self.layer)
        if more:
            self.twin.add(tiled_experts(self.layer.own, MORE))
            self.twin.add(grouped_experts(self.layer.own, shape, False, MORE_CUTS))
        self.weights = [random_weights(shape) for _ in range(LAYERS)]
        self.states = [self.twin.build(each, self.layer) for each in self.weights]
        self.exact = modular_kernel(TritonExperts, FusedMoEQuantConfig.make(), self.layer.own)

    def run_exact(self, rows: ExpertRows) -> None:
        for each in self.weights:
            run_kernel(self.exact, each.up, each.down, rows, self.layer.own)

    def run(self, kernel: str, rows: ExpertRows) -> None:
        for each in self.states:
            run_kernel(each.kernels[kernel], each.up, each.down, rows, self.layer.own)

    def errors(self) -> dict[str, float]:
        errors = {}
        for name in self.states[0].kernels:
            self.twin.only(name)
            errors[name] = ExpertsTrial(self.layer, FP8, self.twin, self.states[0], self.weights[0]).error()
        return errors

    def microseconds(self, m: int) -> dict[str, float]:
        x = torch.randn(m, self.layer.shape.hidden, device="cuda", dtype=torch.bfloat16)
        rows = some_rows(self.layer, x)
        times = {"exact": replay_microseconds(lambda: self.run_exact(rows))}
        for name in self.states[0].kernels:
            if name.startswith(("tiles", "grouped")) and m < 256:
                continue  # steps of so few rows run exact
            times[name] = replay_microseconds(lambda name=name: self.run(name, rows))  # type: ignore[misc] # bound now
        return {name: round(value / LAYERS, 1) for name, value in times.items()}


def layer_shape(name: str) -> tuple[ExpertShape, str]:
    shape = shape_of(SHAPES[name])
    if shape is None:
        raise ValueError(f"{name!r} has no experts")
    return shape, "gelu_tanh" if "hidden_activation" in SHAPES[name] else "silu"


def main(arguments: list[str] | None = None) -> None:
    """Measure and print; written to the result file as it goes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument(
        "shape", nargs="?", default="qwen3-30b-a3b", choices=[n for n in SHAPES if "num_experts" in SHAPES[n]]
    )
    parser.add_argument("--more", action="store_true", help="also tiles that the plugin does not try")
    options = parser.parse_args(arguments)
    began = time.time()
    torch.manual_seed(0)
    result: dict[str, Any] = {
        "device": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "shape": options.shape,
    }
    result["microseconds"] = {}
    with vllm_alone(), torch.inference_mode():
        layers = Layers(*layer_shape(options.shape), options.more)
        result["errors"] = layers.errors()
        print("errors", result["errors"], flush=True)
        for m in ROWS:
            result["microseconds"][str(m)] = layers.microseconds(m)
            print(m, result["microseconds"][str(m)], flush=True)
            result["seconds"] = round(time.time() - began, 1)
            write_whole(options.out, json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
