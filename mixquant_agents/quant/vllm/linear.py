"""What vLLM sees of a routed Linear: the unquantized method, plus a twin and the routed product.

A subclass of ``UnquantizedLinearMethod``, so that weight loading, LoRA and tensor parallelism meet a normal layer with
a normal ``weight``; the twin is built beside it, from the shard that this worker loaded.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from typing import Any

import torch
from vllm.model_executor.layers.linear import UnquantizedLinearMethod
from vllm.platforms import current_platform

from mixquant_agents.errors import ConfigError
from mixquant_agents.precision.resolve import RoutedFormat
from mixquant_agents.quant.formats.registry import twin_of
from mixquant_agents.quant.kernel_check import Unit, units_of
from mixquant_agents.quant.ops import linear as _ops  # also registers torch.ops.mixquant.gpu_*
from mixquant_agents.quant.ops.eager import eager_linear
from mixquant_agents.quant.runtime import Runtime
from mixquant_agents.quant.twins.base import Twin
from mixquant_agents.quant.twins.calibrated import LayerCalibration
from mixquant_agents.quant.twins.registry import RegisteredTwin, register
from mixquant_agents.quant.vllm.context import current_step

__all__ = ["MixQuantLinearMethod"]


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
        self._weight: torch.Tensor | None = None
        self._captured = False  # plain: compiled code reads it
        # Keep the twin known to the routed operations, by the first weight and by the latest.
        self._registered: tuple[RegisteredTwin, ...] = ()

    @property
    def weight(self) -> torch.Tensor:
        """The exact weight. Raises ``ValueError`` until it is loaded."""
        if self._weight is None:
            raise ValueError(f"the weight of {self.prefix!r} is not loaded yet")
        return self._weight

    @property
    def captured(self) -> bool:
        """See :class:`~mixquant_agents.quant.layer.RoutedLayer`."""
        return self._captured

    @property
    def shape(self) -> tuple[int, ...]:
        """See :class:`~mixquant_agents.quant.layer.RoutedLayer`."""
        return tuple(self.weight.shape)

    @property
    def device(self) -> torch.device:
        """See :class:`~mixquant_agents.quant.layer.RoutedLayer`."""
        return self.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """See :class:`~mixquant_agents.quant.layer.RoutedLayer`."""
        return self.weight.dtype

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
        return sum(t.numel() * t.element_size() for t in tensors.values())

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
        super().create_weights(
            layer, input_size_per_partition, output_partition_sizes, input_size, output_size, params_dtype, **kwargs
        )
        if self._twin is not None and self._twin.captured and current_platform.is_cuda():
            self._runtime.reserve(self._twin.nbytes(n, k, params_dtype))

    def process_weights_after_loading(self, layer: torch.nn.Module) -> None:
        """Keep the exact weight as loaded and build the start policy's twin.

        Weights that are loaded anew (``reload_weights``) come here in memory of their own; vLLM then copies them to
        where the first ones lie, which captured graphs read. So the twins take their new values where they lie, too.
        Twins from a checkpoint stay, and the weights must be those they belong to.

        Raises:
            ConfigError: twins are a checkpoint's, and weights loaded anew are others than the first ones.
        """
        if not current_platform.is_cpu():
            # On a CPU this would pack the weight into another layout and remove it.
            super().process_weights_after_loading(layer)
        if self._weight is None:
            self._weight = layer.weight.data
            self._runtime.add_layer(self)
            self.use(self.layer_format)
        else:
            self._renew(layer.weight.data)
        if self._twin is not None and self._twin.captured:
            for name, tensor in self._twin.tensors(self.state).items():
                layer.register_buffer(f"mixquant_{name}", tensor, persistent=False)
            latest = register(layer.weight, self._twin, self.state)
            self._registered = (*self._registered[:1], latest)

    def _renew(self, weight: torch.Tensor) -> None:
        checkpoint = self._runtime.checkpoint
        calibration = self._runtime.calibration
        if self._states and calibration is not None and not torch.equal(weight, self.weight):
            raise ConfigError(
                f"the weights loaded anew for {self.prefix!r} are others than those that {calibration.path} was made "
                "of; start another engine, with a calibration of the new weights or without one"
            )
        if checkpoint is None:
            for twin, state in self._states.values():
                twin.renew(state, twin.build(weight, self._calibration()))
        elif self._states and not torch.equal(weight, self.weight):
            raise ConfigError(
                f"the weights loaded anew for {self.prefix!r} are others than this engine started with, and "
                f"prefill_checkpoint={checkpoint.location!r} holds no twins of them; start another "
                "engine, with a checkpoint of the new weights or without one: twins made here follow their weights"
            )

    def use(self, layer_format: RoutedFormat | None) -> None:
        """See :class:`~mixquant_agents.quant.layer.RoutedLayer`."""
        self.layer_format = layer_format
        self._twin = None if layer_format is None else twin_of(layer_format, self._widths)
        self._captured = self._twin is not None and self._twin.captured
        if self._twin is not None and self._weight is not None and self._twin.build_key not in self._states:
            self._states[self._twin.build_key] = (self._twin, self._built(self._twin, self._weight))

    def trials(self) -> Iterator[Unit]:
        """See :class:`~mixquant_agents.quant.layer.RoutedLayer`."""
        checkpoint = self._runtime.checkpoint
        adopted = None if checkpoint is None else checkpoint.read(self._runtime.parts_of(self.prefix))
        return units_of(self, self._calibration(), adopted)

    def tuning(self) -> tuple[Twin[Any], tuple[torch.Tensor, Any]]:
        """See :class:`~mixquant_agents.quant.layer.RoutedLayer`."""
        return self.twin, (self.weight, self.state)

    def work(self, rows: Callable[[int], torch.Tensor]) -> Callable[[], torch.Tensor]:
        """See :class:`~mixquant_agents.quant.layer.RoutedLayer`."""
        x = rows(self.weight.shape[1])
        return lambda: _ops.gpu_linear(x, self.weight, None)

    def _built(self, twin: Twin[Any], weight: torch.Tensor) -> Any:
        checkpoint = self._runtime.checkpoint
        if checkpoint is None:
            return twin.build(weight, self._calibration())
        read = checkpoint.read(self._runtime.parts_of(self.prefix))
        return twin.adopt(read.to(weight.device), weight.dtype, self._calibration())

    def _calibration(self) -> LayerCalibration:
        n, k = self.weight.shape
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
