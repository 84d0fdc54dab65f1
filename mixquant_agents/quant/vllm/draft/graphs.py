"""CUDA graphs of the draft step: one for each number of requests."""

from __future__ import annotations

import bisect
import inspect
from collections.abc import Callable
from typing import Any

from vllm.config import CUDAGraphMode
from vllm.v1.worker.gpu.cudagraph_utils import BatchExecutionDescriptor, CudaGraphManager, prepare_inputs_to_capture

__all__ = ["DraftGraphs"]


class DraftGraphs(CudaGraphManager):  # type: ignore[misc] # vllm is untyped here
    """vLLM's graph manager, with full graphs of one row a request.

    Attributes:
        max_requests: with more nothing is drafted.
    """

    def __init__(self, vllm_config: Any, device: Any, mode: CUDAGraphMode, max_requests: int) -> None:
        self.max_requests = max_requests
        super().__init__(vllm_config, device, mode, decode_query_len=1)

    @property
    def sizes(self) -> list[int]:
        """Numbers of requests that have a graph, ascending."""
        return list(self._sizes)

    def _init_candidates(self) -> None:
        if not self.cudagraph_mode:
            self._sizes: list[int] = []
            return
        largest = min(self.max_num_reqs, self.max_requests)
        sizes = {size for size in self.compilation_config.cudagraph_capture_sizes or () if size < largest}
        self._sizes = sorted({*sizes, largest})
        self._capture_descs[CUDAGraphMode.FULL] = [
            BatchExecutionDescriptor(CUDAGraphMode.FULL, size, size, uniform_token_count=1)
            for size in reversed(self._sizes)
        ]

    def smallest(self, requests: int) -> BatchExecutionDescriptor | None:
        """The smallest captured graph for so many requests; ``None`` where there is none."""
        index = bisect.bisect_left(self._sizes, requests)
        if not self._graphs_captured or index == len(self._sizes):
            return None
        return self._capture_descs[CUDAGraphMode.FULL][-1 - index]

    def record(
        self,
        step: Callable[..., None],
        model_state: Any,
        input_buffers: Any,
        block_tables: Any,
        attn_groups: Any,
        kv_cache_config: Any,
    ) -> None:
        """Capture ``step``, called with ``(requests, rows, attention metadata, slot mappings, None, graph mode)``."""

        def create(desc: Any, warmup: bool) -> Callable[[CUDAGraphMode], None]:
            metadata, slots = prepare_inputs_to_capture(
                desc.num_reqs,
                desc.num_tokens,
                model_state,
                input_buffers,
                block_tables,
                attn_groups,
                kv_cache_config,
                **_one_row(prepare_inputs_to_capture),
            )
            return lambda mode: step(desc.num_reqs, desc.num_tokens, metadata, slots, None, mode)

        self.capture(create, "Capturing draft graphs")


def _one_row(prepare: Callable[..., Any]) -> dict[str, Any]:
    """Arguments by which later releases know a full graph of one row a request."""
    known = inspect.signature(prepare).parameters
    return {name: value for name, value in (("full_cudagraph", True), ("max_query_len", 1)) if name in known}
