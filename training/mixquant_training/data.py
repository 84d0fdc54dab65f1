"""Examples in bulk: endless batches made by worker processes while the device trains, so that no example comes twice.

A batch is one row of tokens, many conversations end to end. Each token carries the number of its conversation's document,
its branch in that document (0: the beginning that all branches share) and its position as the model counts it.
"""

from __future__ import annotations

import multiprocessing
import multiprocessing.pool
import pathlib
import random
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from mixquant_training.generate.encode import encode
from mixquant_training.generate.mix import examples

__all__ = ["Batch", "batch", "stream", "tree"]

MAX_TOKENS = 1536
"""Longest conversation."""
_MISSES = 6  # examples that did not fit before a batch counts as full


@dataclass
class Batch:
    """One row of tokens. ``at`` are the places whose next token is learnt; ``begins`` marks an answer's first token."""

    ids: NDArray[np.int32]
    document: NDArray[np.int32]
    branch: NDArray[np.int32]
    position: NDArray[np.int32]
    at: NDArray[np.int32]
    begins: NDArray[np.bool_]
    used: int  # tokens that are no padding
    read: int  # tokens of the same conversations one by one


def tree(conversations: list[tuple[list[int], list[bool]]]) -> tuple[list[int], list[bool], list[int], list[int]]:
    """Conversations that begin alike as one document: ids, learnt flags, branches, positions. The beginning comes once."""
    first = conversations[0][0]
    shared = 0
    if len(conversations) > 1:
        shared = min(len(ids) for ids, _ in conversations) - 1
        for ids, learnt in conversations:
            shared = next((i for i in range(shared) if ids[i] != first[i] or learnt[i]), shared)
    ids, learnt, branch, position = list(first[:shared]), [False] * shared, [0] * shared, list(range(shared))
    for number, (own, flags) in enumerate(conversations, 1):
        ids += own[shared:]
        learnt += flags[shared:]
        branch += [number] * (len(own) - shared)
        position += range(shared, len(own))
    return ids, learnt, branch, position


def batch(tokenizer: Tokenizer, tokens: int, learnt: int, rng: random.Random) -> Batch:
    """One batch of exactly ``tokens`` tokens with at most ``learnt`` learnt ones; what is left over is padding."""
    ids: list[int] = []
    flags: list[bool] = []
    document: list[int] = []
    branch: list[int] = []
    position: list[int] = []
    count = misses = read = taught = 0
    while misses < _MISSES:
        scenes = examples(rng)
        encoded = [encode(tokenizer, scene.messages, scene.schemas) for scene in scenes]
        encoded = [one for one in encoded if len(one[0]) <= MAX_TOKENS]
        if not encoded:
            continue
        new_ids, new_flags, new_branch, new_position = tree(encoded)
        if len(ids) + len(new_ids) > tokens or taught + sum(new_flags) > learnt:
            misses += 1
            continue
        ids += new_ids
        flags += new_flags
        branch += new_branch
        position += new_position
        document += [count] * len(new_ids)
        count, taught = count + 1, taught + sum(new_flags)
        read += sum(len(one) for one, _ in encoded)
    rest = tokens - len(ids)
    at = np.nonzero(np.array(flags)[1:])[0]
    return Batch(
        np.array(ids + [0] * rest, np.int32),
        np.array(document + [count] * rest, np.int32),
        np.array(branch + [0] * rest, np.int32),
        np.array(position + [0] * rest, np.int32),
        at.astype(np.int32),
        ~np.array(flags)[at],
        len(ids),
        read,
    )


_TOKENIZER: list[Tokenizer] = []


def _start(path: str) -> None:
    _TOKENIZER.append(Tokenizer.from_file(path))


def _make(task: tuple[int, int, int]) -> Batch:
    tokens, learnt, seed = task
    return batch(_TOKENIZER[0], tokens, learnt, random.Random(seed))


def stream(tokenizer: pathlib.Path, tokens: int, learnt: int, seed: int, workers: int, ahead: int) -> Iterator[Batch]:
    """Endless batches; at most ``ahead`` wait. The same seed gives the same batches, whatever the number of workers."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(workers, initializer=_start, initargs=(str(tokenizer),)) as pool:
        waiting: list[multiprocessing.pool.AsyncResult[Batch]] = []
        number = seed * 1_000_000
        while True:
            while len(waiting) < ahead:
                waiting.append(pool.apply_async(_make, ((tokens, learnt, number),)))
                number += 1
            yield waiting.pop(0).get()
