"""Teach the embedded model tools: ``python -m mixquant_training.train --seconds 300 --out DIR``.

The learning rate follows the clock, not the step count, so that a run of given length always ends with a finished
schedule, whatever the device.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import pathlib
import queue
import random
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the usual name

from mixquant_training import model as net
from mixquant_training.adapter import FORMATS, Adapter, grown, load, merged, save
from mixquant_training.data import stream
from mixquant_training.keep import Kept, kept_rows, make_kept
from mixquant_training.rows import Seen, tiles, until


def options(arguments: list[str] | None = None) -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gguf", type=pathlib.Path, required=True, help="SmolLM2-135M-Instruct.Q4_1.gguf")
    parser.add_argument("--tokenizer", type=pathlib.Path, required=True, help="tokenizer.json")
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--seconds", type=float, default=300, help="time of training itself")
    parser.add_argument(
        "--part", type=float, nargs=2, default=[0.0, 1.0], help="which part of the schedule: a run of several pieces"
    )
    parser.add_argument("--workers", type=int, default=14)
    parser.add_argument("--resume", type=pathlib.Path, help="adapter folder to go on from")
    parser.add_argument("--rank", type=int, default=38)
    parser.add_argument("--format", choices=sorted(FORMATS), default="float8", help="of the adapter's file")
    parser.add_argument("--scale", type=float, default=2.0)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--tokens", type=int, default=28_672, help="tokens of a step")
    parser.add_argument("--learnt", type=int, default=10_240, help="most learnt tokens of a step")
    parser.add_argument("--kept-tokens", type=int, default=4_096, help="tokens of kept texts in a step")
    parser.add_argument("--compared", type=int, default=3_072, help="most places of a step compared with the base")
    parser.add_argument(
        "--kept", type=int, nargs=3, default=[6000, 500, 700], help="chats, free texts, documentation windows"
    )
    parser.add_argument("--kept-weight", type=float, default=1.0)
    parser.add_argument("--kept-begin-weight", type=float, default=8.0, help="weight of a kept text's first place")
    parser.add_argument("--begin-weight", type=float, default=2.0, help="weight of an answer's first token")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--save-every", type=float, default=60)
    return parser.parse_args(arguments)


def say(*parts: object) -> None:
    """A line on stderr with the clock."""
    print(f"[{time.monotonic() - _START:7.1f}]", *parts, file=sys.stderr, flush=True)


_START = time.monotonic()


_Item = TypeVar("_Item")
_Function = TypeVar("_Function", bound=Callable[..., Any])


def ahead(items: Iterator[_Item], depth: int = 6) -> Iterator[_Item]:
    """The same items, made by a thread while the device works."""
    ready: queue.Queue[_Item] = queue.Queue(depth)

    def fill() -> None:
        for item in items:
            ready.put(item)

    threading.Thread(target=fill, daemon=True).start()
    while True:
        yield ready.get()


@dataclass
class Step:
    """One step's input on the host: a row of learnt and kept tokens, and what is compared where. Padded to fixed sizes."""

    ids: Tensor
    until: Tensor
    position: Tensor
    tiles: tuple[Tensor, ...]
    at: Tensor
    targets: Tensor
    weight: Tensor
    kept_at: Tensor
    kept_weight: Tensor
    states: Tensor
    used: int
    read: int


def inputs(args: argparse.Namespace, kept: list[Kept]) -> Iterator[Step]:
    """Endless: each batch of examples beside kept texts."""
    made = stream(args.tokenizer, args.tokens, args.learnt, args.seed, args.workers, 4 * args.workers)
    rows = kept_rows(kept, args.kept_tokens, args.compared, random.Random(args.seed))
    for example, row in zip(made, rows, strict=False):
        document = np.concatenate([example.document, row.document + example.document[-1] + 1])
        at, weight, targets = (np.zeros(args.learnt, kind) for kind in (np.int64, np.float32, np.int64))
        at[: len(example.at)], targets[: len(example.at)] = example.at, example.ids[example.at + 1]
        weight[: len(example.at)] = 1 + (args.begin_weight - 1) * example.begins
        kept_at, kept_weight = np.zeros(args.compared, np.int64), np.zeros(args.compared, np.float32)
        kept_at[: len(row.at)] = row.at + args.tokens
        kept_weight[: len(row.at)] = 1 + (args.kept_begin_weight - 1) * row.begins
        host = {
            "ids": np.concatenate([example.ids, row.ids]),
            "until": until(document, np.concatenate([example.branch, np.zeros_like(row.ids)])),
            "position": np.concatenate([example.position, row.position]),
            "at": at, "targets": targets, "weight": weight, "kept_at": kept_at, "kept_weight": kept_weight,
        }  # fmt: skip
        moved = {name: _pinned(part, args.device) for name, part in host.items()}
        moved["states"] = F.pad(row.states, (0, 0, 0, args.compared - len(row.states)))
        shared = tuple(_pinned(part, args.device) for part in tiles(document))
        yield Step(**moved, tiles=shared, used=example.used, read=example.read)


def _pinned(part: np.ndarray, device: str) -> Tensor:
    tensor = torch.from_numpy(part)
    return tensor.pin_memory() if device == "cuda" else tensor


def wrong(found: Tensor, embedding: Tensor, targets: Tensor, weight: Tensor) -> Tensor:
    """Cross entropy on learnt tokens, weighted."""
    each = F.cross_entropy(F.linear(found, embedding).float(), targets, reduction="none")
    return (each * weight).sum() / weight.sum()


def apart(found: Tensor, embedding: Tensor, states: Tensor, weight: Tensor, plain: Tensor) -> Tensor:
    """KL(base ‖ adapted), the mean over compared places."""
    given = F.linear(found, embedding).float().log_softmax(-1)
    wanted = F.linear(states, plain).float().log_softmax(-1)
    return ((wanted.exp() * (wanted - given)).sum(-1) * weight).sum() / weight.sum()


def rate_at(share: float, start: float, end: float, peak: float) -> float:
    """Learning rate at a share of a run: 2 % warm-up, times a cosine down to 1 %, of which the run has start to end."""
    cosine = 0.5 * (1 + math.cos(math.pi * (start + (end - start) * min(1.0, share))))
    return peak * (0.01 + 0.99 * cosine) * min(1.0, share / 0.02)


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Make kept texts, train, save; returns the log's last entry."""
    args = options(arguments)
    args.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(args.seed)
    torch.backends.cuda.matmul.allow_tf32 = True
    dtype = torch.bfloat16 if args.device == "cuda" else torch.float32
    base = net.load_gguf(args.gguf).to(args.device, torch.float32)
    plain = base.to(args.device, dtype)
    say("weights read")
    chats, free, windows = args.kept
    kept = make_kept(plain, Tokenizer.from_file(str(args.tokenizer)), chats, free, windows, seed=args.seed)
    kept = [text for text in kept if len(text.adapted) <= args.kept_tokens // 2 and text.compared <= args.compared // 2]
    say(f"{len(kept)} texts of the base")
    return train(args, base, plain, kept, dtype)


def train(
    args: argparse.Namespace, base: net.Weights, plain: net.Weights, kept: list[Kept], dtype: torch.dtype
) -> dict[str, Any]:
    """The loop."""
    if args.resume:
        adapter = grown(load(args.resume), args.rank, args.format).to(args.device)
    else:
        adapter = Adapter(args.rank, args.scale, args.seed, args.format).to(args.device)
    groups: list[dict[str, Any]] = [
        {"params": list(adapter.down.values()), "factor": 1.0},
        {"params": list(adapter.up.values()), "factor": 2.0},
    ]
    optimizer = torch.optim.AdamW(
        groups, lr=args.rate, betas=(0.9, 0.98), weight_decay=0.0, fused=args.device == "cuda"
    )

    def compiled(function: _Function) -> _Function:
        return torch.compile(function, dynamic=False) if args.compile else function

    block, loss_of, apart_of = compiled(net.row_layer), compiled(wrong), compiled(apart)
    cos, sin = net.rope(2048, args.device, dtype)
    seen = Seen(args.tokens + args.kept_tokens, args.device)
    begin = saved = time.monotonic()
    begins, ends = args.part
    log: list[dict[str, Any]] = []
    steps = used = read = 0
    for step in ahead(inputs(args, kept)):
        if steps == 3:  # compiled by now: the schedule counts from here
            begin = time.monotonic()
        spent = time.monotonic() - begin
        if steps > 3 and spent > args.seconds:
            break
        for group in groups:
            group["lr"] = rate_at(spent / args.seconds, begins, ends, args.rate) * group["factor"]

        def here(tensor: Tensor) -> Tensor:
            return tensor.to(args.device, non_blocking=True)

        seen.fill(step.until, step.tiles)
        places = here(step.position)
        weights = merged(base, adapter, dtype)
        found = net.row_hidden(weights, here(step.ids), cos[places], sin[places], seen.mask, block)
        loss = loss_of(found[here(step.at)], weights.embedding, here(step.targets), here(step.weight))
        kl = apart_of(found[here(step.kept_at)], weights.embedding, here(step.states), here(step.kept_weight), plain.embedding)  # fmt: skip
        (loss + args.kept_weight * kl).backward()
        norm = torch.nn.utils.clip_grad_norm_(adapter.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        used, read, steps = used + step.used, read + step.read, steps + 1
        if steps % 50 == 0 or args.device == "cpu" or steps < 4:
            entry = {"step": steps, "seconds": round(time.monotonic() - begin, 1), "tokens": used, "read": read,
                     "loss": round(float(loss.detach()), 4), "kl": round(float(kl.detach()), 4), "norm": round(float(norm), 3)}  # fmt: skip
            log.append(entry)
            say(entry)
        if time.monotonic() - saved > args.save_every:
            save(adapter, args.out / "adapter")
            saved = time.monotonic()
    size = save(adapter, args.out / "adapter")
    final = {"steps": steps, "tokens": used, "read": read, "bytes": size, "seconds": round(time.monotonic() - begin, 1)}
    told = {key: str(value) for key, value in vars(args).items() if key not in {"out", "gguf", "tokenizer"}}
    (args.out / "train.json").write_text(json.dumps({"options": told, "final": final, "log": log}, indent=0))
    say(final)
    return final


if __name__ == "__main__":
    main()
    os._exit(0)  # workers may still be making batches that nobody will read
