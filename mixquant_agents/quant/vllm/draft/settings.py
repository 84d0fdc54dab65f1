"""From the policy to vLLM's configuration of speculative decoding, and what cannot be honoured."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mixquant_agents.errors import ConfigError
from mixquant_agents.precision.drafting import DraftRule, gain
from mixquant_agents.precision.policy import PrecisionPolicy
from mixquant_agents.precision.resolve import resolve
from mixquant_agents.quant.vllm.options import METHOD, device_info, parse_policy

__all__ = [
    "DEFAULT_TOKENS",
    "FIRST_TOKENS",
    "check_drafts",
    "check_same_drafts",
    "draft_policy",
    "draft_rule",
    "draft_status",
    "drafts_itself",
    "is_own",
    "never_pays",
    "obstacle",
    "refuse",
    "speculative_settings",
    "why_not",
    "window_of",
]

DEFAULT_TOKENS = 3
MAX_BATCH = 32
MAX_KV_TOKENS = 2**20
FIRST_TOKENS = 32
"""Of a long context's beginning, which every token attends to."""
WINDOW: int | None = None
"""Tokens of a long context's end that drafts read by default: all, until acceptance with a window was measured."""


def draft_policy(model_config: Any) -> PrecisionPolicy | None:
    """The policy of a model that the plugin runs, if it asks for drafts."""
    if model_config is None or model_config.quantization != METHOD:
        return None
    policy = _policy(model_config.hf_config)
    return policy if policy.draft is not None else None


def _policy(checkpoint: object) -> PrecisionPolicy:
    config = getattr(checkpoint, "quantization_config", None)
    return PrecisionPolicy.of(METHOD) if not isinstance(config, dict) else parse_policy(config)


def draft_rule(policy: PrecisionPolicy) -> DraftRule:
    """When and how much the twin drafts under ``policy``."""
    tokens = DEFAULT_TOKENS if policy.draft_tokens == "auto" else policy.draft_tokens
    return DraftRule(tokens, MAX_BATCH, MAX_KV_TOKENS)


def window_of(policy: PrecisionPolicy) -> int | None:
    """Tokens of a context's end that drafts read; ``None``: all."""
    return WINDOW if policy.draft_window == "auto" else policy.draft_window


def drafts_itself(vllm_config: Any) -> bool:
    """Whether the engine with this configuration drafts with its own model's twin."""
    model = vllm_config.model_config
    return model is not None and is_own(vllm_config.speculative_config, model) and draft_policy(model) is not None


def is_own(speculative_config: Any, model_config: Any) -> bool:
    """Whether the drafter that vLLM's configuration names, if any, is the model itself."""
    spec = speculative_config
    return (
        spec is not None
        and model_config is not None
        and spec.method == "draft_model"
        and spec.model == model_config.model
    )


def obstacle(
    policy: PrecisionPolicy, model_config: Any, parallel_config: Any, *, lora: bool, in_step: bool, other: bool
) -> str:
    """What stands against drafting, by name; empty where nothing does.

    Args:
        policy: what is asked for.
        model_config, parallel_config: vLLM's.
        lora: adapters are served.
        in_step: the scheduler waits for each step's result.
        other: another drafter is set.
    """
    resolved = resolve(policy, device_info())
    reasons = (
        (not resolved.quantizes, "a device that runs every row exact"),
        (resolved.emulated, f"{resolved.prefill_format.value}, which is emulated here and saves no time"),
        (other, "speculative_config: another drafter is set, which is better where it was trained for the model"),
        (lora, "enable_lora: an adapter's kernels are set up for the verified rows alone"),
        (parallel_config.pipeline_parallel_size > 1, "pipeline_parallel_size: the drafter needs all layers"),
        (parallel_config.data_parallel_size > 1, "data_parallel_size: ranks would have to draft in step"),
        (
            getattr(parallel_config, "decode_context_parallel_size", 1) > 1,
            "decode_context_parallel_size: the drafter reads the whole KV cache",
        ),
        (model_config.is_hybrid, "a hybrid model: a draft would overwrite its recurrent state"),
        (model_config.is_multimodal_model, "a multimodal model: the drafter reads text alone"),
        (model_config.enforce_eager, "enforce_eager: without graphs a draft step takes as long as an exact one"),
        (in_step, "async_scheduling=False: the scheduler could not leave drafts out"),
    )
    return next((reason for stands, reason in reasons if stands), "")


def speculative_settings(model: str, rule: DraftRule) -> dict[str, Any]:
    """vLLM's ``speculative_config``: the model drafts for itself, ``rule.tokens`` at a time or none.

    The schedule by batch size only tells vLLM which graphs to capture; :class:`~.schedule.DraftSchedule` decides.
    """
    return {
        "method": "draft_model",
        "model": model,
        "num_speculative_tokens": rule.tokens,
        "draft_sample_method": "probabilistic",
        "num_speculative_tokens_per_batch_size": [(1, 1, rule.tokens), (2, 2**20, 0)],
    }


def check_drafts(policy: PrecisionPolicy, vllm_config: Any) -> None:
    """A worker is about to be made: drafts that were promised must come, and only runner V2 makes them.

    Raises:
        ConfigError: says what stands against them.
    """
    if policy.draft is None:
        return
    if drafts_itself(vllm_config):
        if not vllm_config.use_v2_model_runner:
            raise refuse(policy, "vLLM's runner V1, which this engine's other settings or the model ask for")
    elif policy.draft == "twin":
        raise refuse(policy, why_not(policy, vllm_config) or "an engine whose configuration the plugin did not make")


def check_same_drafts(policy: PrecisionPolicy, vllm_config: Any) -> None:
    """The engine is about to be switched to ``policy``. Drafts can be left out and taken up again; how they are made is
    part of its graphs.

    Raises:
        ConfigError: they would have to be made otherwise.
    """
    own = draft_policy(vllm_config.model_config) if drafts_itself(vllm_config) else None
    if own is None or policy.draft is None:
        return
    for field in ("draft_tokens", "draft_ngram", "draft_window"):
        first, asked = own.model_dump()[field], policy.model_dump()[field]
        if asked != first:
            raise ConfigError(
                f"{field}={asked!r} is not what this engine was started with ({first!r}): drafts are set up with the "
                "engine; start another one, or leave draft None"
            )


def why_not(policy: PrecisionPolicy, vllm_config: Any) -> str:
    """What stands against drafting in the engine with this configuration; see :func:`obstacle`."""
    return obstacle(
        policy,
        vllm_config.model_config,
        vllm_config.parallel_config,
        lora=vllm_config.lora_config is not None,
        in_step=not vllm_config.scheduler_config.async_scheduling,
        other=vllm_config.speculative_config is not None and not drafts_itself(vllm_config),
    )


def draft_status(
    policy: PrecisionPolicy,
    vllm_config: Any,
    by_rows: dict[str, Any],
    lookup_cycles: int,
    shares: Mapping[int, float] | None = None,
) -> dict[str, Any]:
    """Plain JSON for the worker's status: how the twin drafts, or why it does not; empty where nobody asked for it.

    Args:
        policy: in force.
        vllm_config: the engine's.
        by_rows, lookup_cycles: what the worker knows of its drafts.
        shares: time of a draft's products over the exact ones, by the number of rows for which it was measured.
    """
    if policy.draft is None:
        return {}
    if not drafts_itself(vllm_config):
        return {"tokens": 0, "reason": why_not(policy, vllm_config) or "an engine that was started without drafts"}
    rule = draft_rule(policy)
    return {
        "tokens": rule.tokens,
        "reason": never_pays(rule, shares or {}),
        "window": window_of(policy),
        "most_requests": rule.max_batch,
        "by_rows": by_rows,
        "lookup_cycles": lookup_cycles,
    }


def never_pays(rule: DraftRule, shares: Mapping[int, float]) -> str:
    """Why :class:`DraftRule` will draft for no number of requests, even if every draft is right: as on small models,
    whose exact products are as fast. Empty where it may, or nothing was measured."""
    if not shares or any(gain(1.0, rule.tokens, share) >= 1 for share in shares.values()):
        return ""
    least, most = min(shares.values()), max(shares.values())
    return f"a draft's products take {least:.2f} to {most:.2f} times the exact ones here, and save nothing"


def refuse(policy: PrecisionPolicy, reason: str) -> ConfigError:
    """The error for drafts that cannot be."""
    return ConfigError(f"draft={policy.draft!r} with {reason}; leave draft None")
