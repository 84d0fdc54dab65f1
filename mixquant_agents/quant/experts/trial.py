"""A native twin of experts held against its emulation, on the model's own weights, before the first request."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch

from mixquant_agents.precision.resolve import LayerFormat
from mixquant_agents.quant.experts.emulated import EmulatedExperts
from mixquant_agents.quant.experts.layer import ExpertRows, ExpertsLayer, ExpertWeights
from mixquant_agents.quant.experts.twin import ExpertsTwin
from mixquant_agents.quant.formats.registry import emulated_twin
from mixquant_agents.quant.kernel_check import COPIES, sample_rows
from mixquant_agents.quant.row_errors import largest_error

__all__ = ["ExpertsTrial"]

LIMIT = 0.15
"""Largest error of a row, of its length. Two products lie behind each other: what the first rounds in another place
changes codes of the second. Seen: 0.03 in FP8, 0.07 in NVFP4, of rows with one large value."""

_EXPERTS = 4
"""So many experts, the first and the last among them, get all rows: the reference is built of them alone."""


@dataclass(frozen=True, slots=True)
class ExpertsTrial:
    """The product of one layer: a :class:`~mixquant_agents.quant.layer.KernelTrial`.

    Attributes:
        layer: but for its weights.
        layer_format: native.
        twin: that runs it.
        state: the twin's.
        weights: exact.
    """

    layer: ExpertsLayer
    layer_format: LayerFormat
    twin: ExpertsTwin[Any]
    state: Any
    weights: ExpertWeights

    @property
    def key(self) -> str:
        """See :class:`~mixquant_agents.quant.layer.KernelTrial`."""
        shape = self.layer.shape
        return f"{self.layer_format.name} {shape.experts} experts {shape.up}x{shape.hidden}"

    @property
    def name(self) -> str:
        """See :class:`~mixquant_agents.quant.layer.KernelTrial`."""
        return self.layer.prefix

    @property
    def kernel(self) -> str | None:
        """See :class:`~mixquant_agents.quant.layer.KernelTrial`: none that ``VLLM_DISABLED_KERNELS`` knows."""
        return None

    @property
    def limit(self) -> float:
        """See :class:`~mixquant_agents.quant.layer.KernelTrial`."""
        return LIMIT

    def error(self) -> float:
        """See :class:`~mixquant_agents.quant.layer.KernelTrial`."""
        weights = self.weights
        # Scaled so that what is between the two products is about 1, whatever the weights are: random ones of a
        # benchmark may be tiny, and vLLM's kernels have a floor below which a row's values are zero.
        size = float(weights.up[0].float().square().mean().sqrt()) * weights.up.shape[2] ** 0.5
        x = sample_rows(weights.up.shape[2], weights.up.device, weights.up.dtype) / max(size, 1e-30)
        rows, local = self._rows(x)
        few = ExpertWeights(*(None if each is None else each[local] for each in weights))
        reference = EmulatedExperts(emulated_twin(dataclasses.replace(self.layer_format, emulated=True)))
        plain = dataclasses.replace(self.layer, expert_map=lambda: None)
        renumbered = torch.searchsorted(self._global(local), rows.ids.long())
        expected = reference.product(rows._replace(ids=renumbered), reference.build(few, plain), plain).float()
        products = (
            self.twin.product(ExpertRows(*(each.repeat(copies, 1) for each in rows)), self.state, self.layer)
            for copies in COPIES
        )
        return max(largest_error(product, expected) for product in products)

    def _rows(self, x: torch.Tensor) -> tuple[ExpertRows, torch.Tensor]:
        """The rows, each with some of a few experts, and those experts' numbers on this rank, ascending."""
        shape = self.layer.shape
        count = min(max(_EXPERTS, shape.chosen), shape.experts)
        local = torch.linspace(0, shape.experts - 1, count, device=x.device).round().long().unique()
        chosen = min(shape.chosen, local.numel())
        slots = torch.arange(x.shape[0], device=x.device).unsqueeze(1) + torch.arange(chosen, device=x.device)
        ids = self._global(local)[slots % local.numel()].to(torch.int32)
        weights = torch.full(ids.shape, 1.0 / chosen, dtype=torch.float32, device=x.device)
        return ExpertRows(x, weights, ids), local

    def _global(self, local: torch.Tensor) -> torch.Tensor:
        """Numbers among all ranks' experts of those with the numbers ``local`` here."""
        expert_map = self.layer.expert_map()
        if expert_map is None:
            return local
        return torch.stack([(expert_map == each).nonzero()[0, 0] for each in local])
