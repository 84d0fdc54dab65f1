"""A twin: the quantized copy of a Linear's weight, and how rows pass through it.

The seam between routing (``op``) and arithmetic. Emulated twins, here, run anywhere: they keep the weight on its grid
in a dtype that holds the grid exactly, multiply, and put the scales on afterwards, as tensor cores do. They cost more
than the exact product and exist to show what the format does to answers. Native twins register themselves under
``native`` (see :func:`register_twin`).

Tensor parallelism: a twin is built from the weight's own shard, so it is sharded as the weight is. NVFP4's tensor
scale, and for row-parallel layers the FP8 and INT8 channel scales, then belong to the shard: finer than unsharded.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

import torch
from torch.nn.functional import linear

from mixquant_agents.errors import FormatRefusedError
from mixquant_agents.precision.formats import NumberFormat
from mixquant_agents.precision.resolve import ResolvedPolicy
from mixquant_agents.quant.formats import nvfp4
from mixquant_agents.quant.formats.emulation import fp8_rows, int8_rows, nvfp4_rows, nvfp4_tensor
from mixquant_agents.quant.formats.nvfp4 import Nvfp4Tensor

__all__ = [
    "AdoptingTwin",
    "EmulatedTwin",
    "RenewingTwin",
    "Twin",
    "adopting",
    "get_twin",
    "register_twin",
    "renew",
    "twin_key",
]


class Twin(Protocol):
    """One way to run a Linear in a number format. Stateless; all weights live in the tensors that ``build`` returns."""

    def build(self, weight: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Twin tensors of ``weight`` ``[N, K]`` (any float dtype; it is not changed)."""
        ...

    def apply(self, x: torch.Tensor, tensors: Sequence[torch.Tensor]) -> torch.Tensor:
        """``x`` ``[M, K]`` times the twin: ``[M, N]`` in ``x.dtype``, without bias. Rows never depend on each other."""
        ...


@runtime_checkable
class AdoptingTwin(Twin, Protocol):
    """A twin that can also be made from a weight that was quantized to NVFP4 before."""

    def adopt(self, weight: Nvfp4Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
        """Twin tensors with exactly the values of ``weight``, for a layer of ``dtype``."""
        ...


@runtime_checkable
class RenewingTwin(Twin, Protocol):
    """A twin of which more than its tensors depends on the weight."""

    def renew(self, tensors: Sequence[torch.Tensor], values: Sequence[torch.Tensor]) -> None:
        """See :func:`renew`."""
        ...


_Split = Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
"""``[R, K]`` to values on the format's grid (float32 ``[R, K]``) and what each row is to be multiplied by
(float32 ``[R, 1]`` or ``[]``)."""


class EmulatedTwin:
    """Grid values multiplied in a wide dtype; scales applied to the product.

    Twin tensors: the weight's grid ``[N, K]`` in float32 (bfloat16 for bfloat16 layers, which holds every grid here
    exactly), and its scale, float32 ``[N]`` or ``[]``.
    """

    def __init__(self, weight: _Split, rows: _Split | None) -> None:
        """``weight`` splits weights, ``rows`` activations; ``None`` leaves activations as they are (weight-only)."""
        self._weight = weight
        self._rows = rows

    @staticmethod
    def _wide(dtype: torch.dtype) -> torch.dtype:
        return torch.bfloat16 if dtype is torch.bfloat16 else torch.float32

    def build(self, weight: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """See :class:`Twin`."""
        grid, scale = self._weight(weight)
        return grid.to(self._wide(weight.dtype)).contiguous(), scale.flatten() if scale.ndim else scale

    def adopt(self, weight: Nvfp4Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
        """See :class:`AdoptingTwin`."""
        unscaled = weight._replace(global_scale=torch.ones_like(weight.global_scale))
        grid = nvfp4.dequantize(unscaled).to(self._wide(dtype))
        scale = 1.0 / weight.global_scale
        return grid, scale.flatten() if scale.ndim else scale

    def apply(self, x: torch.Tensor, tensors: Sequence[torch.Tensor]) -> torch.Tensor:
        """See :class:`Twin`."""
        grid, scale = tensors
        if self._rows is None:
            return (linear(x.to(grid.dtype), grid).float().mul_(scale)).to(x.dtype)
        rows, row_scale = self._rows(x)
        product = linear(rows.to(grid.dtype), grid).float()
        if scale.ndim:
            return product.mul_(row_scale).mul_(scale).to(x.dtype)
        return product.mul_(row_scale * scale).to(x.dtype)


_TWINS: dict[str, Twin] = {}


def register_twin(key: str, twin: Twin) -> None:
    """Make ``twin`` known under ``key`` (see :func:`twin_key`); a later registration replaces an earlier one."""
    _TWINS[key] = twin


def twin_key(resolved: ResolvedPolicy) -> str:
    """Name of the twin that a resolved policy uses, for example ``"nvfp4-emulated"`` or ``"fp8-native"``.

    ``""`` when the policy quantizes nothing.
    """
    if not resolved.quantizes:
        return ""
    kind = "emulated" if resolved.emulated else "native"
    return f"{resolved.prefill_format.value}-{kind}" + ("-weight-only" if resolved.policy.weight_only else "")


def get_twin(key: str) -> Twin:
    """The twin registered under ``key``.

    Raises:
        FormatRefusedError: there is none.
    """
    if key not in _TWINS:
        raise FormatRefusedError(f"no implementation {key!r} of this format; known are {', '.join(sorted(_TWINS))}")
    return _TWINS[key]


def renew(twin: Twin, tensors: Sequence[torch.Tensor], values: Sequence[torch.Tensor]) -> None:
    """Give ``tensors`` the values of ``values``, both built by ``twin``, where they lie."""
    if isinstance(twin, RenewingTwin):
        twin.renew(tensors, values)
        return
    for tensor, value in zip(tensors, values, strict=True):
        tensor.copy_(value)


def adopting(twin: Twin, key: str) -> AdoptingTwin:
    """``twin``, if it can adopt NVFP4 weights.

    Raises:
        FormatRefusedError: it cannot.
    """
    if isinstance(twin, AdoptingTwin) and key.startswith(NumberFormat.NVFP4.value):
        return twin
    raise FormatRefusedError(f"{key!r} cannot use a prefill_checkpoint; leave it out")


for _format, _weight_split, _row_split in (
    (NumberFormat.NVFP4, nvfp4_tensor, nvfp4_rows),
    (NumberFormat.FP8, fp8_rows, fp8_rows),
    (NumberFormat.INT8, int8_rows, int8_rows),
):
    register_twin(f"{_format.value}-emulated", EmulatedTwin(_weight_split, _row_split))
    register_twin(f"{_format.value}-emulated-weight-only", EmulatedTwin(_weight_split, None))
