"""Families whose calls are JSON between markers: one call, a list of calls, none, text around them, thoughts before."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixquant_agents.engine.hermes import JSON_CALLS, HermesParser, Markers
from mixquant_agents.engine.parsing import TokenDelta


def parse(text: str, markers: Markers, step: int = 1) -> tuple[str, str, list[Any], int]:
    parser = HermesParser(new_id=map(str, itertools.count()).__next__, markers=markers)
    outs = [parser.feed(TokenDelta(text[at : at + step])) for at in range(0, len(text), step)] + [parser.finish()]
    calls: dict[int, list[str]] = {}
    for piece in itertools.chain.from_iterable(out.tool_calls for out in outs):
        call = calls.setdefault(piece.index, ["", ""])
        call[0] += piece.name or ""
        call[1] += piece.arguments
    read = [(name, json.loads(arguments)) for name, arguments in calls.values()]
    content = "".join(out.content for out in outs)
    return content, "".join(out.reasoning for out in outs), read, len(outs[-1].invalid_calls)


@pytest.mark.parametrize("family", JSON_CALLS)
@pytest.mark.parametrize("keys", [("name", "arguments"), ("tool_name", "parameters")])
@pytest.mark.parametrize("count", [0, 1, 2])
def test_lists_of_calls(family: str, keys: tuple[str, str], count: int) -> None:
    markers = JSON_CALLS[family]
    calls = [{keys[0]: f"f{index}", keys[1]: {"a": "[<`"}} for index in range(count)]
    listed = json.dumps(calls, indent=1)
    text = f"So:\n{markers.call_open}{listed[1:] if markers.in_list else listed}\n{markers.call_close}\n"
    expected = [(f"f{index}", {"a": "[<`"}) for index in range(count)]
    for step in (1, 3, len(text)):
        assert parse(text, markers, step) == ("So:", "", expected, 0)


@pytest.mark.parametrize("family", JSON_CALLS)
def test_a_list_without_its_end_is_read(family: str) -> None:
    markers = JSON_CALLS[family]
    bracket = "" if markers.in_list else "["
    text = f'{markers.call_open}{bracket}{{"name": "f", "arguments": {{}}}}]'
    assert parse(text, markers) == ("", "", [("f", {})], 0)


def test_markers_around_content_are_not_part_of_it() -> None:
    markers = JSON_CALLS["cohere_command3"]
    text = "<|START_THINKING|>Hm.<|END_THINKING|><|START_RESPONSE|>Yes.<|END_RESPONSE|>"
    assert parse(text, markers) == ("Yes.", "Hm.", [], 0)


def test_an_action_may_stand_in_one_line() -> None:
    text = 'Action: ```json\n[\n    {"tool_name": "f", "parameters": {}}\n]\n```'
    assert parse(text, JSON_CALLS["command_r"]) == ("", "", [("f", {})], 0)


@given(st.text(alphabet="<|tool_call>`Aw[]{} \n", max_size=30), st.sampled_from(sorted(JSON_CALLS)))
def test_text_without_an_opening_marker_stays_text(text: str, family: str) -> None:
    markers = JSON_CALLS[family]
    if not any(mark in text for mark in (markers.call_open, *markers.more_opens, markers.think_open, *markers.silent)):
        assert parse(text, markers)[0] == text
