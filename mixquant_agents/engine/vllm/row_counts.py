"""Row counts per request, asked of the worker in batches: at the first token, to be back before the turn ends.

A call to the worker waits for the running engine step. Asked at the end of a turn it would delay the turn by a step of
somebody else's; asked at the first token it comes back while the answer is being written. All requests whose first
token came with the same step share one call.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

__all__ = ["Counts", "RowCountClient", "draft_counts"]

logger = logging.getLogger("mixquant_agents.engine")

Counts = dict[str, int]


class RowCountClient:
    """Batches ``mixquant_row_counts`` calls. Lives on the owner's loop."""

    def __init__(self, llm: Any) -> None:
        self._llm = llm
        self._pending: dict[str, asyncio.Future[Counts | None]] = {}
        self._task: asyncio.Task[None] | None = None

    def ask(self, request_id: str) -> asyncio.Future[Counts | None]:
        """A future of ``{"quantized", "exact", "recomputed", "preemptions"}``; ``None`` where nobody knows."""
        future: asyncio.Future[Counts | None] = asyncio.get_running_loop().create_future()
        self._pending[request_id] = future
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._run(), name="mixquant-row-counts")
        return future

    async def answer(self, future: asyncio.Future[Counts | None]) -> Counts | None:
        """The answer to :meth:`ask`; ``None`` where the engine died before it came, for then vLLM never answers."""
        while not future.done() and not self._llm.errored:
            await asyncio.wait([future], timeout=1.0)
        return future.result() if future.done() else None

    async def _run(self) -> None:
        await asyncio.sleep(0)  # let the other requests of this engine step join
        while self._pending:
            batch, self._pending = self._pending, {}
            try:
                answers = await self._llm.collective_rpc("mixquant_row_counts", args=(list(batch),))
                counts: dict[str, Counts] = answers[0] if answers else {}
            except Exception as error:  # counting never fails a turn; a dead engine fails it by itself
                logger.warning("row counts are unknown: %s", error)
                counts = {}
            for request_id, future in batch.items():
                if not future.done():
                    future.set_result(counts.get(request_id))


async def draft_counts(llm: Any, request_id: str) -> Counts | None:
    """``{"cycles", "drafted", "accepted"}`` of a request that has ended, asked of the engine's core; ``None`` where
    nobody knows."""
    try:
        answer: Counts | None = await asyncio.wait_for(
            llm.engine_core.call_utility_async("mixquant_draft_counts", request_id), timeout=1.0
        )
    except Exception as error:  # counting never fails a turn; a dead engine fails it by itself
        logger.warning("counts of drafts are unknown: %s", error)
        return None
    return answer
