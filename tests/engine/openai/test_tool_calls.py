"""Tool calls as servers number, name and identify them, over real HTTP."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai_double import Server, piece

from mixquant_agents import MixQuantChatModel, OpenAIEngine
from mixquant_agents.engine.openai.tool_calls import ToolCallReader

LAKE = {"type": "object", "properties": {"lake": {"type": "string"}}}
TOOLS = [
    {"type": "function", "function": {"name": "depth", "parameters": LAKE}},
    {"type": "function", "function": {"name": "area", "parameters": LAKE}},
]
INARI, SAIMAA = '{"lake": "Inari"}', '{"lake": "Saimaa"}'
BOTH = [("depth", {"lake": "Inari"}), ("area", {"lake": "Saimaa"})]


def entry(name: str | None, arguments: Any, **fields: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "arguments": arguments}, **fields}


async def answer_of(server: Server, engine: OpenAIEngine, chunks: list[list[Any]], **bound: Any) -> Any:
    server.chunks = [*(piece(tool_calls=entries) for entries in chunks), piece(finish="tool_calls")]
    return await MixQuantChatModel(engine=engine).bind_tools(TOOLS, **bound).ainvoke("hi")


def calls_of(answer: Any) -> list[tuple[str, Any]]:
    return [(call["name"], call["args"]) for call in answer.tool_calls]


@pytest.mark.parametrize(
    "chunks",
    [
        pytest.param([[entry("depth", INARI, index=0, id="a")], [entry("area", SAIMAA, index=1, id="b")]], id="OpenAI"),
        pytest.param([[entry("depth", INARI, index=0, id="a")], [entry("area", SAIMAA, index=0, id="b")]], id="all 0"),
        pytest.param([[entry("depth", INARI, id="a")], [entry("area", SAIMAA, id="b")]], id="no index"),
        pytest.param([[entry("depth", INARI, index=0)], [entry("area", SAIMAA, index=0)]], id="all 0, no id"),
        pytest.param([[entry("depth", INARI, index=0, id="")], [entry("area", SAIMAA, index=0, id="")]], id="no ids"),
        pytest.param([[entry("depth", INARI)], [entry("area", SAIMAA)]], id="neither index nor id"),
        pytest.param([[entry("depth", INARI, id="")], [entry("area", SAIMAA, id="")]], id="no index, empty ids"),
        pytest.param([[entry("depth", INARI, index=0, id="a"), entry("area", SAIMAA, index=0, id="a")]], id="one id"),
        pytest.param([[entry("depth", INARI), entry("area", SAIMAA)]], id="one chunk, neither"),
        pytest.param([[entry("depth", INARI, index=0), entry("area", SAIMAA, index=0)]], id="one chunk, all 0"),
        pytest.param([[entry("depth", INARI, index=1), entry("area", SAIMAA, index=2)]], id="from 1"),
        pytest.param([[entry("depth", INARI, index="x"), entry("area", SAIMAA, index={})]], id="odd indices"),
        pytest.param(
            [[entry("depth", INARI[:9])], [entry(None, INARI[9:])], [entry("area", SAIMAA[:9])],
                 [entry(None, SAIMAA[9:])]],
            id="fragments, neither",
        ),
        pytest.param(
            [[entry("depth", "", index=0, id="a")], [entry("area", "", index=1, id="b")],
             [entry(None, INARI[:9], index=0)], [entry(None, SAIMAA[:9], index=1)],
             [entry(None, INARI[9:], index=0)], [entry(None, SAIMAA[9:], index=1)]],
            id="interleaved by index",
        ),
        pytest.param(
            [[entry("depth", "", index=0, id="a")], [entry("area", "", index=0, id="b")],
             [entry(None, INARI[:9], index=0, id="a")], [entry(None, SAIMAA[:9], index=0, id="b")],
             [entry(None, INARI[9:], index=0, id="a")], [entry(None, SAIMAA[9:], index=0, id="b")]],
            id="interleaved by id",
        ),
        pytest.param(
            [[entry("depth", INARI[:9], index=0, id="a")], [entry("depth", INARI[9:], index=0, id="a")],
             [entry("area", SAIMAA[:9], index=0, id="b")], [entry("area", SAIMAA[9:], index=0, id="b")]],
            id="the name with each fragment",
        ),
        pytest.param(
            [[entry("depth", INARI[:9])], [entry("depth", INARI[9:])], [entry("area", SAIMAA)]],
            id="the name with each fragment, neither",
        ),
        pytest.param(
            [[entry("depth", INARI[:9], index=0, id="1")], [entry(None, INARI[9:], index=0, id="2")],
             [entry("area", SAIMAA[:9], index=1, id="3")], [entry(None, SAIMAA[9:], index=1, id="4")]],
            id="another id with each fragment",
        ),
        pytest.param(
            [[entry("depth", INARI[:9], index=0, id="a")], [entry(None, INARI[9:], index=1, id="a")],
             [entry("area", SAIMAA, index=2, id="b")]],
            id="another index with each fragment",
        ),
        pytest.param(
            [[entry("depth", INARI, index=0, id="a")], [entry("area", SAIMAA, index=1, id="b")],
             [entry("depth", INARI, index=0, id="a"), entry("area", SAIMAA, index=1, id="b")]],
            id="the calls once more at the end",
        ),
        pytest.param([[entry("depth", json.loads(INARI))], [entry("area", json.loads(SAIMAA))]], id="objects"),
        pytest.param(
            [[entry("depth", json.dumps(INARI)[:9], index=0)], [entry(None, json.dumps(INARI)[9:], index=0)],
             [entry("area", json.dumps(SAIMAA), index=1)]],
            id="the text of a text",
        ),
        pytest.param(
            [[entry("depth", "{}", index=0, id="a")], [entry(None, INARI[:9], index=0)],
             [entry(None, INARI[9:], index=0)], [entry("area", "{}", index=1)], [entry(None, SAIMAA, index=1)]],
            id="an empty object before the real one",
        ),
        pytest.param(
            [[entry("depth", INARI[:9])], [entry(None, INARI[9:], index=0)], [entry("area", SAIMAA, index=1)]],
            id="an index from the second piece on",
        ),
        pytest.param([[entry(" depth", INARI, index=0)], [entry("area\n", SAIMAA, index=1)]], id="blanks around names"),
        pytest.param(
            [[entry(None, INARI[:9], index=0)], [entry("depth", None, index=0, id="a")],
             [entry(None, INARI[9:], index=0)], [entry("area", SAIMAA, index=1)]],
            id="the name late",
        ),
        pytest.param(
            [[{"index": 0, "id": "a", "name": "depth", "arguments": INARI}], [entry("area", SAIMAA, index=1)]],
            id="without the level function",
        ),
        pytest.param(
            [[{"index": 0, "id": "a", "function": None}], [entry("depth", INARI, index=0, id="a")],
             [entry("area", SAIMAA, index=1, id="b")], [{"index": 2, "function": None}], [entry("", "", index=3)]],
            id="phantoms around",
        ),
    ],
)  # fmt: skip
async def test_two_calls_stay_two(server: Server, engine: OpenAIEngine, chunks: list[list[Any]]) -> None:
    answer = await answer_of(server, engine, chunks)
    assert calls_of(answer) == BOTH
    assert answer.invalid_tool_calls == []
    ids = [call["id"] for call in answer.tool_calls]
    assert all(ids)
    assert len(set(ids)) == 2


async def test_calls_of_one_tool_without_ids_stay_two(server: Server, engine: OpenAIEngine) -> None:
    answer = await answer_of(server, engine, [[entry("depth", INARI, index=0)], [entry("depth", SAIMAA, index=0)]])
    assert calls_of(answer) == [("depth", {"lake": "Inari"}), ("depth", {"lake": "Saimaa"})]


async def test_calls_without_arguments_have_none(server: Server, engine: OpenAIEngine) -> None:
    chunks = [[entry("depth", "", index=0)], [entry("area", None, index=0)]]
    assert calls_of(await answer_of(server, engine, chunks)) == [("depth", {}), ("area", {})]


@pytest.mark.parametrize("arguments", ["null", '""', "{}", " {} ", ["n", "ull"], ["{", "}"]], ids=repr)
async def test_arguments_that_stand_for_none_are_none(server: Server, engine: OpenAIEngine, arguments: Any) -> None:
    first, *rest = arguments if isinstance(arguments, list) else [arguments]
    chunks = [[entry("depth", first, index=0)], *([entry(None, more, index=0)] for more in rest)]
    answer = await answer_of(server, engine, chunks)
    assert (calls_of(answer), answer.invalid_tool_calls) == ([("depth", {})], [])


async def test_function_call_of_old_servers(server: Server, engine: OpenAIEngine) -> None:
    server.chunks = [
        piece(function_call={"name": "depth", "arguments": INARI[:9]}),
        piece(function_call={"arguments": INARI[9:]}),
        piece(finish="function_call"),
    ]
    answer = await MixQuantChatModel(engine=engine).bind_tools(TOOLS).ainvoke("hi")
    assert calls_of(answer) == BOTH[:1]
    assert answer.response_metadata["finish_reason"] == "tool_calls"


@pytest.mark.parametrize(
    "arguments", [INARI + SAIMAA, INARI + " x", INARI[:-1], "[1]", 3, [1], "nul", '"x"', '"{', "{}}", "{} x"], ids=repr
)
async def test_glued_or_broken_arguments_are_an_invalid_call(
    server: Server, engine: OpenAIEngine, arguments: Any
) -> None:
    answer = await answer_of(server, engine, [[entry("depth", arguments, index=0, id="a")]])
    (kept,) = answer.additional_kwargs["unparsed_tool_calls"]
    assert kept["text"] == (arguments if isinstance(arguments, str) else json.dumps(arguments))


async def test_call_without_a_name_is_invalid(server: Server, engine: OpenAIEngine) -> None:
    answer = await answer_of(server, engine, [[entry(None, INARI, index=0, id="a")]])
    assert answer.tool_calls == []
    (kept,) = answer.additional_kwargs["unparsed_tool_calls"]
    assert (kept["text"], kept["error"]) == (INARI, "no function name")
    assert answer.response_metadata["finish_reason"] == "stop"


async def test_further_call_against_parallel_tool_calls_is_invalid(server: Server, engine: OpenAIEngine) -> None:
    chunks = [[entry("depth", INARI, index=0, id="a"), entry("area", SAIMAA, index=1, id="b")]]
    answer = await answer_of(server, engine, chunks, parallel_tool_calls=False)
    assert calls_of(answer) == BOTH[:1]
    (kept,) = answer.additional_kwargs["unparsed_tool_calls"]
    assert kept["text"] == "area" + SAIMAA
    assert "parallel_tool_calls is False" in kept["error"]


junk = st.none() | st.integers(-2, 2) | st.text("ab", max_size=2) | st.lists(st.none(), max_size=1)
entries = st.none() | st.fixed_dictionaries(
    {},
    optional={
        "index": junk,
        "id": junk,
        "function": junk | st.fixed_dictionaries({}, optional={"name": junk, "arguments": junk | st.just(INARI)}),
    },
)


@given(st.lists(st.lists(entries, max_size=3) | junk, max_size=6))
def test_calls_are_numbered_named_and_have_ids_of_their_own(chunks: list[Any]) -> None:
    reader = ToolCallReader()
    deltas = [delta for chunk in chunks for delta in reader.take(chunk)]
    tail, _ = reader.finish(complete=True)
    opened = [delta for delta in deltas if delta.name]
    assert [delta.index for delta in opened] == list(range(len(opened)))
    assert all(delta.id for delta in opened)
    assert len({delta.id for delta in opened}) == len(opened)
    assert all(delta.index < len(opened) for delta in (*deltas, *tail))
    for delta in deltas:
        assert bool(delta.name) == bool(delta.id)
