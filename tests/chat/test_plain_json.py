"""Schemas of callers become strict JSON, or are refused with where they are none: at once, never by a turn's end."""

from __future__ import annotations

import datetime
import json
import math
from typing import Any

import pytest
from chat_doubles import model_of, request_of
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from mixquant_agents.chat.plain_json import plain_json, shown
from mixquant_agents.errors import GrammarError, RequestError


def holding_itself() -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "object", "properties": {}}
    schema["properties"]["x"] = schema
    return schema


def nested(levels: int) -> dict[str, Any]:
    schema: dict[str, Any] = {}
    for _ in range(levels):
        schema = {"type": "object", "properties": {"x": schema}}
    return schema


def of(value: Any) -> dict[str, Any]:
    return {"type": "object", "properties": {"x": {"default": value}}}


NO_JSON = [
    (holding_itself(), "holds itself, or is nested too deeply"),
    (nested(5_000), "holds itself, or is nested too deeply"),
    (of(datetime.date(2026, 1, 1)), "a date, which is no JSON; write it as text"),
    (of({1, 2}), "a set, which is no JSON"),
    (of(10**5_000), "holds a number at #/.*properties/x/default"),
    ({"type": "object", "properties": {(1, 2): {}}}, r"the key \(1, 2\) at #/.*properties"),
]


@pytest.mark.parametrize(("schema", "words"), NO_JSON, ids=lambda value: value if isinstance(value, str) else "")
async def test_schema_that_is_no_json_is_refused_by_name(schema: dict[str, Any], words: str) -> None:
    tool = {"type": "function", "function": {"name": "look", "parameters": schema}}
    with pytest.raises(RequestError, match=f"tool 'look' .*{words}"):
        model_of("x").bind_tools([tool])
    with pytest.raises(GrammarError, match=words):
        model_of("{}").with_structured_output({"title": "f", **schema})
    asked = {"type": "json_schema", "json_schema": {"name": "f", "schema": schema}}
    with pytest.raises(GrammarError, match=words):
        await model_of("{}").ainvoke("hi", response_format=asked)


class Measured(BaseModel):
    """A measure."""

    value: float = math.nan


@pytest.mark.parametrize("choice", [{}, {"tool_choice": "any"}])
async def test_number_without_a_word_in_json_is_left_out(choice: dict[str, Any]) -> None:
    model = model_of("ok")
    await model.bind_tools([Measured], **choice).ainvoke("hi")
    (tool,) = request_of(model).tools
    assert tool["function"]["parameters"]["properties"]["value"] == {"type": "number"}
    model = model_of("{}")
    assert math.isnan((await model.with_structured_output(Measured).ainvoke("hi")).value)
    json.dumps(request_of(model).schema, allow_nan=False)


@pytest.mark.parametrize(
    "schema", [{"type": "objekt"}, {"type": "object", "properties": ["a"]}, {"type": "object", "required": "a"}]
)
async def test_schema_of_no_meaning_is_refused(schema: dict[str, Any]) -> None:
    with pytest.raises(GrammarError, match="is no JSON schema"):
        model_of("{}").with_structured_output({"title": "f", **schema})


async def test_schema_of_no_meaning_beside_tools_is_named_by_the_turn() -> None:
    """An agent's way, where the engine holds no grammar."""
    asked = {"type": "json_schema", "json_schema": {"name": "f", "schema": {"type": "objekt"}}}
    with pytest.raises(GrammarError, match="'objekt' is not valid"):
        await model_of("{}").bind_tools([Measured]).ainvoke("hi", response_format=asked)


@pytest.mark.parametrize("method", ["json_schema", "json_mode", "function_calling"])
@pytest.mark.parametrize("title", [{}, {"title": "f"}])
async def test_list_of_types_is_a_schema(method: Any, title: dict[str, str]) -> None:
    """LangChain converts what tracers see with every call, and cannot convert this one."""
    from mixquant_agents.engine.scripted import ScriptedTurn

    arguments = {"name": title.get("title", "answer"), "args": {"value": {"x": 1}}}
    answer = ScriptedTurn(tool_calls=[arguments]) if method == "function_calling" else '{"x": 1}'
    schema = {**title, "type": ["object", "null"]}
    assert await model_of(answer).with_structured_output(schema, method=method).ainvoke("hi") == {"x": 1}


class Unshowable:
    def __repr__(self) -> str:
        raise LookupError


def test_object_in_an_error_is_short_whatever_it_is() -> None:
    assert shown(Unshowable()) == "<Unshowable>"
    assert shown(nested(5_000)) == "<dict>"
    assert len(shown("x" * 10_000)) == 300
    with pytest.raises(RequestError, match="<Unshowable> is no tool"):
        model_of("x").bind_tools([Unshowable()])


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
)


@given(st.dictionaries(st.text(), JSON, max_size=3))
def test_result_is_strict_json_and_json_is_unchanged(value: dict[str, Any]) -> None:
    try:
        text = json.dumps(value, allow_nan=False)
    except ValueError:
        try:
            plain = plain_json(value, "it")
        except GrammarError:  # in a list its place says something
            return
        json.dumps(plain, allow_nan=False)
    else:
        assert json.dumps(plain_json(value, "it")) == text
