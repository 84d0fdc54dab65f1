"""The output layer of a draft step, quantized: else an eighth of what a draft step of an 8B model reads is 16-bit.

The layer is vLLM's own and stays exact for everybody else; drafts alone go through the twin that is built beside it.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

import torch

from mixquant_agents.errors import FormatRefusedError
from mixquant_agents.precision.recipe import PLAIN
from mixquant_agents.precision.resolve import LayerFormat
from mixquant_agents.quant.formats.registry import twin_of
from mixquant_agents.quant.kernel_check import Unit, check
from mixquant_agents.quant.ops.sources import PlainRows
from mixquant_agents.quant.step import forced_step
from mixquant_agents.quant.twins.rowwise import RowwiseTwin

__all__ = ["DRAFT_ROWS", "DraftHead"]

_log = logging.getLogger("vllm.mixquant")
"""Below vLLM's logger, whose handlers the worker has set up."""

DRAFT_ROWS = 64
"""Most rows for which the twin's products are timed; a draft has as many as there are requests."""


class DraftHead:
    """Routes an output layer between its exact weight and a twin: drafts quantized, all else exact."""

    def __init__(self, head: Any, twin: RowwiseTwin, layer_format: LayerFormat) -> None:
        """``head`` is vLLM's output layer, with its weights loaded; ``layer_format`` is the twin's.

        Raises:
            FormatRefusedError: the twin's product is wrong on this device.
        """
        self._head = head
        self._twin = twin
        self._exact = head.quant_method.apply
        self.state = twin.build(head.weight)
        twin.tune([(head.weight, self.state)], DRAFT_ROWS)
        check([Unit("lm_head", layer_format, twin, head.weight, self.state)])
        try:
            twin.tune_few_rows([(head.weight, self.state)])
            self._few_rows = True
        except Exception as error:  # a kernel that this device or release cannot compile: drafts do without
            _log.warning("mixquant: the kernel for few rows does not run here: %s", error)
            self._few_rows = False
        head.quant_method.apply = self.apply

    @classmethod
    def of(cls, model: torch.nn.Module, layer_format: LayerFormat) -> DraftHead | None:
        """For the output layer of ``model``; ``None`` where it has none, or one that no 8-bit twin of the format
        takes, or where the twin fails on this device: drafts then use the exact layer."""
        modules = model.named_modules(remove_duplicate=False)  # tied ones have the embedding's weights
        head: Any = next((module for name, module in modules if name.rpartition(".")[2] == "lm_head"), None)
        weight = None if head is None else dict(head.named_parameters()).get("weight")
        if weight is None or weight.dim() != 2 or weight.dtype not in (torch.bfloat16, torch.float16):
            return None
        own = replace(layer_format, nested=False, recipe=PLAIN)  # its storage stays as it is, and it is not calibrated
        twin = twin_of(own)
        if not isinstance(twin, RowwiseTwin):  # what four bits cost here was never measured
            return None
        try:
            twin.check(weight.shape[0], weight.shape[1], "lm_head")
        except FormatRefusedError:
            return None
        try:
            return cls(head, twin, own)
        except Exception as error:  # drafts do without, the engine starts
            _log.warning("mixquant: drafts use the exact output layer: %s", error)
            return None

    def apply(self, layer: Any, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        """``x`` ``[M, K]`` to logits ``[M, N]``."""
        step = forced_step()
        if step is None or not step.drafts or x.dtype != self._head.weight.dtype:
            exact: torch.Tensor = self._exact(layer, x, bias)
            return exact
        run = self._twin.few_rows if step.few_rows and self._few_rows else self._twin.product
        return run(PlainRows(x), self.state, bias)

    def renew(self) -> None:
        """The layer's weights were loaded anew; captured graphs read the twin where it lies."""
        self._twin.renew(self.state, self._twin.build(self._head.weight))
