"""Prefill on a GPU that is not at hand, by the roofline and by measured tables, and where the two part."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mixquant_agents.bench.prefill import roofline
from mixquant_agents.bench.prefill.roofline import FITS, GPUS, H100, PAPER_5090, Mode, ModelShape, parts
from mixquant_agents.bench.prefill.tables import SYSTEMS, Tables, installed, load, table_parts

__all__ = ["predict"]


def predict(model: str, gpu: str, folder: Path | None = None) -> dict[str, Any]:
    """:func:`roofline.predict <mixquant_agents.bench.prefill.roofline.predict>`, and ``by_tables`` beside it where
    there are tables of the GPU: speed-ups, each part's time over the roofline's, and that in words.

    Args:
        model: a shape's name.
        gpu: a key of :data:`~mixquant_agents.bench.prefill.roofline.GPUS`.
        folder: of the tables; the installed wheel's where ``None``.

    Raises:
        ConfigError: no such GPU or model shape.
    """
    result = roofline.predict(model, gpu)
    if gpu not in SYSTEMS:
        result["by_tables"] = None
        result["table"] += f"\nno measured tables of this GPU; there are some of {', '.join(SYSTEMS)}"
        return result
    if folder is None and installed() is None:
        result["by_tables"] = None
        result["table"] += "\nbeside measured operations with: pip install 'mixquant-agents[tables]'"
        return result
    tables = load(gpu, folder)
    result["by_tables"] = _by_tables(ModelShape.of(model), gpu, result["format"], tables)
    result["table"] += "\n" + result["by_tables"].pop("text")
    return result


def _by_tables(shape: ModelShape, gpu: str, mode: Mode, tables: Tables) -> dict[str, Any]:
    rows, lines = [], [f"from measured operations ({tables.source}), added up; still a prediction"]
    ratios: dict[str, list[float]] = {}
    for tokens in PAPER_5090:
        roofline = {name: parts(shape, tokens, 0, name, FITS.get(gpu, H100), GPUS[gpu]) for name in _modes(mode)}
        measured = {name: table_parts(shape, tokens, name, gpu, tables) for name in _modes(mode)}
        total = {name: sum(each.values()) for name, each in measured.items()}
        over = {
            f"{name}_{part}": measured[name][part] / roofline[name][part]
            for name in _modes(mode)
            for part in ("products", "attention")
        }
        for name, ratio in over.items():
            ratios.setdefault(name, []).append(ratio)
        rows.append(
            {
                "tokens": tokens,
                "exact_ms": round(total["exact"] * 1e3, 1),
                f"{mode}_ms": round(total[mode] * 1e3, 1),
                "speedup": round(total["exact"] / total[mode], 2),
                "over_roofline": {name: round(ratio, 2) for name, ratio in over.items()},
            }
        )
        times = f"{total['exact'] * 1e3:>8.1f} ms  {total[mode] * 1e3:>8.1f} ms"
        lines.append(f"{tokens:>6} tokens  {times}  {total['exact'] / total[mode]:.2f}x")
    spread = [
        f"{name.replace('_', ' ')} {min(factors):.2f} to {max(factors):.2f}"
        for name, factors in ratios.items()
        if name != f"{mode}_attention"  # attention is the same in both
    ]
    lines.append(
        f"difference: time over the roofline's: {', '.join(spread)}. The roofline has each GPU reach the H100's share "
        "of its peaks; the tables hold what vLLM's kernels reached, the quantization of inputs included, which this "
        "package fuses with the norm before it. Norms, activations and the host are the roofline's in both."
    )
    return {"source": tables.source, "rows": rows, "text": "\n".join(lines)}


def _modes(mode: Mode) -> tuple[Mode, Mode]:
    return "exact", mode
