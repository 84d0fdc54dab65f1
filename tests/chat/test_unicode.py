"""Any Python text goes through a thread; half of a surrogate pair becomes U+FFFD."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import pytest
from chat_doubles import add, model_of, request_of
from hypothesis import example, given
from hypothesis import strategies as st
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.tools import tool

from mixquant_agents import MixQuantChatModel, ScriptedEngine
from mixquant_agents.chat.messages import to_engine
from mixquant_agents.engine.scripted import ScriptedTurn
from mixquant_agents.errors import InvalidSamplingError, RequestError
from mixquant_agents.unicode import SurrogateJoiner, well_formed, well_formed_json
from mixquant_workflows import SqliteCheckpoints, tool_agent

any_text = st.text(st.characters(categories=["L", "N", "P", "S", "Z", "C", "Cs", "Cc", "Cn"]), max_size=12)
HALF = "\ud83d"


@given(any_text)
@example("\ud83d\ude00")
@example("\ude00\ud83d")
@example("a\ud83d")
def test_well_formed_keeps_all_but_lone_surrogates(text: str) -> None:
    clean = well_formed(text)
    clean.encode()
    expected, rest = "", text
    while rest:
        if "\ud800" <= rest[0] <= "\udbff" and "\udc00" <= rest[1:2] <= "\udfff":
            expected, rest = expected + chr(0x10000 + ((ord(rest[0]) & 0x3FF) << 10 | (ord(rest[1]) & 0x3FF))), rest[2:]
        else:
            expected, rest = expected + ("\ufffd" if "\ud800" <= rest[0] <= "\udfff" else rest[0]), rest[1:]
    assert clean == expected


@given(any_text, st.lists(st.integers(0, 12)))
def test_pieces_join_to_the_whole(text: str, cuts: list[int]) -> None:
    joiner, bounds = SurrogateJoiner(), [0, *sorted(cuts), len(text)]
    pieces = [text[start:end] for start, end in pairwise(bounds)]
    assert "".join(map(joiner.feed, pieces)) + joiner.finish() == well_formed("".join(pieces))


def test_clean_json_is_not_copied() -> None:
    value = {"a": ["x", 1, None]}
    assert well_formed_json(value) is value
    assert well_formed_json({HALF: [f"a{HALF}", ("b", 2.5)]}) == {"\ufffd": ["a\ufffd", ("b", 2.5)]}


arguments = st.dictionaries(any_text, any_text | st.floats() | st.lists(any_text | st.none(), max_size=2), max_size=2)
messages = st.one_of(
    st.builds(HumanMessage, any_text, name=st.none() | any_text),
    st.builds(SystemMessage, any_text),
    st.builds(ToolMessage, any_text, tool_call_id=any_text),
    st.builds(
        lambda text, name, args, call_id, thought, raw: AIMessage(
            text,
            tool_calls=[{"name": name, "args": args, "id": call_id}],
            invalid_tool_calls=[{"name": name, "args": raw, "id": "x", "error": None}],
            additional_kwargs={"reasoning_content": thought},
        ),
        any_text,
        any_text,
        arguments,
        any_text,
        any_text,
        any_text,
    ),
    st.builds(lambda text: HumanMessage([{"type": "text", "text": text}, text]), any_text),
)


@given(st.lists(messages, min_size=1, max_size=4))
def test_any_text_reaches_the_engine_as_strict_json(history: list[BaseMessage]) -> None:
    def refuse(constant: str) -> None:
        raise ValueError(constant)

    sent = to_engine(history)
    json.dumps(sent, ensure_ascii=False, allow_nan=False).encode()
    for message in sent:
        for call in message.get("tool_calls", ())[:1]:
            json.dumps(
                json.loads(call["function"]["arguments"], parse_constant=refuse), ensure_ascii=False, allow_nan=False
            ).encode()


@given(st.lists(any_text, min_size=1, max_size=4), any_text)
def test_any_answer_keeps_its_thread_going(pieces: list[str], argument: str) -> None:
    script = [
        ScriptedTurn(
            tool_calls=[{"name": "say", "args": {"text": argument}}], text=pieces, reasoning=argument, parsed=True
        ),
        ScriptedTurn(text=pieces),
    ]

    @tool
    def say(text: str) -> str:
        """Say it."""
        return text + HALF

    agent = tool_agent(
        MixQuantChatModel(engine=ScriptedEngine(script)), [say], checkpointer=SqliteCheckpoints(":memory:")
    )
    state = agent.invoke({"messages": [HumanMessage(argument)]}, {"configurable": {"thread_id": "1"}})
    assert state["messages"][-1].content == well_formed("".join(pieces))
    assert state["messages"][-2].content == f"{well_formed(argument)}{HALF}"


async def test_emoji_cut_in_two_by_a_piece_is_whole() -> None:
    answer = await model_of(ScriptedTurn(text=["a \ud83d", "\ude00 b \ud83d"], reasoning="hm")).ainvoke("hi")
    assert answer.content == "a 😀 b \ufffd"


def test_escaped_half_in_an_unread_call_is_replaced() -> None:
    broken = {"name": "f", "args": '{"a": "\\ud83d"}', "id": "1", "error": "no tool"}
    whole = {"name": "f", "args": '{"a": "\\ud83d\\ude00",  "b": 1}', "id": "2", "error": "no tool"}
    (message,) = to_engine([AIMessage("", invalid_tool_calls=[broken, whole])])
    said = [json.loads(call["function"]["arguments"]) for call in message["tool_calls"]]
    assert said == [{"a": "\ufffd"}, {"a": "😀", "b": 1}]


@pytest.mark.parametrize(
    ("setting", "kind"),
    [
        ({"stop": [HALF]}, InvalidSamplingError),
        ({"sampling_extra": {"bad_words": [HALF]}}, InvalidSamplingError),
        ({"cache_salt": HALF}, RequestError),
        ({"chat_template_kwargs": {"name": HALF}}, RequestError),
    ],
)
def test_settings_with_half_a_pair_are_refused_by_name(setting: dict[str, Any], kind: type[Exception]) -> None:
    (name,) = setting
    with pytest.raises(kind, match=rf"{name}.*surrogate"):
        model_of("x").invoke("hi", **setting)
    with pytest.raises(ValueError, match=rf"{name}.*surrogate"):
        model_of("x", **setting)


def test_tool_descriptions_are_cleaned() -> None:
    described = {"name": "f", "description": f"Cut {HALF}", "parameters": {"type": "object", "properties": {}}}
    model = model_of("x").bind_tools([described, add])
    model.invoke("hi")
    assert request_of(model).tools[0]["function"]["description"] == "Cut \ufffd"


def test_half_that_a_model_escapes_keeps_its_thread_going() -> None:
    """JSON can write what no encoding can. The tool gets it; a checkpoint of LangGraph's keeps a question mark."""

    @tool
    def say(text: str) -> str:
        """Say it."""
        return text

    turn = ScriptedTurn(tool_calls=[{"name": "say", "args": r'{"text": "a\ud83d"}'}])
    engine = ScriptedEngine([turn, "Done.", "Yes."])
    agent = tool_agent(MixQuantChatModel(engine=engine), [say], checkpointer=SqliteCheckpoints(":memory:"))
    for question in ("hi", "sure?"):
        state = agent.invoke({"messages": [HumanMessage(question)]}, {"configurable": {"thread_id": "1"}})
    assert state["messages"][-1].text == "Yes."
    said = engine.requests[-1].messages
    assert [message["content"] for message in said if message["role"] == "tool"] == ["a?"]
    assert [message["content"] for message in engine.requests[1].messages if message["role"] == "tool"] == ["a\ufffd"]


def test_schemas_are_cleaned() -> None:
    schema = {"type": "object", "properties": {"x": {"type": "string", "description": f"cut {HALF}"}}}
    model = model_of('{"x": "y"}')
    assert model.with_structured_output(schema).invoke("hi") == {"x": "y"}
    request = request_of(model)
    json.dumps([request.schema, list(request.messages)], ensure_ascii=False).encode()
