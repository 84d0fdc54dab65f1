"""Which run and which thread a turn belongs to.

LangChain hands ``_astream`` neither the config nor (when streaming) the run manager, so the public entry points leave
both in a context variable for the moment in which the turn is planned.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

from langchain_core.callbacks.manager import BaseRunManager
from langchain_core.runnables import RunnableConfig
from langchain_core.runnables.config import ensure_config
from langchain_core.utils.uuid import uuid7

__all__ = ["RunContext", "RunIds", "current_run_context", "run_ids", "run_priority", "with_thread"]

_current: ContextVar[RunContext | None] = ContextVar("mixquant_run_context", default=None)


class RunContext:
    """One call of the chat model.

    Attributes:
        config: the call's config, with a ``run_id``.
    """

    def __init__(self, config: RunnableConfig | None) -> None:
        self.config = ensure_config(config)
        if self.config.get("run_id") is None:
            self.config["run_id"] = uuid7()
        self.run_id = str(self.config["run_id"])
        self._open: list[Any] = []

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Be the current context. Never held across a ``yield`` of a generator, whose caller would see it."""
        token = _current.set(self)
        try:
            yield
        finally:
            _current.reset(token)

    def adopt(self, source: Any) -> None:
        """Close this generator with the call. LangChain leaves it to the garbage collector, which may take its time."""
        self._open.append(source)

    async def aclose(self, outer: Any) -> None:
        """Close ``outer`` and what was adopted below it."""
        await outer.aclose()
        while self._open:
            await self._open.pop().aclose()

    def close(self, outer: Any) -> None:
        """:meth:`aclose` of a sync call."""
        outer.close()
        while self._open:
            self._open.pop().close()


class RunIds(NamedTuple):
    """Ids for a turn's record; ``None`` where there is none."""

    run_id: str | None
    parent_run_id: str | None
    thread_id: str | None


def run_ids(run_manager: BaseRunManager | None, context: RunContext | None) -> RunIds:
    """The ids of the turn being planned: from its run manager, its call, or the LangGraph node around it."""
    config = context.config if context is not None else ensure_config()
    thread = config.get("configurable", {}).get("thread_id")
    run_id = context.run_id if context is not None else None
    parent = None
    if run_manager is not None:
        thread = thread or run_manager.metadata.get("thread_id")
        run_id = str(run_manager.run_id)
        parent = str(run_manager.parent_run_id) if run_manager.parent_run_id is not None else None
    return RunIds(run_id, parent, str(thread) if thread is not None else None)


def run_priority(context: RunContext | None) -> object:
    """The priority that the run was given: ``config["configurable"]["priority"]``, of the call or of the graph around
    it; ``None`` where it was given none."""
    config = context.config if context is not None else ensure_config()
    return config.get("configurable", {}).get("priority")


def with_thread(config: RunnableConfig | None) -> RunnableConfig:
    """``config`` with its thread in the metadata, as LangGraph writes it: what is streamed as events sees only that."""
    full = ensure_config(config)
    if (thread := full.get("configurable", {}).get("thread_id")) is not None:
        full["metadata"] = {"thread_id": str(thread), **full.get("metadata", {})}
    return full


def current_run_context() -> RunContext | None:
    """The call that is being planned."""
    return _current.get()
