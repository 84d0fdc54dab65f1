"""Which parser a model needs, and vLLM's parsers behind ``OutputParser``, token by token."""

from __future__ import annotations

import json
import time
from types import SimpleNamespace
from typing import Any

import pytest

from mixquant_agents.chat.core import TurnCore
from mixquant_agents.config import EngineConfig
from mixquant_agents.engine.base import NamedTool, ToolChoice
from mixquant_agents.engine.parsing import OutputParser, TokenDelta, parsed
from mixquant_agents.engine.vllm.parsers import (
    VllmOutputParser,
    make_parser,
    parser_names,
    reasoning_counter,
    tag_model_of,
)
from mixquant_agents.engine.vllm.render import bundled_template
from mixquant_agents.errors import ConfigError, EngineError

ADD = {
    "type": "function",
    "function": {"name": "add", "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}}},
}
HERMES = '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>'
MARKS = ["<think>", "</think>", "<tool_call>", "</tool_call>", "<minimax:tool_call>", "</minimax:tool_call>"]
MARKS += [f"<｜tool▁{part}｜>" for part in ("calls▁begin", "calls▁end", "call▁begin", "call▁end", "sep")]
MARKS += ["<seed:think>", "</seed:think>", "<seed:tool_call>", "</seed:tool_call>", "[TOOL_CALLS]", "<|python_tag|>"]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    """One token per byte, and one per marker."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    plain = Tokenizer(models.BPE(vocab={char: place for place, char in enumerate(alphabet)}, merges=[]))
    plain.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    plain.decoder = decoders.ByteLevel()
    made = PreTrainedTokenizerFast(tokenizer_object=plain)
    made.add_special_tokens({"additional_special_tokens": MARKS})
    return made


def read(parser: OutputParser, tokenizer: Any, text: str, prompt: str = "user: hi") -> dict[str, Any]:
    """Feed ``text`` token by token."""
    ids = tokenizer.encode(text)
    pieces = []
    for place, token in enumerate(ids):
        pieces.append(
            parser.feed(
                TokenDelta(
                    text=tokenizer.decode([token]),
                    token_ids=(token,),
                    prompt_token_ids=tuple(tokenizer.encode(prompt)) if place == 0 else None,
                    finish_reason="stop" if place == len(ids) - 1 else None,
                )
            )
        )
    pieces.append(parser.finish())
    calls = [call for piece in pieces for call in piece.tool_calls]
    return {
        "content": "".join(piece.content for piece in pieces),
        "reasoning": "".join(piece.reasoning for piece in pieces),
        "names": [call.name for call in calls if call.name],
        "arguments": "".join(call.arguments for call in calls),
        "ids": [call.id for call in calls if call.id],
        "invalid": [invalid for piece in pieces for invalid in piece.invalid_calls],
    }


def parser_of(
    tokenizer: Any, tool: str | None, reasoning: str | None = None, choice: ToolChoice = "auto"
) -> OutputParser:
    return make_parser((tool, reasoning), tokenizer, [ADD], choice)


@pytest.mark.parametrize(
    ("tool", "reasoning", "text"),
    [
        ("hermes", None, HERMES),
        ("hermes", "qwen3", "<think>\nhm\n</think>\n\n" + HERMES),
        ("llama3_json", None, '{"name": "add", "parameters": {"a": 1}}'),
        ("llama3_json", "qwen3", '<think>hm</think>{"name": "add", "parameters": {"a": 1}}'),
        ("mistral", None, '[TOOL_CALLS][{"name": "add", "arguments": {"a": 1}}]'),
        ("pythonic", None, "[add(a=1)]"),
        ("qwen3_coder", None, "<tool_call>\n<function=add>\n<parameter=a>1</parameter>\n</function>\n</tool_call>"),
        (
            "minimax_m2",
            "minimax_m2",
            '<think>hm</think><minimax:tool_call>\n<invoke name="add">\n<parameter name="a">1</parameter>\n</invoke>\n'
            "</minimax:tool_call>",
        ),
    ],
)
def test_calls_of_each_syntax(tokenizer: Any, tool: str, reasoning: str | None, text: str) -> None:
    got = read(parser_of(tokenizer, tool, reasoning), tokenizer, text)
    assert got["names"] == ["add"]
    assert json.loads(got["arguments"]) == {"a": 1}
    assert len(got["ids"]) == 1
    assert got["reasoning"].strip() == ("hm" if reasoning else "")
    assert got["content"].strip() == ""
    assert got["invalid"] == []


@pytest.mark.parametrize("prompt", ["assistant\n", "assistant\n<think>\n"])
def test_qwen3s_call_in_an_unclosed_thought_is_a_call(tokenizer: Any, prompt: str) -> None:
    text = ("" if "<think>" in prompt else "<think>\n") + "I must look.\n" + HERMES
    got = read(parser_of(tokenizer, "hermes", "qwen3"), tokenizer, text, prompt)
    assert (got["names"], json.loads(got["arguments"])) == (["add"], {"a": 1})
    assert (got["reasoning"], got["content"], got["invalid"]) == ("I must look.", "", [])
    unbound = read(make_parser(("hermes", "qwen3"), tokenizer, [], "auto"), tokenizer, text, prompt)
    assert (unbound["names"], unbound["content"]) == ([], "")
    assert unbound["reasoning"] == "I must look.\n" + HERMES


@pytest.mark.parametrize("tool", ["hermes", "llama3_json", "pythonic", "qwen3_coder", None])
def test_plain_text_stays_text(tokenizer: Any, tool: str | None) -> None:
    got = read(parser_of(tokenizer, tool), tokenizer, "Just words, 3 < 4.")
    assert (got["content"], got["names"], got["reasoning"]) == ("Just words, 3 < 4.", [], "")


def test_no_calls_are_read_where_none_may_be(tokenizer: Any) -> None:
    assert read(parser_of(tokenizer, "hermes", None, "none"), tokenizer, HERMES)["content"] == HERMES
    assert read(make_parser(("hermes", None), tokenizer, [], "auto"), tokenizer, HERMES)["content"] == HERMES


@pytest.mark.parametrize("choice", ["required", NamedTool("add")])
def test_forced_calls_of_a_model_without_grammar_are_hermes(tokenizer: Any, choice: ToolChoice) -> None:
    assert tag_model_of("pythonic") is None
    assert read(parser_of(tokenizer, "pythonic", None, choice), tokenizer, HERMES)["names"] == ["add"]


def test_reasoning_that_the_prompt_began(tokenizer: Any) -> None:
    parser = parser_of(tokenizer, "hermes", "deepseek_r1")
    got = read(parser, tokenizer, "hm</think>\n\nHi", prompt="assistant<think>\n")
    assert (got["reasoning"], got["content"]) == ("hm", "Hi")
    closed = read(parser_of(tokenizer, "hermes", "qwen3"), tokenizer, "Hi", prompt="<think>\n\n</think>\n\n")
    assert (closed["reasoning"], closed["content"]) == ("", "Hi")


def test_reasoning_tokens_are_counted(tokenizer: Any) -> None:
    count = reasoning_counter("deepseek_r1", tokenizer)
    assert count is not None
    assert count(tokenizer.encode("x"), tokenizer.encode("<think>abc</think>de")) == 3
    assert count(tokenizer.encode("x<think>\n"), tokenizer.encode("abc</think>de")) == 3
    assert reasoning_counter(None, tokenizer) is None


def test_invalid_calls_are_kept(tokenizer: Any) -> None:
    got = read(parser_of(tokenizer, "hermes"), tokenizer, "<tool_call>\nadd 1 and 2\n</tool_call>")
    assert got["names"] == []
    assert "add 1 and 2" in got["invalid"][0][0]


@pytest.mark.parametrize(
    ("tool", "text"),
    [
        ("hermes", '<tool_call>\n{"name": "add", "arguments": {"a": 1'),
        ("mistral", '[TOOL_CALLS][{"name": "add", "arguments": {"a": 1'),
        ("qwen3_coder", "<tool_call>\n<function=add>\n<parameter=a>1</par"),
    ],
)
def test_a_call_that_was_cut_off_is_one_invalid_call(tokenizer: Any, tool: str, text: str) -> None:
    core, parser = TurnCore(), parser_of(tokenizer, tool)
    ids = tokenizer.encode(text)
    deltas = [TokenDelta(tokenizer.decode([token]), (token,)) for token in ids[:-1]]
    deltas.append(TokenDelta(tokenizer.decode(ids[-1:]), (ids[-1],), finish_reason="length"))
    first, *rest = [chunk for delta in deltas if (chunk := core.feed(parsed(delta, parser))) is not None]
    answer = sum([*rest, core.last({}, None)], start=first)
    assert [call["name"] for call in answer.invalid_tool_calls] == ["add"]
    assert answer.tool_calls == []
    assert len(answer.additional_kwargs["unparsed_tool_calls"]) == 1


def test_hermes_cost_is_linear(tokenizer: Any) -> None:
    """Eight times the tokens: 8 is linear, 64 quadratic; between them there is room for a busy machine."""

    def seconds(tokens: int) -> float:
        best = 1e9
        for _ in range(3):
            parser = parser_of(tokenizer, "hermes")
            parser.feed(TokenDelta(text='<tool_call>\n{"name": "add", "arguments": {"a": "'))
            began = time.process_time()
            for _ in range(tokens):
                parser.feed(TokenDelta(text="word "))
            best = min(best, time.process_time() - began)
        return best

    seconds(200)
    assert seconds(16_000) / seconds(2_000) < 24


def names(
    template: str, model: str = "m", *, bundled: bool = False, form: str = "native", **settings: Any
) -> tuple[str | None, str | None]:
    renderer: Any = SimpleNamespace(
        template=template, bundled=bundled, tool_form=form, tokenizer=settings.pop("tokenizer")
    )
    return parser_names(EngineConfig(model=model, **settings), renderer)


@pytest.mark.parametrize(
    ("template", "model", "found"),
    [
        ('<tool_call>\n{"name": …', "NousResearch/Hermes-3", ("hermes", None)),
        ("<tool_call> <think>", "Qwen/Qwen3-8B", ("hermes", "qwen3")),
        ("<tool_call>\n<function=f> <think>", "Qwen/Qwen3.5-9B", ("qwen3_coder", "qwen3")),
        ("<think> <｜tool▁calls▁begin｜>", "deepseek-ai/DeepSeek-R1", ("deepseek_v3", "deepseek_r1")),
        ("[TOOL_CALLS]", "mistralai/Mistral-Small", ("mistral", None)),
        ("<|python_tag|>", "meta-llama/Llama-3.1-8B-Instruct", ("llama3_json", None)),
        ("<|channel|>analysis <|channel|>commentary", "openai/gpt-oss-20b", ("openai", "openai_gptoss")),
        ("nothing known", "some/model", ("hermes", None)),
    ],
)
def test_auto_chooses_by_the_template(tokenizer: Any, template: str, model: str, found: tuple[str, str | None]) -> None:
    assert names(template, model, tokenizer=tokenizer) == found


def test_the_bundled_template_is_hermes_without_reasoning(tokenizer: Any) -> None:
    assert names(bundled_template(), bundled=True, tokenizer=tokenizer) == ("hermes", None)


def test_tools_in_words_are_read_as_hermes(tokenizer: Any) -> None:
    assert names("[TOOL_CALLS]", form="prompted", tokenizer=tokenizer) == ("hermes", None)
    assert names("[TOOL_CALLS]", form="listed", tokenizer=tokenizer) == ("mistral", None)


def test_names_are_taken_or_refused(tokenizer: Any) -> None:
    assert names("", tool_parser="xlam", reasoning_parser="qwen3", tokenizer=tokenizer) == ("xlam", "qwen3")
    assert names("<tool_call> <think>", tool_parser=None, reasoning_parser=None, tokenizer=tokenizer) == (None, None)
    with pytest.raises(ConfigError, match=r"tool_parser 'nope' is unknown; vLLM has: .*hermes"):
        names("", tool_parser="nope", tokenizer=tokenizer)
    with pytest.raises(ConfigError, match="reasoning_parser 'nope' is unknown"):
        names("", reasoning_parser="nope", tokenizer=tokenizer)


def test_a_parser_must_fit_the_tokenizer() -> None:
    bare = SimpleNamespace(get_vocab=lambda: {"x": 0}, encode=lambda *_, **__: [0])
    with pytest.raises(ConfigError, match=r"tool_parser 'llama3_json' .* do not fit: .*python_tag"):
        names("", tool_parser="llama3_json", tokenizer=bare)
    assert names("<|python_tag|>", tokenizer=bare) == ("hermes", None)  # auto gives it up


def test_a_parser_of_vllms_that_fails_is_told_in_our_words() -> None:
    class Broken:
        def parse_delta(self, *_: Any, **__: Any) -> Any:
            raise IndexError("list index out of range")

    parser = object.__new__(VllmOutputParser)
    parser._parser, parser._request, parser._started, parser._finished = Broken(), None, False, False
    with pytest.raises(EngineError, match="parser failed on this answer: IndexError"):
        parser.feed(TokenDelta(text="x"))
