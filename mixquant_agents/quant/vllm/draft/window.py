"""What of a long context a draft reads: its first blocks and its last ones, by a block table of its own.

One row attends to keys that carry their positions in them, so the order of blocks does not matter to it, and blocks may
be left out. A context of at most ``first + last`` tokens is read whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

__all__ = ["DraftTables"]


class DraftTables:
    """Block tables of draft steps, at fixed addresses; also what vLLM's capture asks of block tables.

    Attributes:
        tables: int32 ``[requests, blocks]`` for each KV cache group.
    """

    def __init__(self, block_tables: Any, first: int, last: int | None) -> None:
        """
        Args:
            block_tables: vLLM's.
            first: tokens of the context's beginning that are kept, rounded up to blocks.
            last: tokens before the cycle's end, its own drafts among them; ``None``: everything is read.
        """
        self._source = block_tables
        self.tables = [torch.zeros_like(table) for table in block_tables.input_block_tables]
        self._blocks = [_rounded(size, first, last) for size in _block_sizes(block_tables)]
        self._columns = [torch.arange(table.shape[1], device=table.device) for table in self.tables]

    @property
    def longest(self) -> int | None:
        """Most tokens that a draft reads of one request; ``None``: all there are."""
        blocks = self._blocks[0]
        return None if blocks is None or len(self.tables) > 1 else _block_sizes(self._source)[0] * sum(blocks)

    def follow(self, requests: int, ends: torch.Tensor, lengths: torch.Tensor) -> None:
        """Begin a cycle: copy what is read of the step's block tables, and shorten ``lengths`` to it, in place.

        Args:
            requests: of the step.
            ends: ``[requests]``, first position that the cycle leaves without KV.
            lengths: int32 ``[requests]``, tokens that the first draft step would read of the whole context.
        """
        if len(self.tables) == 1:
            lengths -= self._copy(0, requests, ends)
            return
        for group in range(len(self.tables)):  # groups of unlike blocks have one length: nothing is left out
            self.tables[group][:requests].copy_(self._source.input_block_tables[group][:requests])

    def _copy(self, group: int, requests: int, ends: torch.Tensor) -> torch.Tensor | int:
        """Returns how many tokens were left out of each request."""
        source, target = self._source.input_block_tables[group], self.tables[group]
        blocks = self._blocks[group]
        if blocks is None:
            target[:requests].copy_(source[:requests])
            return 0
        size = _block_sizes(self._source)[group]
        first, last = blocks
        width = min(first + last, source.shape[1])
        skipped = (torch.div(ends + (size - 1), size, rounding_mode="floor") - width).clamp_(min=0)
        columns = self._columns[group][:width]
        index = columns + torch.where(columns < first, 0, skipped.view(-1, 1).long())
        torch.gather(source[:requests], 1, index.clamp_(max=source.shape[1] - 1), out=target[:requests, :width])
        return (skipped * size).to(torch.int32)

    # --- asked for by vLLM's capture ----------------------------------------------------------------------------------

    def get_dummy_block_tables(self, requests: int) -> tuple[torch.Tensor, ...]:
        """The tables that captured graphs read."""
        return tuple(table[:requests] for table in self.tables)

    def __getattr__(self, name: str) -> Any:
        """All else is vLLM's."""
        return getattr(self._source, name)


def _rounded(size: int, first: int, last: int | None) -> tuple[int, int] | None:
    """``(first, last)`` in blocks; one block more at the end, which is seldom full."""
    return None if last is None else (-(-first // size), -(-last // size) + 1)


def _block_sizes(block_tables: Any) -> Sequence[int]:
    """Tokens of a block as the tables count them: a release that splits blocks for kernels says so."""
    sizes: Sequence[int] = getattr(block_tables, "kernel_block_sizes", None) or block_tables.block_sizes
    return sizes
