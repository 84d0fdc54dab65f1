"""The study as a table, and as numbers of a readable length."""

from __future__ import annotations

import math
from typing import Any

__all__ = ["rounded", "table"]


def rounded(value: Any, digits: int = 4) -> Any:
    """The same JSON with floats cut to ``digits`` significant ones; what is no number becomes ``None``."""
    if isinstance(value, float):
        if not math.isfinite(value):
            return None
        return float(f"{value:.{digits}g}")
    if isinstance(value, dict):
        return {key: rounded(each, digits) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(each, digits) for each in value]
    return value


def table(report: dict[str, Any]) -> str:
    """Recipes and sources, one a line."""
    lines = [
        f"{report['model']} ({report['dtype']}, {report['device']}), {report['prompts']} agent prompts of "
        f"{report['prompt_tokens'][0]} to {report['prompt_tokens'][2]} tokens, {report['answer_tokens']} answer tokens",
        f"{'recipe':44} {'KL':>8} {'95 %':>17} {'removed':>8} {'first':>8} {'removed':>8} {'top-1':>6} {'rows':>5} "
        f"{'+8k':>6}",
    ]
    for part in ("recipes", "sources"):
        for name, row in report[part].items():
            low, high = row["kl_ci95"]
            added = row.get("predicted_added_time", {}).get("b200", {}).get("8192")
            lines.append(
                f"{name:44} {row['kl']:8.4f} {low:8.4f}–{high:<8.4f} {row['kl_removed']:8.1%} {row['kl_first']:8.4f} "
                f"{row['first_removed']:8.1%} {row['top1']:6.3f} {row['rows_quantized']:5.2f} "
                + (f"{added:+6.1%}" if added is not None else "")
            )
    for name, turns in report["turns"].items():
        lines.append(f"{name:44} " + "  ".join(f"turn {turn}: {kl:.4f}" for turn, kl in turns.items()))
    return "\n".join(lines)
