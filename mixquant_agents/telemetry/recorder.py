"""The recorder: takes turns on the turn's own path in about a microsecond, and writes them later, elsewhere.

One bounded queue, one daemon thread, batches, any number of sinks (store, metrics, spans). It never blocks and never
raises: when the queue is full the event is dropped and counted; when a sink hangs or fails, whatever it raises, the
others go on, and the reason is logged once and kept in :attr:`QueueRecorder.problem`. Should the thread itself be
ended, what it held counts as lost and the next event, or :meth:`~QueueRecorder.flush`, starts another.

Without content recording nothing that was said leaves here: of an error only the name of its class, of a tool call
neither arguments nor result.
"""

from __future__ import annotations

import atexit
import logging
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Iterable, Mapping, Sequence

from mixquant_agents.errors import ConfigError, StoreError
from mixquant_agents.records import TurnRecord
from mixquant_agents.telemetry.events import (
    Event,
    RunLink,
    Score,
    Span,
    TurnContent,
    TurnEvent,
    without_content,
)
from mixquant_agents.telemetry.fork_safety import FORK_SECONDS, notify_of_forks
from mixquant_agents.telemetry.protocols import ForkAwareSink, NullRecorder, Recorder, Sink
from mixquant_agents.telemetry.sink_thread import SinkThread, seconds_of

__all__ = ["NullRecorder", "QueueRecorder", "Recorder", "Sink"]

log = logging.getLogger(__name__)

QUEUE_LIMIT = 32_768
"""Most events waiting; about three seconds at 10,000 turns a second."""
_BATCH = 2_000
"""Most events of one write, so that a long queue is seen to shrink."""
_STUCK_SECONDS = 8.0
"""So long :meth:`QueueRecorder.close` waits for a write that does not end: longer than a store waits for its lock."""
_LONGEST_GATHER = 3_600
GATHER_SECONDS = 0.05
"""How long a batch gathers. With the commit it bounds what a kill can lose (200 ms promised)."""


class QueueRecorder:
    """Bounded queue, one writer thread, batches to sinks.

    Args:
        sinks: called in order, each on a thread of its own (:class:`SinkThread`) unless it takes part in forks; a span
            sink goes before those that read ``trace_id``.
        content: keep messages, tool arguments and results. Off by default.
        queue_limit: most events waiting.
        gather_seconds: how long a batch gathers before it is written.

    Raises:
        ConfigError: a limit or a time that none can be.
    """

    def __init__(
        self,
        sinks: Iterable[Sink],
        *,
        content: bool = False,
        queue_limit: int = QUEUE_LIMIT,
        gather_seconds: float = GATHER_SECONDS,
    ) -> None:
        if not isinstance(queue_limit, int) or queue_limit < 1:
            raise ConfigError(f"queue_limit must be a whole number above 0, not {queue_limit!r}")
        if not isinstance(gather_seconds, int | float) or not 0 <= gather_seconds <= _LONGEST_GATHER:
            raise ConfigError(f"gather_seconds must be a number from 0 to {_LONGEST_GATHER}, not {gather_seconds!r}")
        self._sinks = tuple(sink if isinstance(sink, ForkAwareSink) else SinkThread(sink) for sink in sinks)
        self._content = content
        self._limit = queue_limit
        self._gather = gather_seconds
        self._queue: deque[Event] = deque()
        self._wake = threading.Event()
        self._lock = threading.Lock()
        self._dropped = 0
        self._written = 0  # events taken off the queue and offered to every sink
        self._taken = 0
        self._thread: threading.Thread | None = None
        self._pid = os.getpid()
        self._closed = False
        self._busy = threading.RLock()  # held while sinks are called, and during a fork
        self._held = False
        self.problem: str | None = None
        """Why the last write failed, in one line; ``None`` while all is well."""
        _live.add(self)
        notify_of_forks(self)

    @property
    def wants_content(self) -> bool:
        return self._content

    @property
    def dropped(self) -> int:
        """Events lost: the queue was full, the recorder was closed, its thread was ended, or a sink gave up."""
        lost: list[int] = []
        for sink in self._sinks:
            self._guarded(lambda sink: lost.append(sink.lost()), sink)
        return self._dropped + sum(lost)

    def writer_seconds(self) -> float:
        """CPU time the threads that write have spent; 0 before the first event and after :meth:`close`."""
        others = [sink.cpu_seconds() for sink in self._sinks if isinstance(sink, SinkThread)]
        return seconds_of(self._thread) + sum(others)

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
        self._put(
            TurnEvent(
                turn=turn,
                content=content if self._content else None,
                prompt_token_ids=prompt_token_ids,
                block_hashes=block_hashes,
                trace_context=trace_context,
                parent_run_id=parent_run_id,
            )
        )

    def record_span(self, span: Span) -> None:
        self._put(span)

    def link(self, link: RunLink) -> None:
        self._put(link)

    def record_score(self, score: Score) -> None:
        """Take what was said of a thread. Only a store keeps it."""
        self._put(score)

    def _put(self, event: Event) -> None:
        if self._pid != os.getpid():  # forked by what does not tell Python
            self.after_fork_in_child()
        if self._thread is None:
            self._start()
        if self._closed or len(self._queue) >= self._limit:
            with self._lock:
                self._dropped += 1
            return
        self._queue.append(event)
        if not self._wake.is_set():
            self._wake.set()

    def _start(self) -> None:
        with self._lock:
            if self._thread is not None or self._closed:
                return
            thread = threading.Thread(target=self._run, name="mixquant-recorder", daemon=True)
            try:
                thread.start()
            except RuntimeError as error:  # no more threads are to be had: what was taken waits for the next try
                if self.problem is None:
                    log.warning("telemetry: %s (turns go on; recording is retried)", _line(error))
                self.problem = _line(error)
            else:
                self._thread = thread

    def _run(self) -> None:
        try:
            self._work()
        except BaseException as error:
            self._ended(error)

    def _ended(self, error: BaseException) -> None:
        """The thread was ended from outside: what it held is lost, and the next event starts another."""
        with self._lock:
            self._dropped += self._taken - self._written
            self._written = self._taken
            if self._closed:  # nothing will start another
                self._dropped += len(self._queue)
                self._queue.clear()
            self._thread = None
        log.error("telemetry: the recorder's thread was ended by %s; the next event starts another", _line(error))

    def _work(self) -> None:
        wait: float | None = 0.0 if self._queue else None
        while True:
            woken = self._wake.wait(wait)
            if woken and not self._closed:
                time.sleep(self._gather)
            self._wake.clear()
            with self._busy:
                wait = self._write(self._drain())
            if self._queue:
                self._wake.set()
            if self._closed and not self._queue:
                break
        with self._busy:
            for sink in reversed(self._sinks):  # a store, which comes last, before those that may hang
                self._guarded(sink.close)

    def before_fork(self) -> None:
        """Wait for the batch that is being written, and let sinks let go of what must not be open in a fork."""
        self._held = self._busy.acquire(timeout=FORK_SECONDS)
        if self._held:
            for sink in self._sinks:
                if isinstance(sink, ForkAwareSink):
                    self._guarded(sink.before_fork)

    def after_fork_in_parent(self) -> None:
        """Go on; sinks open again what they closed."""
        if self._held:
            self._held = False
            self._busy.release()

    def after_fork_in_child(self) -> None:
        """The queue, the counts and what sinks still hold are the parent's; its locks and thread are of no use here."""
        self._pid, self._thread, self._held = os.getpid(), None, False
        self._lock, self._busy, self._wake = threading.Lock(), threading.RLock(), threading.Event()
        self._queue.clear()
        self._dropped = self._taken = self._written = 0
        self.problem = None
        for sink in self._sinks:
            if isinstance(sink, ForkAwareSink):
                self._guarded(sink.after_fork_in_child)

    def _drain(self) -> list[Event]:
        batch: list[Event] = []
        while self._queue and len(batch) < _BATCH:
            self._taken += 1  # before it leaves the queue: flush() must find it in one of the two
            event = self._queue.popleft()
            try:
                batch.append(event if self._content else without_content(event))
            except BaseException as error:  # an odd event, whose own code may raise anything, takes no other along
                with self._lock:
                    self._dropped += 1
                log.debug("telemetry: an event is left out: %s", _line(error))
        return batch

    def _write(self, batch: list[Event]) -> float | None:
        problem, waits = None, list[float | None]()
        for sink in self._sinks:
            problem = self._guarded(sink.write, batch) or problem
            problem = self._guarded(lambda sink: waits.append(sink.retry_seconds()), sink) or problem
        changed = problem is not None and problem != self.problem
        self.problem = problem
        self._written = self._taken
        if changed:
            log.warning("telemetry: %s (turns go on; recording is retried)", problem)
        return min((seconds for seconds in waits if seconds is not None), default=None)

    @staticmethod
    def _guarded(call: object, *arguments: object) -> str | None:
        """Run a sink's method; its failure in one line, or ``None``. Telemetry never raises into what it observes."""
        try:
            call(*arguments)  # type: ignore[operator] # a bound method of a Sink
        except StoreError as error:
            return str(error)
        except BaseException as error:  # also SystemExit: a sink must not end the recording of the others
            log.debug("telemetry sink failed", exc_info=True)
            return _line(error)
        return None

    def flush(self, timeout: float = 5.0) -> bool:
        deadline = time.monotonic() + timeout
        while self._unwritten() or self._wake.is_set():
            if self._thread is None and self._queue:
                self._start()
            if self._thread is None or not self._thread.is_alive() or time.monotonic() > deadline:
                return not self._unwritten()
            time.sleep(0.005)
        return True

    def _unfinished(self) -> int:
        return len(self._queue) + self._taken - self._written

    def _unwritten(self) -> bool:
        return bool(self._queue) or self._written < self._taken or self.problem is not None

    def stop(self) -> None:
        """:meth:`close` without waiting: the thread writes what it has and ends."""
        self._closed = True
        self._wake.set()

    def close(self) -> None:
        if self._thread is None and self._queue:
            self._start()
        self.stop()
        thread = self._thread
        if thread is None and self._queue:
            self._run()  # no thread is to be had, and closing may take its time
        if thread is None or thread is threading.current_thread():
            return
        written = -1
        while thread.is_alive() and written < self._written:  # a busy machine is slow, not stuck
            written = self._written
            thread.join(timeout=_STUCK_SECONDS)
        if thread.is_alive() and (unfinished := self._unfinished()):
            log.warning("telemetry: closed while up to %d events were still being written", unfinished)


def _line(error: BaseException) -> str:
    """An error in one line."""
    return " ".join(f"{type(error).__name__}: {error}".split()).removesuffix(":")


_live: weakref.WeakSet[QueueRecorder] = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    for recorder in list(_live):
        QueueRecorder._guarded(recorder.close)
