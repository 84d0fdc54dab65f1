"""The mean of adapters that went on from one another: ``python -m training.mean OUT ADAPTER ADAPTER…``.

A and B are averaged each for itself. That is no mean of the updates, but close to it for neighbours; runs far apart must not
be averaged so.
"""

from __future__ import annotations

import pathlib
import sys

import torch

from training.adapter import Adapter, load, save

__all__ = ["mean"]


@torch.no_grad()
def mean(adapters: list[Adapter]) -> Adapter:
    """A new adapter of the first one's ranks, scale and format.

    Raises:
        ValueError: fewer than two, or their ranks or scales differ.
    """
    first, shapes = adapters[0], [[*(tuple(part.shape) for part in one.parameters()), one.scale] for one in adapters]
    if len(adapters) < 2 or any(shape != shapes[0] for shape in shapes):
        raise ValueError(
            f"{len(adapters)} adapters of ranks {[one.rank for one in adapters]}; give two or more of one shape"
        )
    ours = Adapter(first.rank, first.scale, ranks=first.ranks, stored=first.stored)
    for target, *parts in zip(ours.parameters(), *(one.parameters() for one in adapters), strict=True):
        target.copy_(torch.stack(parts).mean(0))
    return ours


if __name__ == "__main__":
    if len(sys.argv) < 4:
        sys.exit(__doc__)
    out, *folders = map(pathlib.Path, sys.argv[1:])
    print(save(mean([load(folder) for folder in folders]), out), "bytes")
