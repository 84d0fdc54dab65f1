"""``MixQuantChatModel``: a LangChain chat model on an engine in the agent's own process."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Generator, Iterator, Mapping, Sequence
from contextlib import aclosing, closing
from dataclasses import replace
from inspect import iscoroutinefunction
from typing import Annotated, Any, Self

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.callbacks.manager import BaseRunManager
from langchain_core.language_models import LanguageModelInput
from langchain_core.language_models.base import LangSmithParams
from langchain_core.language_models.chat_models import BaseChatModel, generate_from_stream
from langchain_core.language_models.model_profile import ModelProfile
from langchain_core.load.serializable import SerializedConstructor, SerializedNotImplemented
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage, HumanMessage, SystemMessage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult, LLMResult
from langchain_core.prompt_values import PromptValue
from langchain_core.runnables import Runnable, RunnableConfig
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PrivateAttr,
    SecretStr,
    StringConstraints,
    ValidationError,
    model_validator,
)

from mixquant_agents.chat.accumulator import combined_llm_output, give_reasons, llm_output
from mixquant_agents.chat.call_options import MODEL_OPTIONS, ModelOptions, checked_options
from mixquant_agents.chat.engine_source import (
    DEFAULT_MODEL,
    DEFAULT_POLICY,
    ENGINE_SETTINGS,
    EngineSource,
    engine_source,
)
from mixquant_agents.chat.langchain_errors import is_retryable, langchain_error, langchain_errors
from mixquant_agents.chat.loop_thread import loop_thread
from mixquant_agents.chat.messages import ai_messages, no_conversation, to_engine
from mixquant_agents.chat.open_calls import OpenCalls
from mixquant_agents.chat.provider import register_provider
from mixquant_agents.chat.recorders import Recorders
from mixquant_agents.chat.request import engine_request, new_request_id
from mixquant_agents.chat.run_context import RunContext, current_run_context, run_ids, run_priority, with_thread
from mixquant_agents.chat.standard_names import by_standard_names, unknown_settings
from mixquant_agents.chat.structured import Method, structured
from mixquant_agents.chat.tools import ToolLike, engine_choice, engine_tools
from mixquant_agents.chat.turn import TurnPlan, run_turn
from mixquant_agents.config import BACKGROUND_PRIORITY, EngineConfig, PrecisionPolicy
from mixquant_agents.engine.base import Engine, EngineInfo, Sleep
from mixquant_agents.errors import ConfigError, MixQuantError, RequestError
from mixquant_agents.telemetry import Recorder
from mixquant_agents.validation import config_error

__all__ = ["MixQuantChatModel"]

_starting = threading.Lock()

_STARTED_WITH = frozenset(
    {"model", "policy", "engine", "engine_config", "engine_settings", "recorders", "base_url", "api_key", "max_retries"}
)
"""Fields whose change makes a copy start something of its own."""

_FOLLOWING = {"model": DEFAULT_MODEL, "policy": DEFAULT_POLICY}
"""Fields that follow from an engine, or from all its settings, where one is given; with their defaults."""

_REPR_APART = frozenset({"model", "policy", "engine", "recorders", "profile", "api_key"})


class _Started:
    """What a model has started. Copies of a model have it in common: what one of them closes, the next turn of any
    starts anew. Two models are equal whatever they have started."""

    engine: Engine | None = None
    recorders: Recorders | None = None

    def __init__(self) -> None:
        self.calls = OpenCalls()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Started)

    __hash__ = object.__hash__


class MixQuantChatModel(ModelOptions, BaseChatModel):
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
        schema_in_prompt: the model sees the JSON schema of a structured answer, at a fixed place of the prompt (the
            default); ``False`` leaves it to the grammar alone.
        verbatim_history: the model's earlier answers keep the tokens with which they were written, thoughts included,
            so the prefix cache holds (the default); ``False`` leaves them to the chat template, which may drop
            or rewrite parts of them.
        keep_seconds: while an answer's tools run, the thread's prefix is held in the prefix cache for so long (by
            default it is the cache's to forget); ``keep_tokens`` limits how much of it.
        cache_salt: keeps this model's prefix cache apart from others'.
        user: who the answer is for, sent to a server.

    Standard names of other chat models are taken, too: ``model_name``, ``max_completion_tokens``, ``request_timeout``,
    ``stop_sequences``, ``n=1``, ``stream_usage=True``.

    Raises:
        ConfigError: a setting is unknown, wrong, or given twice.
    """

    model: Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)] = DEFAULT_MODEL
    policy: PrecisionPolicy | str = DEFAULT_POLICY
    engine: Any = Field(default=None, exclude=True, repr=False)
    engine_config: EngineConfig | None = None
    engine_settings: dict[str, Any] = Field(default_factory=dict)
    recorders: tuple[Any, ...] = Field(default=(), exclude=True, repr=False)
    streaming: bool = False
    base_url: str | None = None
    api_key: SecretStr | None = None
    max_retries: Annotated[int, Field(ge=0)] | None = None

    model_config = ConfigDict(arbitrary_types_allowed=True, extra="forbid", protected_namespaces=())

    _started: _Started = PrivateAttr(default_factory=_Started)

    def __init__(self, **data: Any) -> None:
        try:
            super().__init__(**data)
        except ValidationError as error:
            raise config_error(type(self).__name__, error) from None

    @model_validator(mode="before")
    @classmethod
    def _by_name(cls, data: Any) -> Any:
        """Standard names become ours, and engine settings given directly go into ``engine_settings``."""
        if not isinstance(data, dict):
            return data
        data = by_standard_names(data)
        if (unknown := unknown_settings(cls.__name__, data, {*cls.model_fields, *ENGINE_SETTINGS})) is not None:
            raise ConfigError(unknown)
        direct = {name: value for name, value in data.items() if name in ENGINE_SETTINGS}
        rest = {name: value for name, value in data.items() if name not in direct}
        given = data.get("engine_settings", {})
        if not isinstance(given, dict):
            return rest  # pydantic says that they are none
        if twice := sorted(given.keys() & {*direct, "model", "policy"}):
            raise ConfigError(
                f"engine_settings holds {', '.join(twice)}; give each setting once, to the chat model itself"
            )
        return {**rest, "engine_settings": {**given, **direct}} if direct else data

    @model_validator(mode="after")
    def _settle(self) -> Self:
        """Wrong settings fail here, not with the first turn."""
        for recorder in self.recorders:
            plain = callable(recorder) and not iscoroutinefunction(recorder)
            if isinstance(recorder, type) or not (plain or isinstance(recorder, Recorder)):
                raise ConfigError(
                    f"recorders holds {recorder!r}; give telemetry recorders, or plain functions of a TurnRecord"
                )
        PrecisionPolicy.of(self.policy)
        self._follow_engine()
        return self

    def _follow_engine(self) -> None:
        """Model and policy of an engine that is given, or of all its settings."""
        source = self._source
        self.model = source.model
        if source.policy is not None and self.engine_config is not None:
            self.policy = source.policy

    @property
    def _source(self) -> EngineSource:
        """Where the engine comes from, by the settings as they are now."""
        defaults = {"model": DEFAULT_MODEL, "policy": DEFAULT_POLICY}
        named = self.base_url is not None  # a server may well serve the model by that name, under that policy
        return engine_source(
            {
                name
                for name, value in defaults.items()
                if name in self.model_fields_set and (named or getattr(self, name) != value)
            },
            model=self.model,
            policy=self.policy,
            engine=self.engine,
            engine_config=self.engine_config,
            engine_settings=self.engine_settings,
            base_url=self.base_url,
            api_key=self.api_key.get_secret_value() if self.api_key is not None else None,
            max_retries=self.max_retries,
        )

    # -- what LangChain asks a model about itself --

    @property
    def policy_name(self) -> str:
        """The policy's name, as in records."""
        return PrecisionPolicy.of(self.policy).name

    @property
    def model_name(self) -> str:
        """:attr:`model`, by the name that others use."""
        return self.model

    @property
    def _llm_type(self) -> str:
        return "mixquant"

    @property
    def _identifying_params(self) -> dict[str, Any]:
        fields = {name: getattr(self, name) for name in MODEL_OPTIONS if name not in ("timeout", "user")}
        settings = {name: value for name, value in fields.items() if value is not None}
        return {"model": self.model, **self._source.identity, **settings}

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        params = super()._get_ls_params(stop=stop, **kwargs)
        params["ls_provider"] = "mixquant"
        if stop is None and (stop := [self.stop] if isinstance(self.stop, str) else self.stop):
            params["ls_stop"] = stop
        return params

    def _resolve_model_profile(self) -> ModelProfile:
        source = self._source
        profile = ModelProfile(
            name=source.model,
            text_inputs=True,
            text_outputs=True,
            image_inputs=False,
            audio_inputs=False,
            tool_calling=True,
            tool_choice=True,
            tool_call_streaming=True,
            temperature=True,
            # An answer is a call or JSON by the schema, by one grammar: LangChain's agents then ask for both at once.
            structured_output=source.holds_schemas,
        )
        if (window := source.window) is not None:
            profile["max_input_tokens"] = profile["max_output_tokens"] = window
        if (reasons := source.reasons) is not None:
            profile["reasoning_output"] = reasons
        return profile

    @property
    def _knows_itself(self) -> bool:
        """Whether the profile says all that an engine could add."""
        return self.profile is None or self.profile.keys() >= _LEARNED

    @property
    def _retries(self) -> int:
        """Times to run a turn again; at a ``base_url`` the client sends its requests again itself."""
        return (self.max_retries or 0) if self.base_url is None else 0

    def _learn(self, info: EngineInfo) -> None:
        """The engine has said what it is: what was not known goes into the profile."""
        if self.profile is None:
            return
        self.profile.setdefault("reasoning_output", info.reasoning)
        if info.max_model_len is not None:
            self.profile.setdefault("max_input_tokens", info.max_model_len)
            self.profile.setdefault("max_output_tokens", info.max_model_len)

    def __repr_args__(self) -> Iterator[tuple[str | None, Any]]:
        """Model and policy, and whatever else is not as by default."""
        yield "model", self.model
        if self.engine is not None:
            yield "engine", type(self.engine).__name__
        elif self.base_url is None:
            yield "policy", self.policy_name
        for name, field in type(self).model_fields.items():
            value, default = getattr(self, name), field.get_default(call_default_factory=True)
            if name == "metadata" and value is not None:
                value = {key: inner for key, inner in value.items() if key != "lc_versions"} or None
            if name not in _REPR_APART and value != default:
                yield name, value

    def to_json(self) -> SerializedConstructor | SerializedNotImplemented:
        """LangChain's form, which tracers show: the settings that were given.

        A model with an engine or recorders of its owner's cannot be made again from text. LangChain asks the class
        alone whether it can (``is_lc_serializable``), and relies on it for caches of answers; so the class says no.
        """
        if self.engine is not None or self.recorders:
            return self.to_json_not_implemented()
        given = {name: getattr(self, name) for name in type(self).model_fields if name in self.model_fields_set}
        kwargs = {
            name: value.model_dump(mode="json") if isinstance(value, BaseModel) else value
            for name, value in given.items()
            if value is not None and name not in ("api_key", "profile", "callbacks", "cache", "rate_limiter")
        }
        return SerializedConstructor(lc=1, type="constructor", id=self.lc_id(), kwargs=kwargs)

    def __getstate__(self) -> dict[Any, Any]:
        """Without the running engine and the recorders' threads: a copy in another process makes its own."""
        state = super().__getstate__()
        state["__pydantic_private__"] = {**(state.get("__pydantic_private__") or {}), "_started": _Started()}
        return state

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """A copy shares what the model has started, unless it is given another engine or other recorders.

        Raises:
            ConfigError: the change contradicts another setting.
        """
        copied = super().model_copy(update=update, deep=deep)
        if not _STARTED_WITH.isdisjoint(update or ()):
            copied._started = _Started()
            if not {"engine", "engine_config"}.isdisjoint(update or ()):
                for name in _FOLLOWING.keys() - (update or {}).keys():
                    setattr(copied, name, _FOLLOWING[name])
            copied._follow_engine()
            if _but_engine(self.profile) == _but_engine(self._resolve_model_profile()):  # nobody typed one
                copied.profile = copied._resolve_model_profile()
        return copied

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> Self:
        """The copy talks to the same engine: models hold no state of their own."""
        return self.model_copy()

    # -- LangChain's entry points: note which call a turn belongs to, then do as LangChain does --

    def _convert_input(self, model_input: LanguageModelInput) -> PromptValue:
        try:
            return super()._convert_input(model_input)
        except Exception as error:  # LangChain reads what it is given without a look at it
            raise langchain_error(no_conversation(model_input, error)) from error

    def invoke(
        self,
        input: LanguageModelInput,  # noqa: A002 - LangChain's name
        config: RunnableConfig | None = None,
        *,
        stop: list[str] | None = None,
        **kwargs: Any,
    ) -> AIMessage:
        context = RunContext(config)
        with context.entered():
            return super().invoke(input, context.config, stop=stop, **kwargs)

    async def ainvoke(
        self,
        input: LanguageModelInput,  # noqa: A002 - LangChain's name
        config: RunnableConfig | None = None,
        *,
        stop: list[str] | None = None,
        **kwargs: Any,
    ) -> AIMessage:
        context = RunContext(config)
        with context.entered():
            return await super().ainvoke(input, context.config, stop=stop, **kwargs)

    def stream_events(
        self,
        input: LanguageModelInput,  # noqa: A002 - LangChain's name
        config: RunnableConfig | None = None,
        **kwargs: Any,
    ) -> Any:
        return super().stream_events(input, with_thread(config), **kwargs)

    def astream_events(
        self,
        input: LanguageModelInput,  # noqa: A002 - LangChain's name
        config: RunnableConfig | None = None,
        **kwargs: Any,
    ) -> Any:
        return super().astream_events(input, with_thread(config), **kwargs)

    def stream(
        self,
        input: LanguageModelInput,  # noqa: A002 - LangChain's name
        config: RunnableConfig | None = None,
        *,
        stop: list[str] | None = None,
        **kwargs: Any,
    ) -> Iterator[AIMessageChunk]:
        context = RunContext(config)
        chunks = super().stream(input, context.config, stop=stop, **kwargs)
        try:
            with context.entered():
                first = next(chunks)
            yield first
            yield from chunks
        finally:
            context.close(chunks)

    async def astream(
        self,
        input: LanguageModelInput,  # noqa: A002 - LangChain's name
        config: RunnableConfig | None = None,
        *,
        stop: list[str] | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[AIMessageChunk]:
        context = RunContext(config)
        chunks = super().astream(input, context.config, stop=stop, **kwargs)
        try:
            with context.entered():
                first = await anext(chunks)
            yield first
            async for chunk in chunks:
                yield chunk
        finally:
            await context.aclose(chunks)

    # -- the four ways of generating, all through one driver --

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        listener = run_manager if self._reports_tokens(run_manager, kwargs) else None
        return _result(generate_from_stream(self._chunks(messages, stop, run_manager, kwargs, listener)))

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        chunks = self._chunks(messages, stop, run_manager, kwargs, run_manager)
        if (context := current_run_context()) is not None:
            context.adopt(chunks)
        return chunks

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        listener = run_manager if self._reports_tokens(run_manager, kwargs) else None
        async with aclosing(self._achunks(messages, stop, run_manager, kwargs, listener)) as chunks:
            return _result(generate_from_stream(iter([chunk async for chunk in chunks])))

    def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        chunks = self._achunks(messages, stop, run_manager, kwargs, run_manager)
        if (context := current_run_context()) is not None:
            context.adopt(chunks)
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
        call_options: Mapping[str, Any],
        listener: AsyncCallbackManagerForLLMRun | None,
    ) -> AsyncGenerator[ChatGenerationChunk, None]:
        """One turn's chunks; ``listener`` hears each token."""
        async with aclosing(self._turn(messages, stop, run_manager, call_options)) as turn:
            async for message in turn:
                chunk = self._chunk(message)
                if listener is not None:
                    await listener.on_llm_new_token(message.content, chunk=chunk)
                yield chunk

    def _chunks(
        self,
        messages: Sequence[BaseMessage],
        stop: Sequence[str] | None,
        run_manager: BaseRunManager | None,
        call_options: Mapping[str, Any],
        listener: CallbackManagerForLLMRun | None,
    ) -> Generator[ChatGenerationChunk, None, None]:
        """:meth:`_achunks` for callers without an event loop; callbacks run in the caller's thread."""
        with closing(loop_thread().iterate(self._turn(messages, stop, run_manager, call_options))) as turn:
            for message in turn:
                chunk = self._chunk(message)
                if listener is not None:
                    listener.on_llm_new_token(message.content, chunk=chunk)
                yield chunk

    def _chunk(self, message: AIMessageChunk) -> ChatGenerationChunk:
        """As LangChain streams it. Version 1 of its content numbers the blocks of text from 0 and joins what has one
        number, so calls are numbered elsewhere."""
        if self.output_version == "v1":
            for piece in message.tool_call_chunks:
                piece["index"] = (piece["index"] or 0) + 1_000
        return ChatGenerationChunk(message=message)

    # -- one turn --

    def _turn(
        self,
        messages: Sequence[BaseMessage],
        stop: Sequence[str] | None,
        run_manager: BaseRunManager | None,
        call_options: Mapping[str, Any],
    ) -> AsyncGenerator[AIMessageChunk, None]:
        """Plan one turn; it runs when the generator is read."""
        ids = run_ids(run_manager, current_run_context())
        with langchain_errors():
            given = dict(call_options)
            if given.get("priority") is None and (priority := run_priority(current_run_context())) is not None:
                given["priority"] = priority
            options = {name: getattr(self, name) for name in MODEL_OPTIONS} | checked_options(given, stop)
            engine = self._resolve_engine()
            plan = TurnPlan(
                request=engine_request(messages, options, model=self.model, thread_id=ids.thread_id),
                turn_index=ai_messages(messages),
                run_id=ids.run_id,
                parent_run_id=ids.parent_run_id,
                thread_id=ids.thread_id,
                timeout=options["timeout"],
                answered=self._started.calls.note,
            )
        with _starting:
            if self._started.recorders is None:
                self._started.recorders = Recorders(self.recorders)
            recorders = self._started.recorders
        if not self._retries and self._knows_itself:
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
                            self._learn(engine.info)
                        yield message
                return
            except MixQuantError as error:
                if started or not retries_left or not is_retryable(error):
                    raise
            plan = replace(plan, request=replace(plan.request, request_id=new_request_id()))

    def _reports_tokens(self, run_manager: BaseRunManager | None, call_options: Mapping[str, Any]) -> bool:
        """Whether ``invoke`` reports its tokens, so that tracers see the time to the first one. Who switched streaming
        off does not want them."""
        off = self.disable_streaming
        disabled = off is True or (off == "tool_calling" and bool(call_options.get("tools")))
        listeners = [] if run_manager is None else [h for h in run_manager.handlers if not h.ignore_llm]
        return bool(listeners) and not disabled

    def _resolve_engine(self) -> Engine:
        if self.engine is not None:
            given: Engine = self.engine
            return given
        with _starting:
            if self._started.engine is None:
                self._started.engine = self._source.engine()
            return self._started.engine

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
            strict: write the schemas in OpenAI's strict form. Forced calls follow their schema in any case: by grammar,
                and where a keyword is beyond it, a call that breaks it is an invalid one (``invalid_tool_calls``).
            kwargs: further settings of a call.

        Raises:
            RequestError: something is no tool, or ``tool_choice`` names none of them.
        """
        converted = engine_tools(tools, strict=strict)
        engine_choice(tool_choice, converted)
        choices = {"tool_choice": tool_choice, "parallel_tool_calls": parallel_tool_calls}
        given = {name: value for name, value in choices.items() if value is not None}
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
            schema: a pydantic class, TypedDict, Enum or any other type that pydantic reads, a JSON schema, or an OpenAI
                function tool.
            method: ``"json_schema"`` holds the answer to the schema by grammar, and shows it to the model (see
                ``schema_in_prompt``). ``"function_calling"`` forces a call of a tool with this schema, which
                the model sees. ``"json_mode"`` does as ``"json_schema"`` on an engine with a grammar (any JSON object
                where no schema is given); a remote server is asked for a JSON object of any form.
                By every method the finished answer is checked against the whole schema, also against what no grammar
                holds (``uniqueItems``, ``not``, ``if``, look-ahead …): an answer that breaks it, or is not complete
                JSON, is an ``OutputParserException``.
            include_raw: return ``{"raw", "parsed", "parsing_error"}`` instead of raising.
            strict: see :meth:`bind_tools`.

        Raises:
            GrammarError: the method is unknown, or ``schema`` is no schema.
        """
        if kwargs:
            raise RequestError(f"with_structured_output has no setting {', '.join(map(repr, sorted(kwargs)))}")
        return structured(self.bind, self.bind_tools, schema, method=method, include_raw=include_raw, strict=strict)

    # -- what can be read before it is asked --

    async def awarm(self, system: str | SystemMessage = "", tools: Sequence[ToolLike] = (), **options: Any) -> int:
        """Read the beginning that every conversation with this system prompt and these tools has, so that the first
        turn need not. Starts the engine if it does not run.

        Args:
            system: as ``create_agent`` takes it.
            options: as for a call (``chat_template_kwargs``, ``cache_salt``, …).

        Returns:
            Tokens that are in the prefix cache now; 0 with a server.

        Raises:
            RequestError: ``system`` is no system prompt, or ``tools`` holds what is no tool.
        """
        if not isinstance(system, str | SystemMessage):
            raise RequestError(f"system={system!r} is no system prompt; give a text or a SystemMessage")
        message = SystemMessage(system) if isinstance(system, str) else system
        messages = [message] if message.content else []
        return await self.aprefetch(messages, tools, **options)

    def warm(self, system: str | SystemMessage = "", tools: Sequence[ToolLike] = (), **options: Any) -> int:
        """:meth:`awarm` for callers without an event loop."""
        return loop_thread().run(self.awarm(system, tools, **options))

    async def aprefetch(
        self,
        messages: Sequence[BaseMessage],
        tools: Sequence[ToolLike] = (),
        *,
        growing: bool = False,
        **options: Any,
    ) -> int:
        """Read what is certain of a coming prompt into the prefix cache, behind everybody else's turns: for example the
        result of a tool that is still running. Cancelling the task ends it.

        Args:
            messages: the conversation so far; it may end with a tool's result as far as it is known.
            growing: more text will follow in the last message.
            options: as for a call.

        Returns:
            Tokens that are in the prefix cache now; 0 with a server.
        """
        with langchain_errors():
            given = {"priority": BACKGROUND_PRIORITY, **options}
            settings = {name: getattr(self, name) for name in MODEL_OPTIONS} | checked_options(given)
            request = engine_request(messages, {**settings, "tools": tools}, model=self.model, certain=True)
            return await self._resolve_engine().prefetch(request, growing=growing)

    async def aprefetch_result(self, tool_call_id: str, result: str = "", *, growing: bool = True) -> int:
        """:meth:`aprefetch` for the result of a tool call of this model's, while its tool runs: the conversation before
        it is known. Of an answer with several calls only the first one's result has its place already.

        Args:
            tool_call_id: of a call in an answer of this model.
            result: what is known of the result.
            growing: more will follow; ``False`` when this is all of it.

        Returns:
            Tokens that are in the prefix cache now; 0 with a server, and where the call is not known (any more).
        """
        thread = run_ids(None, current_run_context()).thread_id  # of the graph whose tool runs
        request = self._started.calls.request(tool_call_id, result, thread)
        if request is None:
            return 0
        with langchain_errors():
            request = replace(request, request_id=new_request_id(), priority=BACKGROUND_PRIORITY, keep=None)
            return await self._resolve_engine().prefetch(request, growing=growing)

    async def arelease(self, thread_id: str) -> None:
        """Hold nothing of a thread any more (see ``keep_seconds``): its run has ended."""
        await self._resolve_engine().release(thread_id)

    def release(self, thread_id: str) -> None:
        """:meth:`arelease` for callers without an event loop."""
        loop_thread().run(self.arelease(thread_id))

    async def asleep(self) -> Sleep:
        """Free the memory of the engine, for all who share it, so that another model can take its turn on the device;
        see :meth:`VllmEngine.sleep`. The next turn wakes it.

        Raises:
            ConfigError: turns are running, or the engine is a server.
        """
        with langchain_errors():
            return await self._resolve_engine().sleep()

    def sleep(self) -> Sleep:
        """:meth:`asleep` for callers without an event loop."""
        return loop_thread().run(self.asleep())

    async def awake(self) -> None:
        """Have the engine ready again after :meth:`asleep`, instead of with the next turn."""
        with langchain_errors():
            await self._resolve_engine().wake()

    def wake(self) -> None:
        """:meth:`awake` for callers without an event loop."""
        loop_thread().run(self.awake())

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
        """Ids of the text's tokens, by ``custom_get_token_ids`` where it is given, else by the engine's tokenizer.

        Raises:
            RequestError: the engine, a server, does not report them; LangChain's own answer would be another model's.
        """
        if self.custom_get_token_ids is not None:
            return self.custom_get_token_ids(text)
        with langchain_errors():
            return loop_thread().run(self._resolve_engine().token_ids(text))

    async def aclose(self) -> None:
        """Write what recorders still hold and release the engine. An engine given as ``engine=`` stays its owner's. The
        next turn starts anew. Idempotent."""
        with _starting:
            engine, self._started.engine = self._started.engine, None
            recorders, self._started.recorders = self._started.recorders, None
        try:
            if recorders is not None:
                await asyncio.to_thread(recorders.close)
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


register_provider()


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


_LEARNED = frozenset({"max_input_tokens", "max_output_tokens", "reasoning_output"})
"""Of the profile: what an engine says at the latest when it runs."""
_OF_THE_ENGINE = _LEARNED | {"name", "structured_output"}


def _but_engine(profile: ModelProfile | None) -> dict[str, Any]:
    """The profile without what its engine says."""
    return {name: value for name, value in (profile or {}).items() if name not in _OF_THE_ENGINE}
