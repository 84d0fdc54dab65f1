"""Quantization method ``"mixquant"`` as vLLM knows it.

Options arrive as ``hf_overrides={"quantization_config": {"quant_method": "mixquant", "policy": …}}``, where ``policy``
is a preset's name or the fields of a :class:`~mixquant_agents.config.PrecisionPolicy`; without any, as in ``vllm serve
MODEL --quantization mixquant``, the policy is ``"mixquant"``. The object is pickled to workers, where ``__init__`` does
not run: what belongs to a worker begins in :meth:`MixQuantConfig.get_quant_method`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import torch
from vllm.config import get_current_vllm_config
from vllm.model_executor.layers.linear import LinearBase, UnquantizedLinearMethod
from vllm.model_executor.layers.quantization.base_config import QuantizationConfig, QuantizeMethodBase
from vllm.platforms import current_platform

from mixquant_agents.errors import ConfigError
from mixquant_agents.precision.layer_filter import in_block, is_ignored
from mixquant_agents.precision.policy import PrecisionPolicy
from mixquant_agents.quant.runtime import Runtime
from mixquant_agents.quant.vllm import graph_hooks, runner_hooks
from mixquant_agents.quant.vllm.draft.settings import check_drafts
from mixquant_agents.quant.vllm.linear import MixQuantLinearMethod
from mixquant_agents.quant.vllm.loading import hook_loading
from mixquant_agents.quant.vllm.options import METHOD, device_info, parse_policy
from mixquant_agents.quant.vllm.server_hooks import hook_server

__all__ = [
    "METHOD",
    "MixQuantConfig",
    "device_info",
    "parse_policy",
    "refuse_encoder",
    "refuse_misplaced",
    "refuse_parallel",
]


class MixQuantConfig(QuantizationConfig):  # type: ignore[misc] # vllm is untyped here
    """Carries the policy to the workers and gives each Linear its method."""

    def __init__(self, policy: PrecisionPolicy | None = None) -> None:
        super().__init__()
        self.policy = policy or PrecisionPolicy.of(METHOD)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "runtime"}

    def __repr__(self) -> str:
        return f"MixQuantConfig(policy={self.policy.name!r})"

    @classmethod
    def get_name(cls) -> str:
        return METHOD

    @classmethod
    def get_supported_act_dtypes(cls) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16, torch.float32]

    @classmethod
    def get_min_capability(cls) -> int:
        return 70

    @staticmethod
    def get_config_filenames() -> list[str]:
        return []

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> MixQuantConfig:
        """From a ``quantization_config``; see the module. Called in the front end, so here a server is hooked."""
        hook_server(MixQuantConfig)
        return cls(parse_policy(config))

    def get_quant_method(self, layer: torch.nn.Module, prefix: str) -> QuantizeMethodBase | None:
        """The routed method for Linear layers inside blocks; what vLLM does without quantization for all else.

        A trained head (MTP) is made of layers with the model's configuration, once the model has its weights: its
        rows are drafts, which no plan quantizes, so it gets no twins.
        """
        if not isinstance(layer, LinearBase):
            return self._experts_method(layer, prefix)
        runtime = self._start()
        known = in_block(prefix)
        runtime.see(prefix, known)
        if runtime.complete or not known or not (runtime.switchable or runtime.layer_format(prefix)):
            return UnquantizedLinearMethod()
        return MixQuantLinearMethod(runtime, prefix)

    def _experts_method(self, layer: torch.nn.Module, prefix: str) -> QuantizeMethodBase | None:
        """The routed method for a layer of experts; ``None`` for what is no such layer, or is to stay exact."""
        names = {cls.__name__ for cls in type(layer).__mro__}
        if "RoutedExperts" not in names:
            if any("MoE" in name for name in names) and self.policy.quantizes:
                _refuse_old_experts(prefix, self.policy)
            return None
        runtime = self._start()
        if runtime.complete or (not runtime.switchable and runtime.layer_format(prefix) is None):
            return None
        from mixquant_agents.quant.vllm.experts.method import MixQuantExpertsMethod

        runtime.see(prefix, True)
        return MixQuantExpertsMethod(runtime, prefix, layer.moe_config)

    def _start(self) -> Runtime:
        """This worker's runtime; hooks the worker's process on the first call."""
        runtime: Runtime | None = self.__dict__.get("runtime")
        if runtime is None:
            runtime = self.runtime = self._make_runtime(get_current_vllm_config())
        return runtime

    def _make_runtime(self, vllm_config: Any) -> Runtime:
        runner_hooks.install()
        refuse_parallel(vllm_config.parallel_config)
        refuse_encoder(vllm_config.model_config, self.policy)
        refuse_misplaced(vllm_config.model_config)
        check_drafts(self.policy, vllm_config)
        ranks = vllm_config.parallel_config.tensor_parallel_size
        if self.policy.prefill_checkpoint and ranks > 1:
            raise ConfigError(
                f"prefill_checkpoint with tensor_parallel_size={ranks}: such twins are not sharded; leave the "
                "checkpoint out, and each rank quantizes its own shard"
            )
        eager = bool(vllm_config.model_config.enforce_eager)
        runtime = Runtime(
            self.policy,
            device_info(),
            switchable=current_platform.is_cpu() and eager,
            fused=self.packed_modules_mapping,
            graphs=graph_hooks.settings_of(vllm_config),
            model=vllm_config.model_config.model,
            room=_room(vllm_config),
            most_rows=vllm_config.scheduler_config.max_num_batched_tokens,
        )
        hook_loading(vllm_config)
        if runtime.captured:
            graph_hooks.install()
        elif runtime.resolved.quantizes and not eager:
            # On a GPU the configuration's hook has seen to it; on a CPU eager is the default.
            raise ConfigError(
                f"{runtime.resolved.prefill_format.value} is emulated here, and an emulation needs "
                "enforce_eager=True: captured graphs cannot route rows in Python"
            )
        return runtime


def _refuse_old_experts(prefix: str, policy: PrecisionPolicy) -> None:
    """Running experts exact must be the user's word, not ours."""
    if not is_ignored(prefix, policy.ignored_layers, {}):
        raise ConfigError(
            f"{prefix!r} is a layer of experts, whose twins need vLLM 0.26 or later; add 're:.*experts' to "
            "ignored_layers to run the experts exact, or use policy 'exact'"
        )


def _room(vllm_config: Any) -> Callable[[int, int], int] | None:
    """What of a GPU's memory twins of experts may take; ``None`` elsewhere."""
    if not current_platform.is_cuda():
        return None

    def room(needed: int, workspace: int) -> int:
        from mixquant_agents.quant.vllm.experts.room import room_for_experts

        return room_for_experts(vllm_config, needed, workspace)

    return room


def refuse_encoder(model_config: Any, policy: PrecisionPolicy) -> None:
    """Refuse models whose decoder also multiplies the encoder's rows, of which the plan knows nothing.

    Raises:
        ConfigError: names what to use.
    """
    if policy.quantizes and model_config.is_encoder_decoder:
        raise ConfigError(
            "this is an encoder-decoder model, whose encoder's rows row routing does not follow; use policy 'exact'"
        )


def refuse_misplaced(model_config: Any) -> None:
    """Refuse a policy that stands where nothing reads it: the engine would run another one, without a word.

    Raises:
        ConfigError: says where it belongs.
    """
    overrides = model_config.hf_overrides
    if isinstance(overrides, Mapping) and "policy" in overrides:
        right = {"quantization_config": {"quant_method": METHOD, "policy": overrides["policy"]}}
        raise ConfigError(f"hf_overrides has 'policy' beside 'quantization_config'; give {json.dumps(right)}")


def refuse_parallel(parallel_config: Any) -> None:
    """Refuse what splits a step's rows among several forwards or ranks, where the plan's indices would not hold.

    Raises:
        ConfigError: names the setting.
    """
    if getattr(parallel_config, "use_ubatching", False):
        raise ConfigError("enable_dbo / ubatching splits a step in two, which row routing does not follow; turn it off")
    if getattr(parallel_config, "prefill_context_parallel_size", 1) > 1:
        raise ConfigError(
            f"prefill_context_parallel_size={parallel_config.prefill_context_parallel_size} spreads a prompt's rows "
            "over ranks, which row routing does not follow; use tensor_parallel_size"
        )
