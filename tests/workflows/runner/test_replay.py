"""Which ground truths are replayed, and what is told of the others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from langchain_core.language_models import BaseChatModel

from mixquant_agents.errors import ConfigError
from mixquant_workflows.runner.replay import replay
from mixquant_workflows.suites.base import Answer, Case, Verdict


class Echo:
    """Solved where the model says the case's id; of the last case nobody knows what to say."""

    name = "echo"
    one_answer = True
    documented_misses: Mapping[str, str] = {"b": "misprint", "c": "no words for it"}

    def __init__(self, *names: str) -> None:
        self._names = names

    def cases(self) -> list[Case]:
        return [Case(name, {}) for name in self._names]

    async def run(self, case: Case, model: BaseChatModel) -> Verdict:
        text = (await model.ainvoke("Which?")).text
        return Verdict(score=float(text == case.id), why=f"said {text}")

    def oracle(self, case: Case) -> list[Answer]:
        if case.id == "c":
            raise ConfigError("c: cannot be said")
        return [{"a": "a", "b": "bee", "d": "dee"}[case.id]]


async def test_ground_truths_without_calls_are_left_out_and_named() -> None:
    seen: list[Any] = []
    result = await replay(Echo("a", "b", "c", "d"), progress=lambda *at: seen.append(at))
    assert (result["passed"], result["total"]) == (1, 3)
    assert result["documented_misses"] == {"b": "misprint"}
    assert result["undocumented_misses"] == {"d": "said dee"}
    assert result["left_out"] == {"c": "c: cannot be said"}
    assert result["unexpected_passes"] == []
    assert seen[-1] == (4, 4)


async def test_suite_without_any_is_refused() -> None:
    with pytest.raises(ConfigError, match="cannot be said"):
        await replay(Echo("c"))
