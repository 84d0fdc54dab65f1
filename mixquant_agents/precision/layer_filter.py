"""Which Linear layers are routed, by name."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from mixquant_agents.errors import ConfigError
from mixquant_agents.precision.formats import NumberFormat

__all__ = ["block_of", "format_named", "in_block", "is_experts", "is_ignored", "parts_of"]

_IN_BLOCK = re.compile(r"(^|\.)(layers|h|blocks)\.\d+\.")
_NEVER = re.compile(
    r"(^|\.)(visual\w*|vision\w*|vit\w*|vpm|image\w*|img\w*|audio\w*|apm|speech\w*|whisper\w*|qformer|resampler\w*"
    r"|mm_projector)\.|\.(kv_b_proj|gate|shared_expert_gate|router(\.\w+)*)$"
)
"""Other modalities' towers; MLA's kv_b_proj, which belongs to attention; routers, whose choice is discrete."""


def in_block(prefix: str) -> bool:
    """Whether ``prefix`` names a Linear inside a block of the language model; lm_head and embeddings are not."""
    return bool(_IN_BLOCK.search(prefix)) and not _NEVER.search(prefix)


def block_of(prefix: str) -> str:
    """The block that the layer ``prefix`` is in, for example ``"model.layers.3"``; empty where it is in none."""
    match = _IN_BLOCK.search(prefix)
    return "" if match is None else prefix[: match.end() - 1]


def is_experts(prefix: str) -> bool:
    """Whether ``prefix`` names a layer of routed experts, not one Linear."""
    return prefix.rpartition(".")[2] == "experts"


def parts_of(prefix: str, fused: Mapping[str, Sequence[str]]) -> list[str]:
    """Names that a checkpoint has for the layer ``prefix``: its own, or those of the parts that vLLM fused."""
    parent, _, leaf = prefix.rpartition(".")
    return [f"{parent}.{part}" if parent else part for part in fused.get(leaf, (leaf,))]


def is_ignored(prefix: str, patterns: Sequence[str], fused: Mapping[str, Sequence[str]]) -> bool:
    """Whether ``patterns`` name the layer ``prefix``.

    A pattern is a full name, the last part or parts of one (``"down_proj"``, ``"mlp.down_proj"``), or ``re:`` and a
    regular expression for the start of the full name. Layers that vLLM fuses are known by both names: ``fused`` maps
    ``"qkv_proj"`` to ``["q_proj", "k_proj", "v_proj"]``.

    Raises:
        ConfigError: only some parts of a fused layer are named, or a regular expression is invalid.
    """
    leaf = prefix.rpartition(".")[2]
    if _named(prefix, patterns):
        return True
    parts = parts_of(prefix, fused) if leaf in fused else []
    hits = [part for part in parts if _named(part, patterns)]
    if hits and len(hits) < len(parts):
        missing = ", ".join(part for part in parts if part not in hits)
        raise ConfigError(
            f"ignored_layers names {', '.join(hits)} but not {missing}; vLLM runs them as one layer {prefix!r}: "
            "name all of them, or none"
        )
    return bool(hits)


def format_named(names: Sequence[str], formats: Sequence[tuple[str, NumberFormat]]) -> NumberFormat | None:
    """The format that the first pattern to match one of ``names`` gives; ``None`` where none does.

    Patterns are as in :func:`is_ignored`. ``names`` are those of one part: its own, and that of the layer it is in.
    """
    matches = (number_format for pattern, number_format in formats if any(_named(name, (pattern,)) for name in names))
    return next(matches, None)


def _named(name: str, patterns: Sequence[str]) -> bool:
    for pattern in patterns:
        if pattern.startswith("re:"):
            try:
                if re.match(pattern[3:], name):
                    return True
            except re.error as error:
                raise ConfigError(f"{pattern!r} is no regular expression: {error}") from None
        elif name == pattern or name.endswith(f".{pattern}"):
            return True
    return False
