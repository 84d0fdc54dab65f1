"""Tools, how they are chosen, and structured output."""

from typing import Any

import pytest
from chat_doubles import FULL, City, CityDict, add, model_of, request_of, weather
from langchain_core.exceptions import OutputParserException
from pydantic import BaseModel

from mixquant_agents.engine.base import NamedTool
from mixquant_agents.engine.scripted import ScriptedTurn
from mixquant_agents.engine.scripted.prompt import calls_text
from mixquant_agents.errors import (
    GrammarError,
    RequestError,
)


@pytest.mark.parametrize(
    ("choice", "wanted"),
    [
        (None, "auto"),
        ("auto", "auto"),
        ("none", "none"),
        ("any", "required"),
        ("required", "required"),
        (True, "required"),
        (False, "none"),
        ("add", NamedTool("add")),
        ({"type": "function", "function": {"name": "add"}}, NamedTool("add")),
    ],
)
async def test_tool_choice(choice: Any, wanted: Any) -> None:
    model = model_of("x").bind_tools([add], tool_choice=choice, parallel_tool_calls=False)
    await model.ainvoke("hi")
    assert request_of(model).tool_choice == wanted
    assert request_of(model).parallel_tool_calls is False


@pytest.mark.parametrize("choice", ["subtract", {"type": "function", "function": {"name": "subtract"}}, {"no": 1}, 3])
def test_tool_choice_that_is_none_is_refused(choice: Any) -> None:
    with pytest.raises(RequestError, match=r"subtract|tool_choice"):
        model_of("x").bind_tools([add], tool_choice=choice)


async def test_tools_of_every_kind() -> None:
    schema = {"title": "plain", "description": "A schema.", "type": "object", "properties": {"x": {"type": "integer"}}}
    openai = {"type": "function", "function": {"name": "ready", "parameters": {"type": "object", "properties": {}}}}
    model = model_of("x").bind_tools([add, City, CityDict, weather, schema, openai])
    await model.ainvoke("hi")
    sent = {one["function"]["name"]: one["function"] for one in request_of(model).tools}
    assert list(sent) == ["add", "City", "CityDict", "weather", "plain", "ready"]
    assert sent["City"]["parameters"]["required"] == ["name"]
    assert sent["CityDict"]["parameters"]["properties"]["name"]["description"] == "its name"
    for wrong in ([3], [{"type": "web_search"}], [{}]):
        with pytest.raises(RequestError, match="tool"):
            model_of("x").bind_tools(wrong)
    with pytest.raises(RequestError, match="'add'"):
        await model_of("x").bind_tools([add, add]).ainvoke("hi")


@pytest.mark.parametrize(
    "schema", [City, CityDict, City.model_json_schema()], ids=["pydantic", "TypedDict", "JSON schema"]
)
@pytest.mark.parametrize("method", ["json_schema", "function_calling", "json_mode"])
async def test_structured_output(schema: Any, method: Any) -> None:
    name = schema["title"] if isinstance(schema, dict) else schema.__name__
    tells = ScriptedTurn(tool_calls=[{"name": name, "args": {"name": "Bern"}}])
    model = model_of(tells if method == "function_calling" else '{"name": "Bern"}')
    chain = model.with_structured_output(schema, method=method)
    found = await chain.ainvoke("hi")
    assert (found.name if schema is City else found["name"]) == "Bern"
    *_, streamed = [part async for part in chain.astream("hi")]
    assert streamed == found
    request = request_of(model)
    if method == "function_calling":
        assert request.tool_choice == NamedTool(name)
    else:
        assert request.schema["properties"]["name"]["type"] == "string"
        assert request.json_mode is (method == "json_mode")


async def test_json_mode_without_a_schema_is_any_object() -> None:
    model = model_of('{"a": 1}')
    assert await model.with_structured_output(None, method="json_mode").ainvoke("hi") == {"a": 1}
    assert (request_of(model).schema, request_of(model).json_mode) == ({"type": "object"}, True)


@pytest.mark.parametrize("method", ["json_schema", "json_mode"])
async def test_json_schema_needs_neither_a_title_nor_properties(method: Any) -> None:
    untitled = {"type": "object", "properties": {"x": {"type": "integer"}}, "required": ["x"]}
    model = model_of('{"x": 1}')
    assert await model.with_structured_output(untitled, method=method).ainvoke("hi") == {"x": 1}
    assert request_of(model).schema == untitled
    listed = {"title": "Names", "type": "array", "items": {"type": "string"}}
    model = model_of('["a"]')
    assert await model.with_structured_output(listed, method=method).ainvoke("hi") == ["a"]
    assert request_of(model).schema == listed


def in_large_pieces(text: str) -> ScriptedTurn:
    """Not token by token: LangChain reads the whole call again with each piece."""
    return ScriptedTurn(text=[text[begin : begin + 1_000] for begin in range(0, len(text), 1_000)])


@pytest.mark.parametrize("nested", ["[" * 30_000, "[" * 30_000 + "]" * 30_000 + "}"], ids=["cut off", "whole"])
async def test_call_that_nests_without_end_is_invalid(nested: str) -> None:
    model = model_of(in_large_pieces(calls_text([("add", '{"a": ' + nested)], after_text=False))).bind_tools([add])
    answer = await model.ainvoke("hi")
    assert (answer.tool_calls, len(answer.invalid_tool_calls)) == ([], 1)
    assert (await model.ainvoke([("user", "hi"), answer])).invalid_tool_calls, "the model sees what it wrote"
    unnamed = model_of(in_large_pieces(f'<tool_call>\n{{"name": {nested}\n</tool_call>')).bind_tools([add])
    assert len((await unnamed.ainvoke("hi")).invalid_tool_calls) == 1


class Tree(BaseModel):
    """A tree."""

    name: str
    branches: list["Tree"] = []


@pytest.mark.parametrize("schema", [Tree, {"title": "Any", **Tree.model_json_schema()}], ids=["pydantic", "JSON"])
async def test_schema_that_holds_itself_stays_whole(schema: Any) -> None:
    model = model_of('{"name": "x"}')
    await model.with_structured_output(schema).ainvoke("hi")
    asked = request_of(model).schema
    assert asked["$defs"]["Tree"]["properties"]["branches"]["items"] == {"$ref": "#/$defs/Tree"}


async def test_structured_output_with_raw_and_errors() -> None:
    chain = model_of("no JSON").with_structured_output(City, include_raw=True)
    result = await chain.ainvoke("hi")
    assert result["raw"].content == "no JSON"
    assert result["parsed"] is None
    assert isinstance(result["parsing_error"], OutputParserException)
    good = await model_of('{"name": "x"}').with_structured_output(City, include_raw=True).ainvoke("hi")
    assert (good["parsed"], good["parsing_error"]) == (City(name="x"), None)
    cut = model_of('{"name": "Bern", "people": 134000}', max_tokens=6)
    with pytest.raises(OutputParserException, match="cut off"):
        await cut.with_structured_output(CityDict).ainvoke("hi")
    called = model_of(ScriptedTurn(tool_calls=[{"name": "City", "args": {"name": "Bern"}}]), max_tokens=9)
    half = await called.with_structured_output(City, method="function_calling", include_raw=True).ainvoke("hi")
    assert "cut off" in str(half["parsing_error"])
    gone = model_of(ScriptedTurn(text='{"name": "Be', finish_reason="abort"))
    with pytest.raises(OutputParserException, match="aborted"):
        await gone.with_structured_output(City).ainvoke("hi")
    for wrong in ({"method": "magic"}, {"method": "json_schema", "schema": None}, {"schema": 3}, {"schema": {"x": 1}}):
        with pytest.raises(GrammarError):
            model_of("x").with_structured_output(**{"schema": City, **wrong})
    with pytest.raises(RequestError, match="'temprature'"):
        model_of("x").with_structured_output(City, temprature=1)
    with pytest.raises(RequestError, match="at once"):
        await model_of("x").bind_tools([add], tool_choice="any", response_format={"type": "json_object"}).ainvoke("hi")
    both = model_of(FULL).bind_tools([add, weather], response_format={"type": "json_object"})
    assert len((await both.ainvoke("hi")).tool_calls) == 2


@pytest.mark.parametrize(
    ("choice", "engine_s"),
    [
        ({"type": "any"}, "required"),
        ({"type": "auto"}, "auto"),
        ({"type": "none"}, "none"),
        ({"type": "required"}, "required"),
        ({"type": "tool", "name": "add"}, NamedTool("add")),
        ({"type": "function", "name": "add"}, NamedTool("add")),
        ({"type": "function", "function": {"name": "add"}}, NamedTool("add")),
    ],
)
def test_tool_choice_in_the_forms_of_others(choice: dict[str, Any], engine_s: Any) -> None:
    model = model_of("x").bind_tools([add], tool_choice=choice)
    model.invoke("hi")
    assert request_of(model).tool_choice == engine_s


@pytest.mark.parametrize(
    ("choice", "words"),
    [
        ({"type": "auto", "disable_parallel_tool_use": True}, "'disable_parallel_tool_use'.*parallel_tool_calls=False"),
        ({"type": "allowed_tools", "mode": "auto"}, "'mode'"),
        ({"type": "anything"}, "names no tool"),
        ({"type": ["any"]}, "names no tool"),
    ],
)
def test_tool_choice_that_cannot_be_honoured_is_refused(choice: dict[str, Any], words: str) -> None:
    with pytest.raises(RequestError, match=words):
        model_of("x").bind_tools([add], tool_choice=choice)


@pytest.mark.parametrize(
    "provided",
    [
        {"type": "web_search_20250305", "name": "web_search"},
        {"type": "web_search"},
        {"type": "computer_20250124", "name": "computer", "display_width_px": 800},
        {"type": "mcp", "server_label": "x", "server_url": "http://x"},
        {"type": "custom", "name": "free_text"},
    ],
)
def test_tools_that_their_provider_runs_are_refused_by_name(provided: dict[str, Any]) -> None:
    with pytest.raises(RequestError, match=f"{provided.get('name', provided['type'])}.*run by its provider"):
        model_of("x").bind_tools([add, provided])


def test_functions_in_the_forms_of_others_are_taken() -> None:
    schema = {"type": "object", "properties": {"q": {"type": "string"}}}
    forms = [
        {"type": "custom", "name": "a", "input_schema": schema},
        {"name": "b", "description": "B.", "input_schema": schema},
        {"type": "function", "name": "c", "parameters": schema},
        {"type": "function", "function": {"name": "d", "parameters": schema}},
        {"title": "e", "description": "E.", **schema},
    ]
    model = model_of("x").bind_tools(forms)
    model.invoke("hi")
    functions = [tool["function"] for tool in request_of(model).tools]
    assert [function["name"] for function in functions] == ["a", "b", "c", "d", "e"]
    assert all(function["parameters"]["properties"] == schema["properties"] for function in functions)


def test_tool_alone_is_no_list_of_tools() -> None:
    with pytest.raises(RequestError, match="is no list of tools"):
        model_of("x").bind_tools(add)
