"""A sink on a thread of its own: one that hangs, for example a span exporter whose collector does not answer, holds up
no other."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence

from mixquant_agents.telemetry.events import Event, TurnEvent
from mixquant_agents.telemetry.protocols import Sink

__all__ = ["PATIENCE_SECONDS", "SinkThread", "seconds_of"]

log = logging.getLogger(__name__)

PATIENCE_SECONDS = 1.0
"""So long the recorder waits for a sink to write, so that sinks take each batch in order: a span sink gives turns the
``trace_id`` that the store keeps."""
CLOSE_SECONDS = 5.0
"""So long it waits for one to close."""
_LOOK_SECONDS = 0.2
"""How often it looks whether a late sink has caught up."""
_WEIGHT_LIMIT = 8_192
"""Most that waits for a late sink: an event weighs 1, and 1 more for each 1,000 tokens of its prompt (about 38 kB)."""


class SinkThread:
    """Calls the methods of a sink on a daemon thread, one at a time.

    It is itself called from the recorder's thread only. While the sink keeps up, :meth:`write` returns when the sink's
    has. Once one took longer than :data:`PATIENCE_SECONDS`, the sink is late: batches wait for it up to a limit, beyond
    which they are lost to this sink, until it has caught up.
    """

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self._lost = 0
        self._begin_anew()

    def _begin_anew(self) -> None:
        self._changed = threading.Condition()
        self._waiting: deque[Sequence[Event]] = deque()  # the first is being written
        self._weight = 0
        self._late = self._closing = False
        self._error: BaseException | None = None
        self.thread: threading.Thread | None = None

    def write(self, batch: Sequence[Event]) -> None:
        """Hand the batch over, and wait a little for it to be written.

        Raises:
            TimeoutError: the sink is late.
            BaseException: what the sink raised.
        """
        weight = sum(map(_weight, batch))
        with self._changed:
            if not self._begin():
                self._sink.write(batch)
                return
            if self._late and self._weight + weight > _WEIGHT_LIMIT:
                self._lost += len(batch)
            elif batch or not self._late:
                self._waiting.append(batch)
                self._weight += weight
                self._changed.notify_all()
            self._late = not self._changed.wait_for(self._idle, 0 if self._late else PATIENCE_SECONDS)
            if self._late:
                raise TimeoutError(
                    f"{type(self._sink).__name__} takes longer than {PATIENCE_SECONDS:g} s to write; its events wait, "
                    "the other sinks go on"
                )
            error, self._error = self._error, None
        if error is not None:
            raise error

    def retry_seconds(self) -> float | None:
        """The sink's own, or soon while it is late."""
        return _LOOK_SECONDS if self._late else self._sink.retry_seconds()

    def lost(self) -> int:
        """Events that the sink gave up, or that came while it was late and too many were waiting."""
        return self._lost + self._sink.lost()

    def close(self) -> None:
        """Close the sink behind what it still has to write; one that takes longer than :data:`CLOSE_SECONDS` is left
        to its thread, and what waits for it counts as lost.

        Raises:
            BaseException: what the sink raised.
        """
        with self._changed:
            self._closing = True
            if not self._begin():
                self._sink.close()
                return
            self._changed.notify_all()
            if not self._changed.wait_for(lambda: self.thread is None, CLOSE_SECONDS):
                self._lost += sum(map(len, self._waiting))
                log.warning(
                    "telemetry: %s takes longer than %g s to close; up to %d of its events are lost",
                    type(self._sink).__name__,
                    CLOSE_SECONDS,
                    sum(map(len, self._waiting)),
                )
                return
            error, self._error = self._error, None
        if error is not None:
            raise error

    def before_fork(self) -> None:
        """Nothing: the recorder does not call it during a fork, and a late sink is not to hold up the program."""

    def after_fork_in_child(self) -> None:
        """What waits is the parent's to write; its thread is not here."""
        self._begin_anew()
        self._lost = 0

    def cpu_seconds(self) -> float:
        """CPU time that the thread has spent."""
        return seconds_of(self.thread)

    def _idle(self) -> bool:
        return not self._waiting

    def _begin(self) -> bool:
        """Start the thread where none runs; ``False``: no more threads are to be had."""
        if self.thread is not None and self.thread.is_alive():
            return True
        self._drop_first()  # what the last one held when it was ended
        self.thread = threading.Thread(target=self._run, name="mixquant-sink", daemon=True)
        try:
            self.thread.start()
        except RuntimeError:
            self.thread = None
        return self.thread is not None

    def _drop_first(self) -> None:
        if self._waiting:
            self._lost += len(self._waiting[0])
            self._weight -= sum(map(_weight, self._waiting.popleft()))

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closing)
                batch = self._waiting[0] if self._waiting else None
            if batch is None:
                break
            error = _error_of(self._sink.write, batch)
            with self._changed:
                self._error = error
                self._weight -= sum(map(_weight, self._waiting.popleft()))
                self._changed.notify_all()
        error = _error_of(self._sink.close)
        with self._changed:
            self._error, self.thread = error, None
            self._changed.notify_all()


def seconds_of(thread: threading.Thread | None) -> float:
    """CPU time that ``thread`` has spent; 0 where there is none, or it has ended."""
    if thread is None or not thread.is_alive() or thread.ident is None:
        return 0.0
    return time.clock_gettime(time.pthread_getcpuclockid(thread.ident))


def _weight(event: Event) -> int:
    prompt = event.prompt_token_ids if isinstance(event, TurnEvent) else None
    return 1 + (len(prompt) // 1_000 if prompt is not None else 0)


def _error_of(call: Callable[..., object], *arguments: object) -> BaseException | None:
    """What a sink's method raised; it may be anything."""
    try:
        call(*arguments)
    except BaseException as error:
        return error
    return None
