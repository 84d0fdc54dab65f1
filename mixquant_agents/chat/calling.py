"""LangChain's entry points: note which call a turn belongs to, then do as LangChain does."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any

from langchain_core.language_models import LanguageModelInput
from langchain_core.messages import AIMessage, AIMessageChunk
from langchain_core.outputs import ChatGenerationChunk
from langchain_core.prompt_values import PromptValue
from langchain_core.runnables import RunnableConfig

from mixquant_agents.chat.langchain_errors import langchain_error
from mixquant_agents.chat.messages import no_conversation
from mixquant_agents.chat.run_context import TurnScope, with_thread
from mixquant_agents.chat.settings import ChatSettings

__all__ = ["ScopedCalls"]


class ScopedCalls(ChatSettings):
    """Makes the call's config known while its turn is planned, and closes a stream's turn with the stream."""

    def _convert_input(self, model_input: LanguageModelInput) -> PromptValue:
        try:
            return super()._convert_input(model_input)
        except (ValueError, TypeError, NotImplementedError) as error:
            raise langchain_error(no_conversation(model_input, error)) from error

    def _chunk(self, message: AIMessageChunk) -> ChatGenerationChunk:
        """As LangChain streams it. Version 1 of its content numbers the blocks of text from 0 and joins what has one
        number, so calls are numbered elsewhere."""
        if self.output_version == "v1":
            for piece in message.tool_call_chunks:
                piece["index"] = (piece["index"] or 0) + 1_000
        return ChatGenerationChunk(message=message)

    def invoke(
        self,
        input: LanguageModelInput,  # noqa: A002 - LangChain's name
        config: RunnableConfig | None = None,
        *,
        stop: list[str] | None = None,
        **kwargs: Any,
    ) -> AIMessage:
        scope = TurnScope(config)
        with scope.entered():
            return super().invoke(input, scope.config, stop=stop, **kwargs)

    async def ainvoke(
        self,
        input: LanguageModelInput,  # noqa: A002
        config: RunnableConfig | None = None,
        *,
        stop: list[str] | None = None,
        **kwargs: Any,
    ) -> AIMessage:
        scope = TurnScope(config)
        with scope.entered():
            return await super().ainvoke(input, scope.config, stop=stop, **kwargs)

    def stream_events(
        self,
        input: LanguageModelInput,  # noqa: A002
        config: RunnableConfig | None = None,
        **kwargs: Any,
    ) -> Any:
        return super().stream_events(input, with_thread(config), **kwargs)

    def astream_events(
        self,
        input: LanguageModelInput,  # noqa: A002
        config: RunnableConfig | None = None,
        **kwargs: Any,
    ) -> Any:
        return super().astream_events(input, with_thread(config), **kwargs)

    def stream(
        self,
        input: LanguageModelInput,  # noqa: A002
        config: RunnableConfig | None = None,
        *,
        stop: list[str] | None = None,
        **kwargs: Any,
    ) -> Iterator[AIMessageChunk]:
        scope = TurnScope(config)
        chunks = super().stream(input, scope.config, stop=stop, **kwargs)
        try:
            with scope.entered():
                first = next(chunks)
            yield first
            yield from chunks
        finally:
            scope.close(chunks)

    async def astream(
        self,
        input: LanguageModelInput,  # noqa: A002
        config: RunnableConfig | None = None,
        *,
        stop: list[str] | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[AIMessageChunk]:
        scope = TurnScope(config)
        chunks = super().astream(input, scope.config, stop=stop, **kwargs)
        try:
            with scope.entered():
                first = await anext(chunks)
            yield first
            async for chunk in chunks:
                yield chunk
        finally:
            await scope.aclose(chunks)
