"""Hooks that only a GPU needs: graph variants, graph rewriting, the start-up measurement.

What is touched of vLLM, beside what ``runner_hooks`` names (see ``contract``):

- ``vllm.forward_context.create_forward_context``: picks the captured variant of a step, or none;
- ``CudaGraphManager.capture`` (runner V2), ``GPUModelRunner._warmup_and_capture`` (V1): capture each variant;
- ``CompilerManager.compile``: fused operations for large row counts;
- ``PiecewiseBackend._find_range_for_shape``: exact steps of any size run the pieces without them;
- ``GPUModelRunner.profile_run``: the first moment at which all weights are there.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import sys
from collections.abc import Callable
from typing import Any

from mixquant_agents.precision.plan import Mode, RowPlan
from mixquant_agents.quant import step as steps
from mixquant_agents.quant.ops.emulated import CONTEXT_KEY, EXACT_STEP
from mixquant_agents.quant.ops.fusion import FUSE_FROM, fuse
from mixquant_agents.quant.router import GpuRouting
from mixquant_agents.quant.runtime import Runtime, runtime_of
from mixquant_agents.quant.step import EXACT, Step
from mixquant_agents.quant.thresholds import Layer
from mixquant_agents.quant.twins.base import get_twin
from mixquant_agents.quant.vllm.patching import wrap

__all__ = ["attach", "hook_process"]

_log = logging.getLogger("vllm.mixquant")
_V1 = "vllm.v1.worker.gpu_model_runner"
_V2 = "vllm.v1.worker.gpu.model_runner"
_V2_GRAPHS = "vllm.v1.worker.gpu.cudagraph_utils"


def attach(runtime: Runtime, vllm_config: Any) -> None:
    """Give ``runtime`` its GPU routing and hook this worker process. The latter once.

    Raises:
        FormatRefusedError: the GPU lacks what the twin needs.
    """
    select = getattr(get_twin(runtime.twin), "select", None)
    if select is not None:
        select()
    graphs = not vllm_config.model_config.enforce_eager
    drafts = int(getattr(vllm_config, "num_speculative_tokens", 0) or 0)
    runtime.gpu = GpuRouting(runtime, vllm_config.scheduler_config.max_num_seqs, graphs, 1 + drafts)
    hook_process()


def hook_process() -> None:
    """Hook vLLM in this process. Idempotent; engines with another method are left alone.

    Raises:
        EngineStartError: a symbol is not where it is expected.
    """
    from vllm import forward_context
    from vllm.compilation import backends
    from vllm.compilation.piecewise_backend import PiecewiseBackend

    wrap(forward_context, "create_forward_context", _forward_context)
    wrap(backends.CompilerManager, "compile", _compile)
    wrap(PiecewiseBackend, "_find_range_for_shape", _find_range)
    for name in (_V1, _V2):
        runner = getattr(sys.modules.get(name), "GPUModelRunner", None)
        if runner is not None:
            wrap(runner, "profile_run", _profile_run)
    if _V1 in sys.modules:
        wrap(sys.modules[_V1].GPUModelRunner, "_warmup_and_capture", _capture_v1)
    if _V2_GRAPHS in sys.modules:
        wrap(sys.modules[_V2_GRAPHS].CudaGraphManager, "capture", _capture_v2)


def _routing(vllm_config: Any) -> GpuRouting | None:
    runtime = runtime_of(vllm_config)
    found: GpuRouting | None = getattr(runtime, "gpu", None)
    return found


@functools.cache
def _variant_class() -> Any:
    """vLLM's ``BatchDescriptor`` with the mode in its key: one more captured graph for the same number of rows.

    Every piece of a step looks its graph up by this key, so its hash is computed once, not twice for each piece.
    """
    from vllm.forward_context import BatchDescriptor

    @dataclasses.dataclass(frozen=True)
    class MixQuantBatch(BatchDescriptor):  # type: ignore[misc] # vllm is untyped here
        mixquant: str = ""

        def __post_init__(self) -> None:
            values = tuple(getattr(self, field.name) for field in dataclasses.fields(self))
            object.__setattr__(self, "_hash", hash(values))

        def __hash__(self) -> int:
            return self._hash  # type: ignore[no-any-return] # set above, past the freeze

    return MixQuantBatch


def _variant(routing: GpuRouting, batch: Any, mode: Mode) -> Any:
    """The key of ``batch`` in ``mode``; the same object each time, so that finding it compares nothing."""
    found = routing.batches.get((batch, mode))
    if found is None:
        values = {field.name: getattr(batch, field.name) for field in dataclasses.fields(batch)}
        found = routing.batches[batch, mode] = _variant_class()(**values, mixquant=mode.value)
    return found


def _forward_context(original: Callable[..., Any]) -> Callable[..., Any]:
    from vllm.config import CUDAGraphMode

    def create_forward_context(*args: Any, **kwargs: Any) -> Any:
        context = original(*args, **kwargs)
        if context.cudagraph_runtime_mode != CUDAGraphMode.PIECEWISE or context.batch_descriptor is None:
            return context
        routing = _routing(args[1] if len(args) > 1 else kwargs.get("vllm_config"))
        if routing is None or routing.uniform:
            return context
        capturing = steps.is_forced()
        step = capturing or _step_of(context.additional_kwargs.get(CONTEXT_KEY)) or EXACT
        tokens = context.batch_descriptor.num_tokens
        if capturing is not None and step.mode is not Mode.EXACT:
            routing.captured.add((tokens, step.mode))
        fixed = step.mode is not Mode.MIXED or step.index is routing.index
        if step.mode is Mode.EXACT or (fixed and (tokens, step.mode) in routing.captured):
            context.batch_descriptor = _variant(routing, context.batch_descriptor, step.mode)
        else:
            context.cudagraph_runtime_mode = CUDAGraphMode.NONE
        return context

    return create_forward_context


def _step_of(found: Any) -> Step | None:
    if isinstance(found, RowPlan):
        return steps.step_of(found)
    return EXACT if found is EXACT_STEP else None


def _capture_v2(original: Callable[..., Any]) -> Callable[..., Any]:
    def capture(self: Any, create_forward_fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        routing = _routing(self.vllm_config)
        if routing is None:
            return original(self, create_forward_fn, *args, **kwargs)
        own_model = type(self).__name__ == "ModelCudaGraphManager"

        def create(desc: Any, *inner_args: Any, **inner_kwargs: Any) -> Callable[[Any], None]:
            forward = create_forward_fn(desc, *inner_args, **inner_kwargs)
            piecewise = desc.cg_mode.name == "PIECEWISE"
            wanted = routing.modes(desc.num_tokens, piecewise) if own_model else [EXACT]

            def each(mode: Any) -> None:
                for step in wanted:
                    with steps.forced(step):
                        forward(mode)

            return each

        return original(self, create, *args, **kwargs)

    return capture


def _capture_v1(original: Callable[..., Any]) -> Callable[..., Any]:
    def _warmup_and_capture(self: Any, desc: Any, *args: Any, **kwargs: Any) -> None:
        routing = _routing(self.vllm_config)
        if routing is None:
            original(self, desc, *args, **kwargs)
            return
        mode = kwargs.get("cudagraph_runtime_mode", args[0] if args else None)
        piecewise = getattr(mode, "name", "") == "PIECEWISE"
        for step in routing.modes(desc.num_tokens, piecewise):
            with steps.forced(step):
                original(self, desc, *args, **kwargs)

    return _warmup_and_capture


def _compile(original: Callable[..., Any]) -> Callable[..., Any]:
    def compile(self: Any, graph: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: A001 - vLLM's name
        rows = kwargs.get("compile_range", args[3] if len(args) > 3 else None)
        if rows is not None and rows.start >= FUSE_FROM:
            graph, fused = fuse(graph)
            if fused:
                _log.debug("mixquant: %d fused operations in piece %s", fused, kwargs.get("graph_index"))
        return original(self, graph, *args, **kwargs)

    return compile


def _find_range(original: Callable[..., Any]) -> Callable[..., Any]:
    """Exact steps run vLLM's own piece: fused ones cost them 2 % at 264 rows, and an exact engine's arithmetic is kept.

    All ranges are compiled from one graph of symbolic size, so a piece is right at any size but for what vLLM itself
    adds by size; so the other piece is taken from the other side of our boundary alone.
    """

    def _find_range_for_shape(self: Any, runtime_shape: int) -> Any:
        entry = original(self, runtime_shape)
        if entry is None or entry.compile_range.start != FUSE_FROM:
            return entry
        routing = _routing(self.vllm_config)
        if routing is None or routing.uniform or steps.current(runtime_shape).mode is not Mode.EXACT:
            return entry
        plain = original(self, FUSE_FROM - 1)
        return entry if plain is None or plain.compile_range.is_single_size() else plain

    return _find_range_for_shape


def _profile_run(original: Callable[..., Any]) -> Callable[..., Any]:
    def profile_run(self: Any, *args: Any, **kwargs: Any) -> Any:
        routing = _routing(self.vllm_config)
        if routing is None:
            return original(self, *args, **kwargs)
        routing.prepare(_layers(routing.runtime), self.device)
        # A mixed step needs the most memory, and its kernels are compiled here and not when the first one comes.
        widest = steps.QUANTIZED if routing.uniform else Step(Mode.MIXED, routing.index)
        with steps.forced(widest):
            return original(self, *args, **kwargs)

    return profile_run


def _layers(runtime: Runtime) -> list[Layer]:
    return [Layer(*tensors) for tensors in runtime.native_layers()]
