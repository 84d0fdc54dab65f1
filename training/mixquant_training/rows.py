"""What a token of a row sees: itself and what stands before it in its own conversation.

On a GPU that is a block mask over tiles of 128 tokens whose tensors are filled anew for each batch, so that the compiled
layer stays the same; elsewhere a plain matrix of truth values.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

__all__ = ["TILE", "Seen", "tiles", "until"]

TILE = 128


def tiles(document: NDArray[np.int32]) -> tuple[NDArray[np.int32], ...]:
    """Counts and indices of the tiles that each tile of queries reads, and of those by which each tile of keys is read.

    Documents lie end to end, so a tile of queries reads the tiles from the begin of its first token's document to itself.
    """
    count = len(document) // TILE
    begins = np.maximum.accumulate(np.where(np.diff(document, prepend=-1) != 0, np.arange(len(document)), 0))
    first = begins[::TILE] // TILE
    number = np.arange(count)
    reads = number - first + 1
    read = np.minimum(first[:, None] + number[None], count - 1)
    last = np.searchsorted(first, number, side="right") - 1
    answers = last - number + 1
    answered = np.minimum(number[:, None] + number[None], count - 1)
    return tuple(part.astype(np.int32) for part in (reads, read, answers, answered))


def until(document: NDArray[np.int32], branch: NDArray[np.int32]) -> NDArray[np.int32]:
    """For each token the end of the tokens that may see it: its document's end if all branches share it, else its branch's."""
    count = len(document)

    def ends(*parts: NDArray[np.int32]) -> NDArray[np.int32]:
        last = np.append(np.any([part[1:] != part[:-1] for part in parts], axis=0), True)
        after = np.where(last, np.arange(1, count + 1), count)
        return np.minimum.accumulate(after[::-1])[::-1].astype(np.int32)

    return np.where(branch == 0, ends(document), ends(document, branch)).astype(np.int32)


class Seen:
    """The mask of one row of ``tokens`` tokens, filled by :meth:`fill`."""

    def __init__(self, tokens: int, device: str) -> None:
        self.until = torch.zeros(tokens, dtype=torch.int32, device=device)
        self.mask: Tensor | BlockMask
        ends = self.until

        def allowed(_batch: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            return (query >= key) & (query < ends[key])

        self.allowed = allowed
        if device == "cuda":
            reads, read, *_ = (
                torch.from_numpy(part)[None, None].to(device) for part in tiles(np.zeros(tokens, np.int32))
            )
            self.mask = BlockMask.from_kv_blocks(
                reads, read, BLOCK_SIZE=TILE, mask_mod=allowed, seq_lengths=(tokens, tokens)
            )
        else:
            self.mask = torch.ones(tokens, tokens, dtype=torch.bool)

    def fill(self, ends: Tensor, parts: tuple[Tensor, ...]) -> None:
        """The next batch's :func:`until` and :func:`tiles`."""
        self.until.copy_(ends, non_blocking=True)
        if isinstance(self.mask, BlockMask):
            mask = self.mask
            for tensor, part in zip((mask.kv_num_blocks, mask.kv_indices, mask.q_num_blocks, mask.q_indices), parts, strict=True):  # fmt: skip
                assert tensor is not None  # noqa: S101 - for the types: a mask from blocks has all four
                tensor[0, 0].copy_(part, non_blocking=True)
        else:
            span = torch.arange(len(ends))
            self.mask = self.allowed(span, span, span[:, None], span[None])
