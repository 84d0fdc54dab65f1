"""What vLLM sees of a routed layer of experts: the unquantized method, plus a twin and the routed product.

A subclass of ``UnquantizedFusedMoEMethod``: weights load, shard and reload as in a normal layer, and exact rows run
vLLM's own kernel for them. The router runs before, in vLLM's own arithmetic: its choice is a function of the rows
alone.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from dataclasses import replace
from typing import Any

import torch
from vllm.model_executor.layers.fused_moe.unquantized_fused_moe_method import UnquantizedFusedMoEMethod
from vllm.platforms import current_platform

from mixquant_agents.errors import ConfigError
from mixquant_agents.precision.resolve import LayerFormat, RoutedFormat
from mixquant_agents.quant.experts.activations import ACTIVATIONS
from mixquant_agents.quant.experts.emulated import EmulatedExperts
from mixquant_agents.quant.experts.layer import ExpertRows, ExpertShape, ExpertsLayer, ExpertWeights
from mixquant_agents.quant.experts.reference import exact_experts
from mixquant_agents.quant.experts.routing import routed_experts
from mixquant_agents.quant.experts.trial import ExpertsTrial
from mixquant_agents.quant.experts.twin import ExpertsTwin
from mixquant_agents.quant.formats.registry import emulated_twin
from mixquant_agents.quant.runtime import Runtime
from mixquant_agents.quant.vllm.context import current_step
from mixquant_agents.quant.vllm.experts.kernels import some_rows
from mixquant_agents.quant.vllm.experts.native import native_experts
from mixquant_agents.quant.vllm.experts.refusals import refuse

__all__ = ["MixQuantExpertsMethod"]


class MixQuantExpertsMethod(UnquantizedFusedMoEMethod):  # type: ignore[misc] # vllm is untyped here
    """Routes the rows of a layer of experts between its exact weights and its twin: a
    :class:`~mixquant_agents.quant.layer.RoutedLayer`."""

    supports_pre_processed_weights = False
    unquantized_backend: Any
    experts_cls: Any

    def __init__(self, runtime: Runtime, prefix: str, moe: Any) -> None:
        """
        Args:
            runtime: of this worker.
            prefix: the layer's full name.
            moe: vLLM's configuration of the layer.

        Raises:
            ConfigError: the layer is run in a way that row routing does not follow; names the setting.
        """
        self.prefix = prefix
        self._runtime = runtime
        self.layer_format = runtime.layer_format(prefix)
        if self.layer_format is not None:
            refuse(prefix, moe)
        super().__init__(moe)
        self._use_modular_kernel()
        self._layer: ExpertsLayer | None = None
        self._weights: ExpertWeights | None = None
        self._device = torch.device("cpu")
        self._reordered = False
        self._twin: ExpertsTwin[Any] | None = None
        self._states: dict[Hashable, tuple[ExpertsTwin[Any], Any]] = {}

    def _use_modular_kernel(self) -> None:
        """Exact rows need a kernel that takes what the router chose: a monolithic one chooses by itself."""
        if self.experts_cls is None or not self.experts_cls.is_monolithic():
            return
        from vllm.model_executor.layers.fused_moe.modular_kernel import FusedMoEActivationFormat
        from vllm.model_executor.layers.fused_moe.oracle import unquantized

        for backend in (self.unquantized_backend, unquantized.UnquantizedMoeBackend.TRITON):
            for experts_class in unquantized.backend_to_kernel_cls(backend):
                standard = FusedMoEActivationFormat.Standard
                if experts_class.is_monolithic():
                    continue
                if experts_class.is_supported_config(experts_class, self.moe, None, None, standard)[0]:
                    self.unquantized_backend, self.experts_cls = backend, experts_class
                    return
        raise ConfigError(
            f"vLLM has no modular kernel for the experts of {self.prefix!r} here, which row routing needs: add "
            "'re:.*experts' to ignored_layers, or use policy 'exact'"
        )

    @property
    def is_monolithic(self) -> bool:
        """Never: rows come with what the router chose."""
        return False

    @property
    def supports_eplb(self) -> bool:
        """No twin moves with its expert."""
        return self.layer_format is None

    # --- as the runtime sees it ---------------------------------------------------------------------------------------

    @property
    def layer(self) -> ExpertsLayer:
        """The layer but for its weights. Raises ``ValueError`` until it is made."""
        if self._layer is None:
            raise ValueError(f"{self.prefix!r} is not made yet")
        return self._layer

    @property
    def weights(self) -> ExpertWeights:
        """The exact weights, as loaded. Raises ``ValueError`` until they are.

        Where vLLM's kernel keeps them in another order, they lie in the host's memory, and each call copies them.
        """
        return self._loaded.on(self._device)

    @property
    def _loaded(self) -> ExpertWeights:
        if self._weights is None:
            raise ValueError(f"the weights of {self.prefix!r} are not loaded yet")
        return self._weights

    @property
    def twin(self) -> ExpertsTwin[Any]:
        """The twin in use. Raises ``ValueError`` where every row stays exact."""
        if self._twin is None:
            raise ValueError(f"every row of {self.prefix!r} runs exact")
        return self._twin

    @property
    def state(self) -> Any:
        """What the twin in use keeps of the weights."""
        return self._states[self.twin.build_key][1]

    @property
    def captured(self) -> bool:
        """See :class:`~mixquant_agents.quant.layer.RoutedLayer`."""
        return self._twin is not None and self._twin.captured

    @property
    def shape(self) -> tuple[int, ...]:
        """See :class:`~mixquant_agents.quant.layer.RoutedLayer`."""
        return (*self._loaded.up.shape, self.layer.shape.inner)

    @property
    def reads_by_row(self) -> bool:
        """See :class:`~mixquant_agents.quant.layer.RoutedLayer`."""
        return True

    @property
    def device(self) -> torch.device:
        """See :class:`~mixquant_agents.quant.layer.RoutedLayer`."""
        return self._device

    @property
    def dtype(self) -> torch.dtype:
        """See :class:`~mixquant_agents.quant.layer.RoutedLayer`."""
        return self._loaded.up.dtype

    @property
    def twin_bytes(self) -> int:
        """See :class:`~mixquant_agents.quant.layer.RoutedLayer`."""
        tensors = {t.data_ptr(): t for twin, state in self._states.values() for t in twin.tensors(state).values()}
        return sum(t.numel() * t.element_size() for t in tensors.values())

    def use(self, layer_format: RoutedFormat | None) -> None:
        """See :class:`~mixquant_agents.quant.layer.RoutedLayer`."""
        if isinstance(layer_format, LayerFormat):  # calibrations know Linear layers alone
            layer_format = replace(layer_format, recipe=layer_format.recipe.uncalibrated)
        self.layer_format = layer_format
        self._twin = None if layer_format is None else self._twin_of(layer_format)
        if self._twin is not None and self._weights is not None and self._twin.build_key not in self._states:
            self._states[self._twin.build_key] = (self._twin, self._built(self._twin, self.weights))

    def _twin_of(self, layer_format: RoutedFormat) -> ExpertsTwin[Any]:
        if not isinstance(layer_format, LayerFormat):
            raise ConfigError(
                f"formats gives the parts of {self.prefix!r} different formats ({layer_format.name}); name the experts "
                "as a whole, for example {'experts': 'fp8'}"
            )
        if layer_format.emulated:
            return EmulatedExperts(emulated_twin(layer_format))
        return native_experts(layer_format)

    def trials(self) -> Iterator[ExpertsTrial]:
        """See :class:`~mixquant_agents.quant.layer.RoutedLayer`."""
        if self._twin is not None and isinstance(self.layer_format, LayerFormat):
            yield ExpertsTrial(self.layer, self.layer_format, self._twin, self.state, self.weights)

    def tuning(self) -> tuple[ExpertsTwin[Any], tuple[ExpertsLayer, Any]]:
        """See :class:`~mixquant_agents.quant.layer.RoutedLayer`."""
        return self.twin, (self.layer, self.state)

    def work(self, rows: Callable[[int], torch.Tensor]) -> Callable[[], torch.Tensor]:
        """See :class:`~mixquant_agents.quant.layer.RoutedLayer`."""
        chosen = some_rows(self.layer, rows(self.layer.shape.hidden))
        return lambda: self._run(chosen)

    # --- as vLLM sees it ----------------------------------------------------------------------------------------------

    def create_weights(
        self,
        layer: Any,
        num_experts: int,
        hidden_size: int,
        intermediate_size_per_partition: int,
        params_dtype: torch.dtype,
        **kwargs: Any,
    ) -> None:
        """As vLLM's, once the twin takes the shape.

        Raises:
            ConfigError: the activation has no plain form here, which emulation needs.
            FormatRefusedError: no kernel takes the shape; names the layer and what to do.
        """
        shape = ExpertShape(
            num_experts, hidden_size, intermediate_size_per_partition, self.moe.is_act_and_mul, layer.top_k
        )
        self._layer = ExpertsLayer(
            self.prefix,
            shape,
            self._activation(layer),
            layer.apply_router_weight_on_input,
            lambda: layer.expert_map,
            layer,
        )
        self.use(self.layer_format)
        if self._twin is not None:
            self._twin.prepare(self._layer)
            self._check_checkpoint(shape)
        super().create_weights(layer, num_experts, hidden_size, intermediate_size_per_partition, params_dtype, **kwargs)
        if self._twin is not None:
            self._runtime.offer(self.prefix, self._twin.nbytes(shape, params_dtype), shape)

    def _activation(self, layer: Any) -> Callable[[torch.Tensor], torch.Tensor]:
        name = layer.activation.name.lower()
        if name in ACTIVATIONS and layer.swiglu_limit is None:
            return ACTIVATIONS[name]

        def unknown(x: torch.Tensor) -> torch.Tensor:
            limit = "" if layer.swiglu_limit is None else f" with swiglu_limit={layer.swiglu_limit}"
            raise ConfigError(
                f"the experts of {self.prefix!r} have the activation {name!r}{limit}, which emulation does not know: "
                "add 're:.*experts' to ignored_layers, or use policy 'exact'"
            )

        if current_platform.is_cpu():
            unknown(torch.empty(0))
        return unknown

    def process_weights_after_loading(self, layer: Any) -> None:
        """Keep the exact weights as loaded and build the start policy's twin, before vLLM may shuffle them.

        Weights that are loaded anew (``reload_weights``) come here in memory of their own, which vLLM then copies to
        where the first ones lie; so do the twins' values.
        """
        parameters = {name: parameter.data for name, parameter in layer.named_parameters(recurse=False)}
        loaded = ExpertWeights(
            parameters["w13_weight"], parameters["w2_weight"], parameters.get("w13_bias"), parameters.get("w2_bias")
        )
        if self._weights is None:
            self._runtime.settle()
            self._weights, self._device = loaded, loaded.up.device
            self._runtime.add_layer(self)
            self.use(self._runtime.layer_format(self.prefix))
            if self.captured:
                for name, tensor in self.twin.tensors(self.state).items():
                    layer.register_buffer(f"mixquant_{name}", tensor, persistent=False)
        else:
            self._renew(loaded)
        if current_platform.is_cpu():
            # vLLM would pack the weights into another layout; rows run expert by expert here, exact ones too.
            self.moe_quant_config = self.get_fused_moe_quant_config(layer)
        else:
            self._keep_once(layer, loaded)

    def _keep_once(self, layer: Any, loaded: ExpertWeights) -> None:
        """Let vLLM put the weights into its kernel's order. Where that is another one (FlashInfer's), the device need
        not have them twice: those in the order of the checkpoint go to the host's memory."""
        if self._reordered:  # weights loaded anew are reordered in their place
            self._weights = loaded.on(torch.device("cpu"), copy=True)
        first = self.moe_kernel is None
        super().process_weights_after_loading(layer)
        up = dict(layer.named_parameters(recurse=False))["w13_weight"]
        if first and up.data_ptr() != loaded.up.data_ptr():
            self._reordered = True
            self._weights = loaded.on(torch.device("cpu"), copy=True)

    def _built(self, twin: ExpertsTwin[Any], weights: ExpertWeights) -> Any:
        checkpoint = self._runtime.checkpoint
        if checkpoint is None:
            return twin.build(weights, self.layer)
        experts = range(self.layer.shape.experts)
        up, down = (
            [checkpoint.read(names(expert)).to(weights.up.device) for expert in experts]
            for names in (self._up_names, self._down_names)
        )
        return twin.adopt(up, down, weights, self.layer)

    def _check_checkpoint(self, shape: ExpertShape) -> None:
        checkpoint = self._runtime.checkpoint
        if checkpoint is not None:
            for expert in range(shape.experts):
                checkpoint.check(self._up_names(expert), shape.up, shape.hidden)
                checkpoint.check(self._down_names(expert), shape.hidden, shape.inner)

    def _up_names(self, expert: int) -> list[str]:
        own = self.layer.own
        parts = (own.ckpt_gate_proj_name, own.ckpt_up_proj_name) if self.layer.shape.gated else (own.ckpt_up_proj_name,)
        return [f"{self.prefix}.{expert}.{part}" for part in parts]

    def _down_names(self, expert: int) -> list[str]:
        return [f"{self.prefix}.{expert}.{self.layer.own.ckpt_down_proj_name}"]

    def _renew(self, loaded: ExpertWeights) -> None:
        checkpoint = self._runtime.checkpoint
        if checkpoint is None:
            for twin, state in self._states.values():
                twin.renew(state, twin.build(loaded, self.layer))
        elif self._states and not all(map(torch.equal, loaded[:2], self.weights[:2])):
            raise checkpoint.refused_weights(self.prefix)

    def apply(
        self,
        layer: Any,
        x: torch.Tensor,
        topk_weights: torch.Tensor,
        topk_ids: torch.Tensor,
        shared_experts: Any,
        shared_experts_input: torch.Tensor | None,
    ) -> torch.Tensor:
        """``x`` ``[M, H]`` to ``[M, H]``. Shared experts are Linear layers: routed by themselves, and run by vLLM."""
        return self._run(ExpertRows(x, topk_weights, topk_ids))

    def _run(self, rows: ExpertRows) -> torch.Tensor:
        if self._twin is None:
            return self._exact(rows)
        twin, state = self._twin, self.state
        step = current_step(rows.x.shape[0])
        return routed_experts(rows, step, self._exact, lambda some: twin.product(some, state, self.layer))

    def _exact(self, rows: ExpertRows) -> torch.Tensor:
        if current_platform.is_cpu():
            return exact_experts(rows, self.layer, self.weights)
        own = self.layer.own
        out: torch.Tensor = super().apply(own, rows.x, rows.weights, rows.ids, None, None)
        return out
