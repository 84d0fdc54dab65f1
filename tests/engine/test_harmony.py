"""Answers in harmony: channels, recipients, and no word lost however the text is cut."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixquant_agents.engine.harmony import HarmonyParser
from mixquant_agents.engine.parsing import TokenDelta

THOUGHT = "<|channel|>analysis<|message|>I must look.<|end|>"
CALL = (
    '<|start|>assistant<|channel|>commentary to=functions.depth <|constrain|>json<|message|>{"lake": "Inari"}<|call|>'
)
FINAL = "<|start|>assistant<|channel|>final<|message|>92 m.<|return|>"


def parse(pieces: Sequence[str], *, tools: bool = True) -> tuple[str, str, list[Any], tuple[tuple[str, str], ...]]:
    parser = HarmonyParser(tools=tools, new_id=map(str, itertools.count()).__next__)
    outs = [parser.feed(TokenDelta(piece)) for piece in pieces] + [parser.finish()]
    calls: dict[int, list[str]] = {}
    for piece in itertools.chain.from_iterable(out.tool_calls for out in outs):
        call = calls.setdefault(piece.index, ["", ""])
        call[0] += piece.name or ""
        call[1] += piece.arguments
    content, reasoning = "".join(out.content for out in outs), "".join(out.reasoning for out in outs)
    return content, reasoning, list(calls.values()), outs[-1].invalid_calls


def test_thought_call_and_answer() -> None:
    assert parse([THOUGHT + CALL + FINAL]) == ("92 m.", "I must look.", [["depth", '{"lake": "Inari"}']], ())


def test_recipient_may_stand_before_the_channel() -> None:
    text = ' to=functions.depth<|channel|>commentary json<|message|>{"lake": "Inari"}<|call|>'
    assert parse(list(text)) == ("", "", [["depth", '{"lake": "Inari"}']], ())


def test_preamble_is_content_and_parallel_calls_are_two() -> None:
    text = "<|channel|>commentary<|message|>I look.<|end|>" + CALL + CALL.replace("Inari", "Saimaa")
    content, _, calls, _ = parse([text])
    assert content == "I look."
    assert [arguments for _, arguments in calls] == ['{"lake": "Inari"}', '{"lake": "Saimaa"}']


@pytest.mark.parametrize("text", ['{"n": 3}', "Just words.", "to be or not", "to=what?"])
def test_an_answer_without_header_is_content(text: str) -> None:
    assert parse(list(text))[0] == text or parse(list(text))[3][0][0] == text


def test_a_message_without_end_ends_at_the_next_header() -> None:
    text = THOUGHT.removesuffix("<|end|>") + "<|channel|>final<|message|>Yes."
    assert parse([text])[:2] == ("Yes.", "I must look.")


def test_a_call_is_content_where_no_tools_are_bound() -> None:
    assert parse([THOUGHT + CALL], tools=False)[:3] == ('{"lake": "Inari"}', "I must look.", [])


def test_a_call_cut_off_in_its_header_is_invalid() -> None:
    content, _, calls, invalid = parse([THOUGHT + CALL[:50]])
    assert (content, calls, len(invalid)) == ("", [], 1)


PARTS = [
    "<|start|>assistant",
    "<|channel|>",
    "analysis",
    "final",
    "commentary",
    " to=functions.f ",
    "<|constrain|>json",
]
PARTS += ["<|message|>", "<|end|>", "<|call|>", "<|return|>", "word", "<", "<|", '{"a": 1}', "\n"]
parts = st.lists(st.sampled_from(PARTS), max_size=14)


@given(parts, st.integers(1, 30))
def test_cuts_do_not_matter(pieces: list[str], step: int) -> None:
    text = "".join(pieces)
    assert parse([text[at : at + step] for at in range(0, len(text), step)]) == parse([text])


@given(parts)
def test_no_word_of_a_body_is_lost(pieces: list[str]) -> None:
    words = [f"w{index}w" if piece == "word" else piece for index, piece in enumerate(pieces)]
    text = "".join(words)
    content, reasoning, calls, invalid = parse(list(text))
    read = " ".join([content, reasoning, *itertools.chain.from_iterable(calls), *(raw for raw, _ in invalid)])
    for body in re.findall(r"<\|message\|>((?:(?!<\|(?:start|channel|message|constrain|end|call|return)\|>).)*)", text):
        for word in re.findall(r"w\d+w", body):
            assert word in read
