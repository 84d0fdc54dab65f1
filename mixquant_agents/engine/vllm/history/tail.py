"""What a chat template writes behind an earlier answer, and whether it left alone what stands before it.

Templates are programs, so they are asked instead of read: the conversation is rendered with words of our own
(``chat_format.probe``) in the answer's place, and what follows the last of them is the tail.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

from mixquant_agents.engine.vllm.chat_format.probe import Outline, outline

__all__ = ["TemplateChangeError", "Write", "tail_of"]

Write = Callable[[Sequence[dict[str, Any]], bool], str]
"""``(messages, ends where an answer begins)`` → the text that the template makes of them."""

_END_WORD = "zqendzq"
_QUESTION: dict[str, Any] = {"role": "user", "content": "question"}


class TemplateChangeError(Exception):
    """The template writes earlier text differently by now, so the prompt cannot begin with the tokens as they were.

    The message is one sentence without a full stop, for the reader of a record.
    """


def tail_of(
    write: Write, write_outline: Write, messages: Sequence[dict[str, Any]], at: int, end: str | None = None
) -> str:
    """The text behind the answer ``messages[at]`` (from its end marker on) to where the next answer begins.

    Args:
        write: renders with the conversation's own tools.
        write_outline: renders outlines.
        messages: as ``plain_messages`` gives them.
        end: the marker with which the model ended this answer; ``None`` where it was cut off.

    Raises:
        TemplateChangeError: the template changes what stands before the answer, or leaves no mark where an answer ends.
        Exception: whatever the template raises.
    """
    words = outline(messages)
    outlined = [*words.messages[:at], _with_words(words.messages[at], at), *words.messages[at + 1 :]]
    new = write_outline(outlined, True)
    _check_unchanged(write_outline(outlined[:at], True), new, words, at)
    marked = _with_words(messages[at], at)
    text = write([*messages[:at], marked, *messages[at + 1 :]], True)
    last = max(_own_words(marked, at), key=new.rfind)
    if text.count(last) != 1 or new.count(last) != 1:
        raise TemplateChangeError(f"the chat template does not write the answer in message {at} once")
    rest, outlined_rest = text.partition(last)[2], new.partition(last)[2]
    _check_order(outlined_rest, words, at)
    if end:
        closing = rest.partition(end)[0]
        if outlined_rest.startswith(closing + end):  # else an end of another message
            return rest[len(closing) :]
    closing = _closing(write, marked, last)
    if not rest.startswith(closing):
        raise TemplateChangeError(f"the chat template ends the answer in message {at} in more than one way")
    return rest[len(closing) :]


def _with_words(answer: dict[str, Any], at: int) -> dict[str, Any]:
    """The answer with words of our own as its text and as the arguments of its last call, as far as it has them; one
    that is empty gets a text. Names and ids of calls stay: results repeat them."""
    calls = answer.get("tool_calls")
    if answer["content"].strip() or not calls:
        answer = {**answer, "content": f"zqtext{at}zq"}
    if not calls:
        return answer
    number = len(calls) - 1
    arguments = f'{{"zqkey{at}x{number}zq": "zqvalue{at}x{number}zq"}}'
    last = {**calls[-1], "function": {**calls[-1]["function"], "arguments": arguments}}
    return {**answer, "tool_calls": [*calls[:-1], last]}


def _own_words(marked: dict[str, Any], at: int) -> list[str]:
    """The words that :func:`_with_words` put there; any may be the last in the prompt."""
    calls = marked.get("tool_calls")
    text = [marked["content"]] if marked["content"] == f"zqtext{at}zq" else []
    return [f"zqvalue{at}x{len(calls) - 1}zq", *text] if calls else text


def _closing(write: Write, answer: dict[str, Any], last: str) -> str:
    """What belongs to the answer behind its last word: the rest of a call. Empty for words."""
    if not answer.get("tool_calls"):
        return ""
    end = write([_QUESTION, {"role": "assistant", "content": _END_WORD}], False).rpartition(_END_WORD)[2]
    alone = write([_QUESTION, answer], False).rpartition(last)[2]
    if not alone.endswith(end):
        raise TemplateChangeError("the chat template ends a call otherwise than an answer in words")
    return alone.removesuffix(end)


def _check_unchanged(old: str, new: str, words: Outline, at: int) -> None:
    """Everything that the model did not write stands in the new prompt as it stood in the old one.

    Between two such texts there may be an answer: what the template makes of that does not matter, but what follows it
    does.

    Raises:
        TemplateChangeError: names the message whose surroundings differ.
    """
    begin_old = begin_new = 0
    answers: list[str] = []
    for index, message in enumerate(words.messages[:at]):
        if message["role"] == "assistant":
            answers += [word for word in words.words if re.fullmatch(rf"zq[a-z]+{index}(?:x\d+)?zq", word)]
            continue
        word = message["content"].strip()
        if not word:
            continue
        end_old, end_new = old.find(word, begin_old), new.find(word, begin_new)
        if end_old < 0 or end_new < 0:
            raise TemplateChangeError(
                f"the chat template moves or leaves out message {index} ({message['role']}) by now"
            )
        between_old, between_new = old[begin_old:end_old], new[begin_new:end_new]
        if answers:
            between_old, between_new = _behind(between_old, answers), _behind(between_new, answers)
        if between_old != between_new:
            raise TemplateChangeError(
                f"the chat template writes what stands before message {index} ({message['role']}) differently by now"
            )
        begin_old, begin_new, answers = end_old + len(word), end_new + len(word), []


def _check_order(behind: str, words: Outline, at: int) -> None:
    """What follows the answer holds all that was said since and nothing of before. A template that takes one call at a
    time writes the results of parallel calls between them.

    Raises:
        TemplateChangeError: names the message that stands elsewhere.
    """
    for index, message in enumerate(words.messages):
        text = message["content"].strip()
        if text and index != at and (text in behind) != (index > at):
            raise TemplateChangeError(
                f"the chat template does not write message {index} ({message['role']}) "
                f"{'behind' if index > at else 'before'} the answer in message {at}"
            )


def _behind(text: str, words: Sequence[str]) -> str:
    """What follows the last of ``words``; the whole text where it holds none."""
    end = max((text.rfind(word) + len(word) if word in text else 0 for word in words), default=0)
    return text[end:]
