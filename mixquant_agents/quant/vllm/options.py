"""What an engine's configuration says of the method: its name, its policy, its device."""

from __future__ import annotations

from typing import Any

from vllm.platforms import current_platform

from mixquant_agents.errors import ConfigError
from mixquant_agents.precision.policy import PrecisionPolicy
from mixquant_agents.precision.support import DeviceInfo

__all__ = ["FULL_GRAPHS", "METHOD", "device_info", "parse_policy"]

METHOD = "mixquant"
FULL_GRAPHS = "mixquant_full_graphs"
"""In ``additional_config``: ``True``, full graphs were asked for; ``False``, none are wanted. See ``small_graphs``."""
_KNOWN = {"quant_method", "policy"}


def parse_policy(config: dict[str, Any]) -> PrecisionPolicy:
    """The policy in a ``quantization_config``.

    Raises:
        ConfigError: an unknown key, preset or value.
    """
    unknown = sorted(set(config) - _KNOWN)
    if unknown:
        raise ConfigError(f"quantization_config of method {METHOD!r} has no setting {unknown[0]!r}; it takes 'policy'")
    policy = config.get("policy", METHOD)
    if isinstance(policy, str):
        return PrecisionPolicy.of(policy)
    if not isinstance(policy, dict):
        raise ConfigError(f"policy = {policy!r}: give a preset's name or an object of PrecisionPolicy fields")
    return PrecisionPolicy(**policy)


def device_info() -> DeviceInfo:
    """The device of this worker."""
    if current_platform.is_cpu():
        return DeviceInfo("cpu", "cpu")
    capability = current_platform.get_device_capability()
    kind = "cuda" if current_platform.is_cuda() else current_platform.device_type
    version = None if capability is None else (int(capability.major), int(capability.minor))
    return DeviceInfo(kind, str(current_platform.get_device_name()), version)
