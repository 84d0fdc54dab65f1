"""Training's work with the shipped tools: answers follow from results, and no task of the bundled suite is taught."""

from __future__ import annotations

import datetime
import random
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixquant_tools.calculator import calculate
from mixquant_training.generate import documents
from mixquant_training.generate.mix import examples
from mixquant_training.generate.own import files as own_files
from mixquant_training.generate.own import trade as own_trade
from mixquant_training.generate.own.work import own_fan
from mixquant_training.generate.toolbox import Toolbox
from mixquant_workflows.suites.bundled.tasks import tasks

GENERIC = (
    "what is the price of a", "what time is it in", "york what time is it in", "new york what time is it",
    "what is the square root of", "date is it in # days", "which date is # days after",
)  # fmt: skip
"""Everyday forms for prices, zones, roots and dates that both sides have; what they ask about differs."""


def _runs(text: str) -> set[str]:
    words = re.findall(r"[a-z']+|#", re.sub(r"\d+", "#", text.lower()))
    return {" ".join(words[start : start + 6]) for start in range(len(words) - 5)}


def test_bundled_tasks_are_not_taught() -> None:
    kept = {run for task in tasks() for turn in task.turns for run in _runs(turn.says) if run.count("#") < 2}
    taught = set()
    rng = random.Random(7)
    for _ in range(150):
        for scene in own_fan(Toolbox(rng)):
            for message in scene.messages:
                if message["role"] == "user":
                    taught |= _runs(message["content"])
    assert len(taught) > 2_000
    shared = {run for run in kept & taught if not run.startswith(GENERIC)}
    assert not shared


MAKERS = [documents.about, own_trade.trade, own_trade.staff, own_trade.difference, own_files.listed]


@pytest.mark.parametrize("maker", MAKERS, ids=lambda maker: maker.__name__)
@given(seed=st.integers(0, 2**32))
def test_answer_follows_from_results(maker: object, seed: int) -> None:
    """Every number of an answer stands in the results or in the question; sums are right; no slot is left."""
    seen = ""
    for question, calls, answer in maker(random.Random(seed)):  # type: ignore[operator]
        assert question
        seen += question
        for name, arguments, result in calls:
            seen += f" {result} "
            if name == "calculator":
                assert float(calculate(arguments["expression"])) == pytest.approx(float(result))
            if name == "shift_time":
                start = datetime.datetime.fromisoformat(arguments["when"])
                moved = start + datetime.timedelta(minutes=arguments["minutes"])
                assert result == f"{moved} ({moved:%A})"
        assert not re.search(r"[{}]", question + answer + seen)
        for number in re.findall(r"\d+(?:[.:]\d+)*", answer):
            assert number in seen


def test_document_questions_use_its_own_slots() -> None:
    """Each entry of the catalogue: its questions and answers use slots of its own sentences."""
    topics = documents._topics()
    assert len(topics) > 40
    for topic in topics:
        slots = set(re.findall(r"{(\w+):", " ".join([topic.title, *topic.sentences]))) | {"n", "r", "t", "u"}
        for kind, entries in topic.asked.items():
            for entry in entries:
                assert len(entry) == (3 if kind == "*" else 2), (topic.title, entry)
                assert set(re.findall(r"{(\w+)}", " ".join(entry))) <= slots, (topic.title, entry)


def test_own_fan_shares_tools() -> None:
    rng = random.Random(3)
    for _ in range(20):
        scenes = own_fan(Toolbox(rng))
        assert len(scenes) >= 2
        assert len({str(scene.schemas) for scene in scenes}) == 1
        offered = {schema["name"] for schema in scenes[0].schemas}
        for scene in scenes:
            called = {call["name"] for message in scene.messages for call in message.get("tool_calls", [])}
            assert called <= offered


def test_mixture_holds_both_kinds_of_fans() -> None:
    rng = random.Random(1)
    kinds = [made[0].kind for made in (examples(rng) for _ in range(120)) if len(made) > 1]
    assert {"fan", "own"} <= set(kinds)
