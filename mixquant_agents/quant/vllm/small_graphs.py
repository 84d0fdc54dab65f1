"""Full CUDA graphs of small steps with prefill rows, one for each mode (runner V2, FlashAttention 3).

Such a step is bound by the host: vLLM replays it in pieces, with attention launched between them, 73 launches for 36
layers. A full graph is one launch. vLLM 0.26 can capture such graphs itself (``cudagraph_mode=FULL``), of a batch with
one row a request; FlashAttention 3 chooses its kernel by the longest query, and the work that is laid out before each
replay must be laid out for the captured kernel. So here the longest query is said to be the whole step, when a graph is
captured and whenever it is replayed: one kernel for each graph, which is right for shorter queries too.

By default they are captured where they were seen to be right and faster on a GPU: one device, no drafter, one kind of
attention, steps whose rows all run in one precision. ``cudagraph_mode=FULL`` asks for all that can be captured;
``additional_config={"mixquant_full_graphs": False}`` for none.

A graph has room for as many requests as the engine takes; those that are not there have no rows.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from mixquant_agents.errors import EngineStartError
from mixquant_agents.precision.plan import Mode
from mixquant_agents.quant.router import Router
from mixquant_agents.quant.runtime import Runtime, runtime_of
from mixquant_agents.quant.step import StepPlan
from mixquant_agents.quant.vllm.options import FULL_GRAPHS
from mixquant_agents.quant.vllm.patching import moved, wrap

__all__ = ["SIZES", "captured_step", "capturing", "check_mode", "hook_small_graphs"]

SIZES = (16, 32, 48, 64, 96, 128, 160, 192, 224, 256)
"""Rows of the graphs. With more rows the GPU is the bound, and full graphs were slower than pieces: 0.92 at 512."""


def hook_small_graphs() -> None:
    """Hook runner V2 in this worker. Idempotent; a release that lacks something keeps its pieces."""
    try:
        from vllm.v1.worker.gpu.cudagraph_utils import CudaGraphManager, ModelCudaGraphManager
        from vllm.v1.worker.gpu.model_states.default import DefaultModelState

        wrap(ModelCudaGraphManager, "capture", _capture)
        wrap(DefaultModelState, "prepare_attn", _prepare_attn)
        wrap(CudaGraphManager, "dispatch", _dispatch)
    except (ImportError, EngineStartError):
        return


class _Small:
    """What tells these descriptors from vLLM's.

    Attributes:
        mixquant: the mode.
        num_tokens: vLLM's, rows of the graph.
    """

    mixquant: str = ""
    num_tokens: int


def _mode_of(small: _Small) -> Mode:
    return Mode(small.mixquant)


@functools.cache
def _small_step_class() -> Any:
    """vLLM's descriptor of a graph, with the mode in its key."""
    from vllm.v1.worker.gpu.cudagraph_utils import BatchExecutionDescriptor

    @dataclasses.dataclass(frozen=True)
    class SmallStep(BatchExecutionDescriptor, _Small):  # type: ignore[misc] # vllm is untyped here
        mixquant: str = ""

    return SmallStep


def captured_step(router: Router, desc: Any) -> StepPlan | None:
    """The step as which the graph of ``desc`` is captured; ``None`` where it is none of these."""
    if not isinstance(desc, _Small):
        return None
    mode = _mode_of(desc)
    exact_rows = router.exact_rows_buffer if mode is Mode.MIXED else None
    return StepPlan(mode, exact_rows=exact_rows, fused=mode is not Mode.EXACT)


def check_mode(desc: Any, step: StepPlan) -> None:
    """What was foreseen of a step, by which its graph was chosen, is what was planned and counted.

    Raises:
        EngineStartError: it is not.
    """
    if isinstance(desc, _Small) and _mode_of(desc) is not step.mode:
        raise moved(
            f"a step of mode {step.mode.value} has the graph of mode {_mode_of(desc).value}; the runner's requests"
        )


@contextlib.contextmanager
def capturing(runtime: Runtime | None, desc: Any) -> Iterator[None]:
    """While inputs of the graph of ``desc`` are made, its longest query is the whole step."""
    if runtime is None or not isinstance(desc, _Small):
        yield
        return
    runtime.full_graph_rows = desc.num_tokens
    try:
        yield
    finally:
        runtime.full_graph_rows = 0


def _router(vllm_config: Any) -> Router | None:
    runtime = runtime_of(vllm_config)
    return runtime.router if runtime is not None and runtime.captured else None


def _modes(manager: Any, router: Router, model_state: Any, attention: Any) -> tuple[Mode, ...]:
    """Modes whose small steps are captured whole; none where full graphs cannot hold unlike queries, or are not to."""
    groups = [group for each in attention for group in each]
    if not _suits(manager, router, model_state, groups):
        return ()
    config = manager.vllm_config
    given = config.additional_config if isinstance(config.additional_config, dict) else {}
    asked = given.get(FULL_GRAPHS)
    if asked is not None:
        return tuple(Mode) if asked else ()
    measured = config.parallel_config.tensor_parallel_size == 1 and not config.speculative_config and len(groups) == 1
    return (Mode.EXACT, Mode.QUANTIZED) if measured else ()


def _suits(manager: Any, router: Router, model_state: Any, groups: list[Any]) -> bool:
    """Whether full graphs hold unlike queries here."""
    from vllm.v1.worker.gpu.model_states.default import DefaultModelState

    config = manager.vllm_config
    parallel, mode = config.parallel_config, manager.cudagraph_mode
    return (
        not router.uniform
        and not router.resolved.policy.reproducible
        and mode.mixed_mode().name == "PIECEWISE"
        and mode.decode_mode().name == "FULL"
        and not manager.use_breakable_cg
        and config.lora_config is None
        and parallel.pipeline_parallel_size == parallel.data_parallel_size == 1
        and type(model_state) is DefaultModelState
        and bool(groups)
        and all(_takes_any_queries(group, config) for group in groups)
    )


def _takes_any_queries(group: Any, vllm_config: Any) -> bool:
    """FlashAttention 3: its graphs hold queries of any lengths."""
    if group.backend.get_name() != "FLASH_ATTN":
        return False
    builder = group.get_metadata_builder(0)
    support = builder.get_cudagraph_support(vllm_config, group.kv_cache_spec)
    return bool(support.name == "ALWAYS")


def _capture(original: Callable[..., Any]) -> Callable[..., Any]:
    def capture(
        self: Any,
        model: Any,
        model_state: Any,
        input_buffers: Any,
        intermediate_tensors: Any,
        block_tables: Any,
        attn_groups: Any,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        router = _router(self.vllm_config)
        if router is not None and not _has_small(self):
            _add(self, router, _modes(self, router, model_state, attn_groups))
        return original(
            self, model, model_state, input_buffers, intermediate_tensors, block_tables, attn_groups, *args, **kwargs
        )

    return capture


def _has_small(manager: Any) -> bool:
    """Whether ``manager`` was given its graphs. Later releases make one more before it, to measure memory, and forget
    it."""
    from vllm.config import CUDAGraphMode

    return any(isinstance(desc, _Small) for desc in manager._capture_descs.get(CUDAGraphMode.FULL, ()))


def _add(manager: Any, router: Router, modes: tuple[Mode, ...]) -> None:
    """Put the graphs into what ``manager`` is about to capture. The largest come first: buffers are made for them."""
    router.graphs.full.clear()
    if not modes:
        return
    from vllm.config import CUDAGraphMode

    pieces = {desc.num_tokens for desc in manager._capture_descs.get(CUDAGraphMode.PIECEWISE, ())}
    for size in SIZES:
        if size not in pieces:
            continue
        for step in router.captured_modes(size, piecewise=True):
            if step.mode not in modes:
                continue
            router.graphs.full[size, step.mode] = _small_step_class()(
                CUDAGraphMode.FULL, size, min(size, manager.max_num_reqs), mixquant=step.mode.value
            )
    descs = [*manager._capture_descs.get(CUDAGraphMode.FULL, ()), *router.graphs.full.values()]
    manager._capture_descs[CUDAGraphMode.FULL] = sorted(descs, key=lambda desc: -desc.num_tokens)


def _dispatch(original: Callable[..., Any]) -> Callable[..., Any]:
    def dispatch(self: Any, num_reqs: int, num_tokens: int, *args: Any, **kwargs: Any) -> Any:
        desc = original(self, num_reqs, num_tokens, *args, **kwargs)
        router = _router(self.vllm_config)
        if router is None or num_tokens > SIZES[-1] or desc.cg_mode.name != "PIECEWISE" or not router.graphs.full:
            return desc
        runtime = runtime_of(self.vllm_config)
        mode = None if runtime is None else runtime.coming_mode()
        small = None if mode is None else router.graphs.smallest_full(num_tokens, mode)
        if runtime is None or mode is None or small is None or small not in self.graphs or num_reqs > small.num_reqs:
            return desc
        router.graphs.replays[mode] += 1
        runtime.full_graph_rows = small.num_tokens
        return small

    return dispatch


def _prepare_attn(original: Callable[..., Any]) -> Callable[..., Any]:
    """Attention's metadata takes the longest query from the numbers of rows, and nothing else."""

    def prepare_attn(self: Any, input_batch: Any, *args: Any, **kwargs: Any) -> Any:
        runtime = runtime_of(self.vllm_config)
        rows = 0 if runtime is None else runtime.full_graph_rows
        if rows:
            longest = {"num_scheduled_tokens": np.array([rows], dtype=np.int32), "max_query_len": rows}
            known = {field.name for field in dataclasses.fields(input_batch)}  # later releases have both
            input_batch = dataclasses.replace(input_batch, **{k: v for k, v in longest.items() if k in known})
        return original(self, input_batch, *args, **kwargs)

    return prepare_attn
