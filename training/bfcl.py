"""BFCL v4 single-turn prompts for :mod:`training.evaluate`, and verdicts by BFCL's own checker.

``python -m training.bfcl prompts FILE`` writes ``{suite: [prompt text, …]}``. The data stay where ``bfcl-eval`` installed them.
"""

from __future__ import annotations

import collections
import json
import pathlib
import sys
from typing import Any

from langchain_core.messages import AIMessage

from mixquant_workflows.suites.bfcl.ast import BfclAst
from training.evaluate import interval
from training.generate.encode import prompt_text
from training.suites import calls_in

__all__ = ["SUITES", "judge", "prompts"]

SUITES = {"bfcl_simple": ("simple_python", 200), "bfcl_multiple": ("multiple", 200), "bfcl_irrelevance": ("irrelevance", 240),
          "bfcl_parallel": ("parallel", 200), "bfcl_parallel_multiple": ("parallel_multiple", 200)}  # fmt: skip
"""Name → category and how many of its first cases."""


def prompts() -> dict[str, list[str]]:
    """The rendered prompts, as the chat model renders them."""
    return {
        name: [
            prompt_text(case.data["messages"], case.data["tools"]) for case in BfclAst(name, [category]).cases()[:count]
        ]
        for name, (category, count) in SUITES.items()
    }


def judge(answers: dict[str, list[str]]) -> dict[str, dict[str, Any]]:
    """Right answers per suite, of its first cases. One call that is not valid JSON makes an answer wrong."""
    scores = {}
    for name, texts in answers.items():
        category, _ = SUITES[name]
        suite = BfclAst(name, [category])
        right, why = 0, collections.Counter[str]()
        for case, text in zip(suite.cases()[: len(texts)], texts, strict=True):
            calls, valid = calls_in(text)
            made = [{"name": call["name"], "args": call["arguments"], "id": str(i)} for i, call in enumerate(calls)]
            if category == "irrelevance":
                ok, reason = "<tool_call>" not in text, "called"
            elif not valid or not all(isinstance(call["args"], dict) for call in made):
                ok, reason = False, "invalid JSON"
            else:
                verdict = suite.check(case, AIMessage(content="", tool_calls=made))
                ok, reason = verdict["score"] >= 1, str(verdict["why"])[:24]
            right += ok
            why.update([] if ok else [reason])
        scores[name] = {
            "right": right,
            "n": len(texts),
            "percent": round(100 * right / len(texts), 1),
            "ci95": interval(right, len(texts)),
            "why": dict(why.most_common(5)),
        }
    return scores


if __name__ == "__main__":
    if len(sys.argv) != 3 or sys.argv[1] != "prompts":
        sys.exit("usage: python -m training.bfcl prompts FILE")
    pathlib.Path(sys.argv[2]).write_text(json.dumps(prompts()))
