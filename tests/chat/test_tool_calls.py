"""A call is valid iff its arguments are a JSON object and its name is a bound tool's."""

from __future__ import annotations

import json
from typing import Any

import pytest
from chat_doubles import add, model_of, weather
from hypothesis import example, given
from hypothesis import strategies as st
from langchain_core.messages import AIMessage, AIMessageChunk

from mixquant_agents.chat.tool_calls import seal
from mixquant_agents.engine.scripted import ScriptedTurn

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
whole = st.builds(json.dumps, st.dictionaries(st.text(max_size=4), json_values, max_size=3))
halves = whole.flatmap(lambda text: st.integers(0, len(text)).map(lambda end: text[:end]))
texts = st.one_of(
    whole,
    halves,
    st.builds(json.dumps, json_values),
    st.builds("{}{}".format, whole, st.sampled_from([" x", "```", '"', "}", "]", "{}", "\n</tool_call>", ",", "\\"])),
    st.text(alphabet='{}[]",:\\ \na1', max_size=12),
    st.text(max_size=20),
)


def merged(text: str) -> AIMessageChunk:
    piece = {"name": "f", "args": text, "id": "1", "index": 0}
    return AIMessageChunk("", tool_call_chunks=[piece], chunk_position="last")


@given(texts)
def test_sealed_text_is_never_a_call(text: str) -> None:
    sealed = merged(text + seal(text))
    assert sealed.tool_calls == []
    assert len(sealed.invalid_tool_calls) == 1


def is_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text, strict=False), dict)
    except ValueError:
        return False


@given(texts, st.sampled_from(["add", "weather", "", "ad", "add "]))
@example('{"path": "a.txt"}{"path": "b.txt"}', "add")
@example('{"path": "a.txt"} and then b.txt', "add")
@example('{"path": "a.txt"}\n```', "add")
@example("", "add")
@example("{}", "")
@example("{}", "nobody")
def test_call_is_valid_iff_object_for_bound_tool(text: str, name: str) -> None:
    turn = ScriptedTurn(tool_calls=[{"name": name, "args": text}], parsed=True)
    model = model_of(turn).bind_tools([add, weather])
    first, *rest = model.stream("hi")
    answers: list[AIMessage] = [model.invoke("hi"), first + rest if rest else first]
    valid = is_object(text) and name in ("add", "weather")
    for answer in answers:
        assert len(answer.tool_calls) == valid
        assert len(answer.invalid_tool_calls) == (not valid)
        if valid:
            assert repr(answer.tool_calls[0]["args"]) == repr(json.loads(text, strict=False))  # repr: nan equals itself
        assert answer.response_metadata["finish_reason"] == ("tool_calls" if valid else "stop")
    if not valid:
        (call,), (kept,) = answers[0].invalid_tool_calls, answers[0].additional_kwargs["unparsed_tool_calls"]
        assert call["error"] == kept["error"] != ""
        assert kept["text"] == text
        assert call["id"] == kept["id"]


@pytest.mark.parametrize(
    "text", ["<tool_call>", "<tool_call>\n", "<tool_call></tool_call>", "<tool_call>\n\n</tool_call>"]
)
@pytest.mark.parametrize("limit", [None, 2])
async def test_call_without_name_is_invalid(text: str, limit: int | None) -> None:
    answer = await model_of(f"Well.{text}", max_tokens=limit).bind_tools([add]).ainvoke("hi")
    assert answer.tool_calls == []
    assert len(answer.invalid_tool_calls) == (limit is None)
    for call in answer.invalid_tool_calls:
        assert "no function name" in call["error"]


@pytest.mark.parametrize(
    ("name", "args", "words"),
    [
        ("add", '{"a": 1}{"b": 2}', "Extra data"),
        ("add", "[1]", "list, not an object"),
        ("add", "", "missing"),
        ("substract", "{}", "no tool 'substract'; the tools are add, weather"),
        ("", "{}", "names no tool"),
    ],
)
async def test_invalid_call_carries_its_reason(name: str, args: str, words: str) -> None:
    turn = ScriptedTurn(tool_calls=[{"name": name, "args": args}], parsed=True)
    model = model_of(turn).bind_tools([add, weather])
    for answer in (await model.ainvoke("hi"), model.invoke("hi"), (await model.abatch(["hi"]))[0]):
        (call,) = answer.invalid_tool_calls
        assert words in call["error"]


async def test_invalid_call_carries_its_reason_where_tokens_are_streamed() -> None:
    """LangGraph streams inside ``invoke`` where somebody listens, and LangChain then merges the chunks itself."""
    turn = ScriptedTurn(tool_calls=[{"name": "add", "args": "{"}], parsed=True)
    model = model_of(turn, streaming=True).bind_tools([add])
    for answer in (await model.ainvoke("hi"), model.invoke("hi")):
        assert "not valid JSON" in answer.invalid_tool_calls[0]["error"]


def test_valid_calls_beside_invalid_ones_stay_in_order() -> None:
    calls: list[dict[str, Any]] = [
        {"name": "add", "args": "{"},
        {"name": "add", "args": '{"a": 1}'},
        {"name": "nobody", "args": "{}"},
        {"name": "weather", "args": '{"city": "Oulu"}'},
    ]
    answer = model_of(ScriptedTurn(tool_calls=calls, parsed=True)).bind_tools([add, weather]).invoke("hi")
    assert [call["name"] for call in answer.tool_calls] == ["add", "weather"]
    assert [call["name"] for call in answer.invalid_tool_calls] == ["add", "nobody"]
    assert answer.response_metadata["finish_reason"] == "tool_calls"
