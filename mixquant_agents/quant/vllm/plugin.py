"""What happens when vLLM loads the plugin."""

from __future__ import annotations

from vllm.model_executor.layers.quantization import register_quantization_config
from vllm.platforms import current_platform

from mixquant_agents.quant.vllm.config_hooks import hook_config
from mixquant_agents.quant.vllm.draft.hooks import hook_drafts
from mixquant_agents.quant.vllm.method import METHOD, MixQuantConfig
from mixquant_agents.quant.vllm.prefix_cache import hook_prefix_cache
from mixquant_agents.quant.vllm.scheduler_hooks import hook_scheduler

__all__ = ["load"]


def load() -> None:
    """Make the method known to vLLM in this process. Idempotent."""
    register_quantization_config(METHOD)(MixQuantConfig)
    hook_prefix_cache()
    hook_scheduler()
    if current_platform.is_cuda():
        hook_config()
        hook_drafts()
