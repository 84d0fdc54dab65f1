"""Which rows of one engine step run quantized. Pure: numpy in, numpy out; no torch, no vllm.

The rule: a row is prefill iff its absolute position < prompt_len − 1. The row at prompt_len − 1 is the last prompt
token, which produces the first answer token; the policy says how it runs. Everything later is decode, also when it runs
again after a preemption, and also when it is a speculative row.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

__all__ = ["Indices", "RequestRows", "RowPlan", "RowRule", "plan_rows"]

Indices = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class RowRule:
    """What a resolved policy asks of rows.

    Attributes:
        prefill, last, decode: whether rows before the last prompt token, the last prompt token, and the rows after it
            are quantized.
        threshold: a step with at most this many rows runs exact altogether.
        mixed: so does one with at most this many rows of which some would be exact and some not.
    """

    prefill: bool
    last: bool
    decode: bool
    threshold: int = 0
    mixed: int = 0


class RequestRows(NamedTuple):
    """The contiguous rows that one request has in a step. A tuple, since each step makes one for every request.

    Attributes:
        request_id: the worker's id.
        prompt_len: tokens of the prompt.
        computed: absolute position of the first row (tokens whose KV exists already).
        scheduled: number of rows.
    """

    request_id: str
    prompt_len: int
    computed: int
    scheduled: int


@dataclass(frozen=True, slots=True)
class RowPlan:
    """The routing of one step.

    Attributes:
        rows: scheduled rows; what a graph pads beyond them is nobody's.
        quantized: ascending int64 indices of the rows that run quantized.
        exact: ascending int64 indices of the rows that run exact; together they are 0..rows-1.
        mask: bool ``[rows]``, true where quantized.
        requests: who owns the rows, in row order.
    """

    rows: int
    quantized: Indices
    exact: Indices
    mask: npt.NDArray[np.bool_]
    requests: tuple[RequestRows, ...]


def plan_rows(requests: Sequence[RequestRows], rule: RowRule) -> RowPlan:
    """Route the rows of a step, given its requests in row order."""
    rows = sum(r.scheduled for r in requests)
    if rows <= rule.threshold or not (rule.decode or any(r.computed < r.prompt_len for r in requests)):
        # Decode steps and small ones, where the host's time counts: nothing to look at row by row.
        return RowPlan(rows, *_all_exact(rows), tuple(requests))
    kept = 0 if rule.last else 1
    if rule.prefill and all(r.computed + r.scheduled <= r.prompt_len - kept for r in requests):
        return RowPlan(rows, *_all_quantized(rows), tuple(requests))
    if rows <= rule.mixed and rule.prefill and not rule.decode:
        return RowPlan(rows, *_all_exact(rows), tuple(requests))
    lengths = np.fromiter((r.scheduled for r in requests), dtype=np.int64, count=len(requests))
    # Signed distance of each row from its request's last prompt token: negative is prefill, zero is that token.
    first = np.fromiter((r.computed - (r.prompt_len - 1) for r in requests), dtype=np.int64, count=len(requests))
    starts = np.cumsum(lengths) - lengths
    distance = np.arange(rows, dtype=np.int64) + np.repeat(first - starts, lengths)
    mask = np.where(distance < 0, rule.prefill, np.where(distance == 0, rule.last, rule.decode))
    return RowPlan(rows, np.flatnonzero(mask), np.flatnonzero(~mask), mask, tuple(requests))


@functools.lru_cache(maxsize=128)
def _all_quantized(rows: int) -> tuple[Indices, Indices, npt.NDArray[np.bool_]]:
    """Quantized rows, exact rows and mask of a step that only reads. Shared: nobody writes to a plan."""
    return np.arange(rows, dtype=np.int64), np.empty(0, dtype=np.int64), np.ones(rows, dtype=np.bool_)


@functools.lru_cache(maxsize=128)
def _all_exact(rows: int) -> tuple[Indices, Indices, npt.NDArray[np.bool_]]:
    """Quantized rows, exact rows and mask of a step without a quantized row. Shared: nobody writes to a plan."""
    return np.empty(0, dtype=np.int64), np.arange(rows, dtype=np.int64), np.zeros(rows, dtype=np.bool_)
