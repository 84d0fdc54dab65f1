"""A chat model whose tool calls are held to their schema by grammar, for the column "constrained" of a table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from langchain_core.language_models import LanguageModelInput
from langchain_core.messages import AIMessage
from langchain_core.runnables import Runnable
from langchain_core.utils.function_calling import convert_to_openai_tool

from mixquant_agents import MixQuantChatModel

__all__ = ["CallMode", "ConstrainedModel"]

CallMode = Literal["auto", "strict", "required"]
"""``auto``: free. ``strict``: may be no call, but one that begins follows its schema. ``required``: one call or more,
each by its schema."""


class ConstrainedModel(MixQuantChatModel):
    """The chat model with ``tool_choice="auto"`` made stricter; what a graph asks for beyond that (``"none"``, a named
    tool) stays.

    Attributes:
        calls: ``"strict"`` marks every tool so (the model sees the mark in its prompt), ``"required"`` forces a call.
    """

    calls: Literal["strict", "required"] = "strict"

    def bind_tools(
        self, tools: Sequence[Any], *, tool_choice: str | bool | dict[str, Any] | None = None, **kwargs: Any
    ) -> Runnable[LanguageModelInput, AIMessage]:
        if tool_choice not in (None, "auto"):
            return super().bind_tools(tools, tool_choice=tool_choice, **kwargs)
        if self.calls == "required":
            return super().bind_tools(tools, tool_choice="required", **kwargs)
        return super().bind_tools([_strict(tool) for tool in tools], tool_choice=tool_choice, **kwargs)


def _strict(tool: Any) -> dict[str, Any]:
    shape = convert_to_openai_tool(tool)
    return {**shape, "function": {**shape["function"], "strict": True}}
