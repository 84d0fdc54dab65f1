"""Examples in bulk: made by all cores, kept as arrays, handed out in batches of similar length."""

from __future__ import annotations

import argparse
import multiprocessing
import pathlib
import random
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor

from training.generate.encode import encode
from training.generate.mix import example

__all__ = ["Batch", "Examples", "batches", "main", "make", "read"]

MAX_TOKENS = 1536
_CHUNK = 500
_PAD = 32  # lengths are rounded up to a multiple, so that few shapes occur


@dataclass
class Examples:
    """Token ids (uint16) and learnt flags of many examples, end to end; ``starts`` has one more entry than examples."""

    ids: NDArray[np.uint16]
    learnt: NDArray[np.bool_]
    starts: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.starts) - 1


@dataclass
class Batch:
    """Right-padded ids ``[rows, length]`` and the flat positions whose next token is learnt, with those tokens.

    ``begins`` marks the first token of each answer: there the model decides whether it calls.
    """

    ids: Tensor
    positions: Tensor
    targets: Tensor
    begins: Tensor
    tokens: int


def _chunk(task: tuple[str, int]) -> tuple[list[NDArray[np.uint16]], list[NDArray[np.bool_]]]:
    path, seed = task
    tokenizer = Tokenizer.from_file(path)
    rng = random.Random(seed)
    ids, learnt = [], []
    while len(ids) < _CHUNK:
        scene = example(rng)
        tokens, flags = encode(tokenizer, scene.messages, scene.schemas)
        if len(tokens) <= MAX_TOKENS:
            ids.append(np.array(tokens, dtype=np.uint16))
            learnt.append(np.array(flags, dtype=np.bool_))
    return ids, learnt


def make(tokenizer: pathlib.Path, count: int, seed: int, workers: int) -> Examples:
    """``count`` examples. The same seed gives the same examples, whatever the number of workers."""
    tasks = [(str(tokenizer), seed * 1_000_000 + index) for index in range(-(-count // _CHUNK))]
    ids: list[NDArray[np.uint16]] = []
    learnt: list[NDArray[np.bool_]] = []
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        for some_ids, some_learnt in pool.imap(_chunk, tasks):
            ids += some_ids
            learnt += some_learnt
    starts = np.concatenate([[0], np.cumsum([len(one) for one in ids])]).astype(np.int64)
    return Examples(np.concatenate(ids), np.concatenate(learnt), starts)


def batches(examples: Examples, tokens: int, rng: random.Random) -> Iterator[Batch]:
    """One epoch in random order; each batch holds rows of similar length, at most ``tokens`` with padding."""
    order = list(range(len(examples)))
    rng.shuffle(order)
    groups = []
    for begin in range(0, len(order), 4096):
        window = sorted(
            order[begin : begin + 4096], key=lambda index: examples.starts[index + 1] - examples.starts[index]
        )
        rows: list[int] = []
        for index in window:
            length = _padded(int(examples.starts[index + 1] - examples.starts[index]))
            if rows and (len(rows) + 1) * length > tokens:
                groups.append(rows)
                rows = []
            rows.append(index)
        groups.append(rows)
    rng.shuffle(groups)
    for rows in groups:
        yield _batch(examples, rows)


def _padded(length: int) -> int:
    return -(-length // _PAD) * _PAD


def _batch(examples: Examples, rows: list[int]) -> Batch:
    spans = [(int(examples.starts[row]), int(examples.starts[row + 1])) for row in rows]
    width = _padded(max(end - start for start, end in spans))
    ids = np.zeros((len(rows), width), dtype=np.int64)
    learnt = np.zeros((len(rows), width), dtype=np.bool_)
    for row, (start, end) in enumerate(spans):
        ids[row, : end - start] = examples.ids[start:end]
        learnt[row, : end - start] = examples.learnt[start:end]
    rows_at, columns = np.nonzero(learnt[:, 1:])
    flat = rows_at * width + columns
    return Batch(
        torch.from_numpy(ids),
        torch.from_numpy(flat),
        torch.from_numpy(ids[rows_at, columns + 1]),
        torch.from_numpy(~learnt[rows_at, columns]),
        sum(e - s for s, e in spans),
    )


def read(path: pathlib.Path) -> Examples:
    """Examples written by :func:`main`."""
    with np.load(path) as stored:
        return Examples(stored["ids"], stored["learnt"], stored["starts"])


def main(arguments: list[str] | None = None) -> None:
    """Make examples and write them to a file."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--tokenizer", type=pathlib.Path, required=True)
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--examples", type=int, default=200_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--workers", type=int, default=16)
    args = parser.parse_args(arguments)
    made = make(args.tokenizer, args.examples, args.seed, args.workers)
    partial = args.out.with_suffix(".partial.npz")
    np.savez(partial, ids=made.ids, learnt=made.learnt, starts=made.starts)
    partial.rename(args.out)


if __name__ == "__main__":
    main()
