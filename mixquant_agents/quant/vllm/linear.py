"""What vLLM sees of a routed Linear: the unquantized method, plus a twin and the routed product.

A subclass of ``UnquantizedLinearMethod``, so that weight loading, LoRA and tensor parallelism meet a normal layer with
a normal ``weight``; the twin is built beside it, from the shard that this worker loaded.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from vllm.model_executor.layers.linear import UnquantizedLinearMethod
from vllm.platforms import current_platform

from mixquant_agents.errors import ConfigError
from mixquant_agents.quant.ops import emulated as _op  # noqa: F401 - registers torch.ops.mixquant.routed_linear
from mixquant_agents.quant.twins.base import adopting, get_twin, renew

if TYPE_CHECKING:
    from mixquant_agents.quant.runtime import Runtime

__all__ = ["MixQuantLinearMethod"]


class MixQuantLinearMethod(UnquantizedLinearMethod):  # type: ignore[misc] # vllm is untyped here
    """Routes the rows of one Linear between its exact weight and its twin."""

    supports_pre_processed_weights = False

    def __init__(self, runtime: Runtime, prefix: str) -> None:
        """``prefix`` is the layer's full name, for messages and status."""
        super().__init__()
        self._runtime = runtime
        self.prefix = prefix
        self.key = runtime.twin_of(prefix)
        self._twins: dict[str, tuple[torch.Tensor, ...]] = {}
        self._weight: torch.Tensor | None = None
        self._held: Any = None  # keeps the twin known to the routed operations, by the first weight and by the latest
        self._native = self.key.endswith("-native")  # runs as one operation that captured graphs can hold

    def create_weights(
        self,
        layer: torch.nn.Module,
        input_size_per_partition: int,
        output_partition_sizes: list[int],
        *args: Any,
        **kwargs: Any,
    ) -> None:
        """As vLLM's, once the twin takes the shape: a shape it does not take is refused before weights are loaded.

        Raises:
            FormatRefusedError: names the layer and what to do.
            OutOfMemoryError: the device has no room for the twins.
        """
        check = getattr(get_twin(self.key), "check", None) if self.key else None
        if check is not None:
            check(sum(output_partition_sizes), input_size_per_partition, self.prefix)
        if self.key and self._runtime.checkpoint is not None:
            adopting(get_twin(self.key), self.key)
            names = self._runtime.parts_of(self.prefix)
            self._runtime.checkpoint.check(names, sum(output_partition_sizes), input_size_per_partition)
        super().create_weights(layer, input_size_per_partition, output_partition_sizes, *args, **kwargs)
        if self._native and self._runtime.gpu is not None:
            self._runtime.gpu.reserve(sum(output_partition_sizes), input_size_per_partition)

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
        first = self._weight is None
        if first:
            self._weight = layer.weight.data
            self._runtime.add_layer(self)
            self.use(self.key)
        elif self._runtime.checkpoint is None:
            for key, tensors in self._twins.items():
                renew(get_twin(key), tensors, self._built(key, layer.weight.data))
        elif self._twins and not torch.equal(layer.weight.data, self._weight):
            raise ConfigError(
                f"the weights loaded anew for {self.prefix!r} are others than this engine started with, and "
                f"prefill_checkpoint={self._runtime.checkpoint.location!r} holds no twins of them; start another "
                "engine, with a checkpoint of the new weights or without one: twins made here follow their weights"
            )
        if self._native:
            for name, tensor in zip(("mixquant_codes", "mixquant_scales"), self._twins[self.key], strict=True):
                layer.register_buffer(name, tensor, persistent=False)
            from mixquant_agents.quant.twins.registry import hold

            latest = hold(layer.weight, *self._twins[self.key])
            self._held = (latest if first else self._held[0], latest)

    def use(self, key: str) -> None:
        """Route through the twin named ``key``, built now if it is not there yet; ``""`` runs every row exact."""
        self.key = key
        if key and self._weight is not None and key not in self._twins:
            shared = key.removesuffix("-weight-only")
            for name in (shared, f"{shared}-weight-only"):
                if name in self._twins:  # the weights of both are the same
                    self._twins[key] = self._twins[name]
                    return
            self._twins[key] = self._built(key, self._weight)

    def _built(self, key: str, weight: torch.Tensor) -> tuple[torch.Tensor, ...]:
        twin, checkpoint = get_twin(key), self._runtime.checkpoint
        if checkpoint is None:
            return twin.build(weight)
        read = checkpoint.read(self._runtime.parts_of(self.prefix))
        return adopting(twin, key).adopt(read.to(weight.device), weight.dtype)

    def tensors(self) -> Iterator[tuple[torch.Tensor, ...]]:
        """The exact weight with the twin in use, if there is one."""
        if self.key and self._weight is not None:
            yield self._weight, *self._twins[self.key]

    @property
    def twin_bytes(self) -> int:
        """Bytes of all twins of this layer."""
        tensors = {t.data_ptr(): t for tensors in self._twins.values() for t in tensors}
        return sum(t.numel() * t.element_size() for t in tensors.values())

    def apply(self, layer: torch.nn.Module, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        """``x`` ``[..., K]`` to ``[..., N]``."""
        if not self.key:
            return torch.nn.functional.linear(x, layer.weight, bias)
        rows = x if x.dim() == 2 else x.reshape(-1, x.shape[-1])
        if self._native:
            out: torch.Tensor = torch.ops.mixquant.gpu_linear(rows, layer.weight, bias)
            return out if x.dim() == 2 else out.reshape(*x.shape[:-1], out.shape[-1])
        y: torch.Tensor = torch.ops.mixquant.routed_linear(rows, layer.weight, list(self._twins[self.key]), self.key)
        if bias is not None:
            y = y + bias
        return y.reshape(*x.shape[:-1], y.shape[-1])
