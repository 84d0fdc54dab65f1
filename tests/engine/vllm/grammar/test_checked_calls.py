"""Calls that were promised a schema which no grammar holds altogether are judged when they are complete."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixquant_agents.engine.base import Delta, NamedTool
from mixquant_agents.engine.hermes import HermesParser
from mixquant_agents.engine.parsing import TokenDelta
from mixquant_agents.engine.vllm.grammar import checked_tools
from mixquant_agents.engine.vllm.grammar.checked_calls import CheckedCalls

SCHEMA = {"type": "object", "properties": {"s": {"type": "array", "uniqueItems": True}}, "required": ["s"]}


def tool(name: str, parameters: Any, **more: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": parameters, **more}}


def call(name: str, arguments: Any) -> str:
    return f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments})}\n</tool_call>"


def read(text: str, cuts: list[int] = []) -> tuple[str, list[tuple[str, Any]], list[str]]:  # noqa: B006  never written to
    """Content, calls and reasons of invalid calls, where the text comes in pieces."""
    parser = CheckedCalls(HermesParser(), lambda: {"f": SCHEMA})
    edges = [0, *sorted(cut for cut in cuts if cut < len(text)), len(text)]
    outs = [parser.feed(TokenDelta(text[a:b])) for a, b in itertools.pairwise(edges)]
    outs.append(parser.finish())
    names: dict[int, str] = {}
    arguments: dict[int, str] = {}
    for piece in (piece for out in outs for piece in out.tool_calls):
        names[piece.index] = piece.name or names[piece.index]
        arguments[piece.index] = arguments.get(piece.index, "") + piece.arguments
    calls = [(names[index], json.loads(arguments[index])) for index in sorted(names)]
    return "".join(out.content for out in outs), calls, [why for out in outs for _, why in out.invalid_calls]


@given(st.lists(st.integers(0, 200), max_size=8))
def test_call_that_breaks_its_schema_is_invalid_however_it_is_cut(cuts: list[int]) -> None:
    text = "Well." + call("f", {"s": [1, 2]}) + "\n" + call("g", {"s": [1, 1]}) + "\n" + call("f", {"s": [1, 1]})
    content, calls, reasons = read(text, cuts)
    assert content == "Well."
    assert calls == [("f", {"s": [1, 2]}), ("g", {"s": [1, 1]})]
    assert len(reasons) == 1
    assert "'f'" in reasons[0]
    assert "non-unique" in reasons[0]


def test_other_parts_of_the_answer_are_passed_on_at_once() -> None:
    parser = CheckedCalls(HermesParser(), lambda: {"f": SCHEMA})
    assert parser.feed(TokenDelta("<think>\nHm.")).reasoning == "Hm."
    assert parser.feed(TokenDelta("\n</think>\nSo.")) == Delta("So.")


def test_tools_that_are_checked_are_those_with_a_promise() -> None:
    plain = {"type": "object", "properties": {"a": {"type": "integer"}}}
    tools = [tool("f", SCHEMA), tool("g", plain), tool("h", SCHEMA, strict=True)]
    assert checked_tools(tools, "required").keys() == {"f", "h"}
    assert checked_tools(tools, NamedTool("f")).keys() == {"f", "h"}
    assert checked_tools(tools, "auto").keys() == {"h"}
    assert checked_tools(tools, "none") == {}


@pytest.mark.parametrize("arguments", ['{"s": [1', "[]", "7"])
def test_what_is_no_object_is_left_to_the_reader_of_calls(arguments: str) -> None:
    text = f'<tool_call>\n{{"name": "f", "arguments": {arguments}'
    parser = CheckedCalls(HermesParser(), lambda: {"f": SCHEMA})
    out = parser.feed(TokenDelta(text))
    assert out.tool_calls == ()
    last = parser.finish()
    assert [piece.name for piece in last.tool_calls] == ["f"]
    assert not last.invalid_calls
