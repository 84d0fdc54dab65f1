"""What row routing does not follow in a layer of experts, refused by name."""

from __future__ import annotations

from typing import Any

from mixquant_agents.errors import ConfigError

__all__ = ["refuse"]

_REMEDY = "add 're:.*experts' to ignored_layers to run the experts exact, or use policy 'exact'"


def refuse(prefix: str, moe: Any) -> None:
    """Refuse a layer whose rows are not this rank's own, or whose experts move or change.

    Args:
        prefix: the layer's full name.
        moe: vLLM's configuration of it.

    Raises:
        ConfigError: names the setting and what to do.
    """
    parallel = moe.moe_parallel_config
    reasons = {
        f"data_parallel_size={moe.dp_size} sends rows to other ranks' experts, where a step's plan does not go": (
            moe.dp_size > 1
        ),
        "sequence parallelism splits a step's rows among ranks": moe.is_sequence_parallel,
        "enable_eplb moves experts among ranks, and their twins would stay": parallel.enable_eplb,
        "enable_lora changes experts, and their twins would not": moe.is_lora_enabled,
    }
    for reason, applies in reasons.items():
        if applies:
            raise ConfigError(f"{prefix!r} is a layer of experts with a quantized twin, and {reason}: {_REMEDY}")
