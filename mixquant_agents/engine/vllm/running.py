"""What can be asked of a running engine. Coroutines here run on the owner's loop; callers submit them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

from mixquant_agents.config import EngineConfig, PrecisionPolicy
from mixquant_agents.engine.base import (
    EngineInfo,
    EngineRequest,
    JsonObject,
    Message,
)
from mixquant_agents.engine.parsing import OutputParser, TokenDelta
from mixquant_agents.engine.vllm.checked_calls import CheckedCalls
from mixquant_agents.engine.vllm.counts import RowCounts
from mixquant_agents.engine.vllm.errors import turn_error
from mixquant_agents.engine.vllm.grammar import Grammar, checked_tools, grammar_of, tools_active
from mixquant_agents.engine.vllm.grammar_check import GrammarChecker
from mixquant_agents.engine.vllm.liveness import watch
from mixquant_agents.engine.vllm.parsers import make_parser, reasoning_counter, tag_model_of
from mixquant_agents.engine.vllm.recorder import EngineStats
from mixquant_agents.engine.vllm.render import Renderer
from mixquant_agents.engine.vllm.sampling import encodable, sampling_parameters
from mixquant_agents.engine.vllm.starting import StartControl
from mixquant_agents.engine.vllm.stream import StepMeter, run_turn
from mixquant_agents.engine.vllm.thread import EngineThread
from mixquant_agents.errors import (
    ConfigError,
    ContextOverflowError,
    EngineDeadError,
    FormatRefusedError,
    MixQuantError,
    RequestError,
)

__all__ = ["RunningEngine", "assumed_info"]

logger = logging.getLogger("mixquant_agents.engine")

Post = Callable[[TokenDelta | BaseException], None]

LARGE_PROMPT = 200_000
"""Characters; tokenizing as many takes a fifth of a second."""


class RunningEngine(EngineThread):
    """A started engine: turns, statistics, policy."""

    def __init__(self, config: EngineConfig, control: StartControl | None = None) -> None:
        self.policy = config.policy
        self._grammars = GrammarChecker(self._vocabulary)
        self._turns: dict[asyncio.Task[Any], Post] = {}
        self._watch: asyncio.Task[None] | None = None
        super().__init__(config, control)
        self._rows: RowCounts | None = RowCounts(self.llm) if config.policy.quantizes else None
        self._tag_model = tag_model_of(self.tool_parser)
        self._large_renderer: Renderer | None = None
        self._longest_token = _longest_token(self.renderer.tokenizer)
        self._count_reasoning = reasoning_counter(self.reasoning_parser, self.renderer.tokenizer)
        self._defaults: dict[str, Any] = dict(self.llm.model_config.get_diff_sampling_param())

    @property
    def alive(self) -> bool:
        """Whether a turn may be handed over (read from any thread)."""
        return not self.dead and self.llm is not None and not self.llm.errored

    async def turn(self, request: EngineRequest, submitted: float, post: Post) -> None:
        """Run one turn; every delta, or the error that ended it, goes to ``post``."""
        task = asyncio.current_task()
        assert task is not None  # noqa: S101  narrows the type: a coroutine runs in a task
        self._turns[task] = post
        if self._watch is None or self._watch.done():
            self._watch = asyncio.get_running_loop().create_task(
                watch(self.processes, self.config.liveness_seconds, lambda: bool(self._turns), self._give_up),
                name="mixquant-liveness",
            )
        try:
            prompt, params, meter, options = await self._prepare(request, submitted)
            await run_turn(
                self.llm, prompt, params, request.request_id, meter, self._rows, lambda: self.recorder.preempted, post,
                **options,
            )  # fmt: skip
        except Exception as error:
            with suppress(RuntimeError):
                post(self.translated(error))
        finally:
            del self._turns[task]

    def _give_up(self) -> None:
        """The engine's processes have stopped: end the turns that wait for them; the next call starts an engine."""
        self.dead = True
        error = EngineDeadError(
            f"the engine's processes did nothing for {self.config.liveness_seconds:g} seconds (stopped, or hung in "
            "a driver), so this turn was given up; the next call starts a new engine. liveness_seconds sets the limit; "
            f"the engine's log is {self.log_path}"
        )
        for task, post in list(self._turns.items()):
            with suppress(RuntimeError):
                post(error)
            task.cancel()

    async def _release(self) -> None:
        await self._grammars.close()

    async def _prepare(self, request: EngineRequest, submitted: float) -> tuple[Any, Any, StepMeter, dict[str, Any]]:
        """Render, check and convert one request; nothing reaches vLLM before all of it succeeded."""
        from vllm.inputs import tokens_input
        from vllm.sampling_params import StructuredOutputsParams

        _check_sendable(request)
        if request.prompt_token_ids is None:
            self._check_characters(request)
            effort = {} if request.reasoning_effort is None else {"reasoning_effort": request.reasoning_effort}
            ids = await self.render(request.messages, request.tools, {**effort, **request.chat_template_kwargs})
        else:
            ids = list(request.prompt_token_ids)
            if not ids:
                raise RequestError("prompt_token_ids is empty; give at least one token, or messages")
        self.renderer.check_length(len(ids), request.sampling.max_tokens)
        ours: dict[str, Any] = {}
        if (grammar := await self._grammar(request)) is not None:
            ours["structured_outputs"] = StructuredOutputsParams(structural_tag=grammar.tag)
        if tools_active(request.tools, request.tool_choice) or self.reasoning_parser is not None:
            ours["skip_special_tokens"] = False  # markers of calls and reasoning are special tokens in some models
        room = self.renderer.max_model_len - len(ids)
        params = sampling_parameters(request.sampling, self._defaults, room, **ours)
        salt = f"{self.policy.fingerprint}:{request.cache_salt}" if request.cache_salt else self.policy.fingerprint
        options: dict[str, Any] = {"priority": request.priority}
        if request.trace_context and self.llm.observability_config.otlp_traces_endpoint:
            options["trace_headers"] = dict(request.trace_context)
        return (
            tokens_input(ids, cache_salt=salt),
            params,
            StepMeter(len(ids), submitted, count_reasoning=self._count_reasoning),
            options,
        )

    async def _grammar(self, request: EngineRequest) -> Grammar | None:
        """The grammar of the answer, tried; away from the loop, for a schema may be large."""
        if not request.tools and request.schema is None and request.tool_choice == "auto":
            return None
        grammar = await asyncio.to_thread(grammar_of, request, self._tag_model, self.renderer.one_token)
        if grammar is not None:
            await self._grammars.check(grammar)
        return grammar

    def _vocabulary(self) -> str | None:
        """xgrammar's view of the tokenizer, as JSON; ``None`` where it has none but vLLM's own (Mistral's)."""
        from xgrammar import TokenizerInfo

        try:
            info = TokenizerInfo.from_huggingface(
                self.renderer.tokenizer, vocab_size=self.llm.model_config.get_vocab_size()
            )
        except Exception as error:  # a tokenizer of another kind: grammars are then converted only
            logger.debug("xgrammar does not know this tokenizer: %s", error)
            return None
        return str(info.serialize_json())

    async def render(
        self, messages: Sequence[Message], tools: Sequence[JsonObject], variables: JsonObject
    ) -> list[int]:
        """Token ids of the prompt. Rendering runs beside the loop, one prompt at a time; what is large has a tokenizer
        and a thread of its own, so that nobody waits for it."""
        loop = asyncio.get_running_loop()
        if _characters(messages, tools) <= LARGE_PROMPT:
            return await loop.run_in_executor(self.pool, self.renderer.render, messages, tools, variables)
        return await loop.run_in_executor(self.large_pool, self._render_large, messages, tools, variables)

    def _render_large(
        self, messages: Sequence[Message], tools: Sequence[JsonObject], variables: JsonObject
    ) -> list[int]:
        if self._large_renderer is None:  # tokenizers are not to be used from two threads at once
            self._large_renderer = Renderer(self.model_path, self.config)
        return self._large_renderer.render(messages, tools, variables)

    def _check_characters(self, request: EngineRequest) -> None:
        """Refuse what cannot fit whatever its tokens are, before it is tokenized.

        Raises:
            ContextOverflowError: it has more characters than the context window's tokens can hold.
        """
        if self._longest_token is None:
            return
        window = self.renderer.max_model_len
        tokens = _characters(request.messages, ()) // self._longest_token
        if tokens >= window:
            raise ContextOverflowError(tokens, window, request.sampling.max_tokens, at_least=True)

    def parser(self, request: EngineRequest) -> OutputParser:
        """A fresh parser for the answer to ``request``."""
        names = self.tool_parser, self.reasoning_parser
        parser = make_parser(names, self.renderer.tokenizer, request.tools, request.tool_choice)
        schemas = checked_tools(request.tools, request.tool_choice)
        return CheckedCalls(parser, schemas) if schemas else parser

    @property
    def info(self) -> EngineInfo:
        """What this engine is, with ``auto`` resolved by the plugin."""
        from vllm.platforms import current_platform

        status = self.status
        return replace(
            assumed_info(self.config, self.renderer.max_model_len, self.policy),
            prefill_format=status.get("prefill_format", "exact"),
            decode_format=status.get("decode_format", "exact"),
            emulated=bool(status.get("emulated", False)),
            device="cpu" if current_platform.is_cpu() else current_platform.get_device_name(),
            reasoning=self.reasoning_parser is not None,
        )

    async def stats(self) -> EngineStats:
        """The scheduler's newest state."""
        recorder = self.recorder
        return EngineStats(
            running=recorder.running,
            waiting=recorder.waiting,
            kv_cache_usage=recorder.kv_cache_usage,
            unfinished=self.llm.output_processor.get_num_unfinished_requests(),
            preempted=recorder.preempted,
        )

    async def set_policy(self, policy: PrecisionPolicy) -> dict[str, Any]:
        """Switch the plugin's mode; see :meth:`VllmEngine.set_policy`."""
        if self._rows is None:
            raise ConfigError(
                "this engine runs without the plugin, because its policy is 'exact'; start it with a quantizing policy "
                "to switch later"
            )
        busy = self.llm.output_processor.get_num_unfinished_requests()
        if busy:
            raise ConfigError(f"the policy cannot change while {busy} turns are running; wait for their end")
        try:
            answers = await self.llm.collective_rpc("mixquant_set_policy", args=(policy.model_dump(mode="json"),))
        except Exception as error:
            ours = self.translated(error)
            if isinstance(ours, EngineDeadError):
                raise ours from error
            raise FormatRefusedError(f"policy {policy.name!r} is refused by the running engine: {error}") from error
        self.policy, self.status = policy, dict(answers[0])
        return self.status

    async def reset_prefix_cache(self) -> None:
        """Forget cached prefixes."""
        try:
            await self.llm.reset_prefix_cache()
        except Exception as error:
            raise self.translated(error) from error

    def translated(self, error: Exception) -> MixQuantError:
        """Our error for vLLM's; a dead engine is marked, so that the next call starts another."""
        ours = turn_error(error, self.log_path)
        if isinstance(ours, EngineDeadError):
            self.dead = True
        return ours


def assumed_info(config: EngineConfig, window: int | None, policy: PrecisionPolicy | None = None) -> EngineInfo:
    """What an engine with these settings is, as far as it is known before it starts.

    Args:
        window: its context window in tokens, as far as known.
        policy: the policy in force, where it is not the one of the start any more.
    """
    policy = policy or config.policy
    return EngineInfo(
        engine="vllm",
        model=config.model,
        policy=policy.name,
        max_model_len=window,
        fingerprint=f"{config.fingerprint}:{policy.fingerprint}",
        token_ids=True,
    )


def _check_sendable(request: EngineRequest) -> None:
    """Refuse what the front end would note and then fail to send.

    Raises:
        RequestError: the priority is no 32-bit integer, or a text holds half a surrogate pair.
    """
    priority = request.priority
    if not isinstance(priority, int) or not -(2**31) <= priority < 2**31:
        raise RequestError(f"priority={priority!r} is no integer of 32 bits; lower runs earlier, 0 is the default")
    texts = {"cache_salt": request.cache_salt, "request_id": request.request_id}
    texts |= {f"trace_context[{name!r}]": value for name, value in (request.trace_context or {}).items()}
    for name, value in texts.items():
        if value is not None and not isinstance(value, str):
            raise RequestError(f"{name} is {value!r}, not text")
        if value is not None and not encodable(value):
            raise RequestError(f"{name}={value!r} holds half of a surrogate pair; give Unicode text")


def _characters(messages: Sequence[Message], tools: Sequence[JsonObject]) -> int:
    """Characters of the texts that a template writes out; white space around a text may be cut off by it."""
    total = sum(len(repr(tool)) for tool in tools)
    for message in messages:
        content = message.get("content")
        parts = content if isinstance(content, list | tuple) else [content]
        for part in parts:
            text = part.get("text") if isinstance(part, dict) else part
            total += len(text.strip()) if isinstance(text, str) else 0
    return total


def _longest_token(tokenizer: Any) -> int | None:
    """Most characters of text that one token can stand for; ``None`` where the tokenizer does not tell."""
    try:
        longest = max(map(len, tokenizer.get_vocab()))
    except Exception:  # tokenizers of many makers
        return None
    return 4 * longest  # Unicode normalization may join up to four characters into one
