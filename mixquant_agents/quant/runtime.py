"""The state of the plugin in one worker: policy, layers, the plan of the step at hand, counters."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from mixquant_agents.errors import ConfigError
from mixquant_agents.precision.formats import NumberFormat
from mixquant_agents.precision.layer_filter import is_ignored, parts_of
from mixquant_agents.precision.plan import RequestRows, RowPlan, plan_rows
from mixquant_agents.precision.policy import PrecisionPolicy
from mixquant_agents.precision.resolve import resolve
from mixquant_agents.precision.support import DeviceInfo
from mixquant_agents.quant.counters import RowCounter
from mixquant_agents.quant.ops.emulated import EXACT_STEP, StepMarker
from mixquant_agents.quant.twins.base import get_twin, twin_key
from mixquant_agents.quant.twins.checkpoint import TwinCheckpoint
from mixquant_agents.quant.vllm.linear import MixQuantLinearMethod

if TYPE_CHECKING:
    from mixquant_agents.quant.router import GpuRouting

__all__ = ["Runtime", "runtime_of"]

_log = logging.getLogger("vllm.mixquant")
"""Below vLLM's logger, whose handlers the worker has set up."""


class Runtime:
    """One per worker and engine; created with the model's first Linear.

    A step meets it in this order: :meth:`begin_step`, :meth:`plan_step` (from the runner's hook), :meth:`take_plan`
    (when the model's forward context is made), :meth:`end_step`.

    Attributes:
        twin: key of the twin in use, ``""`` while everything runs exact.
        counter: rows per request.
    """

    def __init__(
        self,
        policy: PrecisionPolicy,
        device: DeviceInfo,
        *,
        switchable: bool,
        fused: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        """
        Args:
            policy: what was asked for.
            device: where it runs.
            switchable: the engine is eager, so that twins may change after the model was built.
            fused: vLLM's fused layers and their parts, ``{"qkv_proj": ["q_proj", "k_proj", "v_proj"]}``.
        """
        self.device = device
        self.switchable = switchable
        self._fused = fused or {}
        self.resolved = resolve(policy, device)
        self.twin = twin_key(self.resolved)
        self.measured_threshold = 0
        self.checkpoint = TwinCheckpoint(policy.prefill_checkpoint) if policy.prefill_checkpoint else None
        self.counter = RowCounter()
        self.gpu: GpuRouting | None = None
        self._layers: list[MixQuantLinearMethod] = []
        self._pending: RowPlan | None = None
        self._planned = False
        self._serving = False
        if self.twin:
            get_twin(self.twin)  # refuse before weights are loaded
        if self.resolved.emulated:
            _log.warning("mixquant: %s is emulated: %s", self.resolved.prefill_format.value, self.resolved.reason)
        elif self.resolved.reason:
            _log.warning("mixquant: %s", self.resolved.reason)

    def add_layer(self, method: MixQuantLinearMethod) -> None:
        """A routed Linear has its weights. Idempotent."""
        if method not in self._layers:
            self._layers.append(method)

    def native_layers(self) -> Iterator[tuple[torch.Tensor, ...]]:
        """Exact weight and twin tensors of each routed layer, in the model's order."""
        for layer in self._layers:
            yield from layer.tensors()

    def twin_of(self, prefix: str, policy: PrecisionPolicy | None = None, key: str | None = None) -> str:
        """Key of the twin that the layer ``prefix`` uses; ``""`` where it stays exact.

        Raises:
            ConfigError: see :func:`~mixquant_agents.precision.layer_filter.is_ignored`.
        """
        ignored = (policy or self.resolved.policy).ignored_layers
        return "" if is_ignored(prefix, ignored, self._fused) else self.twin if key is None else key

    def parts_of(self, prefix: str) -> list[str]:
        """Names that a checkpoint has for the layer ``prefix``."""
        return parts_of(prefix, self._fused)

    @property
    def row_threshold(self) -> int:
        """A step with at most so many rows runs exact."""
        return self.resolved.rule(self.measured_threshold).threshold

    def set_policy(self, policy: PrecisionPolicy) -> None:
        """Switch to ``policy`` between two steps.

        Raises:
            ConfigError: the engine's weights or graphs are those of the first policy; the old policy stays.
            FormatRefusedError: the device cannot run it; the old policy stays.
        """
        if policy.prefill_checkpoint != self.resolved.policy.prefill_checkpoint and policy.quantizes:
            raise ConfigError(
                f"prefill_checkpoint={policy.prefill_checkpoint!r} is not what this engine was started with "
                f"({self.resolved.policy.prefill_checkpoint!r}); start another engine"
            )
        resolved = resolve(policy, self.device)
        key = twin_key(resolved)
        if key:
            get_twin(key)
        keys = [self.twin_of(layer.prefix, policy, key) for layer in self._layers]
        if not self.switchable and any(layer.key != new for layer, new in zip(self._layers, keys, strict=True)):
            raise ConfigError(
                f"policy {policy.name!r} needs other weights than the running {self.resolved.policy.name!r}, which a "
                "compiled engine cannot swap; start another engine, or this one with enforce_eager=True"
            )
        if self.gpu is not None:
            self.gpu.switch(resolved)
        for layer, new in zip(self._layers, keys, strict=True):
            layer.use(new)
        self.resolved, self.twin = resolved, key

    def begin_step(self) -> None:
        """The runner starts to execute a step; what an earlier one left over is void."""
        self._pending = None
        self._planned = False
        self._serving = True

    def end_step(self) -> bool:
        """The forward is over. Returns whether there was a plan."""
        self._pending = None
        return self._planned

    def plan_step(self, requests: Iterable[RequestRows], drafts: dict[str, int] | None = None) -> RowPlan:
        """Route the step's rows and count them."""
        mixed = 0 if self.gpu is None else self.gpu.thresholds.mixed
        plan = plan_rows(tuple(requests), self.resolved.rule(self.measured_threshold, mixed))
        if self.gpu is not None:
            plan = self.gpu.route(plan)
        self._pending = plan
        self._planned = True
        self.counter.record(plan, drafts)
        return plan

    def take_plan(self, num_tokens: int | None) -> RowPlan | StepMarker | None:
        """What a new forward context is to carry: the pending plan once, for the first that is wide enough for it.

        Before the first step (profiling, warm-up) there is ``None``; later, contexts other than the model's own forward
        run exact: a draft model's, and an encoder's, which names no number of tokens and comes before that forward.
        """
        if not self._serving:
            return None
        plan = self._pending
        if plan is None or num_tokens is None or num_tokens < plan.rows:
            return EXACT_STEP
        self._pending = None
        return plan

    def status(self, model: torch.nn.Module | None = None) -> dict[str, Any]:
        """Plain JSON; see ``rpc``."""
        resolved = self.resolved
        weights = {} if model is None else {p.data_ptr(): p for p in model.parameters()}
        quantizes = resolved.prefill_format is not NumberFormat.EXACT
        return {
            "policy": resolved.policy.name,
            "fingerprint": resolved.policy.fingerprint,
            "prefill_format": resolved.prefill_format.value,
            "decode_format": resolved.decode_format.value,
            "emulated": resolved.emulated,
            "native": quantizes and not resolved.emulated,
            "reason": resolved.reason,
            "device": self.device.name,
            "row_threshold": self.row_threshold,
            "exact_last_token": resolved.exact_last_token,
            "weight_only": resolved.policy.weight_only,
            "routed_layers": sum(bool(layer.key) for layer in self._layers),
            "twin": self.twin,
            "twin_bytes": sum(layer.twin_bytes for layer in self._layers),
            "weight_bytes": sum(p.numel() * p.element_size() for p in weights.values()),
            **({} if self.gpu is None else {"gpu": self.gpu.status()}),
        }


def runtime_of(vllm_config: Any) -> Runtime | None:
    """The plugin's state in the engine with this configuration of vLLM's; ``None`` when it uses another method."""
    runtime = getattr(getattr(vllm_config, "quant_config", None), "runtime", None)
    return runtime if isinstance(runtime, Runtime) else None
