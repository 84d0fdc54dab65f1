"""What every benchmark is to the runner: cases, how one is run on a chat model, and what a perfect model would
answer."""

from __future__ import annotations

from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AnyMessage

from mixquant_agents.engine.scripted import ScriptedTurn

__all__ = ["Answer", "Case", "ScriptedTurn", "Suite", "Verdict"]

Answer = str | ScriptedTurn
"""One scripted model answer."""


@dataclass(frozen=True, slots=True)
class Case:
    """One task. ``data`` is the suite's own."""

    id: str
    data: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What the official checker says.

    Attributes:
        score: 0 to 1.
        why: one line, when the score is below 1.
        messages: the whole conversation; its AI messages carry the turn records.
        measures: further figures by name (F1, recall, …).
    """

    score: float
    why: str = ""
    messages: Sequence[AnyMessage] = ()
    measures: Mapping[str, float] = field(default_factory=dict)


class Suite(Protocol):
    """A benchmark. Cases are independent of each other and may run at the same time."""

    name: str
    one_answer: bool
    """A case is one answer of the model, so its calls can be required by grammar."""
    documented_misses: Mapping[str, str]
    """Case id → why its own ground truth does not pass its own checker (an error upstream)."""

    def cases(self) -> Sequence[Case]:
        """All cases, in a fixed order.

        Raises:
            MixQuantError: the data is not installed, or differs from what was pinned.
        """
        ...

    def run(self, case: Case, model: BaseChatModel) -> Coroutine[Any, Any, Verdict]:
        """Run one case on ``model`` and check it (an ``async def``)."""
        ...

    def oracle(self, case: Case) -> Sequence[Answer]:
        """The ground truth as model answers, in order.

        Raises:
            MixQuantError: this case or the whole suite has no ground truth of calls.
        """
        ...
