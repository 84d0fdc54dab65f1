"""The async driver of a turn: engine → accumulator → chunks, and one :class:`TurnRecord` whatever happens."""

from __future__ import annotations

import asyncio
import json
import logging
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from langchain_core.exceptions import OutputParserException
from langchain_core.messages import AIMessageChunk

from mixquant_agents.chat.accumulator import AnswerAccumulator
from mixquant_agents.chat.langchain_errors import langchain_error
from mixquant_agents.chat.recorders import Recorders
from mixquant_agents.chat.tools import tool_name
from mixquant_agents.engine.base import Delta, Engine, EngineInfo, EngineRequest
from mixquant_agents.engine.json_schema import violation
from mixquant_agents.engine.meter import TurnMeter
from mixquant_agents.errors import EngineError, MixQuantError, TurnTimeoutError
from mixquant_agents.records import TurnCounts, TurnRecord, utc_now

__all__ = ["TurnPlan", "run_turn"]

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnPlan:
    """A request, and what its record says beside what the engine measures.

    Attributes:
        turn_index: AI messages in the input.
        timeout: seconds the turn may take; ``None`` for no limit. The start of the engine is no part of a turn.
        answered: called with the request and the answer, in the engine's shape, when the turn has ended with calls.
    """

    request: EngineRequest
    turn_index: int
    run_id: str | None = None
    parent_run_id: str | None = None
    thread_id: str | None = None
    timeout: float | None = None
    answered: Callable[[EngineRequest, dict[str, Any]], None] | None = None


async def run_turn(engine: Engine, plan: TurnPlan, recorders: Recorders) -> AsyncGenerator[AIMessageChunk, None]:
    """Run one turn. Cancelling the reader, or closing this generator, aborts the turn in the engine.

    Raises:
        MixQuantError: as the engine raises it, and of LangChain's class for it, too.
        TurnTimeoutError: the turn took longer than ``plan.timeout``.
    """
    turn = _TurnState(plan, engine.info)
    request = plan.request
    try:
        await engine.start()
        turn.info = engine.info
        turn.accumulator = accumulator = AnswerAccumulator(tuple(map(tool_name, request.tools)))
        turn.started_at, turn.meter = utc_now(), (meter := TurnMeter())
        async with aclosing(engine.stream(request)) as stream:
            async for delta in stream if plan.timeout is None else _with_deadline(stream, plan.timeout):
                tokens = len(delta.token_ids)
                turn.tokens += tokens
                turn.counts = delta.counts or turn.counts
                meter.token(tokens or bool(delta.content or delta.reasoning or delta.tool_calls))
                if delta.finish_reason is not None:
                    turn.last_delta, turn.aborted = delta, delta.finish_reason == "abort"
                chunk = accumulator.feed(delta)
                if chunk is not None:
                    yield chunk
        yield turn.finish()
    except Exception as error:
        turn.aborted = isinstance(error, TurnTimeoutError)
        turn.failure = error
        if isinstance(error, MixQuantError):
            raise langchain_error(error) from error.__cause__
        raise
    except BaseException:  # the reader left or was cancelled, or the program ends
        turn.aborted = turn.aborted or turn.last_delta is None
        raise
    finally:
        if recorders:
            recorders.record(
                turn.record(),
                request,
                turn.answer,
                prompt_token_ids=turn.prompt_token_ids,
                parent_run_id=plan.parent_run_id,
                failure=turn.failure,
            )


async def _with_deadline(stream: AsyncIterator[Delta], seconds: float) -> AsyncGenerator[Delta, None]:
    """``stream``, ended by ``TurnTimeoutError`` when it is not through after ``seconds``."""
    deadline = asyncio.get_running_loop().time() + seconds
    while True:
        try:
            async with asyncio.timeout_at(deadline) as clock:
                delta = await anext(stream)
        except StopAsyncIteration:
            return
        except TimeoutError:
            if not clock.expired():  # the engine's own
                raise
            raise TurnTimeoutError(
                f"the turn was aborted after timeout={seconds:g} seconds; raise timeout, or lower max_tokens"
            ) from None
        yield delta


class _TurnState:
    """What is known of a turn while it runs."""

    def __init__(self, plan: TurnPlan, info: EngineInfo) -> None:
        self._plan = plan
        self.info = info
        self._id = uuid.uuid4().hex
        self._record: TurnRecord | None = None
        self.started_at = utc_now()
        self.meter = TurnMeter()
        self.accumulator: AnswerAccumulator | None = None
        self.last_delta: Delta | None = None
        self.tokens = 0
        self.counts = TurnCounts()
        self.aborted = False
        self.failure: Exception | None = None

    @property
    def prompt_token_ids(self) -> Sequence[int] | None:
        return self.last_delta.prompt_token_ids if self.last_delta is not None else None

    def answer(self) -> dict[str, Any]:
        """What was said, in the engine's shape."""
        return self.accumulator.answer() if self.accumulator is not None else {"role": "assistant", "content": ""}

    def finish(self) -> AIMessageChunk:
        """The last chunk: with the usage, and the record as plain JSON."""
        accumulator, last_delta = self.accumulator, self.last_delta
        if accumulator is None or last_delta is None:
            raise EngineError("the engine ended the answer without a finish reason; this is a fault of the engine")
        accumulator.close()
        self._check_answer(accumulator)
        if self._plan.answered is not None and accumulator.calls:
            self._plan.answered(self._plan.request, accumulator.answer())
        metadata = {
            "finish_reason": accumulator.finish_reason,
            "model_name": self.info.model,
            "model_provider": "mixquant",
            "turn": self.record().model_dump(mode="json"),
        }
        return accumulator.last(metadata, last_delta.counts)

    def _check_answer(self, accumulator: AnswerAccumulator) -> None:
        """An agent's answer by a schema, with tools beside it: whatever no grammar holds is seen here. What is cut off
        shows by its finish reason; answers without tools are checked where they are parsed.

        Raises:
            OutputParserException: the answer breaks the schema.
            GrammarError: the schema is none, and no grammar was made of it.
        """
        request = self._plan.request
        if request.schema is None or not request.tools or accumulator.calls or accumulator.finish_reason != "stop":
            return
        text = str(accumulator.answer()["content"])
        try:
            value = json.loads(text, strict=False)
        except (ValueError, RecursionError) as error:
            problem: str | None = f"it is no JSON ({error})"
        else:
            problem = violation(request.schema, value)
        if problem is not None:
            raise OutputParserException(f"the answer breaks its schema: {problem}", llm_output=text)

    def record(self) -> TurnRecord:
        """The record; made once."""
        if self._record is None:
            self._record = self._make_record()
        return self._record

    def _make_record(self) -> TurnRecord:
        plan, last_delta, info = self._plan, self.last_delta, self.info
        counts, times = self.counts, last_delta.times if last_delta is not None else None
        if last_delta is None or last_delta.counts is None:
            counts = counts.model_copy(update={"decode_tokens": self.tokens or None})
        finish_reason = self.accumulator.finish_reason if self.accumulator is not None else None
        identity: dict[str, Any] = {
            "turn_id": self._id,
            "run_id": plan.run_id,
            "thread_id": plan.thread_id,
            "turn_index": plan.turn_index,
            "model": str(info.model),
            "engine": str(info.engine),
            "policy": str(info.policy),
            "started_at": self.started_at,
            "finish_reason": "abort" if self.aborted else finish_reason,
            "tool_calls": self.accumulator.calls.names if self.accumulator is not None else (),
            "aborted": self.aborted,
            "prompt_change": last_delta.prompt_change if last_delta is not None else None,
            "error": type(self.failure).__name__ if self.failure is not None else None,
        }
        try:
            return TurnRecord(
                **identity,
                **counts.model_dump(),
                **(times or self.meter.times()).model_dump(),
                prefill_format=info.prefill_format,
                decode_format=info.decode_format,
                emulated=info.emulated,
                storage=info.storage,
                device=info.device,
            )
        except Exception:  # an engine of others that counts or names itself in an odd way: the answer is worth more
            log.warning("the engine %r gave counts or times that cannot be recorded", info.engine, exc_info=True)
            return TurnRecord(**identity)
