"""Prompts that begin with the tokens of earlier turns, by the real renderer and templates of many kinds."""

from __future__ import annotations

import functools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixquant_agents.engine.vllm.history.turn import RenderedPrompt
from tests.engine.vllm.byte_tokenizer import byte_tokenizer
from tests.engine.vllm.chat_format.family_templates import TEMPLATES
from tests.engine.vllm.history.threads import DROPS_THOUGHTS, MARKERS, TOOL, Thread

THOUGHT = "<think>\nWhich lake? {thought}\n</think>\n\n"
CALL = THOUGHT + '<tool_call>\n{{"name": "depth", "arguments": {arguments}}}\n</tool_call>'
BLOCK = 16


@functools.cache
def tokenizer(template: str) -> Any:
    return byte_tokenizer(template, MARKERS)


def shared(one: list[int], other: list[int]) -> int:
    """Tokens in whole cache blocks that both begin with."""
    count = next((at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    return count // BLOCK * BLOCK


def twenty_turns(thread: Thread, *, verbatim: bool) -> list[tuple[int, int]]:
    """``(cached tokens, prompt tokens)`` of each turn: nineteen steps of a tool loop, then the user's next question."""
    thread.add("system", "You know lakes.")
    thread.add("user", "How deep are they all?")
    seen: list[tuple[int, int]] = []
    before: list[int] = []
    for step in range(20):
        if step == 19:
            thread.add("user", "And in feet?")
        raw = (
            CALL.format(thought="Step by step. " * 12, arguments='{"unit":"m",  "lake": "Inari"}')
            if step < 18
            else ("<think>\nNow I know. " + "Indeed. " * 12 + "\n</think>\n\n They are deep. ")
        )
        prompt = thread.answer(raw, verbatim=verbatim)
        seen.append((shared(before, prompt.token_ids), len(prompt.token_ids)))
        before = thread.written
        if step < 18:
            thread.result(f"Lake {step}: {90 + step} m")
    return seen


def test_thread_of_twenty_turns_on_a_template_that_drops_thoughts() -> None:
    """The figure that this exists for: at the user's next question the template takes back the thoughts of the whole
    loop before. Answers are the same tokens."""
    plain, kept = (Thread(tokenizer(DROPS_THOUGHTS), [TOOL]) for _ in range(2))
    by_template, as_written = twenty_turns(plain, verbatim=False), twenty_turns(kept, verbatim=True)
    cached, prompt = by_template[-1]
    assert cached / prompt < 0.4
    cached, prompt = as_written[-1]
    assert cached / prompt > 0.97
    assert [message["content"] for message in plain.messages] == [message["content"] for message in kept.messages]
    whole = []
    for turns in (by_template, as_written):
        later = turns[1:]
        whole.append(sum(cached for cached, _ in later) / sum(prompt for _, prompt in later))
    assert whole[1] > 0.97 > whole[0]


@pytest.mark.parametrize(
    "raw",
    [
        " spaces around \n",
        '<tool_call>\n{"name":"depth","arguments":{"unit":"m",   "lake":"Inari"}}\n</tool_call>',
        "<think>\nlong thought\n</think>\n\nanswer",
    ],
)
def test_what_the_template_would_rewrite_stays_as_written(raw: str) -> None:
    thread = Thread(tokenizer(DROPS_THOUGHTS), [TOOL])
    thread.add("user", "How deep?")
    thread.answer(raw)
    written = thread.written
    if thread.messages[-1].get("tool_calls"):
        thread.result("114 m")
    thread.add("user", "Sure?")
    prompt, plain = thread.render(), thread.render(verbatim=False)
    assert prompt.token_ids[: len(written)] == written
    assert prompt.change is None
    assert prompt.verbatim_tokens == len(written) - 1  # the end marker is the template's again
    assert plain.token_ids[: len(written)] != written
    tail = thread.tokenizer.decode(prompt.token_ids[len(written) - 1 :])
    assert thread.tokenizer.decode(plain.token_ids).endswith(tail)


def test_answer_that_was_cut_off_goes_on_behind_its_tokens() -> None:
    thread = Thread(tokenizer(DROPS_THOUGHTS), [TOOL])
    thread.add("user", "How deep?")
    thread.answer("<think>\nI wonder", finish="length")
    thread.add("user", "Well?")
    prompt = thread.render()
    assert prompt.token_ids[: len(thread.written)] == thread.written
    assert thread.tokenizer.decode(prompt.token_ids[len(thread.written) :]) == (
        "<|im_end|>\n<|im_start|>user\nWell?<|im_end|>\n<|im_start|>assistant\n"
    )


def test_edited_conversation_is_rendered_plainly() -> None:
    thread = Thread(tokenizer(DROPS_THOUGHTS), [TOOL])
    thread.add("user", "How deep?")
    thread.answer("<think>\nhm\n</think>\n\nDeep.")
    thread.add("user", "Sure?")
    assert thread.render().verbatim_tokens
    answer = thread.messages[1]
    for changed in ({**answer, "content": "Shallow."}, {**answer, "reasoning_content": "other"}):
        thread.messages[1] = changed
        prompt = thread.render()
        assert prompt.verbatim_tokens == 0
        assert prompt.token_ids == thread.render(verbatim=False).token_ids
    thread.messages[1] = answer
    thread.tools = []
    assert thread.render().verbatim_tokens == 0


MOVES_TOOLS = (
    "{%- for m in messages -%}"
    "{%- if m.role == 'user' and loop.last and tools -%}[tools]{{ tools | tojson }}{%- endif -%}"
    "<|im_start|>{{ m.role }}\n{{ m.content }}"
    "{%- for c in m.tool_calls or [] -%}<tool_call>\n"
    '{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}}\n</tool_call>{%- endfor -%}'
    "<|im_end|>\n{% endfor -%}{%- if add_generation_prompt -%}<|im_start|>assistant\n{% endif -%}"
)


def test_template_that_moves_its_tools_is_named() -> None:
    thread = Thread(tokenizer(MOVES_TOOLS), [TOOL])
    thread.add("user", "How deep?")
    thread.answer("Deep.")
    thread.add("user", "Sure?")
    prompt = thread.render()
    assert prompt.verbatim_tokens == 0
    assert prompt.change == "the chat template writes what stands before message 0 (user) differently by now"
    assert prompt.token_ids == thread.render(verbatim=False).token_ids


@pytest.mark.parametrize("family", sorted(TEMPLATES))
def test_every_family_goes_on_from_its_tokens_or_says_why_not(family: str) -> None:
    end = "[end]" if "[end]" in TEMPLATES[family] else "<|end|>" if "<|end|>" in TEMPLATES[family] else "</s>"
    thread = Thread(tokenizer(TEMPLATES[family]), [TOOL], end=end)
    thread.add("user", "How deep?")
    thread.answer('<tool_call>\n{"name": "depth", "arguments": {"lake": "Inari"}}\n</tool_call>')
    thread.result("114 m")
    calls = thread.render()
    _goes_on(thread, calls)
    thread.answer("Deep.")
    thread.add("user", "Sure?")
    words = thread.render()
    _goes_on(thread, words)
    assert (calls.change, words.change) == REFUSED.get(family, (None, None))


ONE_CALL = (
    "{%- for m in messages -%}"
    "{%- if m.tool_calls and m.tool_calls | length != 1 -%}{{ raise_exception('one call at a time') }}{%- endif -%}"
    "<|im_start|>{{ m.role }}\n{{ m.content }}"
    "{%- for c in m.tool_calls or [] -%}<tool_call>\n"
    '{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}}\n</tool_call>{%- endfor -%}'
    "<|im_end|>\n{% endfor -%}{%- if add_generation_prompt -%}<|im_start|>assistant\n{% endif -%}"
    "{%- for t in tools or [] -%}{{ t | tojson }}{%- endfor -%}"
)
"""Like Llama 3's."""
TEXT_BEHIND = (
    "{%- for t in tools or [] -%}{{ t | tojson }}{%- endfor -%}"
    "{%- for m in messages -%}{%- if m.role == 'assistant' -%}{%- set at = loop.index0 -%}<|im_start|>assistant\n"
    "{%- for c in m.tool_calls or [] -%}<tool_call>\n"
    '{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}}\n</tool_call>{%- endfor -%}'
    "{%- for r in messages[at + 1:] if r.role == 'tool' and m.tool_calls -%}<|end|>{{ r.content }}{%- endfor -%}"
    "{{ m.content }}<|im_end|>\n"
    "{%- elif m.role != 'tool' -%}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{%- endif -%}{%- endfor -%}"
    "{%- if add_generation_prompt -%}<|im_start|>assistant\n{%- endif -%}"
)
"""Like Gemma 4's: an answer's text stands behind the results of its calls."""
LAKES = ("Inari", "Saimaa")
TWO_CALLS = "\n".join(
    f'<tool_call>\n{{"name": "depth", "arguments": {{"lake": "{lake}"}}}}\n</tool_call>' for lake in LAKES
)


@pytest.mark.parametrize(
    ("template", "raw", "change"),
    [
        (ONE_CALL, TWO_CALLS, "the chat template does not write message 2 (tool) behind the answer in message 1"),
        (
            TEXT_BEHIND,
            "I look." + TWO_CALLS,
            "the chat template does not write message 2 (tool) behind the answer in message 1",
        ),
    ],
)
def test_nothing_is_lost_or_doubled_where_results_stand_inside_an_answer(template: str, raw: str, change: str) -> None:
    thread = Thread(tokenizer(template), [TOOL])
    thread.add("user", "How deep?")
    thread.answer(raw)
    for call, depth in zip(thread.messages[-1]["tool_calls"], ("92 m", "82 m"), strict=True):
        thread.add("tool", depth, tool_call_id=call["id"])
    prompt = thread.render()
    text = thread.tokenizer.decode(prompt.token_ids)
    for words in ("92 m", "82 m", *LAKES, thread.messages[1]["content"]):
        assert not words or text.count(words) == 1
    assert prompt.change == change
    assert prompt.token_ids == thread.render(verbatim=False).token_ids


OWN_ENDS = (
    "{%- for t in tools or [] -%}{{ t | tojson }}{%- endfor -%}"
    "{%- for m in messages -%}{%- if m.role == 'tool' -%}<|tool|>{{ m.content }}<|end|>"
    "{%- elif m.tool_calls -%}<|start|>assistant {{ m.content }}"
    "{%- for c in m.tool_calls -%}<tool_call>\n"
    '{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}}\n</tool_call>{%- endfor -%}'
    "<|call|>{%- elif m.role == 'assistant' -%}<|start|>assistant {{ m.content }}[close] <|end|>"
    "{%- else -%}<|start|>{{ m.role }} {{ m.content }}<|end|>{%- endif -%}{%- endfor -%}"
    "{%- if add_generation_prompt -%}<|start|>assistant {% endif -%}"
)
"""Calls end otherwise than words (harmony, Gemma 4), and a marker of its own closes an answer's text (Command A)."""


def test_answer_ends_where_the_model_ended_it() -> None:
    thread = Thread(byte_tokenizer(OWN_ENDS, ("<|start|>", "<|end|>", "<|call|>", "<|tool|>", "[close]")), [TOOL])
    thread.add("user", "How deep?")
    thread.end = "<|call|>"
    thread.answer('<tool_call>\n{"name":"depth","arguments":{"lake":"Inari"}}\n</tool_call>')
    thread.result("92 m")
    prompt = thread.render()
    assert prompt.change is None
    assert thread.tokenizer.decode(prompt.token_ids[len(thread.written) - 1 :]) == (
        "<|call|><|tool|>92 m<|end|><|start|>assistant "
    )
    thread.end = "[close] <|end|>"
    thread.answer("Deep.")
    thread.add("user", "Sure?")
    prompt = thread.render()
    assert prompt.change is None
    assert thread.tokenizer.decode(prompt.token_ids[len(thread.written) - 1 :]) == (
        "<|end|><|start|>user Sure?<|end|><|start|>assistant "
    )
    assert thread.tokenizer.decode(prompt.token_ids).count("[close]") == 1


def _goes_on(thread: Thread, prompt: RenderedPrompt) -> None:
    """Either the tokens as they were, and behind them what the template writes; or the template's prompt and why."""
    plain = thread.render(verbatim=False).token_ids
    if prompt.change is not None:
        assert prompt.token_ids == plain
        return
    kept = prompt.verbatim_tokens
    assert kept >= len(thread.written) - 1
    assert prompt.token_ids[:kept] == thread.written[:kept]
    behind = thread.tokenizer.decode(prompt.token_ids[kept:])
    assert thread.tokenizer.decode(plain).endswith(behind)
    assert "Deep" not in behind
    assert "tool_call>" not in behind


UNMARKED = "the chat template has no token that marks where an answer ends"
REFUSED = {"id_is_name": (UNMARKED, UNMARKED)}
"""Changes told of the turn behind a call, and of the one behind words."""


LETTERS = st.characters(codec="utf-8", exclude_categories=("Cs", "Cc"), exclude_characters="<>[]{}")
WORDS = st.text(LETTERS, min_size=1, max_size=12)
STABLE = (
    "{%- for m in messages -%}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor -%}"
    "{%- if add_generation_prompt -%}<|im_start|>assistant\n{% endif -%}"
)


@given(st.lists(st.tuples(WORDS, WORDS), min_size=1, max_size=6), WORDS)
def test_prompt_equals_the_plain_one_where_nothing_differs(turns: list[tuple[str, str]], last: str) -> None:
    thread = Thread(tokenizer(STABLE))
    for question, answer in turns:
        thread.add("user", question)
        thread.answer(answer)
    thread.add("user", last)
    prompt = thread.render()
    assert prompt.token_ids == thread.render(verbatim=False).token_ids
    assert prompt.verbatim_tokens > 0
