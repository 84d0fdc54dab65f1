"""The one seam: everything above it (chat, workflows) is engine-agnostic, everything below it is an engine.

An engine says who it is (:class:`EngineInfo`), takes an :class:`EngineRequest` (messages, tools, grammar, sampling) and
streams the answer. To bring one of your own, derive from :class:`Engine`: ``info`` and ``stream`` are all it needs.

Imports neither torch, vllm nor langchain.
"""

from __future__ import annotations

import uuid
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Self

from mixquant_agents.errors import ConfigError, RequestError
from mixquant_agents.precision.policy import PrecisionPolicy
from mixquant_agents.records import TurnCounts, TurnTimes

__all__ = [
    "Delta",
    "Engine",
    "EngineInfo",
    "EngineRequest",
    "FinishReason",
    "JsonObject",
    "Keep",
    "Message",
    "NamedTool",
    "Sampling",
    "Sleep",
    "SwitchableEngine",
    "TokenLogprob",
    "ToolCallDelta",
    "ToolChoice",
    "new_call_id",
]

JsonObject = Mapping[str, Any]
Message = Mapping[str, Any]
"""One message in the OpenAI chat shape: ``{"role": …, "content": …, "tool_calls": […], "tool_call_id": …}``."""

FinishReason = Literal["stop", "length", "tool_calls", "content_filter", "abort"]


@dataclass(frozen=True, slots=True)
class NamedTool:
    """``tool_choice`` that forces one tool."""

    name: str


ToolChoice = Literal["none", "auto", "required"] | NamedTool


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How tokens are drawn. ``None`` leaves a value to the engine (the model's generation config).

    Attributes:
        temperature: 0 is greedy.
        max_tokens: most answer tokens; ``None`` is whatever the context window leaves.
        stop: strings that end the answer; they are not part of it.
        seed: per-request seed.
        logprobs: number of alternatives per token; ``None`` for no logprobs, 0 for the chosen token alone.
        extra: further sampling values by the engine's own names; an unknown name is refused.
    """

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    max_tokens: int | None = None
    min_tokens: int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    stop: tuple[str, ...] = ()
    seed: int | None = None
    logprobs: int | None = None
    ignore_eos: bool = False
    extra: JsonObject = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Keep:
    """A thread's prefix is held in the cache between two turns.

    Attributes:
        seconds: at most so long.
        tokens: at most so many of its tokens; ``None`` for all that the engine has room for.
    """

    seconds: float
    tokens: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineRequest:
    """One turn asked of an engine.

    Attributes:
        request_id: unique among the requests in flight.
        messages: the conversation, OpenAI shape.
        prompt_token_ids: the rendered prompt; a local engine renders ``messages`` itself when this is ``None``. A
            remote engine refuses it.
        static_tokens: so many tokens at the beginning of ``prompt_token_ids`` are shared with other requests, for
            policies that keep such a beginning exact. Of ``messages`` a local engine knows them itself: the system
            prompt and the tools.
        tools: function tools, OpenAI shape:
            ``{"type": "function", "function": {"name", "description", "parameters"}}``.
        tool_choice: which calls are allowed or forced. ``"none"`` keeps the tools in the prompt, whose beginning then
            stays in the prefix cache; the answer holds no calls.
        parallel_tool_calls: whether one answer may hold several calls.
        schema: JSON schema the answer must satisfy (grammar-constrained), or ``None``.
        schema_checked: the caller checks the finished answer against ``schema``. Without it an engine refuses a schema
            with parts that its grammar cannot hold.
        json_mode: the caller asked for JSON mode. An engine holds the answer to ``schema`` all the same; a remote one
            asks its server for any JSON object where the server refuses the schema, for that is all that some know.
        sampling: how tokens are drawn.
        reasoning_effort: how much to think (``"low"``, ``"high"``, …); a local engine gives it to the chat template
            as the variable of that name, as vLLM's server does.
        chat_template_kwargs: further variables of the chat template (for example ``enable_thinking``).
        verbatim_history: earlier answers keep the tokens with which they were written, where the engine still has them
            and the conversation was not changed; ``False`` leaves all of the prompt to the chat template.
        cache_salt: keeps prefix-cache blocks apart; the engine adds its policy's fingerprint to it.
        priority: lower runs earlier.
        user: who the answer is for; a remote engine tells its server, a local one has nobody to tell.
        thread_id: the conversation that this turn belongs to; a remote engine sends it to routers, which then send the
            turn to the replica that holds the conversation's prefix.
        keep: how long the engine should hold this conversation's prefix when the answer calls tools.
        kv_transfer: vLLM's ``kv_transfer_params``: where KV comes from, or that it will be fetched; see ``PairEngine``.
        trace_context: W3C trace headers.
    """

    request_id: str
    messages: Sequence[Message]
    prompt_token_ids: Sequence[int] | None = None
    static_tokens: int = 0
    tools: Sequence[JsonObject] = ()
    tool_choice: ToolChoice = "auto"
    parallel_tool_calls: bool = True
    schema: JsonObject | None = None
    schema_checked: bool = False
    json_mode: bool = False
    sampling: Sampling = Sampling()
    reasoning_effort: str | None = None
    chat_template_kwargs: JsonObject = field(default_factory=dict)
    verbatim_history: bool = True
    cache_salt: str | None = None
    priority: int = 0
    user: str | None = None
    thread_id: str | None = None
    keep: Keep | None = None
    kv_transfer: JsonObject | None = None
    trace_context: Mapping[str, str] | None = None


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """Log probability (natural log) of one token and of its alternatives."""

    token: str
    logprob: float
    top: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True, slots=True)
class ToolCallDelta:
    """A piece of a tool call. ``index`` says which call of the answer; ``id`` and ``name`` come once, with the first
    piece; ``arguments`` is the next piece of the JSON text (possibly empty)."""

    index: int
    id: str | None = None
    name: str | None = None
    arguments: str = ""


def new_call_id() -> str:
    """A tool-call id that no other call of the conversation has."""
    return f"call_{uuid.uuid4().hex[:24]}"


@dataclass(slots=True)
class Delta:
    """What an engine emits: the next pieces of the answer, parsed, and the tokens that brought them. Any part may be
    empty: a parser holds text back until it is certain what it is.

    Made for each token, so it is not frozen, which would cost three times as much. Who receives one owns it.

    Attributes:
        content, reasoning: next pieces of text.
        tool_calls: next pieces of tool calls.
        invalid_calls: ``(raw text, reason)`` of what looked like a call and was none; normally on the last delta.
        token_ids: the tokens, where the engine knows them.
        logprobs: one for each token, where they were asked for.
        finish_reason: why the answer ended; on the last delta, and on no other.
        counts, times: of the turn; on the last delta. A local engine puts ``counts`` on the first, too, with what is
            known of the prompt by then: all that a turn tells of it which is aborted, or fails, before its last.
        prompt_token_ids: the rendered prompt, where the engine knows it; on the last delta. Telemetry keeps salted
            hashes of them, to say later where a prompt diverged from the one before.
        kv_transfer: where this turn's KV can be fetched, as vLLM's connector says it; on the last delta.
        prompt_change: why the prompt does not begin with the tokens of the turn before although the conversation does,
            in one sentence without a full stop; on the last delta.
    """

    content: str = ""
    reasoning: str = ""
    tool_calls: tuple[ToolCallDelta, ...] = ()
    invalid_calls: tuple[tuple[str, str], ...] = ()
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    finish_reason: FinishReason | None = None
    counts: TurnCounts | None = None
    times: TurnTimes | None = None
    prompt_token_ids: Sequence[int] | None = None
    kv_transfer: JsonObject | None = None
    prompt_change: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineInfo:
    """Who an engine is and what it can do. What is not known (yet) is ``None``.

    Attributes:
        engine: what the engine calls itself in records: ``"vllm"``, ``"openai"``, ``"scripted"``, or any other name.
        model: name in records.
        policy: name of the precision policy.
        prefill_format, decode_format: after ``auto`` was resolved; ``None`` where a remote engine does not say.
        emulated: quantized rows are computed by an emulation.
        storage: how exact weights and their twins are held, ``"separate"`` or ``"nested"``; ``None``: not known.
        device: for example ``"NVIDIA H100 80GB HBM3"`` or ``"cpu"``.
        max_model_len: context window in tokens; known before the start where settings or checkpoint say it.
        base_url: the server; ``None`` for an engine in this process.
        fingerprint: what tells this engine's answers from those of another with the same names (a digest of its
            settings), for caches of answers.
        tools, grammar, reasoning, logprobs, token_ids: whether such requests are honoured.
    """

    engine: str
    model: str
    policy: str = "exact"
    prefill_format: str | None = None
    decode_format: str | None = None
    emulated: bool | None = None
    storage: str | None = None
    device: str | None = None
    max_model_len: int | None = None
    base_url: str | None = None
    fingerprint: str | None = None
    tools: bool = True
    grammar: bool = True
    reasoning: bool = False
    logprobs: bool = True
    token_ids: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Sleep:
    """What an engine did to free its memory.

    Attributes:
        way: ``host``: its weights went to the host's memory and its processes wait; ``ended``: its processes ended, and
            waking starts it anew.
        seconds: how long that took.
        freed_bytes: memory of the GPUs, or of this machine for an engine on its CPU; ``None`` where nobody can tell.
        held_bytes: how much of the GPUs' memory was in use before, by all programs; of the CPU, the engine's own.
    """

    way: Literal["host", "ended"]
    seconds: float
    freed_bytes: int | None = None
    held_bytes: int | None = None


class Engine(ABC):
    """A source of answers. Safe to use from several event loops and threads; turns run concurrently.

    Also an async context manager, which closes it.
    """

    @property
    @abstractmethod
    def info(self) -> EngineInfo:
        """Who this engine is, as far as it knows by now; complete once :meth:`start` has returned. Cheap."""

    @abstractmethod
    def stream(self, request: EngineRequest) -> AsyncGenerator[Delta, None]:
        """Run one turn. Closing the generator early, or cancelling the task that reads it, aborts the turn.

        Raises:
            RequestError: the request was wrong; nothing ran.
            EngineError: the engine could not start, or died.
        """

    async def start(self) -> None:  # noqa: B027 - most engines have nothing to start
        """Start the engine now instead of with the first turn. Cheap when it runs; this one has nothing to start.

        Raises:
            EngineError: the engine could not start.
        """

    @property
    def start_seconds(self) -> float | None:
        """How long the start took; ``None`` before it, and where there is nothing to start."""
        return None

    async def count_tokens(self, messages: Sequence[Message], tools: Sequence[JsonObject] = ()) -> int:
        """Tokens of the rendered prompt.

        Raises:
            RequestError: this engine has no tokenizer.
        """
        raise RequestError(f"the engine {self.info.engine!r} cannot count tokens; use the model's tokenizer")

    async def token_ids(self, text: str) -> list[int]:
        """Ids of the tokens of a text, by the model's tokenizer and without special tokens.

        Raises:
            RequestError: this engine has no tokenizer.
        """
        raise RequestError(f"the engine {self.info.engine!r} does not know token ids; use the model's tokenizer")

    async def render(self, request: EngineRequest) -> Sequence[int]:
        """The token ids of the request's prompt, as :meth:`stream` would make them.

        Raises:
            RequestError: messages or tools were wrong, or this engine cannot tell.
        """
        raise RequestError(f"the engine {self.info.engine!r} does not give a prompt's token ids")

    async def prefetch(self, request: EngineRequest, *, growing: bool = False) -> int:
        """Read what is certain of a coming prompt into the prefix cache, behind everybody else's turns.

        Args:
            request: the conversation so far. Where it ends with system messages, what every prompt with these and its
                tools begins with is certain; behind an answer that calls a tool, everything up to the result.
            growing: the last message is not whole yet: what stands there will stay, and more will follow.

        Returns:
            Tokens that are in the cache now; 0 where this engine has none of its own.

        Raises:
            RequestError, EngineError: as :meth:`stream`.
        """
        return 0

    async def release(self, thread_id: str) -> None:  # noqa: B027 - nor to hold
        """Hold nothing of a thread any more: its run has ended."""

    async def sleep(self) -> Sleep:
        """Free the memory that the engine holds, for another one to take its turn on the device. The next turn, or
        :meth:`wake`, brings it back; what its prefix cache held is forgotten.

        Raises:
            ConfigError: turns are running, or this engine has no memory of its own to free.
        """
        raise ConfigError(f"the engine {self.info.engine!r} has no memory here that it could free")

    async def wake(self) -> None:
        """Be ready again after :meth:`sleep`; cheap when awake.

        Raises:
            EngineError: the memory is not to be had (another engine sits in it), or the engine could not start.
        """
        await self.start()

    async def aclose(self) -> None:  # noqa: B027 - nor to release
        """Release the engine. Idempotent; this one holds nothing."""

    def __repr__(self) -> str:
        info = self.info
        address = "" if info.base_url is None else f", base_url={info.base_url!r}"
        return f"{type(self).__name__}(model={info.model!r}, policy={info.policy!r}{address})"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()


class SwitchableEngine(Engine):
    """An engine whose precision can change while it runs: what comparisons on one engine need."""

    @property
    @abstractmethod
    def policy(self) -> PrecisionPolicy:
        """The precision policy in force."""

    @abstractmethod
    async def set_policy(self, policy: PrecisionPolicy | str) -> Mapping[str, Any]:
        """Switch the precision of the idle engine, for everybody who shares it.

        Returns:
            What the switch changed, in the engine's own words.

        Raises:
            ConfigError: turns are running, or this engine cannot switch.
            FormatRefusedError: the device cannot run the format.
        """

    @abstractmethod
    async def reset_prefix_cache(self) -> None:
        """Forget all cached prefixes; for measurements. The engine must be idle."""
