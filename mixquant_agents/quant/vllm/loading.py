"""Between a model's construction and the reading of its weights: which layers it has is known now, and nothing is
spent yet."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mixquant_agents.quant.runtime import Runtime, runtime_of
from mixquant_agents.quant.vllm.patching import wrap

__all__ = ["hook_loading"]


def hook_loading(vllm_config: Any) -> None:
    """Let the loader of this engine's weights settle which layers have twins first. Idempotent."""
    from vllm.model_executor.model_loader import get_model_loader

    wrap(type(get_model_loader(vllm_config.load_config)), "load_weights", _load_weights)


def _load_weights(original: Callable[..., Any]) -> Callable[..., Any]:
    def load_weights(self: Any, model: Any, *args: Any, **kwargs: Any) -> Any:
        runtime = _runtime(model)
        if runtime is not None:
            runtime.settle()
        return original(self, model, *args, **kwargs)

    return load_weights


def _runtime(model: Any) -> Runtime | None:
    """Of the model's own engine: its layers know their quantization config."""
    for module in model.modules():
        runtime = runtime_of(module)
        if runtime is not None:
            return runtime
    return None
