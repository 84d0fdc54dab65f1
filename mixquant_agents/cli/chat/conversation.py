"""The conversation of ``mixquant chat``: messages, answers as they come, and one line about each turn."""

from __future__ import annotations

import asyncio
import uuid
from contextlib import closing
from typing import TYPE_CHECKING, Any

from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage

from mixquant_agents.cli.output import StreamedText, precision_line
from mixquant_agents.engine.base import SwitchableEngine
from mixquant_agents.errors import ConfigError, RequestError

if TYPE_CHECKING:
    from rich.console import Console

    from mixquant_agents import MixQuantChatModel

__all__ = ["Conversation"]


class Conversation:
    """Messages so far, and what they cost. Without an event loop of its own, so that Ctrl-C works at the prompt.

    Args:
        chat: the model, on an engine of its own.
        out: where answers go.
        interactive: somebody sits there: Ctrl-C ends an answer and not the conversation, a refused message is shown and
            taken back, and lines that begin with a slash are commands.

    Attributes:
        interactive: as given.
        system: system prompt of the next conversation.
        turns: ``{"message", "answer", "turn"}`` of each turn that ended.
    """

    def __init__(
        self, chat: MixQuantChatModel, out: Console, *, system: str | None = None, interactive: bool = False
    ) -> None:
        self._chat = chat
        self._out = out
        self.interactive = interactive
        self.system = system
        self.turns: list[dict[str, Any]] = []
        self.restart()

    @property
    def _engine(self) -> Any:
        return self._chat.engine

    def restart(self) -> None:
        """Forget the messages; the next turn begins another thread."""
        self._messages: list[BaseMessage] = [SystemMessage(self.system)] if self.system else []
        self._thread = f"chat-{uuid.uuid4().hex[:8]}"

    def heading(self) -> str:
        """Who answers, and how it reads and writes."""
        info = self._engine.info
        hint = "  ·  /help" if self.interactive else ""
        return f"{info.model}  ·  {precision_line(info)}{hint}"

    def switch(self, policy: str) -> None:
        """Switch the engine's policy.

        Raises:
            ConfigError: there is no such policy, or this engine cannot be switched.
        """
        engine = self._engine
        if not isinstance(engine, SwitchableEngine):
            raise ConfigError(f"this engine keeps its policy; start another: mixquant chat --policy {policy}")
        asyncio.run(engine.set_policy(policy))

    def note(self, text: str, *, style: str = "dim") -> None:
        """Print a line that is no part of an answer."""
        self._out.print(text, style=style, soft_wrap=not self._out.is_terminal)  # a terminal breaks between words

    def ask(self, line: str) -> None:
        """Send a message and show the answer.

        Raises:
            RequestError: the message is refused, and nobody sits there to hear it.
        """
        self._messages.append(HumanMessage(line))
        answer = ""
        turn: dict[str, Any] | None = None
        shown = StreamedText(self._out)
        try:
            stream: Any = self._chat.stream(self._messages, {"configurable": {"thread_id": self._thread}})
            with closing(stream):
                for chunk in stream:
                    piece = str(chunk.text)
                    answer += piece
                    shown.feed(piece)
                    turn = chunk.response_metadata.get("turn", turn)
                shown.end()
        except KeyboardInterrupt:
            if not self.interactive:
                raise
        except RequestError as error:  # of this message: the conversation can go on without it
            if not self.interactive:
                raise
            self._messages.pop()
            self._out.print()
            self.note(str(error), style="red")
            return
        self._messages.append(AIMessage(answer))
        self._out.print()
        if turn is None:
            self.note("(stopped)")
            return
        self.turns.append({"message": line, "answer": answer, "turn": turn})
        self.note(_summary(turn))

    def as_json(self) -> dict[str, Any]:
        """A plain JSON object."""
        info = self._engine.info
        return {"model": info.model, "policy": info.policy, "emulated": info.emulated, "turns": self.turns}


def _summary(turn: dict[str, Any]) -> str:
    def seconds(name: str) -> str:
        value = turn[name]
        return "?" if value is None else f"{value:.2f} s"

    read = f"read {turn['prefill_tokens']} new + {turn['cached_tokens']} cached in {seconds('prefill_seconds')}"
    formats = f" ({turn['quantized_tokens']} in {turn['prefill_format']})" if turn["quantized_tokens"] else ""
    wrote = f"wrote {turn['decode_tokens']} in {seconds('decode_seconds')}"
    return f"{read}{formats} · first token after {seconds('ttft_seconds')} · {wrote}"
