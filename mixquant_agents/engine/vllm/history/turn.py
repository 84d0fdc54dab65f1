"""One turn's part in the history: what its prompt was, and what it wrote."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from mixquant_agents.engine.base import Delta
from mixquant_agents.engine.vllm.history.memory import WrittenAnswers, WrittenTurn, key_after

__all__ = ["RenderedPrompt", "TurnHistory"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RenderedPrompt:
    """A prompt, and where it came from.

    Attributes:
        token_ids: the prompt.
        before: the turn whose tokens it begins with; ``None`` where all of it was rendered.
        verbatim_tokens: how many of its tokens are that turn's.
        change: why the template's own text had to be taken although the turn before was known.
        key: of the conversation; ``None`` where nothing is kept.
        static_tokens: so many at the beginning are the system prompt's and the tools'; 0 where nobody asked.
    """

    token_ids: list[int]
    before: WrittenTurn | None = None
    verbatim_tokens: int = 0
    change: str | None = None
    key: bytes | None = None
    static_tokens: int = 0


class TurnHistory:
    """Collects what one turn writes, and keeps it when the answer has ended.

    An answer that was aborted is not kept, nor one that a stop word ended, whose tokens hold more than its text.
    """

    def __init__(self, answers: WrittenAnswers) -> None:
        self._answers = answers
        self.prompt: RenderedPrompt | None = None
        self._tokens: list[int] = []
        self._content: list[str] = []
        self._reasoning: list[str] = []
        self._calls: dict[int, tuple[str, list[str]]] = {}
        self._invalid = False

    @property
    def calls_tools(self) -> bool:
        """Whether the answer calls tools, so that the conversation goes on soon."""
        return bool(self._calls)

    @property
    def token_ids(self) -> list[int]:
        """Prompt and answer so far."""
        return [*(self.prompt.token_ids if self.prompt is not None else ()), *self._tokens]

    def feed(self, delta: Delta, stopped_by: Literal["token", "word"] | None = None) -> None:
        """Take the next piece of the answer.

        Args:
            delta: parsed.
            stopped_by: what ended the answer with it; see :class:`~mixquant_agents.engine.parsing.TokenDelta`.
        """
        self._tokens += delta.token_ids
        self._content.append(delta.content)
        self._reasoning.append(delta.reasoning)
        for piece in delta.tool_calls:
            name, arguments = self._calls.get(piece.index, ("", []))
            arguments.append(piece.arguments)
            self._calls[piece.index] = (name or piece.name or "", arguments)
        self._invalid = self._invalid or bool(delta.invalid_calls)
        ended = delta.finish_reason in ("stop", "tool_calls", "length")
        whole = ended and stopped_by != "word" and not self._invalid
        if whole and self.prompt is not None and self.prompt.key is not None:
            self._keep(self.prompt, self.prompt.key, stopped=stopped_by == "token")

    def _keep(self, prompt: RenderedPrompt, key: bytes, *, stopped: bool) -> None:
        self._answers.keep(
            key_after(key, self._answer()),
            prompt.before,
            [*prompt.token_ids[prompt.verbatim_tokens :], *self._tokens],
            stopped=stopped and bool(self._tokens),
        )

    def _answer(self) -> dict[str, Any]:
        """The answer as the conversation will hold it."""
        answer: dict[str, Any] = {"role": "assistant", "content": "".join(self._content)}
        if reasoning := "".join(self._reasoning):
            answer["reasoning_content"] = reasoning
        if self._calls:
            ordered: Sequence[tuple[str, list[str]]] = [call for _, call in sorted(self._calls.items())]
            answer["tool_calls"] = [{"function": {"name": name, "arguments": "".join(text)}} for name, text in ordered]
        return answer
