"""``MixQuantChatModel``: a LangChain chat model on an engine in the agent's own process."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Generator, Iterator, Mapping, Sequence
from contextlib import aclosing, closing
from dataclasses import replace
from typing import Any, Self

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.callbacks.manager import BaseRunManager
from langchain_core.language_models import LanguageModelInput
from langchain_core.language_models.chat_models import generate_from_stream
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage, HumanMessage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult, LLMResult
from langchain_core.runnables import Runnable

from mixquant_agents.chat.call_options import DEFAULTS, call_settings
from mixquant_agents.chat.calling import ScopedCalls
from mixquant_agents.chat.core import combined_llm_output, give_reasons, llm_output
from mixquant_agents.chat.engines import shared_engine
from mixquant_agents.chat.langchain_errors import is_retryable, langchain_errors
from mixquant_agents.chat.loop_thread import loop_thread
from mixquant_agents.chat.messages import ai_messages, to_engine
from mixquant_agents.chat.recorders import Recorders
from mixquant_agents.chat.request import engine_request, new_request_id
from mixquant_agents.chat.run_context import current_scope, run_ids
from mixquant_agents.chat.structured import Method, structured
from mixquant_agents.chat.tools import ToolLike, engine_choice, engine_tools
from mixquant_agents.chat.turn import TurnPlan, run_turn
from mixquant_agents.engine.base import Engine
from mixquant_agents.errors import ConfigError, MixQuantError, RequestError

__all__ = ["MixQuantChatModel"]

_making = threading.Lock()


class MixQuantChatModel(ScopedCalls):
    """A local chat model that reads quantized and writes exactly, with every turn measured.

    ::

        model = MixQuantChatModel(model="embedded", policy="mixquant")
        answer = await model.ainvoke("Hello")
        answer.response_metadata["turn"]  # the TurnRecord as plain JSON

    Chat models with equal engine settings share one engine; it starts with the first turn. Sampling settings may also
    be given per call (``model.invoke(…, temperature=0)``) or bound. Unknown settings are refused.

    Attributes:
        model: ``"embedded"``, a local folder, or a hub id.
        policy: name of a precision policy, or a :class:`PrecisionPolicy`.
        engine: an engine to use instead of a shared vLLM engine; it stays its owner's to close.
        engine_config: all settings of the vLLM engine at once; ``model`` and ``policy`` then come from it.
        engine_settings: single settings of :class:`EngineConfig`; normally given directly (``max_model_len=4096``).
        base_url: address of a chat completions server, up to and including ``/v1``; the model is then an
            :class:`OpenAIEngine` on it.
        api_key: what that server asks for. An engine in this process asks for none, and it goes nowhere.
        max_retries: how often a turn that failed before its first token, for a reason that may pass (the engine died,
            the server was busy), is run again; by default never, and twice at a ``base_url``.
        recorders: where turn records go: telemetry recorders, or functions of a ``TurnRecord``.
        streaming: LangChain's switch: ``True`` streams inside ``invoke``, ``False`` (if set) never streams.
        timeout: seconds a turn may take; then it is aborted with ``TurnTimeoutError``.
        stop: strings that end the answer.
        logprobs: give the log probability of each token; ``top_logprobs`` of that many alternatives too.
        sampling_extra: further sampling values by the engine's own names.
        reasoning_effort: how much to think, as the model's chat template or the server understands it.
        chat_template_kwargs: variables of the chat template (for example ``enable_thinking``).
        cache_salt: keeps this model's prefix cache apart from others'.
        user: who the answer is for, told to a server.

    Standard names of other chat models are taken, too: ``model_name``, ``max_completion_tokens``, ``request_timeout``,
    ``stop_sequences``, ``n=1``, ``stream_usage=True``.

    Raises:
        ConfigError: a setting is unknown, wrong, or given twice.
    """

    # -- the four ways of generating, all through one driver --

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        tell = run_manager if self._tells_tokens(run_manager, kwargs) else None
        return _result(generate_from_stream(self._chunks(messages, stop, run_manager, kwargs, tell)))

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        chunks = self._chunks(messages, stop, run_manager, kwargs, run_manager)
        if (scope := current_scope()) is not None:
            scope.adopt(chunks)
        return chunks

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        tell = run_manager if self._tells_tokens(run_manager, kwargs) else None
        async with aclosing(self._achunks(messages, stop, run_manager, kwargs, tell)) as chunks:
            return _result(generate_from_stream(iter([chunk async for chunk in chunks])))

    def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        chunks = self._achunks(messages, stop, run_manager, kwargs, run_manager)
        if (scope := current_scope()) is not None:
            scope.adopt(chunks)
        return chunks

    def generate(self, *args: Any, **kwargs: Any) -> LLMResult:
        """As LangChain does; each invalid call says why it is one."""
        return _with_reasons(super().generate(*args, **kwargs))

    async def agenerate(self, *args: Any, **kwargs: Any) -> LLMResult:
        """:meth:`generate` for async callers."""
        return _with_reasons(await super().agenerate(*args, **kwargs))

    def _combine_llm_outputs(self, outputs: list[dict[str, Any] | None], /) -> dict[str, Any]:
        return combined_llm_output(outputs)

    async def _achunks(
        self,
        messages: Sequence[BaseMessage],
        stop: Sequence[str] | None,
        run_manager: BaseRunManager | None,
        settings: Mapping[str, Any],
        tell: AsyncCallbackManagerForLLMRun | None,
    ) -> AsyncGenerator[ChatGenerationChunk, None]:
        """One turn's chunks; ``tell`` hears each token."""
        async with aclosing(self._turn(messages, stop, run_manager, settings)) as turn:
            async for message in turn:
                chunk = self._chunk(message)
                if tell is not None:
                    await tell.on_llm_new_token(message.content, chunk=chunk)
                yield chunk

    def _chunks(
        self,
        messages: Sequence[BaseMessage],
        stop: Sequence[str] | None,
        run_manager: BaseRunManager | None,
        settings: Mapping[str, Any],
        tell: CallbackManagerForLLMRun | None,
    ) -> Generator[ChatGenerationChunk, None, None]:
        """:meth:`_achunks` for callers without an event loop; callbacks run in the caller's thread."""
        with closing(loop_thread().iterate(self._turn(messages, stop, run_manager, settings))) as turn:
            for message in turn:
                chunk = self._chunk(message)
                if tell is not None:
                    tell.on_llm_new_token(message.content, chunk=chunk)
                yield chunk

    def _turn(
        self,
        messages: Sequence[BaseMessage],
        stop: Sequence[str] | None,
        run_manager: BaseRunManager | None,
        settings: Mapping[str, Any],
    ) -> AsyncGenerator[AIMessageChunk, None]:
        """Plan one turn; it runs when the generator is read."""
        ids = run_ids(run_manager, current_scope())
        with langchain_errors():
            wanted = {name: getattr(self, name) for name in DEFAULTS} | call_settings(settings, stop)
            engine = self._resolve_engine()
            plan = TurnPlan(
                request=engine_request(messages, wanted, model=self.model),
                turn_index=ai_messages(messages),
                run_id=ids.run_id,
                parent_run_id=ids.parent_run_id,
                thread_id=ids.thread_id,
                timeout=wanted["timeout"],
            )
        with _making:
            if self._held.sink is None:
                self._held.sink = Recorders(self.recorders)
            recorders = self._held.sink
        if not self._retries and self._knows_window:
            return run_turn(engine, plan, recorders)
        return self._attempts(engine, plan, recorders)

    async def _attempts(
        self, engine: Engine, plan: TurnPlan, recorders: Recorders
    ) -> AsyncGenerator[AIMessageChunk, None]:
        """The turn, run again where it failed before its first token for a reason that may pass."""
        for retries_left in range(self._retries, -1, -1):
            started = False
            try:
                async with aclosing(run_turn(engine, plan, recorders)) as turn:
                    async for message in turn:
                        if not started:
                            started = True
                            self._learn_window(engine.info.max_model_len)
                        yield message
                return
            except MixQuantError as error:
                if started or not retries_left or not is_retryable(error):
                    raise
            plan = replace(plan, request=replace(plan.request, request_id=new_request_id()))

    def _tells_tokens(self, run_manager: BaseRunManager | None, settings: Mapping[str, Any]) -> bool:
        """Whether ``invoke`` reports its tokens, so that tracers see the time to the first one. Who switched streaming
        off does not want them."""
        off = self.disable_streaming
        disabled = off is True or (off == "tool_calling" and bool(settings.get("tools")))
        listeners = [] if run_manager is None else [h for h in run_manager.handlers if not h.ignore_llm]
        return bool(listeners) and not disabled

    def _resolve_engine(self) -> Engine:
        if self.engine is not None:
            given: Engine = self.engine
            return given
        with _making:
            if self._held.engine is None:
                self._held.engine = shared_engine(self._config()) if self.base_url is None else self._server()
            return self._held.engine

    # -- tools and structure --

    def bind_tools(
        self,
        tools: Sequence[ToolLike],
        *,
        tool_choice: str | bool | dict[str, Any] | None = None,
        parallel_tool_calls: bool | None = None,
        strict: bool | None = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, AIMessage]:
        """The model with tools.

        Args:
            tools: pydantic models, TypedDicts, JSON schemas, functions, ``BaseTool``, or OpenAI function tools.
            tool_choice: ``"auto"`` (default), ``"none"`` (the model sees the tools and answers in words),
                ``"any"``/``"required"``, or a tool's name.
            parallel_tool_calls: whether one answer may hold several calls (default: yes).
            strict: write the schemas in OpenAI's strict form. Forced calls follow their schema in any case.
            kwargs: further settings of a call.

        Raises:
            RequestError: something is no tool, or ``tool_choice`` names none of them.
        """
        converted = engine_tools(tools, strict=strict)
        engine_choice(tool_choice, converted)
        chosen = {"tool_choice": tool_choice, "parallel_tool_calls": parallel_tool_calls}
        given = {name: value for name, value in chosen.items() if value is not None}
        return self.bind(tools=converted, **given, **kwargs)

    def with_structured_output(
        self,
        schema: dict[str, Any] | type | None = None,
        *,
        method: Method = "json_schema",
        include_raw: bool = False,
        strict: bool | None = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, Any]:
        """The model, answering in the form of ``schema``.

        Args:
            schema: a pydantic class, TypedDict, JSON schema, or OpenAI function tool.
            method: ``"json_schema"`` holds the answer to the schema by grammar; the model does not see the schema, so
                say in the prompt what you want. ``"function_calling"`` forces a call of a tool with this schema, which
                the model sees. ``"json_mode"`` does as ``"json_schema"`` on an engine with a grammar (any JSON object
                where no schema is given); a remote server is asked for a JSON object of any form.
            include_raw: return ``{"raw", "parsed", "parsing_error"}`` instead of raising.
            strict: see :meth:`bind_tools`.

        Raises:
            GrammarError: the method is unknown, or ``schema`` is no schema.
        """
        if kwargs:
            raise RequestError(f"with_structured_output has no setting {', '.join(map(repr, sorted(kwargs)))}")
        return structured(self.bind, self.bind_tools, schema, method=method, include_raw=include_raw, strict=strict)

    # -- tokens and end --

    def get_num_tokens_from_messages(
        self, messages: Sequence[BaseMessage], tools: Sequence[ToolLike] | None = None, **kwargs: Any
    ) -> int:
        """Tokens of the prompt as the engine renders it."""
        return loop_thread().run(self.aget_num_tokens_from_messages(messages, tools))

    async def aget_num_tokens_from_messages(
        self, messages: Sequence[BaseMessage], tools: Sequence[ToolLike] | None = None
    ) -> int:
        """:meth:`get_num_tokens_from_messages` for async callers."""
        with langchain_errors():
            return await self._resolve_engine().count_tokens(to_engine(messages), engine_tools(tools or ()))

    def get_num_tokens(self, text: str) -> int:
        """Tokens that ``text`` adds to a prompt."""
        filled, empty = (self.get_num_tokens_from_messages([HumanMessage(value)]) for value in (text, ""))
        return filled - empty

    def get_token_ids(self, text: str) -> list[int]:
        """By ``custom_get_token_ids``; not known to the chat model itself.

        Raises:
            ConfigError: there is none; LangChain's own answer would be another model's tokens.
        """
        if self.custom_get_token_ids is not None:
            return self.custom_get_token_ids(text)
        raise ConfigError("the chat model does not know token ids; use get_num_tokens, or the engine's tokenizer")

    async def aclose(self) -> None:
        """Write what recorders still hold and release the engine. An engine given as ``engine=`` stays its owner's. The
        next turn starts anew. Idempotent."""
        with _making:
            engine, self._held.engine = self._held.engine, None
            sink, self._held.sink = self._held.sink, None
        try:
            if sink is not None:
                await asyncio.to_thread(sink.close)
        finally:  # even where the wait for a slow recorder is cancelled
            if engine is not None:
                await engine.aclose()

    def close(self) -> None:
        """:meth:`aclose` for callers without an event loop."""
        loop_thread().run(self.aclose())

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _result(result: ChatResult) -> ChatResult:
    """With what older callbacks read of the result as a whole."""
    (generation,) = result.generations
    message = generation.message
    if isinstance(message, AIMessage):
        give_reasons(message)
        result.llm_output = llm_output(message)
    return result


def _with_reasons(result: LLMResult) -> LLMResult:
    for generations in result.generations:
        for generation in generations:
            if isinstance(generation, ChatGeneration) and isinstance(generation.message, AIMessage):
                give_reasons(generation.message)
    return result
