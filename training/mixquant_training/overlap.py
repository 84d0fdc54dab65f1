"""Does the training text share long word sequences with BFCL? ``python -m mixquant_training.overlap`` (needs ``bfcl-eval`` installed).

Questions, function descriptions and parameter descriptions of training samples are compared with those of every BFCL v4
file by word n-grams. Numbers are all alike, so that a copied template with other values is found, and so are date formats
("YYYY-MM-DD"), which say nothing of wording. Exit code 1 on overlap.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import pathlib
import random
import re
import sys
from collections.abc import Iterable, Iterator
from typing import Any

from mixquant_training.generate.catalog import load
from mixquant_training.generate.mix import example

__all__ = ["bfcl_texts", "grams", "main", "training_texts"]

N = 8
"""Words in a row that may not be shared. Shorter runs are ordinary English ("what is the weather like in")."""


def _words(text: str) -> list[str]:
    text = re.sub(r"\b(?:y{2,4}|m{2}|d{2})(?:[-/.](?:y{2,4}|m{2}|d{2}))+\b", "#", text.lower())  # a format, not wording
    return re.findall(r"[a-z]+|#", re.sub(r"\d+(?:[.,]\d+)*(?:st|nd|rd|th)?", "#", text))


def grams(texts: Iterable[str]) -> dict[tuple[str, ...], str]:
    """Every run of ``N`` words with one text that holds it; numbers are all alike."""
    found: dict[tuple[str, ...], str] = {}
    for text in texts:
        words = _words(text)
        for start in range(len(words) - N + 1):
            gram = tuple(words[start : start + N])
            if sum(word != "#" for word in gram) >= N - 2:
                found.setdefault(gram, text)
    return found


def _strings(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        for key, value in node.items():
            if key in {"content", "description"} and isinstance(value, str):
                yield value
            else:
                yield from _strings(value)
    elif isinstance(node, list):
        for value in node:
            yield from _strings(value)


def bfcl_texts() -> Iterator[str]:
    """Questions and descriptions of all installed BFCL files."""
    spec = importlib.util.find_spec("bfcl_eval")
    if spec is None or spec.origin is None:
        raise SystemExit("bfcl-eval is not installed: pip install --no-deps bfcl-eval==2026.3.23")
    for path in sorted((pathlib.Path(spec.origin).parent / "data").rglob("*.json")):
        if "possible_answer" in path.parts:
            continue
        for line in path.read_text().splitlines():
            try:
                yield from _strings(json.loads(line))
            except ValueError:
                continue


def training_texts(count: int, seed: int) -> Iterator[str]:
    """Messages and descriptions of ``count`` training samples, and every line of the catalogue."""
    rng = random.Random(seed)
    for _ in range(count):
        scene = example(rng)
        yield from (message["content"] for message in scene.messages if message["content"])
        yield from _strings(scene.schemas)
    for archetype in (*load(held=False), *load(held=True)):
        yield archetype.description
        yield from archetype.questions
        yield from (text for _, text in archetype.asks)


def main(arguments: list[str] | None = None) -> int:
    """Compare; print what is shared."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=1_000_000, help="training's own first seed")
    args = parser.parse_args(arguments)
    theirs = grams(bfcl_texts())
    ours = grams(training_texts(args.samples, args.seed))
    shared = sorted(ours.keys() & theirs.keys())
    print(json.dumps({"n": N, "ours": len(ours), "bfcl": len(theirs), "shared": len(shared)}))
    for gram in shared[:60]:
        print(" ".join(gram), "|", ours[gram][:150], "|", theirs[gram][:150], file=sys.stderr)
    return 1 if shared else 0


if __name__ == "__main__":
    sys.exit(main())
