"""From the rows of a step to its plan: the row rule, the thresholds, and what captured graphs can hold."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from mixquant_agents.errors import ConfigError
from mixquant_agents.precision.plan import Mode, Reach, RequestRows, RowPlan, RowRule, plan_rows
from mixquant_agents.precision.resolve import ResolvedPolicy
from mixquant_agents.quant.step import EXACT, QUANTIZED, StepPlan
from mixquant_agents.quant.thresholds import Thresholds

__all__ = ["GraphSettings", "Router"]

MAX_EXACT_ROWS = 64
"""Exact rows inside a captured graph. Up to here a product costs what reading the weights costs, whatever the rows."""

MAX_WIDE_ROWS = 128
"""The same where a writing request has several rows, its drafts, or a policy keeps so many rows of each prompt exact:
they cost a little more, and without a slot for them the whole step would leave its graph."""

LARGEST_SHARE = 0.4
"""Beyond that an exact row costs its own product again; from this share on, quantizing all others saves nothing."""


@dataclass(frozen=True, slots=True)
class GraphSettings:
    """What captured graphs ask of routing; for twins that run inside them.

    Attributes:
        max_num_seqs: most requests of a step.
        full_graphs: full graphs of decode steps may be replayed, which hold exact rows alone.
        decode_rows: rows of one request in a decode step, speculative ones included.
    """

    max_num_seqs: int
    full_graphs: bool
    decode_rows: int = 1

    @property
    def exact_rows(self) -> int:
        """Exact rows that a captured mixed step has room for: every writer's, drafts included, to a limit."""
        rows = -(-self.max_num_seqs * self.decode_rows // 16) * 16
        return min(MAX_EXACT_ROWS if self.decode_rows == 1 else MAX_WIDE_ROWS, rows)


@dataclass(slots=True)
class CapturedGraphs:
    """The graphs of one engine.

    Attributes:
        sizes: ``(tokens, mode)`` of the piecewise ones at hand, exact ones aside.
        keys: vLLM's key of a piecewise graph and a mode, to the key of that mode's own graph.
        full: ``(tokens, mode)`` to vLLM's key of the full graph for a small step with prefill rows.
        replays: steps that ran in one of those, by mode.
    """

    sizes: set[tuple[int, Mode]] = field(default_factory=set)
    keys: dict[tuple[Hashable, Mode], Any] = field(default_factory=dict)
    full: dict[tuple[int, Mode], Any] = field(default_factory=dict)
    replays: Counter[Mode] = field(default_factory=Counter)

    def smallest_full(self, tokens: int, mode: Mode) -> Any:
        """The key of the smallest full graph that holds a step of ``tokens`` rows in ``mode``; ``None``: none does."""
        sizes = [size for size, held in self.full if held is mode and size >= tokens]
        return self.full[min(sizes), mode] if sizes else None


class Router:
    """One per worker and engine. Decides a step's mode before it is counted, so that counts say what ran.

    Attributes:
        resolved: the policy in force.
        uniform: it quantizes every row, in both phases.
        thresholds: from which size on steps are quantized: measured, or what the policy says.
        exact_rows_buffer: int32 ``[S]``, the index buffer that captured graphs read; ``None`` until :meth:`prepare`,
            and for twins that run outside of graphs.
        graphs: what was captured.
    """

    def __init__(self, resolved: ResolvedPolicy, settings: GraphSettings | None = None) -> None:
        """
        Args:
            resolved: the policy.
            settings: of the engine, for twins that run in captured graphs; ``None`` for others.

        Raises:
            ConfigError: a uniform policy with a threshold, which captured graphs cannot honour.
        """
        self.settings = settings
        self.capacity = 0 if settings is None else max(settings.exact_rows, _ends(resolved))
        self._check(resolved)
        self._follow(resolved)
        self.thresholds = self._measured = _given(resolved)
        self.exact_rows_buffer: torch.Tensor | None = None
        self.graphs = CapturedGraphs()

    @property
    def rule(self) -> RowRule:
        """The row rule with the thresholds in force."""
        return self.resolved.rule(self.thresholds.pure, self.thresholds.mixed)

    def _follow(self, resolved: ResolvedPolicy) -> None:
        self.resolved = resolved
        self.uniform = resolved.rule().always

    def _check(self, resolved: ResolvedPolicy) -> None:
        if self.settings is not None and resolved.rule().always and resolved.row_threshold:
            raise ConfigError(
                f"row_threshold={resolved.row_threshold} with a uniform policy: its captured graphs quantize every "
                "row; leave row_threshold 'auto' or 0, or use a phase-aware policy"
            )

    def switch(self, resolved: ResolvedPolicy) -> None:
        """Follow another policy from now on.

        Raises:
            ConfigError: it would need other graphs than those that were captured; nothing changed.
        """
        before = self.resolved
        self._check(resolved)
        if self.settings is None:
            self._follow(resolved)
            self.thresholds = _given(resolved)
            return
        if _graph_kind(before) != _graph_kind(resolved):
            raise ConfigError(
                f"policy {resolved.name!r} needs other graphs than the running {before.name!r}, which "
                "were captured at start; start another engine"
            )
        self._follow(resolved)
        self.thresholds = self._measured
        if resolved.row_threshold is not None:
            self.thresholds = dataclasses.replace(
                self._measured, pure=resolved.row_threshold, mixed=resolved.row_threshold
            )

    def prepare(self, device: torch.device, measure: Callable[[int], Thresholds] | None = None) -> None:
        """The model is loaded: set up the index buffer, and measure what the policy leaves to measurement.

        Args:
            device: of the model.
            measure: thresholds from the number of exact rows that a captured graph holds; ``None``: nothing to measure.
        """
        if self.exact_rows_buffer is None:
            self.exact_rows_buffer = torch.full((self.capacity,), -1, dtype=torch.int32, device=device)
        if self.uniform:
            # Reading half the bytes pays at any size.
            self.thresholds = Thresholds(0, 0)
        elif self.resolved.row_threshold is None and measure is not None:
            self.thresholds = measure(self.capacity)
        self._measured = self.thresholds

    def describe(self) -> str:
        """One line for the log."""
        t = self.thresholds
        return (
            f"steps of up to {t.pure} rows run exact, with exact rows among them up to {t.mixed} "
            f"(measured in {t.seconds:.1f} s)"
        )

    def status(self) -> dict[str, Any]:
        """Plain JSON about routing in captured graphs."""
        kinds = [mode for _, mode in self.graphs.sizes]
        return {
            "row_threshold_mixed": self.thresholds.mixed,
            "row_threshold_mixed_by_exact_rows": self.thresholds.by_exact,
            "slot_rows": self.capacity,
            "threshold_seconds": round(self.thresholds.seconds, 2),
            "threshold_microseconds": self.thresholds.microseconds,
            "captured_full_graphs": {mode.value: sum(held is mode for _, held in self.graphs.full) for mode in Mode},
            "full_graph_steps": {mode.value: self.graphs.replays[mode] for mode in Mode},
            "captured_graphs": {mode.value: kinds.count(mode) for mode in (Mode.QUANTIZED, Mode.MIXED)},
        }

    def captured_modes(self, tokens: int, piecewise: bool) -> list[StepPlan]:
        """What is captured for a graph of ``tokens`` rows; the first is the plain one."""
        if self.uniform:
            return [QUANTIZED]
        steps = [EXACT]
        if piecewise and tokens > self.thresholds.pure:
            steps.append(QUANTIZED)
        if piecewise and tokens > self.thresholds.mixed and self.exact_rows_buffer is not None:
            steps.append(StepPlan(Mode.MIXED, exact_rows=self.exact_rows_buffer))
        return steps

    def widest_step(self) -> StepPlan:
        """What needs the most memory: for profiling, and so that its kernels are compiled before the first request."""
        return QUANTIZED if self.uniform else StepPlan(Mode.MIXED, exact_rows=self.exact_rows_buffer)

    def warmup_step(self, num_tokens: int | None) -> StepPlan:
        """How a pass before the first request runs: as one of prefill rows alone would."""
        if num_tokens is None or not self.resolved.quantizes or num_tokens <= self.thresholds.pure:
            return EXACT
        return StepPlan(Mode.QUANTIZED, num_tokens)

    def route(self, requests: Sequence[RequestRows]) -> tuple[RowPlan, StepPlan]:
        """The routing of a step given its requests in row order, and the plan by which it runs: one says what the other
        does."""
        rows = self._row_plan(requests)
        if rows.mode is not Mode.MIXED:
            return rows, StepPlan(rows.mode, rows.rows, rows.requests)
        mask = rows.mask()
        if self.settings is None:
            exact, quantized = torch.from_numpy(np.flatnonzero(~mask)), torch.from_numpy(np.flatnonzero(mask))
            return rows, StepPlan(Mode.MIXED, rows.rows, rows.requests, exact, quantized)
        index = self._exact_rows(np.flatnonzero(~mask).astype(np.int32))
        return rows, StepPlan(Mode.MIXED, rows.rows, rows.requests, index)

    def graph_mode(self, requests: Sequence[RequestRows]) -> Mode | None:
        """In which mode :meth:`route` will run a step of these requests, in whatever order; ``None`` where no captured
        graph holds it, since it has more exact rows than those have room for."""
        rows = self._row_plan(requests)
        return None if rows.mode is Mode.MIXED and rows.num_exact > self.capacity else rows.mode

    def _row_plan(self, requests: Sequence[RequestRows]) -> RowPlan:
        rows = plan_rows(requests, self.rule)
        return rows.all_exact() if rows.num_quantized and self._runs_exact(rows) else rows

    def _runs_exact(self, plan: RowPlan) -> bool:
        """Whether a step with quantized rows runs exact altogether: a full graph is replayed for it, or mixing
        precisions would cost more than it saves."""
        if self.settings is None:
            return False
        if self._replays_full_graph(plan, self.settings):
            return True
        if self.resolved.row_threshold is not None:
            return False
        if plan.num_exact and plan.rows <= self.thresholds.mixed_with(plan.num_exact):
            return True
        return plan.num_exact > self.capacity and plan.num_exact > LARGEST_SHARE * plan.rows

    def _replays_full_graph(self, plan: RowPlan, settings: GraphSettings) -> bool:
        """Whether vLLM may replay a full graph for the step: few rows for each request, as decode has. (Runner V2 with
        speculative decoding may do so for unequally many.)

        Those graphs hold exact rows alone (a uniform policy's: quantized ones).
        """
        if self.uniform or not settings.full_graphs or self.resolved.policy.reproducible:
            return False
        return all(request.num_scheduled_tokens <= settings.decode_rows for request in plan.requests)

    def _exact_rows(self, exact: npt.NDArray[np.int32]) -> torch.Tensor:
        """The indices on the device: in the fixed buffer where they fit."""
        buffer = self.exact_rows_buffer
        if buffer is None:
            raise RuntimeError("a step was planned before the model was prepared")
        if exact.size > self.capacity:
            return _staged(exact, buffer.device).to(buffer.device, non_blocking=True)
        padded = np.full(self.capacity, -1, dtype=np.int32)
        padded[: exact.size] = exact
        buffer.copy_(_staged(padded, buffer.device), non_blocking=True)
        return buffer


def _ends(resolved: ResolvedPolicy) -> int:
    """Exact rows that one prompt has at its beginning and its end, to the limit."""
    rule = resolved.rule()
    rows = rule.first + (rule.last if rule.reach is Reach.BEFORE_LAST else 0)
    return min(MAX_WIDE_ROWS, -(-rows // 16) * 16)


def _given(resolved: ResolvedPolicy) -> Thresholds:
    threshold = resolved.row_threshold or 0
    return Thresholds(threshold, threshold)


def _graph_kind(resolved: ResolvedPolicy) -> tuple[bool, bool]:
    """What captured graphs depend on."""
    return resolved.rule().always, resolved.policy.reproducible


def _staged(indices: npt.NDArray[np.int32], device: torch.device) -> torch.Tensor:
    """On the host, in memory the device can fetch from while the host goes on."""
    host = torch.from_numpy(indices)
    return host.pin_memory() if device.type == "cuda" else host
