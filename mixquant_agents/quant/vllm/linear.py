"""What vLLM sees of a routed Linear: the unquantized method, plus a twin and the routed product.

A subclass of ``UnquantizedLinearMethod``, so that weight loading, LoRA and tensor parallelism meet a normal layer with
a normal ``weight``; the twin is built beside it, from the shard that this worker loaded. A twin that holds the exact
weight, too, takes its place: such a layer is loaded as vLLM's online quantization loads, one layer at a time, so that
the model is never held in both forms; ``weight`` is then what stands for it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Hashable, Iterator
from typing import Any

import torch
from vllm.model_executor.layers.linear import UnquantizedLinearMethod
from vllm.model_executor.model_loader.reload.layerwise import initialize_online_processing
from vllm.platforms import current_platform

from mixquant_agents.errors import ConfigError
from mixquant_agents.precision.resolve import RoutedFormat
from mixquant_agents.quant.formats.registry import twin_of
from mixquant_agents.quant.kernel_check import ExactUnit, Unit, units_of
from mixquant_agents.quant.ops import linear as _ops  # also registers torch.ops.mixquant.gpu_*
from mixquant_agents.quant.ops.eager import eager_linear
from mixquant_agents.quant.runtime import Runtime
from mixquant_agents.quant.twins.base import Twin
from mixquant_agents.quant.twins.calibrated import LayerCalibration
from mixquant_agents.quant.twins.registry import RegisteredTwin, register
from mixquant_agents.quant.vllm.context import current_step

__all__ = ["MixQuantLinearMethod"]

_PROCESSED = "_already_called_process_weights_after_loading"
"""vLLM's mark of a layer that was processed while it was loaded; vLLM takes it off before it loads anew."""

_OWN_KERNEL = "_use_min_latency_gemm"
"""DeepSeek's first projection of q and kv may call a kernel for few rows with the layer's weight, and no method."""


class MixQuantLinearMethod(UnquantizedLinearMethod):  # type: ignore[misc] # vllm is untyped here
    """Routes the rows of one Linear between its exact weight and its twin: a
    :class:`~mixquant_agents.quant.layer.RoutedLayer`."""

    supports_pre_processed_weights = False

    def __init__(self, runtime: Runtime, prefix: str) -> None:
        """``prefix`` is the layer's full name, for messages and status."""
        super().__init__()
        self._runtime = runtime
        self.prefix = prefix
        self.layer_format = runtime.layer_format(prefix)
        self._widths: tuple[int, ...] = ()
        self._twin: Twin[Any] | None = None  # once the widths of the layer's parts are known
        self._states: dict[Hashable, tuple[Twin[Any], Any]] = {}
        self._operand: torch.Tensor | None = None  # the exact weight, or what stands for it
        self._dtype = torch.get_default_dtype()
        self._captured = False  # plain: compiled code reads it
        # Keep the twin known to the routed operations, by the first weight and by the latest.
        self._registered: tuple[RegisteredTwin, ...] = ()

    @property
    def weight(self) -> torch.Tensor:
        """The exact weight, made anew at each call where a twin holds it. Raises ``ValueError`` until it is loaded."""
        if self._twin is None or not self._twin.holds_exact:
            return self.operand
        return self._twin.exact_weight(self.operand, self.state)

    @property
    def operand(self) -> torch.Tensor:
        """What routed operations get as the weight. Raises ``ValueError`` until it is loaded."""
        if self._operand is None:
            raise ValueError(f"the weight of {self.prefix!r} is not loaded yet")
        return self._operand

    @property
    def captured(self) -> bool:
        """See :class:`~mixquant_agents.quant.layer.RoutedLayer`."""
        return self._captured

    @property
    def shape(self) -> tuple[int, ...]:
        """See :class:`~mixquant_agents.quant.layer.RoutedLayer`."""
        return tuple(self.operand.shape)

    @property
    def reads_by_row(self) -> bool:
        """See :class:`~mixquant_agents.quant.layer.RoutedLayer`."""
        return False

    @property
    def device(self) -> torch.device:
        """See :class:`~mixquant_agents.quant.layer.RoutedLayer`."""
        return self.operand.device

    @property
    def dtype(self) -> torch.dtype:
        """See :class:`~mixquant_agents.quant.layer.RoutedLayer`."""
        return self._dtype

    @property
    def twin(self) -> Twin[Any]:
        """The twin in use. Raises ``ValueError`` where every row stays exact."""
        if self._twin is None:
            raise ValueError(f"every row of {self.prefix!r} runs exact")
        return self._twin

    @property
    def state(self) -> Any:
        """What the twin in use keeps of the weight."""
        return self._states[self.twin.build_key][1]

    @property
    def twin_bytes(self) -> int:
        """See :class:`~mixquant_agents.quant.layer.RoutedLayer`."""
        tensors = {t.data_ptr(): t for twin, state in self._states.values() for t in twin.tensors(state).values()}
        weight = None if self._operand is None else self._operand.data_ptr()
        return sum(t.numel() * t.element_size() for address, t in tensors.items() if address != weight)

    def create_weights(
        self,
        layer: torch.nn.Module,
        input_size_per_partition: int,
        output_partition_sizes: list[int],
        input_size: int,
        output_size: int,
        params_dtype: torch.dtype,
        **kwargs: Any,
    ) -> None:
        """As vLLM's, once the twin takes the shape: a shape it does not take is refused before weights are loaded.

        Raises:
            FormatRefusedError: names the layer and what to do.
            OutOfMemoryError: the device has no room for the twins.
        """
        n, k = sum(output_partition_sizes), input_size_per_partition
        self._widths = tuple(output_partition_sizes)
        self.use(self.layer_format)
        if self._twin is not None:
            self._twin.check(n, k, self.prefix)
            if self._runtime.checkpoint is not None:
                self._runtime.checkpoint.check(self._runtime.parts_of(self.prefix), n, k)
        self._dtype = params_dtype
        self.uses_meta_device = self._twin is not None and self._twin.holds_exact
        with torch.device("meta") if self.uses_meta_device else contextlib.nullcontext():
            super().create_weights(
                layer, input_size_per_partition, output_partition_sizes, input_size, output_size, params_dtype, **kwargs
            )
        if self.uses_meta_device:
            initialize_online_processing(layer)
        if self._twin is not None and self._twin.captured and current_platform.is_cuda():
            self._runtime.reserve(self._twin.nbytes(n, k, params_dtype), beside=not self._twin.holds_exact)

    def process_weights_after_loading(self, layer: torch.nn.Module) -> None:
        """Keep the exact weight as loaded and build the start policy's twin.

        Weights that are loaded anew (``reload_weights``) come here in memory of their own; vLLM then copies them to
        where the first ones lie, which captured graphs read. So the twins take their new values where they lie, too.
        Twins from a checkpoint stay, and the weights must be those they belong to.

        Raises:
            ConfigError: twins are a checkpoint's, and weights loaded anew are others than the first ones.
        """
        if self.uses_meta_device and getattr(layer, _PROCESSED, False):
            return  # while it was loaded
        if not current_platform.is_cpu():
            # On a CPU this would pack the weight into another layout and remove it.
            super().process_weights_after_loading(layer)
        if self._twin is not None and getattr(layer, _OWN_KERNEL, False):
            setattr(layer, _OWN_KERNEL, False)
        if self._operand is None:
            self._operand = layer.weight.data
            self._runtime.add_layer(self)
            self.use(self.layer_format)
        else:
            self._renew(layer.weight.data)
        if self._twin is not None and self._twin.holds_exact:
            self._operand = self._twin.operand(self._operand, self.state)
            layer.weight = torch.nn.Parameter(self._operand, requires_grad=False)
            setattr(layer, _PROCESSED, True)
        if self._twin is not None and self._twin.captured:
            for name, tensor in self._twin.tensors(self.state).items():
                if tensor is not self._operand:
                    layer.register_buffer(f"mixquant_{name}", tensor, persistent=False)
            latest = register(layer.weight, self._twin, self.state)
            self._registered = (*self._registered[:1], latest)

    def _renew(self, weight: torch.Tensor) -> None:
        checkpoint = self._runtime.checkpoint
        calibration = self._runtime.calibration
        if self._states and calibration is not None and not torch.equal(weight, self.weight):
            reason = f"the weights loaded anew for {self.prefix!r} are not those that {calibration.path} was made of"
            if not self._runtime.calibration_is_cached:
                raise ConfigError(
                    f"{reason}; start another engine, with a calibration of the new weights or without one"
                )
            self._runtime.forget_calibration(self.prefix, reason)
        if checkpoint is None:
            for twin, state in self._states.values():
                twin.renew(state, twin.build(weight, self._calibration()))
        elif self._states and not torch.equal(weight, self.weight):
            raise checkpoint.refused_weights(self.prefix)

    def use(self, layer_format: RoutedFormat | None) -> None:
        """See :class:`~mixquant_agents.quant.layer.RoutedLayer`."""
        twin = None if layer_format is None else twin_of(layer_format, self._widths)
        if twin is not None and self._operand is not None and twin.build_key not in self._states:
            self._states[twin.build_key] = (twin, self._built(twin, self._operand))
        # Only now: a weight that the twin refuses leaves the layer as it was.
        self.layer_format = layer_format
        self._twin = twin
        self._captured = twin is not None and twin.captured

    def trials(self) -> Iterator[Unit | ExactUnit]:
        """See :class:`~mixquant_agents.quant.layer.RoutedLayer`."""
        checkpoint = self._runtime.checkpoint
        adopted = None if checkpoint is None else checkpoint.read(self._runtime.parts_of(self.prefix))
        return units_of(self, self._calibration(), adopted)

    def tuning(self) -> tuple[Twin[Any], tuple[torch.Tensor, Any]]:
        """See :class:`~mixquant_agents.quant.layer.RoutedLayer`."""
        return self.twin, (self.operand, self.state)

    def work(self, rows: Callable[[int], torch.Tensor]) -> Callable[[], torch.Tensor]:
        """See :class:`~mixquant_agents.quant.layer.RoutedLayer`."""
        x = rows(self.operand.shape[1])
        return lambda: _ops.gpu_linear(x, self.operand, None)

    def _built(self, twin: Twin[Any], weight: torch.Tensor) -> Any:
        checkpoint = self._runtime.checkpoint
        if checkpoint is None:
            return twin.build(weight, self._calibration())
        read = checkpoint.read(self._runtime.parts_of(self.prefix))
        return twin.adopt(read.to(weight.device), weight.dtype, self._calibration())

    def _calibration(self) -> LayerCalibration:
        n, k = self.operand.shape
        return self._runtime.calibration_of(self.prefix, n, k)

    def apply(self, layer: torch.nn.Module, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        """``x`` ``[..., K]`` to ``[..., N]``."""
        rows = x if x.dim() == 2 else x.reshape(-1, x.shape[-1])
        out: torch.Tensor
        if self._captured:
            out = torch.ops.mixquant.gpu_linear(rows, layer.weight, bias)
        elif self._twin is None:
            return torch.nn.functional.linear(x, layer.weight, bias)
        else:  # an eager engine
            out = eager_linear(rows, layer.weight, bias, self._twin, self.state, current_step(rows.shape[0]))
        return out if x.dim() == 2 else out.reshape(*x.shape[:-1], out.shape[-1])
