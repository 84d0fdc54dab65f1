"""The mean of adapters that went on from one another: ``python -m mixquant_training.mean OUT ADAPTER ADAPTER… [--weights W W…]``.

A and B are averaged each for itself. That is no mean of the updates, but close to it for neighbours; runs far apart must not
be averaged so.
"""

from __future__ import annotations

import argparse
import pathlib

import torch

from mixquant_training.adapter import Adapter, load, save

__all__ = ["mean"]


@torch.no_grad()  # type: ignore[untyped-decorator] # torch is untyped here
def mean(adapters: list[Adapter], weights: list[float] | None = None) -> Adapter:
    """A new adapter of the first one's rank, scale and format. ``weights`` are made to sum to one; without, all count alike.

    Raises:
        ValueError: fewer than two, their ranks or scales differ, or not one positive weight for each.
    """
    first, shapes = adapters[0], [[*(tuple(part.shape) for part in one.parameters()), one.scale] for one in adapters]
    if len(adapters) < 2 or any(shape != shapes[0] for shape in shapes):
        raise ValueError(
            f"{len(adapters)} adapters of ranks {[one.rank for one in adapters]}; give two or more of one shape"
        )
    shares = torch.tensor(weights or [1.0] * len(adapters))
    if len(shares) != len(adapters) or (shares <= 0).any():
        raise ValueError(f"weights {weights} for {len(adapters)} adapters; give one positive number for each")
    ours = Adapter(first.rank, first.scale, stored=first.stored)
    for target, *parts in zip(ours.parameters(), *(one.parameters() for one in adapters), strict=True):
        target.copy_(torch.tensordot(shares / shares.sum(), torch.stack(parts), dims=1))
    return ours


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("adapters", type=pathlib.Path, nargs="+")
    parser.add_argument("--weights", type=float, nargs="+")
    args = parser.parse_args()
    print(save(mean([load(folder) for folder in args.adapters], args.weights), args.out), "bytes")
