"""Score base and adapter on the held-out suites: ``python -m mixquant_training.evaluate --gguf F --tokenizer F --adapter DIR --out F``.

Greedy and unconstrained, float32, in batches. Perplexity is over text that training never sees.
"""

from __future__ import annotations

import argparse
import collections
import json
import math
import pathlib
import time
from typing import Any

import torch
from tokenizers import Tokenizer
from torch.nn import functional as F  # noqa: N812 - the usual name

from mixquant_training import model as net
from mixquant_training.adapter import load, merged
from mixquant_training.heldout import SEED, judge, longest_answer, prompt, tasks
from mixquant_workflows.suites.heldout import SUITES

__all__ = ["interval", "main", "perplexity"]


def interval(right: int, count: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share, in percent."""
    if count == 0:
        return 0.0, 100.0
    z, share = 1.96, right / count
    middle = share + z * z / (2 * count)
    half = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    scale = 100 / (1 + z * z / count)
    return round(scale * (middle - half), 1), round(scale * (middle + half), 1)


@torch.no_grad()  # type: ignore[untyped-decorator] # torch is untyped here
def perplexity(weights: net.Weights, tokenizer: Tokenizer, text: str, window: int = 512) -> float:
    """Perplexity of a text in windows without overlap."""
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    device = str(weights.embedding.device)
    cos, sin = net.rope(window, device, weights.embedding.dtype)
    total, count = 0.0, 0
    for start in range(0, len(ids) - 1, window):
        part = torch.tensor([ids[start : start + window]], device=device)
        if part.shape[1] < 2:
            continue
        logits = F.linear(net.hidden(weights, part, cos, sin)[0, :-1], weights.embedding).float()
        total += float(F.cross_entropy(logits, part[0, 1:], reduction="sum"))
        count += part.shape[1] - 1
    return math.exp(total / count)


def held_out_text(limit: int = 60_000) -> str:
    """Documentation of the standard library's modules (training sees the language reference only)."""
    import argparse as a
    import collections as c
    import decimal
    import email.message as m
    import logging
    import statistics
    import textwrap
    import unittest.mock

    docs = []
    for module in (a, c, decimal, m, logging, statistics, textwrap, unittest.mock):
        for name in sorted(vars(module)):
            thing = getattr(module, name)
            doc = getattr(thing, "__doc__", None)
            if (
                isinstance(doc, str)
                and str(getattr(thing, "__module__", "")).split(".")[0] == module.__name__.split(".")[0]
            ):
                docs.append(doc)
    return "\n\n".join(docs)[:limit]


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Run and write the scores."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gguf", type=pathlib.Path, required=True)
    parser.add_argument("--tokenizer", type=pathlib.Path, required=True)
    parser.add_argument("--adapter", type=pathlib.Path, required=True)
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--count", type=int, default=300, help="tasks of each suite")
    parser.add_argument("--seed", type=int, default=SEED, help="another one draws other tasks of the same kinds")
    parser.add_argument("--suites", nargs="*", default=list(SUITES))
    parser.add_argument("--text", type=int, default=60_000, help="characters of the perplexity text; 0: none")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--base", action="store_true", help="score the base, too")
    args = parser.parse_args(arguments)
    torch.backends.cuda.matmul.allow_tf32 = False
    tokenizer = Tokenizer.from_file(str(args.tokenizer))
    base = net.load_gguf(args.gguf).to(args.device, torch.float32)
    adapter = load(args.adapter).to(args.device)
    with torch.no_grad():
        models = {"adapter": merged(base, adapter, torch.float32)}
    if args.base:
        models["base"] = base
    budget = 300_000 if args.device == "cuda" else 12_000
    device = torch.cuda.get_device_name() if args.device == "cuda" else "CPU"
    result: dict[str, Any] = {"device": device, "seed": args.seed, "scores": {}, "answers": {}, "ppl": {}}

    def keep() -> None:  # a run that is cut short keeps what it has
        args.out.write_text(json.dumps(result, ensure_ascii=False))

    text = held_out_text(args.text)
    for name, weights in ({**models, "base": base} if text else {}).items():
        result["ppl"][name] = perplexity(weights, tokenizer, text)
    if text:
        result["ppl_ratio"] = result["ppl"]["adapter"] / result["ppl"]["base"]
    for name, weights in models.items():
        for suite in args.suites:
            begin = time.monotonic()
            asked = tasks(suite, args.count, args.seed)
            prompts = [tokenizer.encode(prompt(task), add_special_tokens=False).ids for task in asked]
            answers = [
                tokenizer.decode(ids)
                for ids in net.generate(weights, prompts, longest_answer(suite), batch_tokens=budget)
            ]
            verdicts = [judge(task, answer) for task, answer in zip(asked, answers, strict=True)]
            right = sum(ok for ok, _ in verdicts)
            why = collections.Counter(reason for ok, reason in verdicts if not ok)
            entry = {
                "right": right,
                "n": len(asked),
                "percent": round(100 * right / len(asked), 1),
                "ci95": interval(right, len(asked)),
                "why": dict(why),
            }
            result["scores"].setdefault(suite, {})[name] = entry
            wrong = [
                {"prompt": prompt(t), "wanted": t.wanted, "answer": a, "why": w}
                for t, a, (ok, w) in zip(asked, answers, verdicts, strict=True)
                if not ok
            ]
            result["answers"].setdefault(name, {})[suite] = wrong
            print(name, suite, entry, f"{time.monotonic() - begin:.1f} s", flush=True)
            keep()
    keep()
    print("ppl", result["ppl"], result.get("ppl_ratio"))
    return result


if __name__ == "__main__":
    main()
