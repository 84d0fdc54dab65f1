"""Words around calls, and calls cut off anywhere, reach the reader whatever the family and however the text arrives."""

from __future__ import annotations

import functools
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixquant_agents.config import EngineConfig
from mixquant_agents.engine.parsing import TokenDelta
from mixquant_agents.engine.vllm.model_check import TOOL, _stand_in
from mixquant_agents.engine.vllm.parsers import make_parser, parser_names
from mixquant_agents.engine.vllm.render import Renderer
from tests.engine.vllm.chat_format.families import FAMILIES

CALL = {"id": "abcDEF123", "type": "function", "function": {"name": "depth", "arguments": '{"lake": "Inari"}'}}
HERMES = '<tool_call>\n{"name": "depth", "arguments": {"lake": "Inari"}}\n</tool_call>'


@functools.cache
def model(family: str) -> tuple[Any, tuple[str | None, str | None], str]:
    tokenizer = _stand_in(FAMILIES[family].template)
    config = EngineConfig(model=family)
    renderer = Renderer.of(tokenizer, config)
    answer = {"role": "assistant", "content": "", "tool_calls": [CALL]}
    call = HERMES if renderer.tool_form == "prompted" else renderer.answer_text(answer, [TOOL]).strip()
    return tokenizer, parser_names(config, renderer), call


def read(family: str, text: str, steps: list[int]) -> tuple[str, str, list[tuple[str, str]], list[str]]:
    """``(content, reasoning, calls, raw text of invalid calls)``; the text comes in pieces of so many tokens."""
    tokenizer, names, _ = model(family)
    ids = tokenizer.encode(text, add_special_tokens=False)
    parser = make_parser(names, tokenizer, [TOOL], "auto")
    outs, at, turn = [], 0, 0
    while at < len(ids):
        piece = ids[at : at + steps[turn % len(steps)]]
        at, turn = at + len(piece), turn + 1
        last = "stop" if at >= len(ids) else None
        delta = TokenDelta(
            tokenizer.decode(piece), tuple(piece), finish_reason=last, prompt_token_ids=(1,) if turn == 1 else None
        )
        outs.append(parser.feed(delta))
    outs.append(parser.finish())
    calls: dict[int, list[str]] = {}
    for part in (call for out in outs for call in out.tool_calls):
        call = calls.setdefault(part.index, ["", ""])
        call[0] += part.name or ""
        call[1] += part.arguments
    content, reasoning = "".join(out.content for out in outs), "".join(out.reasoning for out in outs)
    return (
        content,
        reasoning,
        [(name, arguments) for name, arguments in calls.values()],
        [raw for out in outs for raw, _ in out.invalid_calls],
    )


steps = st.lists(st.sampled_from([1, 1, 2, 5, 40]), min_size=1, max_size=4)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
@given(steps=steps)
def test_words_before_and_behind_a_call_are_content(family: str, steps: list[int]) -> None:
    call = model(family)[2]
    if family == "gpt-oss":  # where an answer in words is a message of its own
        call = f"<|channel|>commentary<|message|>before<|end|><|start|>assistant {model(family)[2]}"
        content, _, calls, _ = read(family, f"{call}<|start|>assistant<|channel|>final<|message|>behind", steps)
    elif family in ("Llama 3.1", "Llama 4", "OLMo 3"):  # whose calls vLLM reads at the answer's beginning alone
        content, _, calls, _ = read(family, f"{call} behind", steps)
        content += " before"
    else:
        content, _, calls, _ = read(family, f"before {call} behind", steps)
    assert "before" in content
    assert "behind" in content
    assert [(name, json.loads(arguments)) for name, arguments in calls] == [("depth", {"lake": "Inari"})]


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
@given(share=st.floats(0.05, 0.95), steps=steps)
def test_a_call_that_was_cut_off_is_not_valid(family: str, share: float, steps: list[int]) -> None:
    call = model(family)[2]
    tokenizer = model(family)[0]
    ids = tokenizer.encode(call, add_special_tokens=False)
    text = tokenizer.decode(ids[: max(1, int(len(ids) * share))])
    if "Inari" in text or not text.strip():
        return
    for name, arguments in read(family, text, steps)[2]:
        with pytest.raises(ValueError, match=r"."):
            assert isinstance(json.loads(arguments), dict), (name, arguments)
