"""One engine, twelve constrained requests in several orders: no request changes what another one gets."""

import asyncio
import pathlib
from collections.abc import Awaitable, Callable
from typing import Annotated, Any

import pytest
from langchain_core.exceptions import OutputParserException
from langchain_core.messages import AIMessage
from langchain_core.tools import tool
from langchain_core.utils.json import parse_partial_json
from pydantic import BaseModel, Field, SecretStr

from mixquant_agents import MixQuantChatModel, VllmEngine
from mixquant_agents.errors import GrammarError

pytestmark = [pytest.mark.engine, pytest.mark.timeout(1800)]  # 36 answers of up to 64 tokens: minutes on two busy cores


@tool
def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


class City(BaseModel):
    """A city."""

    name: Annotated[str, Field(max_length=12)]
    capital: bool


class Code(BaseModel):
    """A code of capital letters."""

    code: Annotated[str, Field(pattern="^[A-Z]+$", max_length=4)]


class Stored(BaseModel):
    """Where a thing lies."""

    where: Annotated[pathlib.Path, Field(description="its path")]
    tags: set[int]
    secret: SecretStr


class Tens(BaseModel):
    """A multiple of ten."""

    n: Annotated[int, Field(multiple_of=10, ge=0, le=500)]


HALVES = {
    "title": "Half",
    "type": "object",
    "properties": {"x": {"type": "number", "multipleOf": 0.5, "minimum": 0, "maximum": 9}},
    "required": ["x"],
}
STEPS = {
    "title": "steps",
    "description": "Give steps",
    "type": "object",
    "properties": {"code": {"type": "string", "pattern": "^[A-Z]+$", "maxLength": 3}},
    "required": ["code"],
}


async def shown(answer: Awaitable[Any]) -> Any:
    """What came back, or how it was refused: both must be the same in every order."""
    try:
        value = await answer
    except (OutputParserException, GrammarError) as error:
        return type(error).__name__, str(error)[:80]
    if isinstance(value, AIMessage):
        calls = [(call["name"], call["args"]) for call in value.tool_calls]
        return value.content, calls, len(value.invalid_tool_calls)
    return value.model_dump(mode="json") if isinstance(value, BaseModel) else value


def requests(model: MixQuantChatModel) -> dict[str, Callable[[], Awaitable[Any]]]:
    ask = "Give me California, please."
    with_tool = model.bind_tools([add], tool_choice="add")
    return {
        "forced call": lambda: with_tool.ainvoke("Add 3 and 4."),
        "forced call, pattern with maxLength": lambda: model.bind_tools([STEPS], tool_choice="any").ainvoke(ask),
        "no call": lambda: model.bind_tools([add], tool_choice="none").ainvoke("Add 3 and 4."),
        "plain schema": lambda: model.with_structured_output(City).ainvoke("Tell me of Bern."),
        "as a tool": lambda: model.with_structured_output(City, method="function_calling").ainvoke("Tell me of Bern."),
        "pattern with maxLength": lambda: model.with_structured_output(Code).ainvoke(ask),
        "multipleOf": lambda: model.with_structured_output(Tens).ainvoke("A number near 70."),
        "multipleOf of a fraction": lambda: model.with_structured_output(HALVES).ainvoke("A number near 3.4."),
        "path, set, secret": lambda: model.with_structured_output(Stored).ainvoke("A file in /tmp."),
        "JSON mode": lambda: model.bind(response_format={"type": "json_object"}).ainvoke("Name a colour."),
        "JSON mode with a schema": lambda: model.with_structured_output(STEPS, method="json_mode").ainvoke(ask),
        "single call or words": lambda: model.bind_tools([add], parallel_tool_calls=False).ainvoke("Add 3 and 4."),
    }


async def test_twelve_constrained_requests_in_several_orders(engine: VllmEngine, capfd: Any) -> None:
    model = MixQuantChatModel(engine=engine, temperature=0, max_tokens=64, seed=0)
    names = list(requests(model))
    assert len(names) == 12
    expected: dict[str, Any] = {}
    for order in (names, names[6:][::-1] + names[:6]):
        for name in order:
            answer = await shown(requests(model)[name]())
            assert expected.setdefault(name, answer) == answer, (name, order)
    at_once = await asyncio.gather(*(shown(ask()) for ask in requests(model).values()))
    assert [type(answer) for answer in at_once] == [type(expected[name]) for name in names]
    assert expected["forced call"][1][0][0] == "add"
    assert expected["no call"][1] == []
    assert expected["plain schema"].keys() == {"name", "capital"}
    assert 1 <= len(expected["pattern with maxLength"]["code"]) <= 4
    assert expected["pattern with maxLength"]["code"].isupper()
    assert len(expected["forced call, pattern with maxLength"][1][0][1]["code"]) <= 3
    assert expected["multipleOf"]["n"] % 10 == 0
    half = expected["multipleOf of a fraction"]
    assert half[0] == "OutputParserException" if isinstance(half, tuple) else half["x"] * 2 % 1 == 0
    assert expected["path, set, secret"].keys() == {"where", "tags", "secret"}
    assert isinstance(parse_partial_json(expected["JSON mode"][0]), dict), "the small model need not come to an end"
    assert "Warning" not in capfd.readouterr().err
