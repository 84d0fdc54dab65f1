"""What can be asked of a running engine. Coroutines here run on the owner's loop; callers submit them."""

from __future__ import annotations

import asyncio
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
from mixquant_agents.engine.vllm.counts import RowCounts
from mixquant_agents.engine.vllm.errors import turn_error
from mixquant_agents.engine.vllm.grammar import grammar_of, tools_active
from mixquant_agents.engine.vllm.parsers import make_parser, reasoning_counter, tag_model_of
from mixquant_agents.engine.vllm.recorder import EngineStats
from mixquant_agents.engine.vllm.sampling import sampling_parameters
from mixquant_agents.engine.vllm.starting import StartControl
from mixquant_agents.engine.vllm.stream import StepMeter, run_turn
from mixquant_agents.engine.vllm.thread import EngineThread
from mixquant_agents.errors import ConfigError, EngineDeadError, FormatRefusedError, MixQuantError, RequestError

__all__ = ["RunningEngine", "assumed_info"]

Post = Callable[[TokenDelta | BaseException], None]


class RunningEngine(EngineThread):
    """A started engine: turns, statistics, policy."""

    def __init__(self, config: EngineConfig, control: StartControl | None = None) -> None:
        self.policy = config.policy
        super().__init__(config, control)
        self._rows: RowCounts | None = RowCounts(self.llm) if config.policy.quantizes else None
        self._tag_model = tag_model_of(self.tool_parser)
        self._backend = str(self.llm.vllm_config.structured_outputs_config.backend)
        self._count_reasoning = reasoning_counter(self.reasoning_parser, self.renderer.tokenizer)
        self._defaults: dict[str, Any] = dict(self.llm.model_config.get_diff_sampling_param())

    @property
    def alive(self) -> bool:
        """Whether a turn may be handed over (read from any thread)."""
        return not self.dead and self.llm is not None and not self.llm.errored

    async def turn(self, request: EngineRequest, submitted: float, post: Post) -> None:
        """Run one turn; every delta, or the error that ended it, goes to ``post``."""
        try:
            prompt, params, meter, options = await self._prepare(request, submitted)
            await run_turn(
                self.llm, prompt, params, request.request_id, meter, self._rows, lambda: self.recorder.preempted, post,
                **options,
            )  # fmt: skip
        except Exception as error:
            with suppress(RuntimeError):
                post(self.translated(error))

    async def _prepare(self, request: EngineRequest, submitted: float) -> tuple[Any, Any, StepMeter, dict[str, Any]]:
        """Render, check and convert one request; nothing reaches vLLM before all of it succeeded."""
        from vllm.inputs import tokens_input

        if request.prompt_token_ids is None:
            effort = {} if request.reasoning_effort is None else {"reasoning_effort": request.reasoning_effort}
            ids = await self.render(request.messages, request.tools, {**effort, **request.chat_template_kwargs})
        else:
            ids = list(request.prompt_token_ids)
            if not ids:
                raise RequestError("prompt_token_ids is empty; give at least one token, or messages")
        self.renderer.check_length(len(ids), request.sampling.max_tokens)
        grammar = grammar_of(request, self._tag_model, self.renderer.one_token, self._backend)
        ours: dict[str, Any] = {} if grammar is None else {"structured_outputs": grammar}
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

    async def render(
        self, messages: Sequence[Message], tools: Sequence[JsonObject], variables: JsonObject
    ) -> list[int]:
        """Token ids of the prompt; rendering runs beside the loop, one at a time."""
        return await asyncio.get_running_loop().run_in_executor(
            self.pool, self.renderer.render, messages, tools, variables
        )

    def parser(self, request: EngineRequest) -> OutputParser:
        """A fresh parser for the answer to ``request``."""
        names = self.tool_parser, self.reasoning_parser
        return make_parser(names, self.renderer.tokenizer, request.tools, request.tool_choice)

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
