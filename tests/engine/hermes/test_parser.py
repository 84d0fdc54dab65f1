"""The incremental Hermes parser gives the same answer however the text is cut, in time linear in it."""

import itertools
import json
import re
import time
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixquant_agents.engine.hermes import HermesParser
from mixquant_agents.engine.parsing import TokenDelta

Parsed = tuple[str, str, dict[int, list[Any]], tuple[tuple[str, str], ...]]


def parse(pieces: Sequence[str], **options: Any) -> Parsed:
    """``(content, reasoning, {index: [id, name, arguments]}, invalid calls)`` of a text that comes in pieces."""
    parser = HermesParser(new_id=map(str, itertools.count()).__next__, **options)
    outs = [parser.feed(TokenDelta(piece)) for piece in pieces] + [parser.finish()]
    calls: dict[int, list[Any]] = {}
    for call in itertools.chain.from_iterable(out.tool_calls for out in outs):
        if call.index not in calls:
            assert call.id is not None
            assert call.name
            calls[call.index] = [call.id, call.name, call.arguments]
        else:
            assert (call.id, call.name) == (None, None), "id and name come once"
            calls[call.index][2] += call.arguments
    assert not any(out.invalid_calls for out in outs[:-1])
    return "".join(out.content for out in outs), "".join(out.reasoning for out in outs), calls, outs[-1].invalid_calls


def called(text: str) -> Any:
    return [(name, arguments) for _, name, arguments in parse([text])[2].values()]


def test_text_reasoning_and_parallel_calls() -> None:
    text = (
        "<think>\nI must <b>look</b>.\n</think>\n\nI look.\n"
        '<tool_call>\n{"name": "f", "arguments": {"a": [1, {"b": "}"}]}}\n</tool_call>\n'
        '<tool_call>\n{"name": "g", "arguments": {}}\n</tool_call>\n'
    )
    content, reasoning, calls, invalid = parse([text])
    assert (content, reasoning, invalid) == ("I look.", "I must <b>look</b>.", ())
    assert calls == {0: ["0", "f", '{"a": [1, {"b": "}"}]}'], 1: ["1", "g", "{}"]}


@pytest.mark.parametrize(
    ("text", "name", "arguments"),
    [
        ('<tool_call>{"arguments": {"a": 1}, "name": "f"}</tool_call>', "f", '{"a": 1}'),
        ('<tool_call>{"name": "f"}</tool_call>', "f", "{}"),
        ('<tool_call>{"name": "f", "arguments": {}}</tool_call>', "f", "{}"),
        ('<tool_call>{"name": "f", "arguments": null}</tool_call>', "f", "{}"),
        ('<tool_call>{"name": "f", "parameters": {"a": 1}}</tool_call>', "f", '{"a": 1}'),
        ('<tool_call>{"name": "f", "arguments": "{\\"a\\": 1}"}</tool_call>', "f", '{"a": 1}'),
        ('<tool_call>{"name": "f", "id": [7], "arguments": {"a": 1}}</tool_call>', "f", '{"a": 1}'),
        ('<tool_call>{"name": "f", "arguments": {"a": "</tool_call>"}}</tool_call>', "f", '{"a": "</tool_call>"}'),
        ('<tool_call>{"name": "f", "arguments": {"a": "\\\\\\"}"}}</tool_call>', "f", '{"a": "\\\\\\"}"}'),
        ('<tool_call>{"name": "f", "arguments": {"a": 1}\n</tool_call>', "f", '{"a": 1}'),
        ('<tool_call>{"name": "f", "arguments": {"a": 1}}}</tool_call>', "f", '{"a": 1}'),
        ('<tool_call>{"name": "f", "arguments": {"a": 1}}', "f", '{"a": 1}'),
        ('<tool_call>{"name": "f", "arguments": {"a": "cut', "f", '{"a": "cut'),
        ('<tool_call>{"name": "f", "arguments": {"a": 50mH}}</tool_call>', "f", '{"a": 50mH}'),
        ('<tool_call>{"name": "你好", "arguments": {"a": "世界"}}</tool_call>', "你好", '{"a": "世界"}'),
    ],
)
def test_a_call(text: str, name: str, arguments: str) -> None:
    assert called(text) == [(name, arguments)]


@pytest.mark.parametrize(
    ("text", "raw", "reason"),
    [
        ('<tool_call>{"nam": "f"}</tool_call>', '{"nam": "f"}', "no function name"),
        ('<tool_call>{"name": 3}</tool_call>', '{"name": 3}', "3"),
        ("<tool_call>f(a=1)</tool_call>", "f(a=1)", "unexpected 'f'"),
        ('<tool_call>{"na', '{"na', "before the answer ended"),
        ("<tool_call>", "", "before the answer ended"),
    ],
)
def test_what_never_became_a_call_is_kept_with_its_reason(text: str, raw: str, reason: str) -> None:
    _, _, calls, ((kept, why),) = parse([text])
    assert calls == {}
    assert kept == raw
    assert reason in why


@pytest.mark.parametrize("text", ["a <tool_ca", "<thin", "1 < 2", "a\n", "a\n\n\nb\n", "<tool_calls>", "< think>"])
def test_half_a_marker_is_text(text: str) -> None:
    assert parse([text])[0] == text


def test_markers_are_text_where_they_mean_nothing() -> None:
    text = '<think>a</think><tool_call>{"name": "f"}</tool_call>'
    assert parse([text], tools=False, reasoning=False) == (text, "", {}, ())
    assert parse(["so " + text], tools=False)[0] == "so " + text


def test_text_after_a_call_is_kept() -> None:
    content, _, calls, _ = parse(['One.\n<tool_call>{"name": "f"}</tool_call>\n\nTwo.'])
    assert (content, len(calls)) == ("One.\n\nTwo.", 1)


CALL = '<tool_call>\n{"name": "depth", "arguments": {"lake": "Inari"}}\n</tool_call>'


@pytest.mark.parametrize("behind", ["", "\n</think>", "\n</think>\n\n", "\n\n"])
def test_call_in_an_unclosed_thought_ends_it(behind: str) -> None:
    content, reasoning, calls, invalid = parse(["<think>\nI must look.\n" + CALL + behind])
    assert (content, reasoning, invalid) == ("", "I must look.", ())
    assert calls == {0: ["0", "depth", '{"lake": "Inari"}']}


def test_answer_behind_a_thought_that_a_call_ended_is_content() -> None:
    content, reasoning, calls, _ = parse([f"<think>Look. {CALL} Or not.</think>\n\nDone. {CALL}"])
    assert (content, reasoning, len(calls)) == (" Or not.Done. ", "Look. ", 2)


def test_call_in_a_thought_is_the_thoughts_text_where_no_tools_are_bound() -> None:
    content, reasoning, calls, invalid = parse([f"<think>Look. {CALL}</think>Done."], tools=False)
    assert (content, reasoning, calls, invalid) == ("Done.", f"Look. {CALL}", {}, ())


@pytest.mark.parametrize("words", ["<tool_call> tags", "<tool_call>\n<b>", "<tool_call>, <tool_call> and </tool_call>"])
def test_a_thought_about_the_marker_is_a_thought(words: str) -> None:
    content, reasoning, calls, invalid = parse([f"<think>I use {words}.</think>{CALL}"])
    assert (content, reasoning, len(calls), invalid) == ("", f"I use {words}.", 1, ())


@pytest.mark.parametrize(
    "text", ["<tool_call>", "<tool_call>\n", "<tool_call></tool_call>", "<tool_call>\n\n</tool_call>"]
)
@pytest.mark.parametrize("before", ["", "<think>Hm.\n", "<think>Hm.</think>\n\n"])
def test_an_empty_call_is_one_invalid_call(before: str, text: str) -> None:
    content, reasoning, calls, invalid = parse([before + text])
    assert (content, reasoning, calls, len(invalid)) == ("", "Hm." if before else "", {}, 1)


@pytest.mark.parametrize("between", ["", "\n", "</tool_call><tool_call>", "<tool_call>", "\n<tool_call>\n"])
def test_glued_calls_are_all_read(between: str) -> None:
    one, two = '{"name": "f", "arguments": {"a": 1}}', '{"name": "g", "arguments": {}}'
    content, _, calls, invalid = parse([f"<tool_call>{one}{between}{two}</tool_call>"])
    assert (content, invalid) == ("", ())
    assert calls == {0: ["0", "f", '{"a": 1}'], 1: ["1", "g", "{}"]}


def test_words_behind_a_call_within_its_markers_are_content() -> None:
    content, _, calls, invalid = parse(['<tool_call>{"name": "f"} as you said</tool_call> Done.'])
    assert (content, invalid) == ("as you said Done.", ())
    assert calls == {0: ["0", "f", "{}"]}


@pytest.mark.parametrize(
    "broken", ['{"name": "f", a=1}', '{"name": "f", "arguments": {"a": 1}; x}', '{"name": "f" <b>']
)
def test_a_named_call_that_breaks_has_arguments_that_are_none(broken: str) -> None:
    _, _, calls, _ = parse([f"<tool_call>{broken}</tool_call>"])
    with pytest.raises(ValueError, match=r"Expecting|Extra data"):
        json.loads(calls[0][2])


PARTS = [
    "<tool_call>",
    "</tool_call>",
    "<think>",
    "</think>",
    '{"name": "f", "arguments": {"a": "',
    '"}}',
    "\n",
    "<",
    "</",
]
PARTS += [
    "tool_call>",
    '{"name": "g"}',
    "{",
    "}",
    '"',
    "\\",
    "text",
    " ",
    ", ",
    '"name": "h"',
    '"arguments": ',
    "[1, 2]",
    "é",
]
texts = st.lists(st.sampled_from(PARTS), max_size=14).map("".join)


@given(texts, st.data())
def test_cuts_do_not_matter(text: str, data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.sets(st.integers(0, len(text)), max_size=8)))
    pieces = [text[start:end] for start, end in itertools.pairwise([0, *cuts, len(text)])]
    assert parse(pieces) == parse([text]) == parse(list(text))


@given(st.lists(st.sampled_from(["word", *PARTS]), max_size=14), st.booleans(), st.booleans(), st.data())
def test_no_word_is_ever_lost(parts: list[str], tools: bool, reasoning: bool, data: st.DataObject) -> None:
    words = [f"w{index}w" if part == "word" else part for index, part in enumerate(parts)]
    step = data.draw(st.integers(1, 40))
    text = "".join(words)
    content, thought, calls, invalid = parse(
        [text[at : at + step] for at in range(0, len(text), step)], tools=tools, reasoning=reasoning
    )
    read = [content, thought, *(part for call in calls.values() for part in call), *(raw for raw, _ in invalid)]
    for word in words:
        if re.fullmatch(r"w\d+w", word) and not _named_member(text, word):
            assert any(word in piece for piece in read), word


def _named_member(text: str, word: str) -> bool:
    """Whether the word is a key, or the value of one that no call has: JSON that a reader of calls passes over."""
    return re.search(rf'"[^"]*{word}[^"]*"', text) is not None or re.search(rf":\s*[^\s,}}]*{word}", text) is not None


@given(texts)
def test_without_whole_markers_everything_is_text(text: str) -> None:
    plain = text.replace("<tool_call>", "<tool call>").replace("<think>", "<thin k>")
    if not {"<tool_call>", "<think>"} & set(re.findall("<[a-z_]+>", plain)):
        assert parse(list(plain)) == (plain, "", {}, ())


leaves = st.none() | st.booleans() | st.integers() | st.text(max_size=20)
values = st.recursive(leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3))


@given(st.text(min_size=1), st.dictionaries(st.text(), values, max_size=3), st.integers(1, 9))
def test_any_call_survives(name: str, arguments: dict[str, Any], step: int) -> None:
    text = f'<tool_call>\n{{"name": {json.dumps(name)}, "arguments": {json.dumps(arguments)}}}\n</tool_call>'
    _, _, calls, invalid = parse([text[place : place + step] for place in range(0, len(text), step)])
    assert invalid == ()
    assert (calls[0][1], json.loads(calls[0][2])) == (name, arguments)


@pytest.mark.slow
@pytest.mark.parametrize(
    "text",
    [
        '<tool_call>{"name": "f", "arguments": {"a": "' + "word " * 1500,
        "\n" * 4000,
        "<tool_call>" + "{" * 4000,
        '<tool_call>{"name": "f", "arguments": {"a": "b"}}' + "<" * 4000,
        "<" * 4000,
    ],
    ids=["long argument", "newlines", "brackets", "stray marker beginnings", "less-than signs"],
)
def test_the_cost_is_linear(text: str) -> None:
    """Eight times the text: 8 is linear, 64 quadratic; between them there is room for a busy machine."""

    def cost(part: str) -> float:
        best = 9.0
        for _ in range(3):
            start = time.process_time()
            parse(list(part))
            best = min(best, time.process_time() - start)
        return best

    assert cost(text) < 24 * cost(text[: len(text) // 8]) + 0.02
