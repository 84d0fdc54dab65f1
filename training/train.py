"""Teach the embedded model tools: ``python -m training.train --seconds 300 --out DIR``.

The learning rate follows the clock, not the step count, so that a run of given length always ends with a finished
schedule, whatever the device.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import pathlib
import queue
import random
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any, TypeVar

import torch
from tokenizers import Tokenizer
from torch.nn import functional as F  # noqa: N812 - the usual name

from training import model as net
from training.adapter import Adapter, load, merged, save
from training.data import Batch, Examples, batches, make, read
from training.keep import kept_batches, make_kept


def options(arguments: list[str] | None = None) -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gguf", type=pathlib.Path, required=True, help="SmolLM2-135M-Instruct.Q4_1.gguf")
    parser.add_argument("--tokenizer", type=pathlib.Path, required=True, help="tokenizer.json")
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--seconds", type=float, default=300, help="time of training itself")
    parser.add_argument(
        "--data", type=pathlib.Path, help="examples made before by training.data; else they are made now"
    )
    parser.add_argument("--examples", type=int, default=200_000)
    parser.add_argument("--workers", type=int, default=16)
    parser.add_argument("--resume", type=pathlib.Path, help="adapter folder to go on from; it gives rank and scale")
    parser.add_argument("--rank", type=int, default=19)
    parser.add_argument("--scale", type=float, default=2.0)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--tokens", type=int, default=32_768, help="tokens of a step")
    parser.add_argument("--kept-tokens", type=int, default=8_192, help="tokens of a step compared with the base")
    parser.add_argument(
        "--kept", type=int, nargs=3, default=[6000, 500, 700], help="chats, free texts, documentation windows"
    )
    parser.add_argument("--kept-weight", type=float, default=1.0)
    parser.add_argument("--begin-weight", type=float, default=4.0, help="weight of an answer's first token")
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


def ahead(items: Iterator[_Item], depth: int = 6) -> Iterator[_Item]:
    """The same items, made by a thread while the device works."""
    ready: queue.Queue[_Item] = queue.Queue(depth)

    def fill() -> None:
        for item in items:
            ready.put(item)

    threading.Thread(target=fill, daemon=True).start()
    while True:
        yield ready.get()


def forever(examples: Examples, args: argparse.Namespace, rng: random.Random) -> Iterator[tuple[int, Batch]]:
    """Batches of one epoch after another, each with the number of its epoch."""
    for epoch in itertools.count():
        for batch in batches(examples, args.tokens, rng):
            if args.device == "cuda":
                batch.ids, batch.positions = batch.ids.pin_memory(), batch.positions.pin_memory()
                batch.targets, batch.begins = batch.targets.pin_memory(), batch.begins.pin_memory()
            yield epoch, batch


def rate_at(share: float, peak: float) -> float:
    """Learning rate at a share of the run: 2 % warm-up, then a cosine down to 1 %."""
    if share < 0.02:
        return peak * share / 0.02
    return peak * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, (share - 0.02) / 0.98))))


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Make data, train, save; returns the log's last entry."""
    args = options(arguments)
    args.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(args.seed)
    torch.backends.cuda.matmul.allow_tf32 = True
    dtype = torch.bfloat16 if args.device == "cuda" else torch.float32
    made: list[Examples] = []

    def provide() -> None:
        made.append(read(args.data) if args.data else make(args.tokenizer, args.examples, args.seed, args.workers))

    maker = threading.Thread(target=provide)
    maker.start()  # the cores make examples while the GPU samples what the base says
    base = net.load_gguf(args.gguf).to(args.device, torch.float32)
    plain = base.to(args.device, dtype)
    say("weights read")
    tokenizer = Tokenizer.from_file(str(args.tokenizer))
    kept = make_kept(plain, tokenizer, *args.kept, seed=args.seed)
    say(f"{len(kept)} texts of the base")
    maker.join()
    examples = made[0]
    say(f"{len(examples)} examples, {len(examples.ids)} tokens, {int(examples.learnt.sum())} learnt")
    return train(args, base, plain, examples, kept, dtype)


def train(
    args: argparse.Namespace,
    base: net.Weights,
    plain: net.Weights,
    examples: Examples,
    kept: list[Any],
    dtype: torch.dtype,
) -> dict[str, Any]:
    """The loop."""
    adapter = (load(args.resume) if args.resume else Adapter(args.rank, args.scale, args.seed)).to(args.device)
    groups = [
        {"params": list(adapter.down.values()), "factor": 1.0},
        {"params": list(adapter.up.values()), "factor": 2.0},
    ]
    optimizer = torch.optim.AdamW(
        groups, lr=args.rate, betas=(0.9, 0.98), weight_decay=0.0, fused=args.device == "cuda"
    )
    block = torch.compile(net.layer, dynamic=True) if args.compile else net.layer
    cos, sin = net.rope(2048, args.device, dtype)
    rng = random.Random(args.seed)
    stream = ahead(forever(examples, args, rng))
    others = ahead(kept_batches(kept, args.kept_tokens, random.Random(args.seed)))
    begin = saved = time.monotonic()
    log: list[dict[str, Any]] = []
    tokens = steps = epochs = 0
    while (spent := time.monotonic() - begin) < args.seconds:
        epochs, batch = next(stream)
        if steps == 2:  # compiled by now: the schedule counts from here
            begin = time.monotonic()
            spent = 0.0
        for group in groups:
            group["lr"] = rate_at(spent / args.seconds, args.rate) * float(group["factor"])  # type: ignore[arg-type]
        weights = merged(base, adapter, dtype)
        found = net.hidden(weights, batch.ids.to(args.device, non_blocking=True), cos, sin, block)
        logits = F.linear(found.flatten(0, 1)[batch.positions.to(args.device, non_blocking=True)], weights.embedding)
        each = F.cross_entropy(logits.float(), batch.targets.to(args.device, non_blocking=True), reduction="none")
        weight = 1 + (args.begin_weight - 1) * batch.begins.to(args.device, non_blocking=True)
        loss = (each * weight).sum() / weight.sum()
        states, ours, ours_at = (part.to(args.device, non_blocking=True) for part in next(others))
        with torch.no_grad():
            wanted = F.linear(states, plain.embedding).float()
        given = F.linear(net.hidden(weights, ours, cos, sin, block).flatten(0, 1)[ours_at], weights.embedding).float()
        apart = (
            F.kl_div(given.log_softmax(-1), wanted.log_softmax(-1), log_target=True, reduction="none").sum(-1).mean()
        )
        (loss + args.kept_weight * apart).backward()
        norm = torch.nn.utils.clip_grad_norm_(adapter.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        tokens, steps = tokens + batch.tokens, steps + 1
        if steps % 50 == 0 or args.device == "cpu":
            entry = {"step": steps, "seconds": round(time.monotonic() - begin, 1), "tokens": tokens, "epoch": epochs,
                     "loss": round(float(loss.detach()), 4), "kl": round(float(apart.detach()), 4), "norm": round(float(norm), 3)}  # fmt: skip
            log.append(entry)
            say(entry)
        if time.monotonic() - saved > args.save_every:
            save(adapter, args.out / "adapter")
            saved = time.monotonic()
    size = save(adapter, args.out / "adapter")
    final = {
        "steps": steps,
        "tokens": tokens,
        "epochs": epochs,
        "bytes": size,
        "seconds": round(time.monotonic() - begin, 1),
    }
    told = {key: str(value) for key, value in vars(args).items() if key not in {"out", "gguf", "tokenizer"}}
    (args.out / "train.json").write_text(json.dumps({"options": told, "final": final, "log": log}, indent=0))
    say(final)
    return final


if __name__ == "__main__":
    main()
