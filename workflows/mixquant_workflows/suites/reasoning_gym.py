"""Reasoning Gym: procedural tasks with exact answers, alone or behind pages of others that are to be left alone.

Copying, counting and arithmetic over noisy contexts are where reading in four bits hurts first. Made anew from a seed,
so no model has seen them.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import HumanMessage

from mixquant_workflows.suites.base import Answer, Case, Verdict
from mixquant_workflows.suites.packages import reasoning_gym

__all__ = ["ARITHMETIC", "COPYING", "ReasoningGym"]

ARITHMETIC = ("chain_sum", "decimal_chain_sum", "basic_arithmetic", "products", "gcd", "bitwise_arithmetic")
COPYING = ("spell_backward", "number_sorting", "word_sorting", "letter_counting", "number_filtering", "base_conversion")
PER_KIND = 25
SEED = 20_260_101
_ASK = "{question}\n\nGive your final answer between <answer> and </answer>, and nothing else between them."
_NOISE = (
    "Here are notes of other people's exercises. They are not yours, leave them alone.\n\n{noise}\n\n"
    "Now your own exercise:\n\n{task}"
)


class ReasoningGym:
    """Tasks of some kinds, 25 each; the package's own scorers judge.

    Args:
        name: of the suite.
        kinds: names of Reasoning Gym's datasets.
        noise: characters of other exercises, with their answers, that stand before each task.
    """

    one_answer = False
    documented_misses: Mapping[str, str] = {}

    def __init__(self, name: str, kinds: Sequence[str], noise: int = 0) -> None:
        self.name, self.kinds, self.noise = name, tuple(kinds), noise

    def cases(self) -> list[Case]:
        gym = reasoning_gym()
        cases = []
        for kind in self.kinds:
            dataset = gym.create_dataset(kind, size=PER_KIND, seed=SEED)
            cases += [Case(f"{kind}-{number}", {"kind": kind, "number": number}) for number in range(len(dataset))]
        return cases

    async def run(self, case: Case, model: BaseChatModel) -> Verdict:
        dataset, entry = self._entry(case)
        answer = await model.ainvoke([HumanMessage(self._prompt(case, entry))])
        extracted = _extract(str(answer.text))
        score = float(dataset.score_answer(extracted, entry))
        why = "" if score == 1 else f"wanted {entry['answer']!r}, got {extracted!r}"
        # Partial credit is the package's; a task counts as solved when it is right.
        return Verdict(score=float(score == 1), why=why[:300], messages=[answer], measures={"partial": score})

    def oracle(self, case: Case) -> list[Answer]:
        _, entry = self._entry(case)
        return [f"<answer>{entry['answer']}</answer>"]

    def _entry(self, case: Case) -> tuple[Any, Any]:
        dataset = reasoning_gym().create_dataset(case.data["kind"], size=PER_KIND, seed=SEED)
        return dataset, dataset[case.data["number"]]

    def _prompt(self, case: Case, entry: Any) -> str:
        task = _ASK.format(question=entry["question"])
        return _NOISE.format(noise=self._others(case), task=task) if self.noise else task

    def _others(self, case: Case) -> str:
        """Exercises of another seed, in an order that depends on the case alone."""
        draw = random.Random(f"{self.name}/{case.id}")  # noqa: S311 - the same prompts in every run
        pages: list[str] = []
        length = 0
        while length < self.noise:
            kind = draw.choice(self.kinds)
            other = reasoning_gym().create_dataset(kind, size=1, seed=draw.randrange(2**31))[0]
            pages.append(f"{other['question']}\nTheir answer was: {other['answer']}")
            length += len(pages[-1]) + 2
        return "\n\n".join(pages)


def _extract(text: str) -> str | None:
    """What the package's own rule takes for the answer."""
    extracted: str | None = reasoning_gym().utils.extract_answer(text)
    return extracted
