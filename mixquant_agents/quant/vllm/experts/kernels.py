"""Native twins of experts through vLLM's own fused kernels: which of them, for which number format.

Quantization is per output channel for weights and per token for activations, as in the dense layers: a scale of the
whole tensor, which vLLM's online FP8 has, would make a row depend on the others of its step. Of the kernels that take
such scales (CUTLASS's grouped product, and Triton's with several tiles) the fastest at each number of rows is measured
at start.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch

from mixquant_agents.errors import FormatRefusedError
from mixquant_agents.quant.experts.layer import ExpertRows, ExpertShape, ExpertsLayer, ExpertWeights
from mixquant_agents.quant.experts.twin import ExpertsTwin
from mixquant_agents.quant.ops.gemm import GemmTable
from mixquant_agents.quant.ops.sources import PlainRows
from mixquant_agents.quant.row_errors import largest_error
from mixquant_agents.quant.timing import replay_microseconds

_log = logging.getLogger("vllm.mixquant")

__all__ = ["ExpertCodes", "RowwiseExperts", "modular_kernel", "run_kernel", "some_rows"]

GRID = (64, 256, 512, 1024, 2048, 4096, 8192)
"""Rows at which the kernels are timed."""

UNMEASURED = {64: "triton", 1024: "tiles 64x128x128", 8192: "tiles 128x256x128"}
"""The kernels up to so many rows where nothing is measured, as with a threshold of the policy's: an H200's."""

AGREE = 0.1
"""Largest distance between two kernels' products of a row, of its length. Some values round differently between an
expert's two products; 0.04 was seen."""


class ExpertCodes(NamedTuple):
    """Weights in 8 bits, and vLLM's kernels that read them.

    Attributes:
        up: codes ``[E, U, H]``.
        up_scales: float32 ``[E, U, 1]``.
        down: codes ``[E, H, I]``.
        down_scales: float32 ``[E, H, 1]``.
        kernels: by name.
    """

    up: torch.Tensor
    up_scales: torch.Tensor
    down: torch.Tensor
    down_scales: torch.Tensor
    kernels: Mapping[str, Any]


def run_kernel(kernel: Any, up: torch.Tensor, down: torch.Tensor, rows: ExpertRows, own: Any) -> torch.Tensor:
    """``[M, H]`` of a modular kernel of vLLM's, for vLLM's own layer ``own``."""
    out: torch.Tensor = kernel.apply(
        hidden_states=rows.x,
        w1=up,
        w2=down,
        topk_weights=rows.weights,
        topk_ids=rows.ids,
        activation=own.activation,
        apply_router_weight_on_input=own.apply_router_weight_on_input,
        global_num_experts=own.global_num_experts,
        expert_map=own.expert_map,
        shared_experts=None,
        shared_experts_input=None,
    )
    return out


def modular_kernel(experts_class: Any, quant_config: Any, own: Any) -> Any:
    """vLLM's kernel around ``experts_class``, for vLLM's own layer ``own``."""
    from vllm.model_executor.layers.fused_moe.all2all_utils import maybe_make_prepare_finalize
    from vllm.model_executor.layers.fused_moe.modular_kernel import FusedMoEKernel

    moe = own.moe_config
    prepare_finalize = maybe_make_prepare_finalize(
        moe=moe, quant_config=quant_config, allow_new_interface=True, use_monolithic=False
    )
    return FusedMoEKernel(prepare_finalize, experts_class(moe_config=moe, quant_config=quant_config))


def some_rows(layer: ExpertsLayer, x: torch.Tensor) -> ExpertRows:
    """Rows ``x`` with experts chosen evenly at random."""
    count = layer.shape.experts if layer.expert_map() is None else layer.own.global_num_experts
    ids = torch.rand(x.shape[0], count, device=x.device).topk(layer.shape.chosen, dim=1).indices.to(torch.int32)
    weights = torch.full(ids.shape, 1.0 / layer.shape.chosen, dtype=torch.float32, device=x.device)
    return ExpertRows(x, weights, ids)


class RowwiseExperts(ExpertsTwin[ExpertCodes]):
    """8-bit codes with one scale per row on both sides: FP8 and INT8."""

    captured = True

    def __init__(self, name: str, dtype: torch.dtype) -> None:
        """``dtype`` of the codes."""
        self.name = name
        self.dtype = dtype
        self._classes: dict[str, Any] = {}
        self._products = GemmTable()

    def prepare(self, layer: ExpertsLayer) -> None:
        """See :class:`~mixquant_agents.quant.experts.twin.ExpertsTwin`: widths must be multiples of 16."""
        shape = layer.shape
        if shape.hidden % 16 or shape.inner % 16:
            raise FormatRefusedError(
                f"the experts of {layer.prefix!r} have {shape.hidden} inputs and {shape.inner} inner values on this "
                "rank; 8-bit products need multiples of 16: add 're:.*experts' to ignored_layers, lower "
                "tensor_parallel_size, or use policy 'exact'"
            )
        self._classes = self._supported(layer)
        self._products.candidates = tuple(self._classes)
        if self._classes.keys() >= set(UNMEASURED.values()) and self.dtype is torch.float8_e4m3fn:
            self._products.learn(shape.up, shape.hidden, UNMEASURED)  # until it is measured

    def _supported(self, layer: ExpertsLayer) -> dict[str, Any]:
        from vllm.model_executor.layers.fused_moe.modular_kernel import FusedMoEActivationFormat

        keys = self._keys()
        classes, reasons = {}, []
        for name, experts_class in self._candidates(layer).items():
            supported, reason = experts_class.is_supported_config(
                experts_class, layer.own.moe_config, *keys, FusedMoEActivationFormat.Standard
            )
            if supported:
                classes[name] = experts_class
            else:
                reasons.append(f"{name}: {reason}")
        if not classes:
            raise FormatRefusedError(
                f"vLLM has no kernel for experts in {self.name} here ({'; '.join(reasons)}): add 're:.*experts' to "
                "ignored_layers, or use policy 'exact'"
            )
        return classes

    def _candidates(self, layer: ExpertsLayer) -> dict[str, Any]:
        from vllm.model_executor.layers.fused_moe.experts.cutlass_moe import CutlassExpertsFp8
        from vllm.model_executor.layers.fused_moe.experts.triton_moe import TritonExperts

        from mixquant_agents.quant.vllm.experts.grouped import grouped_experts
        from mixquant_agents.quant.vllm.experts.tiled import tiled_experts

        candidates: dict[str, Any] = dict(tiled_experts(layer.own))
        if self.dtype is torch.float8_e4m3fn or not candidates:  # vLLM's own class takes no INT8 rows before 0.32
            candidates = {"triton": TritonExperts, **candidates}
        has_bias = layer.own.moe_config.has_bias
        if self.dtype is torch.float8_e4m3fn:
            candidates |= grouped_experts(layer.own, layer.shape, layer.weight_on_input)
            if not has_bias and not layer.weight_on_input:
                candidates["cutlass"] = CutlassExpertsFp8
        return candidates

    def _keys(self) -> tuple[Any, Any]:
        from vllm.model_executor.layers.quantization.utils import quant_utils

        if self.dtype is torch.int8:
            return quant_utils.kInt8StaticChannelSym, quant_utils.kInt8DynamicTokenSym
        return quant_utils.kFp8StaticChannelSym, quant_utils.kFp8DynamicTokenSym

    def nbytes(self, shape: ExpertShape, dtype: torch.dtype) -> int:
        """See :class:`~mixquant_agents.quant.experts.twin.ExpertsTwin`."""
        return shape.numel + 4 * shape.experts * (shape.up + shape.hidden)

    def build(self, weights: ExpertWeights, layer: ExpertsLayer) -> ExpertCodes:
        """See :class:`~mixquant_agents.quant.experts.twin.ExpertsTwin`."""
        up, up_scales = self._quantized(weights.up)
        down, down_scales = self._quantized(weights.down)
        config = self._config(up_scales, down_scales, weights, layer)
        kernels = {name: modular_kernel(each, config, layer.own) for name, each in self._classes.items()}
        return ExpertCodes(up, up_scales, down, down_scales, kernels)

    def _quantized(self, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        codes, scales = PlainRows(weight.flatten(0, 1)).quantized(self.dtype)
        return codes.view(weight.shape), scales.view(*weight.shape[:2], 1)

    def _config(
        self, up_scales: torch.Tensor, down_scales: torch.Tensor, weights: ExpertWeights, layer: ExpertsLayer
    ) -> Any:
        from vllm.model_executor.layers.fused_moe import config

        values = {
            "w1_scale": up_scales,
            "w2_scale": down_scales,
            "a1_scale": None,
            "a2_scale": None,
            "w1_bias": weights.up_bias,
            "w2_bias": weights.down_bias,
            "per_act_token_quant": True,
        }
        if self.dtype is torch.int8:
            return config.int8_w8a8_moe_quant_config(**values)
        own = layer.own
        return config.fp8_w8a8_moe_quant_config(
            **values,
            per_out_ch_quant=True,
            gemm1_alpha=own.swiglu_alpha,
            gemm1_beta=own.swiglu_beta,
            gemm1_clamp_limit=own.swiglu_limit,
        )

    def tensors(self, state: ExpertCodes) -> Mapping[str, torch.Tensor]:
        """See :class:`~mixquant_agents.quant.experts.twin.ExpertsTwin`."""
        return {name: getattr(state, name) for name in ("up", "up_scales", "down", "down_scales")}

    def product(self, rows: ExpertRows, state: ExpertCodes, layer: ExpertsLayer) -> torch.Tensor:
        """See :class:`~mixquant_agents.quant.experts.twin.ExpertsTwin`."""
        name = self._products.pick(state.up.shape[1], state.up.shape[2], rows.x.shape[0])
        return run_kernel(state.kernels[name], state.up, state.down, rows, layer.own)

    def only(self, name: str) -> None:
        """Run everything by one of vLLM's kernels from now on: for trying them one by one."""
        self._products = GemmTable(name)

    def add(self, classes: Mapping[str, Any]) -> None:
        """Have more of vLLM's classes of experts to choose among; before anything is built."""
        self._classes |= classes
        self._products.candidates = tuple(self._classes)

    def tune(self, layers: Sequence[tuple[ExpertsLayer, ExpertCodes]]) -> None:
        """Time vLLM's kernels on each shape among ``layers``."""
        by_shape: dict[ExpertShape, list[tuple[ExpertsLayer, ExpertCodes]]] = {}
        for layer, state in layers:
            by_shape.setdefault(layer.shape, []).append((layer, state))
        for shape, same in by_shape.items():
            max_rows = same[0][0].own.moe_config.max_num_tokens
            names, winners = self._agreeing(*same[0]), {}
            for m in [size for size in GRID if size <= max_rows] or [max_rows]:
                x = torch.randn(m, shape.hidden, device=same[0][1].up.device, dtype=same[0][0].own.params_dtype)
                rows = some_rows(same[0][0], x)
                times = {name: replay_microseconds(_runs(name, rows, same)) for name in names}
                winners[m] = min(times, key=lambda name: times[name])
            self._products.learn(shape.up, shape.hidden, winners)

    def _agreeing(self, layer: ExpertsLayer, state: ExpertCodes) -> list[str]:
        """The kernels whose products of some rows are those of vLLM's own choice; others are passed over."""
        first, *others = self._products.candidates
        x = torch.randn(min(300, layer.own.moe_config.max_num_tokens), layer.shape.hidden, device=state.up.device)
        rows = some_rows(layer, x.to(layer.own.params_dtype))

        def product(name: str) -> torch.Tensor:
            return run_kernel(state.kernels[name], state.up, state.down, rows, layer.own).float()

        expected = product(first)
        right = [first]
        for name in others:
            try:
                error = largest_error(product(name), expected)
            except Exception as refused:  # a compiler's, of whatever kind: other kernels remain
                _log.warning("mixquant: experts' kernel %r is passed over: %s", name, refused)
                continue
            if error <= AGREE:
                right.append(name)
            else:
                _log.warning("mixquant: experts' kernel %r is passed over: a row is off by %.2g", name, error)
        return right

    def status(self) -> dict[str, Any]:
        """The kernels that were chosen."""
        return {"experts": {"candidates": list(self._products.candidates), "products": self._products.summary()}}


def _runs(name: str, rows: ExpertRows, layers: Sequence[tuple[ExpertsLayer, ExpertCodes]]) -> Callable[[], None]:
    def work() -> None:
        for layer, state in layers:
            run_kernel(state.kernels[name], state.up, state.down, rows, layer.own)

    return work
