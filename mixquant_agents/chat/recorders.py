"""Where finished turns go. Recorders observe a turn; they can neither fail nor delay it."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable, Iterable, Sequence

from mixquant_agents.engine.base import EngineRequest
from mixquant_agents.records import TurnRecord
from mixquant_agents.telemetry import QueueRecorder, Recorder, TurnContent
from mixquant_agents.telemetry.events import Event, TurnEvent

__all__ = ["Recorders", "TurnHook"]

log = logging.getLogger(__name__)

TurnHook = Callable[[TurnRecord], object]


class Recorders:
    """Hands each turn to every recorder.

    Args:
        given: recorders, and plain functions of a :class:`TurnRecord`; functions run in a thread of their own.
    """

    def __init__(self, given: Iterable[Recorder | TurnHook] = ()) -> None:
        self._recorders: list[Recorder] = []
        self._own: list[QueueRecorder] = []
        for item in given:
            if isinstance(item, Recorder):
                self._recorders.append(item)
            else:
                own = QueueRecorder([_HookSink(item)], gather_seconds=0.001)
                self._own.append(own)
                weakref.finalize(self, own.stop).atexit = False  # a model that is dropped leaves no thread behind
        self._recorders += self._own
        self._failed: set[int] = set()

    def __bool__(self) -> bool:
        return bool(self._recorders)

    def record(
        self,
        turn: TurnRecord,
        request: EngineRequest,
        answer: Callable[[], dict[str, object]],
        *,
        prompt_token_ids: Sequence[int] | None = None,
        parent_run_id: str | None = None,
        failure: Exception | None = None,
    ) -> None:
        """Take one finished, failed or aborted turn.

        ``answer`` is asked for only where content is wanted. So is the text of ``failure``, which may repeat the prompt
        or what a server said; all others get the name of its class, as ``turn`` has it.
        """
        content: TurnContent | None = None
        with_text = turn
        for recorder in self._recorders:
            try:
                if content is None and recorder.wants_content:
                    content = TurnContent(messages=request.messages, answer=answer())
                    if failure is not None:
                        text = " ".join(f"{type(failure).__name__}: {failure}".split())
                        with_text = turn.model_copy(update={"error": text})
                recorder.record(
                    with_text if recorder.wants_content else turn,
                    content=content if recorder.wants_content else None,
                    prompt_token_ids=prompt_token_ids,
                    trace_context=request.trace_context,
                    parent_run_id=parent_run_id,
                )
            except KeyboardInterrupt:
                raise
            except BaseException:  # also SystemExit: a recorder must not end the turn that it observes
                if id(recorder) not in self._failed:  # each is logged once
                    self._failed.add(id(recorder))
                    log.warning("the recorder %r failed; turns go on", recorder, exc_info=True)

    def close(self) -> None:
        """Wait until everything taken so far is written, and end the threads of plain functions. Recorders that were
        given stay their owner's to close."""
        for recorder in self._recorders:
            try:
                recorder.flush()
            except KeyboardInterrupt:
                raise
            except BaseException:  # the engine is released all the same
                log.warning("the recorder %r failed while it was waited for", recorder, exc_info=True)
        for own in self._own:
            own.close()


class _HookSink:
    """A plain function as a telemetry sink: called in the recorder's thread."""

    def __init__(self, hook: TurnHook) -> None:
        self._hook = hook
        self._failed = False

    def write(self, batch: Sequence[Event]) -> None:
        for event in batch:
            if not isinstance(event, TurnEvent):
                continue
            try:
                self._hook(event.turn)
            except BaseException:  # also SystemExit: the turns after this one are still the hook's
                if not self._failed:
                    self._failed = True
                    log.warning("the turn hook %r failed; turns go on", self._hook, exc_info=True)

    def retry_seconds(self) -> float | None:
        return None

    def lost(self) -> int:
        return 0

    def close(self) -> None:
        pass
