"""Hooks that only a GPU needs: graph variants, graph rewriting, the start-up measurement.

What is touched of vLLM, beside what ``runner_hooks`` names (see ``contract``):

- ``vllm.forward_context.create_forward_context``: picks the captured variant of a step, or none;
- ``CudaGraphManager.capture`` (runner V2), ``GPUModelRunner._warmup_and_capture`` (V1): capture each variant
  (``small_graphs`` adds full graphs of small steps, runner V2);
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

import torch

from mixquant_agents.errors import FormatRefusedError
from mixquant_agents.precision.plan import Mode
from mixquant_agents.quant.ops.fusion import FUSE_FROM, fuse
from mixquant_agents.quant.router import GraphSettings, Router
from mixquant_agents.quant.runtime import Runtime, runtime_of
from mixquant_agents.quant.step import EXACT, StepPlan, forced, forced_step
from mixquant_agents.quant.thresholds import Thresholds
from mixquant_agents.quant.vllm.context import current_step, step_in
from mixquant_agents.quant.vllm.patching import wrap
from mixquant_agents.quant.vllm.small_graphs import captured_step, capturing, hook_small_graphs

__all__ = ["install", "settings_of"]

_log = logging.getLogger("vllm.mixquant")
_V1 = "vllm.v1.worker.gpu_model_runner"
_V2 = "vllm.v1.worker.gpu.model_runner"
_V2_GRAPHS = "vllm.v1.worker.gpu.cudagraph_utils"


def settings_of(vllm_config: Any) -> GraphSettings:
    """What captured graphs of the engine with this configuration ask of routing."""
    drafts = int(getattr(vllm_config, "num_speculative_tokens", 0) or 0)
    return GraphSettings(
        vllm_config.scheduler_config.max_num_seqs,
        full_graphs=not vllm_config.model_config.enforce_eager,
        decode_rows=1 + drafts,
    )


def install() -> None:
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
        hook_small_graphs()


def _runtime(vllm_config: Any) -> Runtime | None:
    """The runtime of an engine whose twins run in captured graphs."""
    runtime = runtime_of(vllm_config)
    return runtime if runtime is not None and runtime.captured else None


def _router(vllm_config: Any) -> Router | None:
    runtime = _runtime(vllm_config)
    return None if runtime is None else runtime.router


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


def _variant(router: Router, batch: Any, mode: Mode) -> Any:
    """The key of ``batch`` in ``mode``; the same object each time, so that finding it compares nothing."""
    key = router.graphs.keys.get((batch, mode))
    if key is None:
        values = {field.name: getattr(batch, field.name) for field in dataclasses.fields(batch)}
        key = router.graphs.keys[batch, mode] = _variant_class()(**values, mixquant=mode.value)
    return key


def _forward_context(original: Callable[..., Any]) -> Callable[..., Any]:
    from vllm.config import CUDAGraphMode

    def create_forward_context(*args: Any, **kwargs: Any) -> Any:
        context = original(*args, **kwargs)
        if context.cudagraph_runtime_mode != CUDAGraphMode.PIECEWISE or context.batch_descriptor is None:
            return context
        router = _router(args[1] if len(args) > 1 else kwargs.get("vllm_config"))
        if router is None or router.uniform:
            return context
        capturing = forced_step()
        step = capturing or step_in(context)
        tokens = context.batch_descriptor.num_tokens
        if capturing is not None and step.mode is not Mode.EXACT:
            router.graphs.sizes.add((tokens, step.mode))
        if step.mode is Mode.EXACT or ((tokens, step.mode) in router.graphs.sizes and _replayable(router, step)):
            context.batch_descriptor = _variant(router, context.batch_descriptor, step.mode)
        else:
            context.cudagraph_runtime_mode = CUDAGraphMode.NONE
        return context

    return create_forward_context


def _replayable(router: Router, step: StepPlan) -> bool:
    """Whether a captured graph reads this step's exact rows: those in the fixed buffer alone."""
    return step.mode is not Mode.MIXED or step.exact_rows is router.exact_rows_buffer


def _capture_v2(original: Callable[..., Any]) -> Callable[..., Any]:
    def capture(self: Any, create_forward_fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        router = _router(self.vllm_config)
        if router is None:
            return original(self, create_forward_fn, *args, **kwargs)
        own_model = type(self).__name__ == "ModelCudaGraphManager"

        def create(desc: Any, *inner_args: Any, **inner_kwargs: Any) -> Callable[[Any], None]:
            small = captured_step(router, desc) if own_model else None
            with capturing(_runtime(self.vllm_config), desc):
                forward = create_forward_fn(desc, *inner_args, **inner_kwargs)
            piecewise = desc.cg_mode.name == "PIECEWISE"
            steps = router.captured_modes(desc.num_tokens, piecewise) if own_model else [EXACT]
            steps = steps if small is None else [small]

            def each(mode: Any) -> None:
                for step in steps:
                    with forced(step):
                        forward(mode)

            return each

        return original(self, create, *args, **kwargs)

    return capture


def _capture_v1(original: Callable[..., Any]) -> Callable[..., Any]:
    def _warmup_and_capture(self: Any, desc: Any, *args: Any, **kwargs: Any) -> None:
        router = _router(self.vllm_config)
        if router is None:
            original(self, desc, *args, **kwargs)
            return
        mode = kwargs.get("cudagraph_runtime_mode", args[0] if args else None)
        piecewise = getattr(mode, "name", "") == "PIECEWISE"
        for step in router.captured_modes(desc.num_tokens, piecewise):
            with forced(step):
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
    Drafts run the fused piece, however few rows they have.

    All ranges are compiled from one graph of symbolic size, so a piece is right at any size but for what vLLM itself
    adds by size; so the other piece is taken from the other side of our boundary alone.
    """

    def _find_range_for_shape(self: Any, runtime_shape: int) -> Any:
        entry = original(self, runtime_shape)
        if entry is None or entry.compile_range.is_single_size():
            return entry
        forced = forced_step()
        if entry.compile_range.start != FUSE_FROM and (forced is None or not forced.fused):
            return entry
        router = _router(self.vllm_config)
        if router is None or router.uniform:
            return entry
        if entry.compile_range.start < FUSE_FROM:
            piece = original(self, FUSE_FROM)
        elif current_step(runtime_shape).mode is Mode.EXACT:
            piece = original(self, FUSE_FROM - 1)
        else:
            return entry
        return entry if piece is None or piece.compile_range.is_single_size() else piece

    return _find_range_for_shape


def _profile_run(original: Callable[..., Any]) -> Callable[..., Any]:
    """The first moment at which all weights are there; and memory is profiled for the step that needs the most."""

    def profile_run(self: Any, *args: Any, **kwargs: Any) -> Any:
        runtime = _runtime(self.vllm_config)
        if runtime is None:
            return original(self, *args, **kwargs)
        _prepare(runtime, self.device, self.vllm_config.scheduler_config.max_num_batched_tokens)
        with forced(runtime.router.widest_step()):
            return original(self, *args, **kwargs)

    return profile_run


def _prepare(runtime: Runtime, device: torch.device, most_rows: int) -> None:
    """Measure thresholds for steps of up to ``most_rows`` rows, let shared buffers grow to that, check the products."""
    layers = runtime.captured_layers
    if not layers or layers[0].device.type != "cuda":
        runtime.router.prepare(device)
        return
    from mixquant_agents.quant.autotune import measure, run_once

    runtime.router.prepare(device, lambda exact_rows: _agreed(measure(layers, exact_rows, most_rows)))
    run_once(runtime.kinds, most_rows)
    _check_kernels(runtime)  # now that it is known which products run
    torch.cuda.empty_cache()
    if runtime.router.thresholds.microseconds:
        _log.info("mixquant: %s", runtime.router.describe())


def _check_kernels(runtime: Runtime) -> None:
    """On every rank; what one refuses all refuse, or the others would wait for it in the next collective.

    Raises:
        FormatRefusedError: a product is wrong.
    """
    problem = None
    try:
        runtime.check_kernels()
    except FormatRefusedError as error:
        problem = str(error)
    problems = _of_all_ranks(problem)
    for rank, each in enumerate(problems):
        if each is not None:
            raise FormatRefusedError(each if len(problems) == 1 else f"rank {rank}: {each}")
    if runtime.kernels is not None:
        worst = max(runtime.kernels.errors.values(), default=0.0)
        _log.info(
            "mixquant: products agree with their references within %.2g of a row's length (%.1f s)",
            worst,
            runtime.kernels.seconds,
        )


def _several_ranks() -> bool:
    return bool(torch.distributed.is_initialized()) and torch.distributed.get_world_size() > 1


def _of_all_ranks(problem: str | None) -> list[str | None]:
    if not _several_ranks():
        return [problem]
    from vllm.distributed.parallel_state import get_world_group

    group = get_world_group()
    problems: list[str | None] = [None] * group.world_size
    torch.distributed.all_gather_object(problems, problem, group=group.cpu_group)
    return problems


def _agreed(thresholds: Thresholds) -> Thresholds:
    """Rank 0's, so that all ranks of a tensor-parallel group route alike."""
    if not _several_ranks():
        return thresholds
    from vllm.distributed.parallel_state import get_world_group

    agreed: Thresholds = get_world_group().broadcast_object(thresholds, src=0)
    return agreed
