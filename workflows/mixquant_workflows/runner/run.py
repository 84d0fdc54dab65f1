"""Runs suites on a chat model: same cases for the same seed, several tasks at a time, resumable."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import ChatGeneration, LLMResult
from langchain_core.runnables.config import set_config_context
from langgraph.errors import GraphRecursionError

from mixquant_agents.errors import EngineError, MixQuantError
from mixquant_workflows.runner.results import ResultFile
from mixquant_workflows.suites.base import Case, Suite

__all__ = ["Progress", "Scored", "SharedTime", "choose", "run_suites"]

Progress = Callable[[str, str, int, int], None]
"""Called as ``progress(suite, policy, done, total)``."""

Scored = Callable[[str, str, Mapping[str, Any]], None]
"""Called as ``scored(thread, suite, row)`` when a task has ended; ``thread`` is what its turns are recorded under."""

_log = logging.getLogger(__name__)


def choose(cases: Sequence[Case], n: int | None, seed: int) -> list[Case]:
    """``n`` cases drawn without replacement, the same for the same seed, and fewer are the first of more; all of them,
    in their own order, for ``None``."""
    if n is None or n >= len(cases):
        return list(cases)
    drawn = list(cases)
    random.Random(seed).shuffle(drawn)  # noqa: S311 - a sample, not a secret
    return drawn[:n]


async def run_suites(
    suites: Sequence[Suite],
    policy: str,
    model: BaseChatModel,
    results: ResultFile,
    *,
    n: int | None = None,
    concurrency: int = 1,
    seed: int = 0,
    case_seconds: float = 900.0,
    progress: Progress = lambda suite, policy, done, total: None,
    scored: Scored = lambda thread, suite, row: None,
) -> None:
    """Run what ``results`` does not hold yet, under one policy.

    Args:
        policy: its name in the results; the model already runs under it.
        n: cases per suite; ``None`` for all.
        concurrency: tasks running at once.
        case_seconds: a task that takes longer scores 0.

    Raises:
        MixQuantError: a suite's data is missing. What fails inside a task scores 0 and is kept with its reason.
        EngineError: the engine went away. A new one would run under the policy that it was started with, so nothing
            more is scored; the rows so far are kept.
    """
    slots, shared = asyncio.Semaphore(concurrency), SharedTime()
    for suite in suites:
        cases = choose(suite.cases(), n, seed)
        done = results.done(suite.name, policy)
        unfinished = [case for case in cases if case.id not in done]
        progress(suite.name, policy, len(cases) - len(unfinished), len(cases))

        async def run_case(case: Case, suite: Suite = suite, total: int = len(cases)) -> None:
            thread = f"{suite.name}/{policy}/{case.id}"
            async with slots:
                with shared.share() as share:
                    row = await _run_case(suite, case, model, case_seconds, thread)
            scored(thread, suite.name, row)
            cost = {"engine_seconds": share.seconds}
            results.add({"suite": suite.name, "policy": policy, "case": case.id, **row, **cost})
            progress(suite.name, policy, len(results.done(suite.name, policy)), total)

        try:
            async with asyncio.TaskGroup() as group:
                for case in unfinished:
                    group.create_task(run_case(case))
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None


@dataclass(slots=True)
class Share:
    """Seconds of the engine that one task has cost so far."""

    seconds: float = 0.0


class SharedTime:
    """Divides the time that passes equally among the tasks that run: their shares add up to the time in which any ran.

    Args:
        clock: gives seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._running: list[Share] = []
        self._last = clock()

    @contextmanager
    def share(self) -> Iterator[Share]:
        """One task, while it runs."""
        self._settle()
        own_share = Share()
        self._running.append(own_share)
        try:
            yield own_share
        finally:
            self._settle()
            self._running = [running for running in self._running if running is not own_share]

    def _settle(self) -> None:
        now = self._clock()
        for running in self._running:
            running.seconds += (now - self._last) / len(self._running)
        self._last = now


async def _run_case(suite: Suite, case: Case, model: BaseChatModel, seconds: float, thread: str) -> Mapping[str, Any]:
    """One row; ``thread`` names the case in the turns' records."""
    began, written = time.monotonic(), _Written()
    try:
        with set_config_context({"configurable": {"thread_id": thread}, "callbacks": [written]}) as context:
            async with asyncio.timeout(seconds) as deadline:
                verdict = await asyncio.create_task(suite.run(case, model), context=context)
    except EngineError:
        raise
    except (MixQuantError, GraphRecursionError) as error:
        return _failed(began, written, f"{type(error).__name__}: {error}")
    except Exception as error:  # a checker that trips over a strange answer counts as a miss, and the run goes on
        if isinstance(error, TimeoutError) and deadline.expired():
            return _failed(began, written, f"took longer than {seconds:g} s")
        _log.warning("case %s of %s failed", case.id, suite.name, exc_info=True)
        return _failed(began, written, f"{type(error).__name__}: {error}")
    return {
        "score": verdict.score,
        "why": verdict.why,
        "seconds": time.monotonic() - began,
        "measures": dict(verdict.measures),
        "turns": _turns(verdict.messages),
    }


class _Written(BaseCallbackHandler):
    """The answers of one task as they come: one that fails gives no conversation, and has cost them all the same."""

    run_inline = True

    def __init__(self) -> None:
        self.messages: list[BaseMessage] = []

    def on_llm_end(self, response: LLMResult, **kwargs: Any) -> None:
        """An answer has ended."""
        for generations in response.generations:
            self.messages += [each.message for each in generations if isinstance(each, ChatGeneration)]


def _turns(messages: Sequence[BaseMessage]) -> list[Any]:
    return [
        message.response_metadata["turn"]
        for message in messages
        if isinstance(message, AIMessage) and "turn" in message.response_metadata
    ]


def _failed(began: float, written: _Written, reason: str) -> Mapping[str, Any]:
    return {
        "score": 0.0,
        "why": reason[:300],
        "error": reason[:300],
        "seconds": time.monotonic() - began,
        "measures": {},
        "turns": _turns(written.messages),
    }
