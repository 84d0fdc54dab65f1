"""What a routed operation reads: rows as they come, or those that a norm or an activation makes of them.

A source gives its rows unquantized, or quantized per token by one fused kernel. Each is used once per operation.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor

from mixquant_agents.quant.ops import nvfp4_torch, rowwise_torch

__all__ = ["AddNormRows", "ExactRows", "NormRows", "PlainRows", "RowSource", "SiluRows", "kernels_for"]


class ExactRows(NamedTuple):
    """Where the rows that run exact go while the others are quantized.

    Attributes:
        index: int32 ``[S]``, which rows; negative: unused.
        rows: ``[S, K]`` in the input's dtype, to be filled by whoever reads the source.
    """

    index: Tensor
    rows: Tensor


def kernels_for(x: Tensor) -> ModuleType:
    """The row kernels for the device of ``x``: Triton's, or their plain forms where there is no GPU."""
    if not x.is_cuda:
        return rowwise_torch
    from mixquant_agents.quant.ops import rowwise_triton

    return rowwise_triton


class RowSource(ABC):
    """``[M, K]`` in the dtype of ``x``, the tensor that the operation got."""

    def __init__(self, x: Tensor) -> None:
        self.x = x
        self.kernels = kernels_for(x)

    @abstractmethod
    def rows(self) -> Tensor:
        """All rows, unquantized."""

    @abstractmethod
    def quantized(
        self, dtype: torch.dtype, exact: ExactRows | None = None, ordered: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Codes of ``dtype`` ``[M, K]`` and scales float32 ``[M, 1]``; the same kernel fills ``exact``.

        With ``ordered`` the codes' columns are in the order of nested weights; ``exact`` is not.
        """

    def rows_with(self, exact: ExactRows | None = None, channel_scale: Tensor | None = None) -> Tensor:
        """:meth:`rows`; fills ``exact`` too.

        Args:
            exact: where exact rows go, as they are.
            channel_scale: float32 ``[K]``, powers of two: channels of what is returned are multiplied by them.
        """
        if channel_scale is not None:
            return self._scaled(exact, channel_scale)
        rows = self.rows()
        _gather(rows, exact)
        return rows

    def _scaled(self, exact: ExactRows | None, channel_scale: Tensor) -> Tensor:
        rows = self.rows()
        _gather(rows, exact)
        return rows * channel_scale.to(rows.dtype)  # exact: powers of two

    def four_over_six(
        self,
        encode_scale: Tensor,
        exact: ExactRows | None = None,
        channel_scale: Tensor | None = None,
        padded_columns: int | None = None,
    ) -> tuple[Tensor, Tensor]:
        """:meth:`rows_with` in NVFP4 with 4/6 block scales; fills ``exact`` too.

        Returns:
            codes and block scales: see :func:`mixquant_agents.quant.ops.nvfp4_torch.quantize_rows`.
        """
        rows = self.rows_with(exact, channel_scale)
        return _four_over_six(rows, encode_scale, None, padded_columns)


def _four_over_six(
    rows: Tensor, encode_scale: Tensor, channel_scale: Tensor | None, padded_columns: int | None
) -> tuple[Tensor, Tensor]:
    if rows.is_cuda:
        from mixquant_agents.quant.ops import nvfp4_triton

        return nvfp4_triton.quantize_rows(rows, encode_scale, True, channel_scale, padded_columns)
    return nvfp4_torch.quantize_rows(rows, encode_scale, True, channel_scale, padded_columns)


def _gather(rows: Tensor, exact: ExactRows | None) -> None:
    if exact is not None:
        torch.index_select(rows, 0, exact.index.clamp_min(0), out=exact.rows)


def _fixed(exact: ExactRows | None) -> tuple[Tensor | None, Tensor | None]:
    return (None, None) if exact is None else exact


class PlainRows(RowSource):
    """``x`` itself."""

    def rows(self) -> Tensor:
        return self.x

    def quantized(
        self, dtype: torch.dtype, exact: ExactRows | None = None, ordered: bool = False
    ) -> tuple[Tensor, Tensor]:
        codes, scales = self.kernels.quantize_rows(self.x, dtype, *_fixed(exact), ordered)
        return codes, scales

    def four_over_six(
        self,
        encode_scale: Tensor,
        exact: ExactRows | None = None,
        channel_scale: Tensor | None = None,
        padded_columns: int | None = None,
    ) -> tuple[Tensor, Tensor]:
        _gather(self.x, exact)
        return _four_over_six(self.x, encode_scale, channel_scale, padded_columns)


class NormRows(RowSource):
    """``rms_norm(x) * gamma``."""

    def __init__(self, x: Tensor, gamma: Tensor, eps: float) -> None:
        super().__init__(x)
        self.gamma, self.eps = gamma, eps

    def rows(self) -> Tensor:
        rows: Tensor = self.kernels.norm_rows(self.x, None, self.gamma, self.eps)[0]
        return rows

    def _scaled(self, exact: ExactRows | None, channel_scale: Tensor) -> Tensor:
        fixed = _fixed(exact)
        rows: Tensor = self.kernels.norm_rows(self.x, None, self.gamma, self.eps, channel_scale, *fixed)[0]
        return rows

    def quantized(
        self, dtype: torch.dtype, exact: ExactRows | None = None, ordered: bool = False
    ) -> tuple[Tensor, Tensor]:
        codes, scales, _ = self.kernels.norm_quantize_rows(
            self.x, None, self.gamma, self.eps, dtype, *_fixed(exact), ordered
        )
        return codes, scales


class AddNormRows(RowSource):
    """``rms_norm(x + residual) * gamma``. ``total`` is the sum, once the rows were read."""

    def __init__(self, x: Tensor, residual: Tensor, gamma: Tensor, eps: float) -> None:
        super().__init__(x)
        self.residual, self.gamma, self.eps = residual, gamma, eps
        self.total = residual

    def rows(self) -> Tensor:
        rows: Tensor
        rows, self.total = self.kernels.norm_rows(self.x, self.residual, self.gamma, self.eps)
        return rows

    def _scaled(self, exact: ExactRows | None, channel_scale: Tensor) -> Tensor:
        rows: Tensor
        rows, self.total = self.kernels.norm_rows(
            self.x, self.residual, self.gamma, self.eps, channel_scale, *_fixed(exact)
        )
        return rows

    def quantized(
        self, dtype: torch.dtype, exact: ExactRows | None = None, ordered: bool = False
    ) -> tuple[Tensor, Tensor]:
        codes, scales, self.total = self.kernels.norm_quantize_rows(
            self.x, self.residual, self.gamma, self.eps, dtype, *_fixed(exact), ordered
        )
        return codes, scales


class SiluRows(RowSource):
    """``silu(gate) * up`` of ``x`` ``[M, 2K]``."""

    def rows(self) -> Tensor:
        rows: Tensor = self.kernels.silu_rows(self.x)
        return rows

    def _scaled(self, exact: ExactRows | None, channel_scale: Tensor) -> Tensor:
        rows: Tensor = self.kernels.silu_rows(self.x, channel_scale, *_fixed(exact))
        return rows

    def quantized(
        self, dtype: torch.dtype, exact: ExactRows | None = None, ordered: bool = False
    ) -> tuple[Tensor, Tensor]:
        codes, scales = self.kernels.silu_quantize_rows(self.x, dtype, *_fixed(exact), ordered)
        return codes, scales
