"""Calls whose tools may be running: what is known of the prompt that will hold their results."""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import replace
from typing import Any

from mixquant_agents.engine.base import EngineRequest
from mixquant_agents.unicode import well_formed

__all__ = ["OpenCalls"]

_REMEMBERED = 256


class OpenCalls:
    """The first call of each of the latest answers, by its conversation and id: some models number their calls, so that
    ids of two conversations are equal. Safe to use from several threads."""

    def __init__(self) -> None:
        self._calls: OrderedDict[tuple[str | None, str], tuple[EngineRequest, dict[str, Any]]] = OrderedDict()
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[type[OpenCalls], tuple[()]]:
        """A copy in another process knows none: its tools do not run there."""
        return OpenCalls, ()

    def __len__(self) -> int:
        return len(self._calls)

    def note(self, request: EngineRequest, answer: dict[str, Any]) -> None:
        """A turn has ended with calls.

        Args:
            request: the turn's.
            answer: in the engine's shape.
        """
        calls = answer.get("tool_calls")
        if not calls:
            return
        with self._lock:
            key = request.thread_id, calls[0]["id"]
            self._calls[key] = request, answer
            self._calls.move_to_end(key)
            while len(self._calls) > _REMEMBERED:
                self._calls.popitem(last=False)

    def request(self, call_id: str, result: str, thread_id: str | None = None) -> EngineRequest | None:
        """The next turn's request as far as it is known, with ``result`` at its end.

        Args:
            thread_id: the conversation's; ``None`` where it is not known, and the id alone must tell.

        Returns:
            ``None`` for an unknown call, and for an id that calls of several conversations have.
        """
        with self._lock:
            known = self._calls.get((thread_id, call_id))
            if known is None:
                alike = [
                    entry
                    for (thread, name), entry in self._calls.items()
                    if name == call_id and (thread is None or thread_id is None)
                ]
                known = alike[0] if len(alike) == 1 else None
        if known is None:
            return None
        request, answer = known
        tool_message = {"role": "tool", "content": well_formed(result), "tool_call_id": call_id}
        return replace(request, messages=[*request.messages, answer, tool_message])
