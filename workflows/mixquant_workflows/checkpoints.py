"""One SQLite checkpointer for sync and async runs, so that a graph goes on where a killed process left it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sqlite3
from collections.abc import AsyncIterator, Sequence
from typing import Any

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import (
    BaseCheckpointSaver,
    ChannelVersions,
    Checkpoint,
    CheckpointMetadata,
    CheckpointTuple,
)

from mixquant_agents import MixQuantError

__all__ = ["Checkpoints", "SqliteCheckpoints", "as_checkpointer"]

Checkpoints = BaseCheckpointSaver[Any] | str | os.PathLike[str] | None
"""Where a graph keeps its state: a checkpointer, the path of an SQLite file, or nowhere."""


def as_checkpointer(where: Checkpoints) -> BaseCheckpointSaver[Any] | None:
    """The checkpointer for ``where``; a path opens (and makes) an SQLite file.

    Raises:
        MixQuantError: the file cannot be opened, or ``langgraph-checkpoint-sqlite`` is not installed.
    """
    if where is None or isinstance(where, BaseCheckpointSaver):
        return where
    return SqliteCheckpoints(where)


class SqliteCheckpoints(BaseCheckpointSaver[str]):
    """LangGraph's own ``SqliteSaver``, usable from event loops too: async calls run in a thread.

    To survive a kill between two steps, run the graph with ``durability="sync"``; resume with
    ``graph.invoke(None, config)`` and the same ``thread_id``. A new file is its owner's alone (mode 600).
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        try:
            from langgraph.checkpoint.sqlite import SqliteSaver
        except ImportError as error:
            raise MixQuantError(
                "keeping a graph's state needs langgraph-checkpoint-sqlite: pip install langgraph-checkpoint-sqlite"
            ) from error
        super().__init__()
        if os.fspath(path) != ":memory:":
            # A conversation is its owner's alone. What cannot be made is told when SQLite opens it.
            with contextlib.suppress(OSError):
                os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        try:
            self._connection = sqlite3.connect(os.fspath(path), check_same_thread=False)
            self._saver = SqliteSaver(self._connection)
            self._saver.setup()
        except sqlite3.Error as error:
            raise MixQuantError(
                f"cannot keep checkpoints in {os.fspath(path)!r}: {error}; name a writable SQLite file"
            ) from error
        self.serde = self._saver.serde

    def close(self) -> None:
        """Close the file. Idempotent."""
        self._connection.close()

    def get_tuple(self, config: RunnableConfig) -> CheckpointTuple | None:
        return self._saver.get_tuple(config)

    def list(self, config: RunnableConfig | None, **filters: Any) -> Any:
        return self._saver.list(config, **filters)

    def put(
        self,
        config: RunnableConfig,
        checkpoint: Checkpoint,
        metadata: CheckpointMetadata,
        new_versions: ChannelVersions,
    ) -> RunnableConfig:
        return self._saver.put(config, checkpoint, metadata, new_versions)

    def put_writes(
        self, config: RunnableConfig, writes: Sequence[tuple[str, Any]], task_id: str, task_path: str = ""
    ) -> None:
        self._saver.put_writes(config, writes, task_id, task_path)

    def delete_thread(self, thread_id: str) -> None:
        self._saver.delete_thread(thread_id)

    def get_next_version(self, current: str | None, channel: None) -> str:
        return self._saver.get_next_version(current, channel)

    async def aget_tuple(self, config: RunnableConfig) -> CheckpointTuple | None:
        return await asyncio.to_thread(self.get_tuple, config)

    async def alist(self, config: RunnableConfig | None, **filters: Any) -> AsyncIterator[CheckpointTuple]:
        for item in await asyncio.to_thread(lambda: [*self.list(config, **filters)]):
            yield item

    async def aput(
        self,
        config: RunnableConfig,
        checkpoint: Checkpoint,
        metadata: CheckpointMetadata,
        new_versions: ChannelVersions,
    ) -> RunnableConfig:
        return await asyncio.to_thread(self.put, config, checkpoint, metadata, new_versions)

    async def aput_writes(
        self, config: RunnableConfig, writes: Sequence[tuple[str, Any]], task_id: str, task_path: str = ""
    ) -> None:
        await asyncio.to_thread(self.put_writes, config, writes, task_id, task_path)

    async def adelete_thread(self, thread_id: str) -> None:
        await asyncio.to_thread(self.delete_thread, thread_id)
