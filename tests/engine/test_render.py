"""Messages → token ids: which template, which shape of messages, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mixquant_agents.config import EngineConfig
from mixquant_agents.engine.vllm import render
from mixquant_agents.engine.vllm.render import Renderer, bundled_template, plain_messages
from mixquant_agents.errors import ConfigError, ContextOverflowError, InvalidMessagesError

CALL = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a":1,  "b": 2}'}}


class StubTokenizer:
    """Renders with jinja like transformers does, and answers with code points."""

    def __init__(self, template: Any = "own") -> None:
        self.chat_template = template

    def get_chat_template(self) -> Any:
        return self.chat_template

    def apply_chat_template(self, messages: Any, *, tools: Any, chat_template: str, **variables: Any) -> list[int]:
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        variables.pop("tokenize"), variables.pop("return_dict")
        environment = ImmutableSandboxedEnvironment()
        environment.filters["tojson"] = json.dumps
        template = environment.from_string(chat_template)
        return [ord(char) for char in template.render(messages=messages, tools=tools, **variables)]


def renderer(monkeypatch: pytest.MonkeyPatch, tokenizer: Any, **settings: Any) -> Renderer:
    import vllm.tokenizers

    monkeypatch.setattr(vllm.tokenizers, "get_tokenizer", lambda *_, **__: tokenizer)
    return Renderer("path", EngineConfig(model="m", **settings))


def text(ids: list[int]) -> str:
    return "".join(map(chr, ids))


def test_a_template_without_tools_is_replaced_by_the_bundled_one(monkeypatch: pytest.MonkeyPatch) -> None:
    made = renderer(monkeypatch, StubTokenizer("{{ messages[0].content }}"))
    assert made.bundled
    prompt = text(made.render([{"role": "user", "content": "hi"}]))
    assert prompt.startswith("<|im_start|>system\n")
    assert prompt.endswith("<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n")


def test_a_template_that_knows_tools_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    own = "{{ tools | length }} {{ messages[0].content }}{{ think }}"
    made = renderer(monkeypatch, StubTokenizer(own))
    assert not made.bundled
    prompt = made.render([{"role": "user", "content": "hi"}], [{"type": "function"}], {"think": "!"})
    assert text(prompt) == "1 hi!"


def test_named_templates_prefer_the_one_for_tools(monkeypatch: pytest.MonkeyPatch) -> None:
    made = renderer(monkeypatch, StubTokenizer({"default": "d", "tool_use": "t {{ tools }}"}))
    assert made.template == "t {{ tools }}"


def test_a_template_file_wins(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "mine.jinja"
    path.write_text("mine")
    made = renderer(monkeypatch, StubTokenizer("own"), chat_template=str(path))
    assert (made.template, made.bundled) == ("mine", False)
    with pytest.raises(ConfigError, match="is not a file"):
        renderer(monkeypatch, StubTokenizer("own"), chat_template=str(tmp_path / "gone"))


def test_a_template_that_refuses_is_a_readable_error(monkeypatch: pytest.MonkeyPatch) -> None:
    made = renderer(monkeypatch, StubTokenizer("{{ tools }}{{ messages[0].nothing.at.all }}"))
    with pytest.raises(InvalidMessagesError, match=r"chat template cannot render .* roles: user"):
        made.render([{"role": "user", "content": "hi"}])


def test_the_bundled_template_keeps_arguments_byte_for_byte(monkeypatch: pytest.MonkeyPatch) -> None:
    made = renderer(monkeypatch, StubTokenizer("x"))
    messages = [{"role": "user", "content": "q"}, {"role": "assistant", "content": None, "tool_calls": [CALL]}]
    assert '"arguments": {"a":1,  "b": 2}}' in text(made.render(messages))
    assert bundled_template() == made.template


def test_other_templates_get_arguments_as_objects() -> None:
    plain = plain_messages([{"role": "assistant", "content": None, "tool_calls": [CALL]}], parse_arguments=True)
    assert plain[0]["tool_calls"][0]["function"]["arguments"] == {"a": 1, "b": 2}
    broken = {"type": "function", "function": {"name": "f", "arguments": "{oops"}}
    plain = plain_messages([{"role": "assistant", "tool_calls": [broken]}], parse_arguments=True)
    assert plain[0]["tool_calls"][0]["function"]["arguments"] == "{oops"


def test_a_template_that_only_writes_objects_gets_a_broken_call_without_arguments(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    own = "{# tool #}{% for m in messages %}{% for c in m.tool_calls %}{{ c.function.name }}:{% for k, v in c.function"
    made = renderer(
        monkeypatch, StubTokenizer(own + ".arguments | items %}{{ k }}={{ v }} {% endfor %};{% endfor %}{% endfor %}")
    )
    cut = {"id": "c2", "type": "function", "function": {"name": "sub", "arguments": '{"a": 1, "b'}}
    asked = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "", "tool_calls": [CALL, cut]}]
    assert text(made.render(asked)) == "add:a=1 b=2 ;sub:;"
    assert cut["function"]["arguments"] == '{"a": 1, "b', "the caller's messages stay as they are"  # type: ignore[index]


def test_text_parts_are_joined_and_other_parts_refused() -> None:
    parts = [{"type": "text", "text": "a"}, "b"]
    assert plain_messages([{"role": "user", "content": parts}], parse_arguments=True)[0]["content"] == "ab"
    with pytest.raises(InvalidMessagesError, match="'image_url'"):
        plain_messages([{"role": "user", "content": [{"type": "image_url"}]}], parse_arguments=True)


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        ([], "no messages"),
        ([{"content": "x"}], "no role"),
        ([{"role": "user", "content": 7}], "type int"),
        ([{"role": "assistant", "tool_calls": [{"id": "x"}]}], "without function name"),
    ],
)
def test_messages_that_are_none_are_refused(messages: Any, said: str) -> None:
    with pytest.raises(InvalidMessagesError, match=said):
        plain_messages(messages, parse_arguments=True)


@pytest.mark.parametrize(
    ("prompt", "most", "fits"), [(99, None, True), (100, None, False), (90, 10, True), (90, 11, False)]
)
def test_what_cannot_fit_is_refused_with_both_numbers(prompt: int, most: int | None, fits: bool) -> None:
    made = Renderer.__new__(Renderer)
    made.max_model_len = 100
    if fits:
        made.check_length(prompt, most)
        return
    with pytest.raises(ContextOverflowError) as caught:
        made.check_length(prompt, most)
    assert (caught.value.prompt_tokens, caught.value.max_model_len) == (prompt, 100)


@pytest.mark.parametrize(("ids", "one"), [([7], True), ([7, 8], False)])
def test_markers_of_one_token_are_known(ids: list[int], one: bool) -> None:
    made = Renderer.__new__(Renderer)
    made.tokenizer = SimpleNamespace(encode=lambda marker, add_special_tokens: ids)
    assert made.one_token("<tool_call>") is one


def test_a_tokenizer_that_renders_by_itself_is_let(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = SimpleNamespace(apply_chat_template=lambda messages, **_: [1, 2])
    made = renderer(monkeypatch, tokenizer)
    assert (made.template, made.bundled) == (None, False)
    assert made.render([{"role": "user", "content": "x"}]) == [1, 2]
    assert render.BUNDLED_TEMPLATE == "hermes.jinja"
