"""The bundled chat template: frozen bytes, and a later prompt always begins with the earlier prompt and answer."""

import hashlib
import json
from importlib import resources
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from transformers.utils.chat_template_utils import render_jinja_template

TEMPLATE = resources.files("mixquant_agents").joinpath("templates/hermes.jinja").read_text()
TOOLS = [
    {
        "type": "function",
        "function": {"name": "add", "description": "Adds.", "parameters": {"type": "object", "properties": {"a": {}}}},
    }
]
CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 3}}}


def render(messages: list[dict[str, Any]], tools: list[Any] | None = None, generate: bool = True) -> str:
    texts, _ = render_jinja_template(
        conversations=[messages], tools=tools, chat_template=TEMPLATE, add_generation_prompt=generate
    )
    return str(texts[0])


def test_template_is_frozen() -> None:
    """Prefix caches and the adapter's training data depend on every byte: change it only together with them."""
    digest = hashlib.sha256(TEMPLATE.encode()).hexdigest()
    assert digest == "bcab9d1f7a304fc74a8376c5639e84fe314abecd3da956d41f65058261867f75", (
        "the chat template changed: retrain the adapter, then write the new digest here"
    )


def test_without_tools_it_is_plain_chatml() -> None:
    system = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
    assert render([{"role": "user", "content": "hi"}]) == (
        f"<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    )


def test_calls_and_results() -> None:
    text = render(
        [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "3+4?"},
            {"role": "assistant", "content": "", "tool_calls": [CALL, CALL]},
            {"role": "tool", "content": "7"},
            {"role": "tool", "content": "8"},
        ],
        TOOLS,
    )
    call = '<tool_call>\n{"name": "add", "arguments": {"a": 3}}\n</tool_call>'
    assert json.dumps(TOOLS[0]["function"]) in text
    assert f"<|im_start|>assistant\n{call}\n{call}<|im_end|>\n" in text
    results = "\n<tool_response>\n7\n</tool_response>\n<tool_response>\n8\n</tool_response>"
    assert text.endswith(f"<|im_start|>user{results}<|im_end|>\n<|im_start|>assistant\n")


words = st.text(st.characters(codec="utf-8", exclude_categories=("Cs",)), min_size=1, max_size=20)
steps = st.lists(
    st.one_of(
        st.builds(lambda t: [{"role": "user", "content": t}], words),
        st.builds(lambda t: [{"role": "assistant", "content": t}], words),
        st.builds(
            lambda t: [{"role": "assistant", "content": "", "tool_calls": [CALL]}, {"role": "tool", "content": t}],
            words,
        ),
    ),
    min_size=1,
    max_size=6,
)


@given(steps=steps, with_tools=st.booleans())
def test_every_turn_extends_the_prompt_before_it(steps: list[list[dict[str, Any]]], with_tools: bool) -> None:
    tools = TOOLS if with_tools else None
    messages: list[dict[str, Any]] = [{"role": "user", "content": "start"}]
    before = render(messages, tools)
    for step in steps:
        if step[0]["role"] == "user":
            messages = [*messages, {"role": "assistant", "content": "ok"}, *step]
        else:
            messages = [*messages, *step, {"role": "user", "content": "next"}]
        after = render(messages, tools)
        assert after.startswith(before)
        before = after
