"""The recorder that most programs want: into a SQLite store, and into further sinks."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

from mixquant_agents.telemetry.protocols import Sink
from mixquant_agents.telemetry.recorder import GATHER_SECONDS, QUEUE_LIMIT, QueueRecorder
from mixquant_agents.telemetry.store.connection import connect_writer, default_store_path
from mixquant_agents.telemetry.store.retention import Retention
from mixquant_agents.telemetry.store.writer import StoreSink

__all__ = ["StoreRecorder"]


class StoreRecorder(QueueRecorder):
    """Records into a SQLite store, and into further sinks if given.

    The file is opened by the writer thread: a store that cannot be used never fails a turn. Call :meth:`check` to
    have the problem raised before work begins.

    A copy, and one that was pickled into another process, records into the same file by a queue of its own; what waits
    in this one's stays here. Further sinks must be such that they can be copied.

    Args:
        path: the store; ``None`` is :func:`default_store_path`.
        content: keep messages, tool arguments and results. Off by default.
        retention: what to delete; ``None`` keeps everything.
        sinks: further sinks, called before the store.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | None = None,
        *,
        content: bool = False,
        retention: Retention | None = None,
        sinks: Iterable[Sink] = (),
        queue_limit: int = QUEUE_LIMIT,
        gather_seconds: float = GATHER_SECONDS,
    ) -> None:
        store_path = Path(path) if path is not None else default_store_path()
        self.path = store_path.absolute()  # it is opened later, when the program may work elsewhere
        self._store = StoreSink(self.path, retention=retention, pending_limit=queue_limit)
        others = tuple(sinks)
        super().__init__(
            (*others, self._store), content=content, queue_limit=queue_limit, gather_seconds=gather_seconds
        )
        self._again = partial(
            type(self),
            self.path,
            content=content,
            retention=retention,
            sinks=others,
            queue_limit=queue_limit,
            gather_seconds=gather_seconds,
        )

    def __reduce__(self) -> tuple[Callable[[], StoreRecorder], tuple[()]]:
        return self._again, ()

    def check(self) -> None:
        """Open the store once, as the writer will.

        Raises:
            StoreError: it cannot be opened or written, with the reason and the remedy.
        """
        connect_writer(self.path).close()

    def sync_delays(self) -> list[float]:
        """Seconds from a commit until the disk had it, of the last commits: what a power cut can take, beside what was
        still gathering."""
        return self._store.sync_delays()
