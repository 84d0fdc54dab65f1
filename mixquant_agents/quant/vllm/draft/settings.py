"""From the policy to vLLM's configuration of speculative decoding, and what cannot be honoured."""

from __future__ import annotations

from typing import Any

from mixquant_agents.errors import ConfigError
from mixquant_agents.precision.drafting import DraftRule
from mixquant_agents.precision.policy import PrecisionPolicy
from mixquant_agents.quant.vllm.method import METHOD, parse_policy

__all__ = ["DEFAULT_TOKENS", "draft_policy", "draft_rule", "drafts_itself", "obstacle", "speculative_settings"]

DEFAULT_TOKENS = 3
MAX_BATCH = 16
MAX_KV_TOKENS = 65_536


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


def drafts_itself(vllm_config: Any) -> bool:
    """Whether the engine with this configuration drafts with its own model's twin."""
    spec, model = vllm_config.speculative_config, vllm_config.model_config
    if spec is None or model is None or spec.method != "draft_model" or spec.model != model.model:
        return False
    return draft_policy(model) is not None


def obstacle(arguments: Any, model_config: Any, parallel_config: Any) -> str:
    """What stands against drafting under vLLM's engine arguments, by name; empty where nothing does."""
    reasons = (
        (arguments.enable_lora, "enable_lora: an adapter's kernels are set up for the verified rows alone"),
        (parallel_config.pipeline_parallel_size > 1, "pipeline_parallel_size: the drafter needs all layers"),
        (parallel_config.data_parallel_size > 1, "data_parallel_size: ranks would have to draft in step"),
        (
            getattr(parallel_config, "decode_context_parallel_size", 1) > 1,
            "decode_context_parallel_size: the drafter reads the whole KV cache",
        ),
        (model_config.is_hybrid, "a hybrid model: a draft would overwrite its recurrent state"),
        (model_config.is_multimodal_model, "a multimodal model: the drafter reads text alone"),
        (arguments.async_scheduling is False, "async_scheduling=False: the scheduler could not leave drafts out"),
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


def refuse(policy: PrecisionPolicy, reason: str) -> ConfigError:
    """The error for drafts that cannot be."""
    return ConfigError(f"draft={policy.draft!r} with {reason}; leave draft None")
