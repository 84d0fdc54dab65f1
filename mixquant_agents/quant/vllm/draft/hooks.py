"""Puts the drafter into vLLM: its configuration, its scheduler, its runner V2."""

from __future__ import annotations

import dataclasses
import functools
import logging
import sys
from collections.abc import Callable
from typing import Any

from mixquant_agents.errors import EngineStartError
from mixquant_agents.quant.runtime import runtime_of
from mixquant_agents.quant.vllm.contract import check, installed_source
from mixquant_agents.quant.vllm.draft.schedule import DraftSchedule
from mixquant_agents.quant.vllm.draft.settings import (
    draft_policy,
    draft_rule,
    drafts_itself,
    is_own,
    obstacle,
    refuse,
    speculative_settings,
)
from mixquant_agents.quant.vllm.patching import wrap

__all__ = ["hook_drafts", "mixquant_draft_counts", "mixquant_set_drafts"]

_log = logging.getLogger("vllm.mixquant")
_RUNNER = "vllm.v1.worker.gpu.model_runner"


def hook_drafts() -> None:
    """Hook vLLM in this process, before any engine is made. Idempotent; touches engines whose policy drafts only.

    The runner imports the function that makes its drafter by name; a runner that is imported by now has vLLM's own.
    """
    from vllm.engine.arg_utils import EngineArgs
    from vllm.v1.engine.core import EngineCore

    wrap(EngineArgs, "create_speculative_config", _speculative_config)
    for method in (mixquant_draft_counts, mixquant_set_drafts):
        setattr(EngineCore, method.__name__, method)
    try:
        from vllm.config import VllmConfig
        from vllm.sampling_params import SamplingParams
        from vllm.v1.core.sched.scheduler import Scheduler
        from vllm.v1.worker.gpu import spec_decode

        wrap(VllmConfig, "_get_v2_model_runner_unsupported_features", _unsupported)
        wrap(VllmConfig, "_set_max_num_scheduled_tokens", _scheduled_tokens)
        wrap(Scheduler, "__init__", _scheduler)
        wrap(Scheduler, "make_spec_decoding_stats", _count)
        wrap(SamplingParams, "_validate_spec_decode", _validate)
        wrap(spec_decode, "init_speculator", _init_speculator)
        if _RUNNER in sys.modules:
            wrap(sys.modules[_RUNNER], "init_speculator", _init_speculator)
    except (ImportError, EngineStartError):
        return  # a release without; drafts are refused there, with what is missing


def mixquant_draft_counts(self: Any, request_id: str) -> dict[str, int] | None:
    """Drafts of a request that has ended, once; ``None`` where the engine drafts nothing. A method of vLLM's
    EngineCore, which the front end calls by its name."""
    schedule = _schedule_of(self)
    return None if schedule is None else dataclasses.asdict(schedule.take(request_id))


def mixquant_set_drafts(self: Any, allowed: bool) -> None:
    """The engine's policy was switched to one with drafts, or without; asked of vLLM's EngineCore as the counts are."""
    schedule = _schedule_of(self)
    if schedule is not None:
        schedule.allowed = allowed


def _schedule_of(core: Any) -> DraftSchedule | None:
    """``None`` where the engine drafts nothing, or this release of vLLM cannot."""
    schedule = vars(core.scheduler).get("dynamic_sd_lookup")
    return schedule if isinstance(schedule, DraftSchedule) else None


@functools.cache
def lacking() -> str:
    """What drafts need and this release of vLLM does not have; empty where all is there."""
    return "; ".join(check(installed_source(), "draft", optional=True))


def _speculative_config(original: Callable[..., Any]) -> Callable[..., Any]:
    def create_speculative_config(self: Any, target_model_config: Any, target_parallel_config: Any) -> Any:
        given = original(self, target_model_config, target_parallel_config)
        policy = draft_policy(target_model_config)
        if policy is None:
            return given
        own = is_own(given, target_model_config)
        reason = obstacle(
            policy,
            target_model_config,
            target_parallel_config,
            lora=self.enable_lora,
            in_step=self.async_scheduling is False,
            other=given is not None and not own,
        )
        reason = reason or (f"this vLLM ({lacking()})" if lacking() else "")
        if reason:
            if policy.draft == "twin":
                raise refuse(policy, reason)
            _log.info("mixquant: the twin does not draft: %s", reason)
            return given
        self.async_scheduling = True  # vLLM leaves it off for draft models unless asked
        if own:
            return given  # the user's own settings of it
        self.speculative_config = speculative_settings(target_model_config.model, draft_rule(policy))
        return original(self, target_model_config, target_parallel_config)

    return create_speculative_config


def _unsupported(original: Callable[..., Any]) -> Callable[..., Any]:
    def _get_v2_model_runner_unsupported_features(self: Any) -> list[str]:
        features: list[str] = original(self)
        if not drafts_itself(self):
            return features
        return [each for each in features if each != "speculative method 'draft_model'"]

    return _get_v2_model_runner_unsupported_features


def _scheduled_tokens(original: Callable[..., Any]) -> Callable[..., Any]:
    """Draft models of their own need a row more for each request; ours reads the target's KV cache and does not."""

    def _set_max_num_scheduled_tokens(self: Any) -> None:
        open_before = self.scheduler_config.max_num_scheduled_tokens is None
        original(self)
        if open_before and drafts_itself(self):
            self.scheduler_config.max_num_scheduled_tokens = self.scheduler_config.max_num_batched_tokens

    return _set_max_num_scheduled_tokens


def _validate(original: Callable[..., Any]) -> Callable[..., Any]:
    """vLLM refuses ``min_p`` and ``logit_bias`` beside every drafter, for its runner V1. Its runner V2, without which
    the twin drafts nothing, applies both to each verified row before it accepts or rejects the draft."""

    def _validate_spec_decode(self: Any, speculative_config: Any) -> None:
        target = None if speculative_config is None else speculative_config.target_model_config
        if not (is_own(speculative_config, target) and draft_policy(target) is not None):
            original(self, speculative_config)

    return _validate_spec_decode


def _scheduler(original: Callable[..., Any]) -> Callable[..., Any]:
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:  # noqa: N807 - vLLM's name
        original(self, *args, **kwargs)
        if drafts_itself(self.vllm_config):
            policy = draft_policy(self.vllm_config.model_config)
            if policy is not None:
                self.dynamic_sd_lookup = DraftSchedule(
                    self, draft_rule(policy), functools.partial(_share, self.vllm_config)
                )

    return __init__


def _share(vllm_config: Any, batch: int) -> float | None:
    """What the worker measured, where it lives in the scheduler's process (one rank)."""
    runtime = runtime_of(vllm_config)
    return None if runtime is None else runtime.draft_share(batch)


def _count(original: Callable[..., Any]) -> Callable[..., Any]:
    """Where the scheduler tells vLLM's statistics of a request's verified drafts. Placeholders that the grammar put in
    a draft's place are no drafts."""

    def make_spec_decoding_stats(
        self: Any,
        spec_decoding_stats: Any,
        num_draft_tokens: int,
        num_accepted_tokens: int,
        num_invalid_spec_tokens: dict[str, int] | None,
        request_id: str,
    ) -> Any:
        schedule = self.dynamic_sd_lookup
        if isinstance(schedule, DraftSchedule):
            invalid = (num_invalid_spec_tokens or {}).get(request_id, 0)
            schedule.count(request_id, num_draft_tokens - invalid, num_accepted_tokens)
        return original(
            self,
            spec_decoding_stats,
            num_draft_tokens=num_draft_tokens,
            num_accepted_tokens=num_accepted_tokens,
            num_invalid_spec_tokens=num_invalid_spec_tokens,
            request_id=request_id,
        )

    return make_spec_decoding_stats


def _init_speculator(original: Callable[..., Any]) -> Callable[..., Any]:
    def init_speculator(vllm_config: Any, device: Any, *args: Any, **kwargs: Any) -> Any:
        if not drafts_itself(vllm_config):
            return original(vllm_config, device, *args, **kwargs)
        from mixquant_agents.quant.vllm.draft.speculator import TwinSpeculator

        return TwinSpeculator(vllm_config, device)

    return init_speculator
