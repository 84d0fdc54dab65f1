"""A chat model that answers from a list and remembers what it was asked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.runnables import Runnable
from pydantic import Field

Answer = AIMessage | Callable[[list[BaseMessage]], AIMessage]


class ListModel(BaseChatModel):
    """Gives ``answers`` in order; a function answers from the prompt."""

    answers: list[Any]
    seen: list[tuple[list[BaseMessage], dict[str, Any]]] = Field(default_factory=list)

    @property
    def _llm_type(self) -> str:
        return "list"

    def bind_tools(
        self, tools: Sequence[Any], *, tool_choice: str | None = None, **kwargs: Any
    ) -> Runnable[Any, AIMessage]:
        return self.bind(tools=[getattr(tool, "name", tool) for tool in tools], tool_choice=tool_choice, **kwargs)

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        answer = self.answers[len(self.seen)]
        self.seen.append((messages, kwargs))
        return ChatResult(generations=[ChatGeneration(message=answer(messages) if callable(answer) else answer)])


def say(text: str, tokens: int | None = None) -> AIMessage:
    """An answer in words; ``tokens`` is the usage the engine reports."""
    usage = {"input_tokens": tokens - 1, "output_tokens": 1, "total_tokens": tokens} if tokens else None
    return AIMessage(text, usage_metadata=usage)


def call(name: str, id_: str = "1", **args: Any) -> AIMessage:
    """An answer that calls one tool."""
    return AIMessage("", tool_calls=[{"name": name, "args": args, "id": id_}])
