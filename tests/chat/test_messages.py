"""LangChain's messages reach the engine whole, and come back whole."""

import json
import math
from datetime import date
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from langchain_core.messages import (
    AIMessage,
    BaseMessage,
    ChatMessage,
    FunctionMessage,
    HumanMessage,
    RemoveMessage,
    SystemMessage,
    ToolMessage,
    messages_from_dict,
    messages_to_dict,
)

from mixquant_agents import MixQuantChatModel, ScriptedEngine
from mixquant_agents.chat.messages import to_engine
from mixquant_agents.errors import InvalidMessagesError


def test_messages_of_every_kind() -> None:
    call = {"name": "f", "args": {"a": "ü"}, "id": "1"}
    assert to_engine(
        [
            SystemMessage("s"),
            HumanMessage("h", name="ann"),
            AIMessage("a", tool_calls=[call], additional_kwargs={"reasoning_content": "r"}),
            ToolMessage("t", tool_call_id="1", name="f", status="error"),
            FunctionMessage("u", name="g"),
            ChatMessage("d", role="developer"),
            ChatMessage("e", role="assistant"),
        ]
    ) == [
        {"role": "system", "content": "s"},
        {"role": "user", "content": "h", "name": "ann"},
        {
            "role": "assistant",
            "content": "a",
            "tool_calls": [{"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"a": "ü"}'}}],
            "reasoning_content": "r",
        },
        {"role": "tool", "content": "t", "tool_call_id": "1", "name": "f"},
        {"role": "tool", "content": "u", "name": "g"},
        {"role": "system", "content": "d"},
        {"role": "assistant", "content": "e"},
    ]


def test_null_in_additional_kwargs_is_read() -> None:
    call = {"name": "book", "args": {"day": date(2026, 3, 1)}, "id": "1"}
    (said,) = to_engine([AIMessage("a", tool_calls=[call], additional_kwargs={"unparsed_tool_calls": None})])
    assert said["tool_calls"][0]["function"]["arguments"] == '{"day": "2026-03-01"}'


def test_call_cut_off_before_its_arguments_is_sent_without_any() -> None:
    broken = [{"name": "f", "args": "]", "id": "1", "error": None, "type": "invalid_tool_call"}]
    kept = {"unparsed_tool_calls": [{"id": "1", "text": "", "error": "cut off"}]}
    (said,) = to_engine([AIMessage("", invalid_tool_calls=broken, additional_kwargs=kept)])
    assert said["tool_calls"][0]["function"]["arguments"] == ""


def test_content_blocks_are_flattened() -> None:
    user = HumanMessage(["one", {"type": "text", "text": "two"}])
    answer = AIMessage(
        [
            {"type": "reasoning", "reasoning": "hm"},
            {"type": "text", "text": "Let me "},
            {"type": "text", "text": "look."},
            {"type": "tool_use", "id": "x", "name": "f", "input": {"a": 1}},
        ]
    )
    first, second = to_engine([user, answer])
    assert first["content"] == "one\ntwo"
    assert (second["content"], second["reasoning_content"]) == ("Let me look.", "hm")
    assert second["tool_calls"][0]["function"] == {"name": "f", "arguments": '{"a": 1}'}


def test_call_in_content_and_tool_calls_is_one_call() -> None:
    block = {"type": "tool_call", "id": "x", "name": "f", "args": {}}
    (message,) = to_engine([AIMessage(content_blocks=[block])])
    assert len(message["tool_calls"]) == 1


@pytest.mark.parametrize(
    "block",
    [
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}},
        {"type": "image", "url": "x"},
        {"type": "input_audio", "input_audio": {}},
        {"type": "file", "base64": "AA=="},
        {"type": "video", "url": "x"},
        {"type": "something_new"},
    ],
)
@pytest.mark.parametrize("kind", [HumanMessage, SystemMessage, AIMessage])
def test_block_that_is_no_text_is_refused_by_name(kind: Any, block: dict[str, Any]) -> None:
    with pytest.raises(InvalidMessagesError, match=rf"message 2 \(\w+\).*{block['type']}"):
        to_engine([HumanMessage("look"), kind([{"type": "text", "text": "at this"}, block])])


@pytest.mark.parametrize(
    ("messages", "words"),
    [([], "no messages"), ([RemoveMessage(id="1")], "RemoveMessage"), ([ChatMessage("x", role="poet")], "'poet'")],
)
def test_message_that_no_template_renders_is_refused(messages: list[BaseMessage], words: str) -> None:
    with pytest.raises(InvalidMessagesError, match=words):
        to_engine(messages)


def test_invalid_calls_go_back_as_the_model_wrote_them() -> None:
    named = {"id": "1", "name": "f", "args": '{"a": "cut"]', "error": None}
    nameless = {"id": "2", "name": None, "args": '{"nam": 1}]', "error": None}
    raw = [{"id": "1", "text": '{"a": "cut', "error": "…"}, {"id": "2", "text": '{"nam": 1}', "error": "…"}]
    message = AIMessage("So.", invalid_tool_calls=[named, nameless], additional_kwargs={"unparsed_tool_calls": raw})
    (sent,) = to_engine([message])
    assert sent["tool_calls"][0]["function"] == {"name": "f", "arguments": '{"a": "cut'}
    assert sent["content"] == 'So.\n{"nam": 1}'
    (bare,) = to_engine([AIMessage("", invalid_tool_calls=[named])])
    assert bare["tool_calls"][0]["function"]["arguments"] == named["args"]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=4), inner, max_size=2),
    max_leaves=4,
)
names = st.text("abc_", min_size=1, max_size=6)
calls = st.builds(
    lambda name, args, number: {"name": name, "args": args, "id": f"call_{number}", "type": "tool_call"},
    names,
    st.dictionaries(st.text(max_size=4), json_values, max_size=3),
    st.integers(0, 10**9),
)
contents = st.text(max_size=20)
messages = st.one_of(
    st.builds(SystemMessage, contents),
    st.builds(HumanMessage, contents),
    st.builds(lambda text, id_: ToolMessage(text, tool_call_id=id_), contents, names),
    st.builds(
        lambda text, some, thought: AIMessage(
            text, tool_calls=some, additional_kwargs={"reasoning_content": thought} if thought else {}
        ),
        contents,
        st.lists(calls, max_size=2, unique_by=lambda call: call["id"]),
        contents,
    ),
)


@given(st.lists(messages, min_size=1, max_size=5))
def test_messages_survive_a_checkpoint(given_messages: list[BaseMessage]) -> None:
    """Any order of messages keeps roles, texts, calls and reasoning; a checkpoint in between changes nothing."""
    sent = to_engine(given_messages)
    restored = messages_from_dict(messages_to_dict(given_messages))
    assert to_engine(restored) == sent
    for before, after in zip(given_messages, sent, strict=True):
        assert after["content"] == before.content
        if isinstance(before, AIMessage):
            back = [
                (call["id"], call["function"]["name"], json.loads(call["function"]["arguments"]))
                for call in after.get("tool_calls", ())
            ]
            assert back == [(call["id"], call["name"], call["args"]) for call in before.tool_calls]
            assert after.get("reasoning_content", "") == before.additional_kwargs.get("reasoning_content", "")


IMAGE = {"type": "image", "base64": "AA==", "mime_type": "image/png"}


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ([{"type": "text", "text": "Here:"}, IMAGE], "Here:\n[image content]"),
        ([{"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}], "[image content]"),
        ([{"type": "audio", "base64": "AA=="}, "and text"], "[audio content]\nand text"),
        ([{"type": "file", "base64": "AA=="}], "[file content]"),
        ([{"depth": 3}], '{"depth": 3}'),
    ],
)
def test_tool_result_that_is_no_text_is_named_in_its_place(content: Any, text: str) -> None:
    """It cannot be taken out of the thread by the user of an agent, so it must not end every later turn."""
    (message,) = to_engine([ToolMessage(content, tool_call_id="1")])
    assert message["content"] == text


@pytest.mark.parametrize(
    "message",
    [
        AIMessage([{"type": "refusal", "refusal": "I will not."}]),
        AIMessage("", additional_kwargs={"refusal": "I will not."}),
    ],
)
def test_refusal_of_another_provider_is_text(message: AIMessage) -> None:
    assert to_engine([message])[0]["content"] == "I will not."


def test_broken_arguments_in_openai_form_name_the_message_and_the_call() -> None:
    call = {"id": "1", "type": "function", "function": {"name": "depth", "arguments": "{lake: Inari}"}}
    history = [("user", "hi"), {"role": "assistant", "content": "", "tool_calls": [call]}]
    with pytest.raises(InvalidMessagesError, match=r"message 2: .*call of 'depth'.*not valid JSON.*lake: Inari"):
        MixQuantChatModel(engine=ScriptedEngine()).invoke(history)


@pytest.mark.parametrize(
    ("message", "reason"),
    [(("poet", "x"), "poet"), (("user", None), "validation errors"), (("tool", "x"), "it has no 'tool_call_id'")],
)
def test_message_that_is_not_valid_is_named(message: Any, reason: str) -> None:
    with pytest.raises(InvalidMessagesError, match=f"message 2 is not valid: .*{reason}"):
        MixQuantChatModel(engine=ScriptedEngine()).invoke([("user", "hi"), message])


@pytest.mark.parametrize(
    ("args", "written"),
    [
        ({"a": math.nan, "b": [math.inf, 1.5]}, {"a": None, "b": [None, 1.5]}),
        ({"a": {1, 2}, "b": {(1, 2): b"x"}}, {"a": [1, 2], "b": {"(1, 2)": "b'x'"}}),
    ],
)
def test_arguments_are_written_as_strict_json(args: dict[str, Any], written: dict[str, Any]) -> None:
    call = {"name": "f", "args": args, "id": "1"}
    (message,) = to_engine([AIMessage("", tool_calls=[call])])
    assert json.loads(message["tool_calls"][0]["function"]["arguments"]) == written


def test_arguments_that_hold_themselves_name_the_message() -> None:
    args: dict[str, Any] = {}
    args["a"] = args
    message = AIMessage("", tool_calls=[{"name": "f", "args": {}, "id": "1"}])
    message.tool_calls[0]["args"] = args
    with pytest.raises(InvalidMessagesError, match=r"message 2 holds a call whose arguments.*hold themselves"):
        to_engine([HumanMessage("hi"), message])


def test_number_without_end_names_the_message() -> None:
    message = AIMessage("", tool_calls=[{"name": "f", "args": {"n": 10**5000}, "id": "1"}])
    with pytest.raises(InvalidMessagesError, match=r"message 1 holds a call whose arguments.*digits"):
        to_engine([message])


def test_call_without_name_and_its_answer_are_no_call() -> None:
    """As older threads hold them, and other programs: no server takes a function without a name."""
    phantom = AIMessage("Well.", tool_calls=[{"name": "", "args": {}, "id": "1"}])
    sent = to_engine([HumanMessage("hi"), phantom, ToolMessage("no such tool", tool_call_id="1")])
    assert sent[1:] == [{"role": "assistant", "content": "Well."}, {"role": "user", "content": "no such tool"}]
