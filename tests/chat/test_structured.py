"""Structured output: what may be a schema, and that only a whole answer that keeps to it comes back."""

from __future__ import annotations

import dataclasses
import enum
import json
import pathlib
import sys
import typing
from typing import Annotated, Any, Literal

import pytest
import typing_extensions
from hypothesis import given
from hypothesis import strategies as st
from langchain_core.exceptions import OutputParserException
from pydantic import BaseModel, Field, SecretStr

from mixquant_agents import MixQuantChatModel
from mixquant_agents.chat.output_schema import output_schema
from mixquant_agents.engine.scripted import ScriptedEngine, ScriptedTurn
from mixquant_agents.errors import GrammarError

METHODS = ["json_schema", "function_calling", "json_mode"]


class Colour(enum.Enum):
    red = "r"
    blue = "b"


class Place(typing.TypedDict):
    city: str


class Book(typing.TypedDict):
    """A book."""

    title: Annotated[str, ..., "as on the cover"]
    imprint: typing.Optional[str]  # noqa: UP045  this spelling, too
    year: typing_extensions.NotRequired[int]
    printed: list[Place]


class Loose(typing.TypedDict, total=False):
    a: int
    b: typing_extensions.Required[int]


class Newer(typing_extensions.TypedDict):
    a: typing_extensions.NotRequired[int | None]


class City(BaseModel):
    """A city."""

    name: str
    people: int | None = None


@dataclasses.dataclass
class Point:
    x: int
    y: int = 0


def answering(text: str, *, finish: Any = None, name: str | None = None) -> tuple[MixQuantChatModel, ScriptedEngine]:
    """A model that answers ``text``, or calls the tool ``name`` with it."""
    turn: Any = text
    if name is not None:
        turn = ScriptedTurn(tool_calls=[{"name": name, "args": json.loads(text)}])
    elif finish is not None:
        turn = ScriptedTurn(text=text, finish_reason=finish)
    engine = ScriptedEngine([turn] * 4)
    return MixQuantChatModel(engine=engine), engine


def test_typed_dict_keeps_what_may_be_missing_and_null() -> None:
    book = output_schema(Book, None).schema
    assert book["required"] == ["title", "imprint", "printed"]
    assert {"type": "null"} in book["properties"]["imprint"]["anyOf"]
    assert book["properties"]["title"]["description"] == "as on the cover"
    assert output_schema(Loose, None).schema["required"] == ["b"]
    assert "required" not in output_schema(Newer, None).schema
    strict = output_schema(Book, True).schema
    assert strict["additionalProperties"] is False


@pytest.mark.parametrize("method", METHODS)
async def test_enum_is_answered_by_its_member(method: Any) -> None:
    called = method == "function_calling"
    model, engine = answering('{"value": "r"}' if called else '"r"', name="Colour" if called else None)
    chain = model.with_structured_output(Colour, method=method)
    assert await chain.ainvoke("Which?") is Colour.red
    assert [part async for part in chain.astream("Which?")] == [Colour.red]
    if called:
        parameters = engine.requests[0].tools[0]["function"]["parameters"]
        assert parameters["properties"]["value"]["enum"] == ["r", "b"]


@pytest.mark.parametrize(
    ("schema", "text", "value"),
    [
        (Point, '{"x": 1}', Point(1)),
        (list[int], "[1, 2]", [1, 2]),
        (City | None, "null", None),
        (Literal["a", "b"], '"b"', "b"),
        (Newer, '{"a": null}', {"a": None}),
    ],
)
async def test_other_types_that_pydantic_reads(schema: Any, text: str, value: Any) -> None:
    model, _ = answering(text)
    assert await model.with_structured_output(schema).ainvoke("go") == value


@pytest.mark.parametrize(
    ("schema", "arguments", "value"),
    [
        (City | None, {"value": {"name": "Bern"}}, City(name="Bern")),
        (City | None, {"value": None}, None),
        (City | None, {"name": "Bern"}, City(name="Bern")),
        (City | None, {"town": "Bern"}, OutputParserException),
        (list[int], {"value": None}, OutputParserException),
        (list[int], {}, OutputParserException),
    ],
)
async def test_call_of_a_wrapped_schema_is_read_as_it_says(schema: Any, arguments: Any, value: Any) -> None:
    call = {"name": output_schema(schema, None).name, "args": arguments}
    model = MixQuantChatModel(engine=ScriptedEngine(lambda _: ScriptedTurn(tool_calls=[call])))
    chain = model.with_structured_output(schema, method="function_calling")
    if value is OutputParserException:
        with pytest.raises(OutputParserException, match="breaks the schema"):
            await chain.ainvoke("go")
    else:
        assert await chain.ainvoke("go") == value


async def test_fields_whose_formats_are_comments() -> None:
    class Stored(BaseModel):
        where: pathlib.Path
        raw: bytes
        secret: SecretStr
        tags: set[str]

    text = '{"where": "/x", "raw": "ab", "secret": "s", "tags": ["a", "a"]}'
    for name in (None, "Stored"):
        model, engine = answering(text, name=name)
        chain = model.with_structured_output(Stored, method="function_calling" if name else "json_schema")
        stored = await chain.ainvoke("go")
        assert (stored.where, stored.raw, stored.tags) == (pathlib.Path("/x"), b"ab", {"a"})
        assert "uniqueItems" not in json.dumps(engine.requests[0].tools) + json.dumps(engine.requests[0].schema)


@pytest.mark.parametrize("schema", [City, Book, City.model_json_schema(), None])
@pytest.mark.parametrize("finish", ["stop", "length"])
async def test_half_an_answer_never_passes(schema: Any, finish: Any) -> None:
    model, _ = answering('{"name": "St', finish=finish)
    chain = model.with_structured_output(schema, method="json_mode")
    with pytest.raises(OutputParserException, match="max_tokens" if finish == "length" else "stop word"):
        await chain.ainvoke("Which?")
    with pytest.raises(OutputParserException):
        async for _ in chain.astream("Which?"):
            pass


async def test_whole_answer_at_the_limit_is_one() -> None:
    model, _ = answering('{"name": "Graz", "people": 1}', finish="length")
    assert await model.with_structured_output(City).ainvoke("Which?") == City(name="Graz", people=1)
    model, _ = answering("7", finish="length")
    with pytest.raises(OutputParserException, match="cut off"):  # of 75, for all anybody knows
        await model.with_structured_output({"type": "integer"}).ainvoke("How many?")


async def test_answer_that_breaks_the_schema_is_none() -> None:
    schema = {"type": "object", "properties": {"n": {"type": "integer", "not": {"const": 3}}}, "required": ["n"]}
    for text, name in (('{"n": 3}', None), ("{}", None), ('{"n": 3}', "answer")):
        model, _ = answering(text, name=name)
        method: Any = "function_calling" if name else "json_schema"
        with pytest.raises(OutputParserException, match="breaks the schema"):
            await model.with_structured_output(schema, method=method).ainvoke("go")
        raw = await model.with_structured_output(schema, method=method, include_raw=True).ainvoke("go")
        assert raw["parsed"] is None
        assert isinstance(raw["parsing_error"], OutputParserException)
    model, _ = answering('{"n": 4}')
    assert await model.with_structured_output(schema).ainvoke("go") == {"n": 4}


async def test_answer_in_a_fence_is_read() -> None:
    model, _ = answering('Here:\n```json\n{"name": "Graz"}\n```')
    assert await model.with_structured_output(City).ainvoke("go") == City(name="Graz")


async def test_the_model_sees_the_schema_at_a_fixed_place() -> None:
    class Judged(BaseModel):
        polite: Annotated[bool, Field(description="true if the text is polite")]

    model, engine = answering('{"polite": true}')
    chain = model.with_structured_output(Judged)
    await chain.ainvoke([("system", "You are a judge."), ("human", "Thanks!")])
    await chain.ainvoke([("system", "You are a judge."), ("human", "Go away!"), ("ai", "No."), ("human", "Please!")])
    first, second = (request.messages for request in engine.requests)
    assert first[0] == second[0]
    assert first[0]["content"].startswith("You are a judge.\n\n")
    assert "true if the text is polite" in first[0]["content"]
    await chain.ainvoke("Thanks!")
    assert [message["role"] for message in engine.requests[2].messages] == ["user"]
    assert engine.requests[2].messages[0]["content"].endswith("\n\nThanks!")
    await model.bind(schema_in_prompt=False).with_structured_output(Judged).ainvoke("Thanks!")


async def test_the_switch_hides_the_schema() -> None:
    engine = ScriptedEngine(['{"name": "Graz"}', "{}"])
    model = MixQuantChatModel(engine=engine, schema_in_prompt=False)
    await model.with_structured_output(City).ainvoke("Which?")
    await model.bind(response_format={"type": "json_object"}, schema_in_prompt=True).ainvoke("Any JSON.")
    assert [request.messages[0]["content"] for request in engine.requests] == ["Which?", "Any JSON."]


def test_typed_dict_that_holds_itself_is_refused_where_pydantic_cannot_read_it() -> None:
    if sys.version_info >= (3, 12):
        assert output_schema(Tree, None).schema["$ref"] == "#/$defs/Tree"
        return
    with pytest.raises(GrammarError, match="refers to itself"):
        output_schema(Tree, None)


class Tree(typing.TypedDict):
    children: list[Tree]


SIMPLE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


@given(SIMPLE, st.data())
async def test_no_beginning_of_an_answer_passes_for_it(value: Any, data: st.DataObject) -> None:
    """Cut off anywhere, JSON is refused, unless what is left is the whole value (white space aside)."""
    text = json.dumps(value)
    cut = data.draw(st.integers(0, len(text)))
    model, _ = answering(text[:cut], finish="length")
    chain = model.with_structured_output({"title": "any", "anyOf": [{}]})
    if cut == len(text) and not (isinstance(value, int) and not isinstance(value, bool)):
        assert await chain.ainvoke("go") == value
    else:
        with pytest.raises(OutputParserException):
            await chain.ainvoke("go")
