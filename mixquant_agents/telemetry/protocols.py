"""What a recorder and a sink are; and the recorder that records nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

from mixquant_agents.records import TurnRecord
from mixquant_agents.telemetry.events import Event, RunLink, Span, TurnContent

__all__ = ["ForkAwareSink", "NullRecorder", "Recorder", "Sink"]


@runtime_checkable
class Recorder(Protocol):
    """Where the chat layer and the callbacks hand what they saw. No method blocks or raises.

    ``wants_content`` tells the caller whether to build a :class:`TurnContent` at all.
    """

    @property
    def wants_content(self) -> bool: ...

    def record(
        self,
        turn: TurnRecord,
        *,
        content: TurnContent | None = None,
        prompt_token_ids: Sequence[int] | None = None,
        block_hashes: Sequence[int] | None = None,
        trace_context: Mapping[str, str] | None = None,
        parent_run_id: str | None = None,
    ) -> None:
        """Take one finished (or failed, or aborted) turn. Arguments: see :class:`TurnEvent`."""
        ...

    def record_span(self, span: Span) -> None:
        """Take one finished tool call, graph node or agent run."""
        ...

    def link(self, link: RunLink) -> None:
        """Say, before its turn is recorded, which agent run a model call belongs to."""
        ...

    def flush(self, timeout: float = 5.0) -> bool:
        """Wait until all taken so far is written; whether that happened within ``timeout`` seconds."""
        ...

    def close(self) -> None:
        """Flush and stop. Idempotent; what comes later is dropped and counted."""
        ...


class NullRecorder(Recorder):
    """Records nothing: the default where telemetry is off. What the protocol says without a body, does nothing."""

    wants_content = False

    def flush(self, timeout: float = 5.0) -> bool:
        """Nothing to wait for."""
        return True


class Sink(Protocol):
    """Where batches go. Called by one thread at a time; may raise, or hang, which stops no other sink."""

    def write(self, batch: Sequence[Event]) -> None:
        """Take a batch. A sink that can fail for a while keeps what it could not write and retries on the next call."""
        ...

    def retry_seconds(self) -> float | None:
        """After how long to call again although nothing new came; ``None``: no need."""
        ...

    def lost(self) -> int:
        """Events given up."""
        ...

    def close(self) -> None:
        """Release what is held."""
        ...


@runtime_checkable
class ForkAwareSink(Protocol):
    """A sink that holds what must not be open while the process forks. It is called on the recorder's own thread, which
    stands still during a fork; so it must not hang."""

    def before_fork(self) -> None:
        """Let go of it; it is opened again when it is needed."""
        ...

    def after_fork_in_child(self) -> None:
        """What is pending is the parent's."""
        ...
