"""Which mode each step runs in on the GPU, and the index buffer that captured graphs read."""

from __future__ import annotations

import dataclasses
import logging
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from mixquant_agents.errors import ConfigError
from mixquant_agents.precision.plan import Mode, RowPlan
from mixquant_agents.precision.resolve import ResolvedPolicy
from mixquant_agents.quant import step as steps
from mixquant_agents.quant.step import EXACT, QUANTIZED, Step
from mixquant_agents.quant.thresholds import Layer, Thresholds
from mixquant_agents.quant.twins.base import get_twin
from mixquant_agents.quant.twins.memory import TwinMemory

if TYPE_CHECKING:
    from mixquant_agents.quant.runtime import Runtime

__all__ = ["GpuRouting"]

_log = logging.getLogger("vllm.mixquant")

MAX_SLOT = 64
"""Exact rows inside a captured graph. Up to here a product costs what reading the weights costs, whatever the rows."""

LARGEST_SHARE = 0.4
"""Above the slot an exact row costs its own product again; from this share on, quantizing all others saves nothing."""


class GpuRouting:
    """One per worker and engine. Decides a step's mode before it is counted, so that counts say what ran.

    Attributes:
        thresholds: measured, or what the policy says.
        measured: what a policy gets that says nothing: those of the start.
        index: int32 ``[S]``, the fixed slot's index buffer; ``None`` until the device is known.
        captured: ``(tokens, mode)`` of the piecewise graphs at hand, those of exact steps aside.
        batches: the keys of piecewise graphs, by vLLM's key and mode.
    """

    def __init__(self, runtime: Runtime, max_num_seqs: int, graphs: bool, decode_rows: int = 1) -> None:
        """
        Args:
            runtime: the plugin's state in this worker.
            max_num_seqs: most requests of a step.
            graphs: whether the engine captures graphs; full graphs of decode steps hold exact rows alone.
            decode_rows: rows of one request in a decode step, speculative ones included.
        """
        self.runtime = runtime
        self.graphs = graphs
        self.decode_rows = decode_rows
        self.slot_rows = min(MAX_SLOT, -(-max_num_seqs // 16) * 16)
        _check_threshold(runtime.resolved)
        self.thresholds = self.measured = self._given()
        self.memory = TwinMemory(f"{runtime.twin} on {runtime.device.name}")
        self.index: torch.Tensor | None = None
        self.captured: set[tuple[int, Mode]] = set()
        self.batches: dict[tuple[Any, Mode], Any] = {}

    def _given(self) -> Thresholds:
        threshold = self.runtime.resolved.row_threshold or 0
        return Thresholds(threshold, threshold)

    @property
    def uniform(self) -> bool:
        """Every row is quantized, in both phases."""
        return _uniform(self.runtime.resolved)

    def switch(self, resolved: ResolvedPolicy) -> None:
        """Another policy with the same twin is about to take the place of the runtime's.

        Raises:
            ConfigError: it would need other graphs than those that were captured; nothing changed.
        """
        before = self.runtime.resolved
        _check_threshold(resolved)
        if (_uniform(before), before.policy.reproducible) != (_uniform(resolved), resolved.policy.reproducible):
            raise ConfigError(
                f"policy {resolved.policy.name!r} needs other graphs than the running {before.policy.name!r}, which "
                "were captured at start; start another engine"
            )
        given = resolved.row_threshold
        self.thresholds = self.measured
        if given is not None:
            self.thresholds = dataclasses.replace(self.measured, pure=given, mixed=given)

    def prepare(self, layers: list[Layer], device: torch.device) -> None:
        """The model is loaded: set up the slot and measure what the policy leaves to measurement."""
        if self.index is None:
            self.index = torch.full((self.slot_rows,), -1, dtype=torch.int32, device=device)
        if self.uniform:
            # Reading half the bytes pays at any size.
            self.thresholds = Thresholds(0, 0)
        elif self.runtime.resolved.row_threshold is None and layers and layers[0].weight.is_cuda:
            from mixquant_agents.quant.autotune import measure

            self.thresholds = _agreed(measure(layers, self.slot_rows))
            torch.cuda.empty_cache()
            _log.info("mixquant: %s", self.describe())
        self.measured = self.thresholds
        self.runtime.measured_threshold = self.thresholds.pure
        steps.warmup_threshold(self.thresholds.pure)

    def reserve(self, n: int, k: int) -> None:
        """A routed layer of ``[N, K]`` is being built.

        Raises:
            OutOfMemoryError: its twin will not fit.
        """
        self.memory.add(get_twin(self.runtime.twin).size(n, k))  # type: ignore[attr-defined] # native twins have it

    def describe(self) -> str:
        """One line for the log."""
        t = self.thresholds
        return (
            f"steps of up to {t.pure} rows run exact, with exact rows among them up to {t.mixed} "
            f"(measured in {t.seconds:.1f} s)"
        )

    def status(self) -> dict[str, Any]:
        """Plain JSON, joins the worker's status."""
        from mixquant_agents.quant.ops.gemm import CHOICE

        return {
            "row_threshold_mixed": self.thresholds.mixed,
            "slot_rows": self.slot_rows,
            "threshold_seconds": round(self.thresholds.seconds, 2),
            "threshold_microseconds": self.thresholds.microseconds,
            "products": CHOICE.summary(),
            "captured_graphs": {
                mode.value: sum(kind is mode for _, kind in self.captured) for mode in (Mode.QUANTIZED, Mode.MIXED)
            },
        }

    def modes(self, tokens: int, piecewise: bool) -> list[Step]:
        """What is captured for a graph of ``tokens`` rows; the first is the plain one."""
        if self.uniform:
            return [QUANTIZED]
        found = [EXACT]
        if piecewise and tokens > self.thresholds.pure:
            found.append(QUANTIZED)
        if piecewise and tokens > self.thresholds.mixed and self.index is not None:
            found.append(Step(Mode.MIXED, self.index))
        return found

    def route(self, plan: RowPlan) -> RowPlan:
        """The plan as it will run: the same, or all exact where mixing precisions would cost more than it saves."""
        step = self._step(plan)
        if step.mode is Mode.EXACT and plan.num_quantized:
            plan = plan.all_exact()
        steps.announce(plan, step)
        return plan

    def _step(self, plan: RowPlan) -> Step:
        if plan.mode is Mode.EXACT or self._replayed_whole(plan):
            return EXACT
        if plan.mode is Mode.QUANTIZED:
            return QUANTIZED
        auto = self.runtime.resolved.row_threshold is None
        if auto and plan.num_exact > self.slot_rows and plan.num_exact > LARGEST_SHARE * plan.rows:
            return EXACT
        exact = np.flatnonzero(~plan.mask())
        if plan.num_exact <= self.slot_rows and self.index is not None:
            padded = np.full(self.slot_rows, -1, dtype=np.int32)
            padded[: plan.num_exact] = exact
            self.index.copy_(_staged(padded, self.index.device), non_blocking=True)
            return Step(Mode.MIXED, self.index, plan.rows)
        if self.index is None:
            raise RuntimeError("a step was planned before the model was prepared")
        device = self.index.device
        index = _staged(exact.astype(np.int32), device).to(device, non_blocking=True)
        return Step(Mode.MIXED, index, plan.rows)

    def _replayed_whole(self, plan: RowPlan) -> bool:
        """Whether vLLM may replay a full graph for the step: few rows for each request, as decode has. (Runner V2 with
        speculative decoding may do so for unequally many.)

        Those graphs hold exact rows alone (a uniform policy's: quantized ones).
        """
        if self.uniform or not self.graphs or self.runtime.resolved.policy.reproducible:
            return False
        return all(request.num_scheduled_tokens <= self.decode_rows for request in plan.requests)


def _uniform(resolved: ResolvedPolicy) -> bool:
    return resolved.rule().always


def _check_threshold(resolved: ResolvedPolicy) -> None:
    if _uniform(resolved) and resolved.row_threshold:
        raise ConfigError(
            f"row_threshold={resolved.row_threshold} with a uniform policy: its captured graphs quantize every row; "
            "leave row_threshold 'auto' or 0, or use a phase-aware policy"
        )


def _staged(indices: npt.NDArray[np.int32], device: torch.device) -> torch.Tensor:
    """On the host, in memory the device can fetch from while the host goes on."""
    host = torch.from_numpy(indices)
    return host.pin_memory() if device.type == "cuda" else host


def _agreed(mine: Thresholds) -> Thresholds:
    """Rank 0's, so that all ranks of a tensor-parallel group route alike."""
    if not torch.distributed.is_initialized() or torch.distributed.get_world_size() == 1:
        return mine
    from vllm.distributed.parallel_state import get_world_group

    agreed: Thresholds = get_world_group().broadcast_object(mine, src=0)
    return agreed
