"""Which parser a model needs, and vLLM's parsers behind ``OutputParser``, token by token."""

from __future__ import annotations

import json
import time
from types import SimpleNamespace
from typing import Any

import pytest

from mixquant_agents.chat.accumulator import AnswerAccumulator
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
from mixquant_agents.errors import ConfigError
from tests.engine.vllm.byte_tokenizer import byte_tokenizer

ADD = {
    "type": "function",
    "function": {"name": "add", "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}}},
}
HERMES = '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>'
MARKS = ["<think>", "</think>", "<tool_call>", "</tool_call>", "<minimax:tool_call>", "</minimax:tool_call>"]
MARKS += [f"<｜tool▁{part}｜>" for part in ("calls▁begin", "calls▁end", "call▁begin", "call▁end", "sep")]
MARKS += ["<|tool_call>", "<tool_call|>", '<|"|>', "<|channel>", "<channel|>", "<|tool_call|>"]
MARKS += ["<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>"]
MARKS += ["<seed:think>", "</seed:think>", "<seed:tool_call>", "</seed:tool_call>", "[TOOL_CALLS]", "<|python_tag|>"]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    """One token per byte, and one per marker."""
    return byte_tokenizer(special=MARKS)


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


def calls_of(tokenizer: Any, tool: str, text: str, reason: str = "stop") -> tuple[list[Any], list[Any]]:
    """Arguments of the calls that can be run, and ids of those that cannot."""
    accumulator = AnswerAccumulator(("add",))
    ids, parser = tokenizer.encode(text), parser_of(tokenizer, tool)
    for place, token in enumerate(ids):
        last: Any = reason if place == len(ids) - 1 else None
        raw = TokenDelta(tokenizer.decode([token]), (token,), finish_reason=last, prompt_token_ids=())
        accumulator.feed(parsed(raw, parser))
    accumulator.close()
    broken = [call["id"] for _, call, _ in accumulator.calls.seals()]
    return [json.loads(call["arguments"]) for call in accumulator.calls.listed() if call["id"] not in broken], broken


@pytest.mark.parametrize(
    ("tool", "text"),
    [
        ("hermes", '<tool_call>\n{"name": "add", "arguments": {}}\n</tool_call>'),
        ("llama3_json", '{"name": "add", "parameters": {}}'),
        ("llama3_json", '<|python_tag|>{"name": "add", "parameters": {}}; {"name": "add", "parameters": {}}'),
        ("llama3_json", '{"name": "add", "parameters": {"a": 1}}; {"name": "add", "parameters": {}}'),
        ("mistral", '[TOOL_CALLS][{"name": "add", "arguments": {}}]'),
        ("pythonic", "[add()]"),
        ("qwen3_coder", "<tool_call>\n<function=add>\n</function>\n</tool_call>"),
        ("minimax_m2", '<minimax:tool_call>\n<invoke name="add">\n</invoke>\n</minimax:tool_call>'),
    ],
)
def test_call_without_arguments_has_none(tokenizer: Any, tool: str, text: str) -> None:
    whole, broken = calls_of(tokenizer, tool, text)
    assert broken == []
    assert whole[-1] == {}
    assert len(whole) == text.count("add")
    cut_off = calls_of(tokenizer, tool, text[: text.rindex("add") + 4])[0]
    assert {} not in cut_off[len(whole) - 1 :], "what was cut off behind the name is no call"


@pytest.mark.parametrize("arguments", ["{'a': 1}", "{a: 1}"])
@pytest.mark.parametrize(
    ("tool", "form"),
    [
        ("internlm", '<|action_start|><|plugin|>{"name": "add", "parameters": ARGUMENTS}<|action_end|>'),
        ("llama3_json", '{"name": "add", "parameters": ARGUMENTS}'),
    ],
)
def test_call_whose_arguments_are_no_json_is_not_run_without_them(
    tokenizer: Any, tool: str, form: str, arguments: str
) -> None:
    whole, _ = calls_of(tokenizer, tool, form.replace("ARGUMENTS", arguments))
    assert whole == []


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
    core, parser = AnswerAccumulator(), parser_of(tokenizer, tool)
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
    template: str, model: str = "m", *, bundled: bool = False, form: str = "native", call: str = "", **settings: Any
) -> tuple[str | None, str | None]:
    """``call``: what the template makes of the probe's call, ``probe(a="b")``."""
    renderer: Any = SimpleNamespace(
        template=template,
        bundled=bundled,
        tool_form=form,
        tokenizer=settings.pop("tokenizer"),
        answer_text=lambda *_: call,
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
    with pytest.raises(ConfigError, match=r"tool_parser 'nope' is unknown; there are: .*hermes"):
        names("", tool_parser="nope", tokenizer=tokenizer)
    with pytest.raises(ConfigError, match="reasoning_parser 'nope' is unknown"):
        names("", reasoning_parser="nope", tokenizer=tokenizer)


def test_a_parser_must_fit_the_tokenizer() -> None:
    bare = SimpleNamespace(get_vocab=lambda: {"x": 0}, encode=lambda *_, **__: [0])
    with pytest.raises(ConfigError, match=r"tool_parser 'llama3_json' .* do not fit: .*python_tag"):
        names("", tool_parser="llama3_json", tokenizer=bare)
    assert names("<|python_tag|>", tokenizer=bare) == ("hermes", None)  # auto gives it up


@pytest.mark.parametrize(
    ("call", "parser"),
    [
        ('<tool_call>\n{"name": "probe", "arguments": {"a": "b"}}\n</tool_call>', "hermes"),
        ("<tool_call>\n<function=probe>\n<parameter=a>\nb\n</parameter>\n</function>\n</tool_call>", "qwen3_coder"),
        ('{"name": "probe", "parameters": {"a": "b"}}', "llama3_json"),
        ("[probe(a='b')]", "pythonic"),
        ("<function_calls>\nprobe(a='b')\n</function_calls>", "olmo3"),
        ('<|tool_call|>[{"name": "probe", "arguments": {"a": "b"}}]', "granite"),
        ('<TOOLCALL>[{"name": "probe", "arguments": {"a": "b"}}]</TOOLCALL>', "nemotron_json"),
        ('<tool_calls>[{"name": "probe", "arguments": {"a": "b"}}]</tool_calls>', "hunyuan_a13b"),
        ('Action:\n```json\n[{"tool_name": "probe", "parameters": {"a": "b"}}]\n```', "command_r"),
        ('<|START_ACTION|>[{"tool_name": "probe", "parameters": {"a": "b"}}]<|END_ACTION|>', "cohere_command3"),
        ('[{"name": "probe", "arguments": {"a": "b"}}]', "xlam"),
        ('functools[{"name": "probe", "arguments": {"a": "b"}}]', "phi4_mini_json"),
        ("<tool_call>probe\n<arg_key>a</arg_key>\n<arg_value>b</arg_value>\n</tool_call>", "glm47"),
        (
            "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>probe\n```json\n"
            '{"a": "b"}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>',
            "deepseek_v3",
        ),
        (
            '<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>probe<｜tool▁sep｜>{"a": "b"}'
            "<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
            "deepseek_v31",
        ),
        ('<|tool_call>call:probe{a:<|"|>b<|"|>}<tool_call|>', "gemma4"),
        (' to=functions.probe<|channel|>commentary json<|message|>{"a": "b"}<|call|>', "openai"),
    ],
)
def test_the_parser_is_proven_on_a_call_that_the_template_wrote(tokenizer: Any, call: str, parser: str) -> None:
    source = "no marks"
    assert names(source, call=call, tokenizer=tokenizer)[0] == parser


class Broken:
    """A parser of vLLM's that has had enough after the first word."""

    def __init__(self) -> None:
        self.words = 0

    def parse_delta(self, text: str, *_: Any, **__: Any) -> Any:
        self.words += 1
        if self.words > 1:
            raise IndexError("list index out of range")
        return SimpleNamespace(content=text, tool_calls=None)


def test_an_answer_on_which_vllms_parser_fails_is_text_from_there_on(
    tokenizer: Any, caplog: pytest.LogCaptureFixture
) -> None:
    parser = parser_of(tokenizer, "xlam")
    assert isinstance(parser, VllmOutputParser)
    parser._parser = Broken()
    got = read(parser, tokenizer, "Just words.")
    assert (got["content"], got["invalid"]) == ("Just words.", [])
    assert "IndexError: list index out of range" in caplog.text


@pytest.mark.parametrize(
    ("tool", "text"),
    [
        ("pythonic", "[add(a=one)]"),
        ("phi4_mini_json", '{"name": "add", "arguments": {}}'),
        ("llama3_json", '{"name": "add"'),
    ],
)
def test_a_call_that_vllms_parser_drops_is_an_invalid_call(tokenizer: Any, tool: str, text: str) -> None:
    got = read(parser_of(tokenizer, tool), tokenizer, text)
    kept = got["content"] + got["arguments"] + "".join(raw for raw, _ in got["invalid"]) + "".join(got["names"])
    for word in ("add", "one") if "one" in text else ("add",):
        assert word in kept


def test_a_thought_ends_at_a_call_of_any_syntax(tokenizer: Any) -> None:
    text = "Look.\n<tool_call>\n<function=add>\n<parameter=a>1</parameter>\n</function>\n</tool_call>"
    got = read(parser_of(tokenizer, "qwen3_coder", "qwen3"), tokenizer, text, "assistant\n<think>\n")
    assert (got["reasoning"], got["names"], got["content"].strip()) == ("Look.", ["add"], "")
    assert json.loads(got["arguments"]) == {"a": 1}


@pytest.mark.parametrize(
    "names_", [("qwen3_coder", "qwen3"), ("deepseek_v3", "deepseek_r1"), ("minimax_m2", "minimax_m2")]
)
def test_an_answer_without_thoughts_is_content(tokenizer: Any, names_: tuple[str, str]) -> None:
    got = read(parser_of(tokenizer, *names_), tokenizer, "Just words.")
    assert (got["content"], got["reasoning"]) == ("Just words.", "")
    got = read(parser_of(tokenizer, *names_), tokenizer, "Hm.</think>Just words.", "assistant\n<think>\n")
    assert (got["content"], got["reasoning"]) == ("Just words.", "Hm.")


def test_mistrals_id_behind_the_name_is_the_id() -> None:
    tokenizer = byte_tokenizer(special=["[TOOL_CALLS]", "[CALL_ID]", "[ARGS]"])
    got = read(parser_of(tokenizer, "mistral"), tokenizer, '[TOOL_CALLS]add[CALL_ID]abcDEF123[ARGS]{"a": 1}')
    assert (got["names"], got["ids"], json.loads(got["arguments"])) == (["add"], ["abcDEF123"], {"a": 1})


def _invokes(word: str, space: str = "") -> tuple[str, str, str]:
    mark = f"｜DSML｜{space}"
    value = f'<{mark}parameter name="a" string="false">{{}}</{mark}parameter>\n'
    call = f'<{mark}invoke name="add">\n{value}</{mark}invoke>\n'
    return f"<{mark}{word}>\n", call, f"</{mark}{word}>"


_KEYED = "<arg_key>a</arg_key>\n<arg_value>{}</arg_value>\n</tool_call>"
_STEP = '<steptml:invoke name="add"><steptml:parameter name="a">{}</steptml:parameter></steptml:invoke>'
MARKED: dict[str, tuple[str, str, str]] = {
    "deepseek_v32": _invokes("function_calls"),
    "deepseek_v4": _invokes("tool_calls"),
    "deepseek_v41": _invokes("calls", " "),
    "dots": (
        "",
        '<dots_function_call>\n<invoke name="add">\n<parameter name="a">{}</parameter>\n</invoke>\n'
        "</dots_function_call>",
        "",
    ),
    "ling3": ("", f"<tool_call>add\n{_KEYED}", ""),
    "poolside_v1": ("", f"<tool_call>add\n{_KEYED}", ""),
    "hy_v3": ("<tool_calls>\n", f"<tool_call>add<tool_sep>\n{_KEYED}\n", "</tool_calls>"),
    "minicpm5": ("", '<function name="add"><param name="a">{}</param></function>', ""),
    "mimo": ("", "<tool_call>\n<function=add>\n<parameter=a>{}</parameter>\n</function>\n</tool_call>", ""),
    "step3": (
        "<｜tool_calls_begin｜>",
        f"<｜tool_call_begin｜>function<｜tool_sep｜>{_STEP}<｜tool_call_end｜>",
        "<｜tool_calls_end｜>",
    ),
    "kimi_k2": (
        "<|tool_calls_section_begin|>",
        '<|tool_call_begin|>functions.add:0<|tool_call_argument_begin|>{{"a": {}}}<|tool_call_end|>',
        "<|tool_calls_section_end|>",
    ),
    "gemma4": ("", "<|tool_call>call:add{{a:{}}}<tool_call|>", ""),
    "longcat": ("", '<longcat_tool_call>\n{{"name": "add", "arguments": {{"a": {}}}}}\n</longcat_tool_call>', ""),
}
FAMILY_MARKS = [
    *MARKS,
    *("｜DSML｜", "<tool_calls>", "</tool_calls>", "<tool_sep>", "<dots_function_call>", "</dots_function_call>"),
    *(f"<｜tool_{part}｜>" for part in ("calls_begin", "calls_end", "call_begin", "call_end", "sep")),
    *(f"<|tool_{part}|>" for part in ("calls_section_begin", "calls_section_end", "call_begin", "call_end")),
    *("<|tool_call_argument_begin|>", "<longcat_tool_call>", "</longcat_tool_call>"),
]


@pytest.mark.parametrize("tool", MARKED)
def test_calls_between_markers_of_each_family_run_whole_and_not_in_part(tool: str) -> None:
    """Two calls run; of an answer that is cut off anywhere none runs that was not written whole."""
    plain = byte_tokenizer()
    plain.add_tokens(FAMILY_MARKS)
    opening, call, closing = MARKED[tool]
    text = opening + call.format(1) + call.format(2) + closing
    assert calls_of(plain, tool, text) == ([{"a": 1}, {"a": 2}], [])
    for end in range(1, len(text), 7):
        assert calls_of(plain, tool, text[:end], "length")[0] in ([], [{"a": 1}], [{"a": 1}, {"a": 2}])
