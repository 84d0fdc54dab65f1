"""Tool choice and schema → one grammar; the grammar itself is tried on answers with xgrammar."""

from __future__ import annotations

from typing import Any

import pytest

from mixquant_agents.engine.base import EngineRequest, NamedTool
from mixquant_agents.engine.vllm.grammar import Grammar, calls_in_hermes, grammar_of
from mixquant_agents.errors import GrammarError, RequestError


def tool(name: str, *, strict: bool | None = None) -> dict[str, Any]:
    parameters = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    function: dict[str, Any] = {"name": name, "parameters": parameters}
    if strict is not None:
        function["strict"] = strict
    return {"type": "function", "function": function}


SCHEMA = {"type": "object", "properties": {"x": {"type": "boolean"}}, "required": ["x"], "additionalProperties": False}


def asked(**fields: Any) -> EngineRequest:
    return EngineRequest(request_id="r", messages=[], **fields)


def call(name: str, arguments: str) -> str:
    return f'<tool_call>\n{{"name": "{name}", "arguments": {arguments}}}\n</tool_call>'


@pytest.fixture(scope="module")
def compiler() -> Any:
    """A compiler over a vocabulary of single bytes, so that any text can be tried."""
    import xgrammar

    vocabulary = [bytes([byte]) for byte in range(256)] + ["</s>"]
    return xgrammar.GrammarCompiler(xgrammar.TokenizerInfo(vocabulary, stop_token_ids=[256]))


def accepts(compiler: Any, grammar: Grammar | None, text: str) -> bool:
    """Whether the grammar lets the whole ``text`` pass and end there."""
    import xgrammar

    assert grammar is not None
    compiled = compiler.compile_structural_tag(grammar.tag)
    matcher = xgrammar.GrammarMatcher(compiled)
    return all(matcher.accept_token(byte) for byte in text.encode()) and matcher.accept_token(256)


@pytest.mark.parametrize(
    "request_",
    [
        asked(),
        asked(tools=[tool("f")]),
        asked(tool_choice="none"),
    ],
)
def test_nothing_to_constrain(request_: EngineRequest) -> None:
    assert grammar_of(request_, "hermes") is None


WORDS = asked(tools=[tool("f")], tool_choice="none")


def test_no_call_begins_where_none_may_be(compiler: Any) -> None:
    params = grammar_of(WORDS, "hermes")
    for text in ("The sum is 3.", "3 < 4", "<html>", '{"name": "Bern"}', ""):
        assert accepts(compiler, params, text), text
    for text in (call("f", '{"a": 1}'), "Well.\n" + call("f", '{"a": 1}')):
        assert not accepts(compiler, params, text), text


def test_a_marker_of_several_tokens_is_barred_from_its_first(compiler: Any) -> None:
    params = grammar_of(WORDS, "hermes", lambda marker: False)
    assert accepts(compiler, params, "If a<b, write <b>.")
    for text in ("<tool_calling>", "\n<tool_calling>", "Well.\n" + call("f", '{"a": 1}')):
        assert not accepts(compiler, params, text), text


def test_words_of_other_syntaxes(compiler: Any) -> None:
    params = grammar_of(WORDS, "qwen_3_coder")
    assert accepts(compiler, params, "Fine.")
    assert not accepts(compiler, params, "<tool_call>")
    assert grammar_of(WORDS, "llama") is None  # its call is plain JSON, which the prompt may ask for
    assert grammar_of(WORDS, "harmony") is None  # vLLM has no grammar for it
    assert grammar_of(WORDS, None) is None


def test_a_schema_stays_where_no_call_may_be(compiler: Any) -> None:
    params = grammar_of(asked(tools=[tool("f")], tool_choice="none", schema=SCHEMA), "hermes")
    assert accepts(compiler, params, '{"x": true}')
    assert not accepts(compiler, params, "Fine.")


def test_required_wants_calls_with_valid_arguments(compiler: Any) -> None:
    params = grammar_of(asked(tools=[tool("f"), tool("g")], tool_choice="required"), "hermes")
    assert accepts(compiler, params, call("f", '{"a": 1}'))
    assert accepts(compiler, params, call("f", '{"a": 1}') + "\n" + call("g", '{"a": 2}'))
    assert not accepts(compiler, params, "I will not.")
    assert not accepts(compiler, params, call("h", '{"a": 1}'))
    assert not accepts(compiler, params, call("f", '{"a": "one"}'))
    assert not accepts(compiler, params, call("f", "{}"))


def test_required_without_parallel_calls_wants_one(compiler: Any) -> None:
    params = grammar_of(asked(tools=[tool("f")], tool_choice="required", parallel_tool_calls=False), "hermes")
    assert accepts(compiler, params, call("f", '{"a": 1}'))
    assert not accepts(compiler, params, call("f", '{"a": 1}') + "\n" + call("f", '{"a": 2}'))


def test_a_named_tool_is_called_once(compiler: Any) -> None:
    params = grammar_of(asked(tools=[tool("f"), tool("g")], tool_choice=NamedTool("g")), "hermes")
    assert accepts(compiler, params, call("g", '{"a": 1}'))
    assert not accepts(compiler, params, call("f", '{"a": 1}'))
    assert not accepts(compiler, params, call("g", '{"a": 1}') + "\n" + call("g", '{"a": 2}'))


def test_auto_with_strict_tools_constrains_only_calls(compiler: Any) -> None:
    params = grammar_of(asked(tools=[tool("f", strict=True), tool("g", strict=False)]), "hermes")
    assert accepts(compiler, params, "No tool is needed.")
    assert accepts(compiler, params, "Let me see.\n" + call("f", '{"a": 1}'))
    assert not accepts(compiler, params, call("f", '{"b": 1}'))
    assert accepts(compiler, params, call("g", '{"b": 1}'))  # not strict: any object
    assert not accepts(compiler, params, call("g", "7"))


def test_auto_with_a_single_call_allows_one_or_none(compiler: Any) -> None:
    params = grammar_of(asked(tools=[tool("f")], parallel_tool_calls=False), "hermes")
    assert accepts(compiler, params, "None needed.")
    assert accepts(compiler, params, call("f", '{"a": 1}'))
    assert not accepts(compiler, params, call("f", '{"a": 1}') + "\n" + call("f", '{"a": 2}'))


def test_a_schema_is_json(compiler: Any) -> None:
    params = grammar_of(asked(schema=SCHEMA), "hermes")
    assert accepts(compiler, params, '{"x": true}')
    assert not accepts(compiler, params, '{"x": 1}')
    assert not accepts(compiler, params, '{"x":\n\n\n\ntrue}')  # no run of white space


def test_a_schema_beside_tools_leaves_the_choice(compiler: Any) -> None:
    params = grammar_of(asked(tools=[tool("f")], schema=SCHEMA), "hermes")
    assert accepts(compiler, params, '{"x": false}')
    assert accepts(compiler, params, call("f", '{"a": 1}'))
    assert not accepts(compiler, params, "Neither.")


@pytest.mark.parametrize("tag_model", ["qwen_3_coder", "llama", None])
def test_answer_beside_a_schema_is_a_call_or_the_form_in_every_syntax(compiler: Any, tag_model: str | None) -> None:
    grammar = grammar_of(asked(tools=[tool("f")], schema=SCHEMA), tag_model)
    assert accepts(compiler, grammar, '{"x": false}')
    assert not accepts(compiler, grammar, "Neither.")
    forced = grammar_of(asked(tools=[tool("f")], tool_choice="required"), tag_model)
    assert forced is not None
    written = {
        "qwen_3_coder": "<tool_call>\n<function=f>\n<parameter=a>1</parameter>\n</function>\n</tool_call>",
        "llama": '{"name": "f", "parameters": {"a": 1}}',
        None: call("f", '{"a": 1}'),
    }[tag_model]
    assert accepts(compiler, forced, written)
    assert accepts(compiler, grammar, written)
    assert calls_in_hermes(tag_model, "auto", with_schema=True) is (tag_model is None)


def test_models_without_a_grammar_are_forced_in_hermes_form(compiler: Any) -> None:
    params = grammar_of(asked(tools=[tool("f")], tool_choice="required"), None)
    assert accepts(compiler, params, call("f", '{"a": 1}'))
    assert calls_in_hermes(None, "required")
    assert not calls_in_hermes(None, "auto")
    assert calls_in_hermes("hermes", "auto")
    assert not calls_in_hermes("llama", NamedTool("f"))


def test_a_syntax_of_vllm_uses_its_tag(compiler: Any) -> None:
    params = grammar_of(asked(tools=[tool("f")], tool_choice="required"), "qwen_3_coder")
    assert "<function=f>" in params.tag
    assert not accepts(compiler, params, call("f", '{"a": 1}'))
    named = grammar_of(asked(tools=[tool("f"), tool("g")], tool_choice=NamedTool("g")), "qwen_3_coder")
    assert "<function=g>" in named.tag
    assert "<function=f>" not in named.tag


@pytest.mark.parametrize(
    ("fields", "model", "kind", "said"),
    [
        ({"tool_choice": "required"}, "hermes", RequestError, "at least one tool"),
        ({"tools": [tool("f")], "tool_choice": NamedTool("g")}, "hermes", RequestError, "'g', but the tools are: f"),
        ({"tools": [{"type": "function"}]}, "hermes", RequestError, "no function name"),
        ({"tools": [{"function": {"name": "f", "parameters": 3}}]}, "hermes", GrammarError, "no JSON schema object: 3"),
        ({"schema": [1]}, "hermes", GrammarError, "no JSON schema object"),
        ({"schema": {"type": "nonsense"}}, "hermes", GrammarError, "nonsense"),
        ({"schema": {"$ref": "#/nowhere"}}, "hermes", GrammarError, "nowhere"),
        (
            {"tools": [tool("f")], "tool_choice": "required", "schema": SCHEMA},
            "hermes",
            GrammarError,
            "drop tool_choice",
        ),
        (
            {"schema": {"type": "array", "uniqueItems": True}},
            "hermes",
            GrammarError,
            "uniqueItems at #.*structured_output",
        ),
        ({"schema": {"$ref": "http://example.org/x"}}, "hermes", GrammarError, "outside the schema"),
        (
            {"tools": [{"function": {"name": "f", "parameters": {"$ref": "file:///x"}}}], "tool_choice": "required"},
            "hermes",
            GrammarError,
            "tool 'f': .*outside the schema",
        ),
        ({"schema": {"x": {1, 2}}}, "hermes", GrammarError, "no JSON"),
        ({"tools": [tool("f")], "parallel_tool_calls": False}, None, GrammarError, "parallel_tool_calls=False"),
        ({"tools": [tool("f", strict=True)]}, None, GrammarError, "strict tools"),
    ],
)
def test_what_cannot_be_honoured_is_refused(fields: Any, model: str | None, kind: type[Exception], said: str) -> None:
    with pytest.raises(kind, match=said):
        grammar_of(asked(**fields), model)


@pytest.mark.parametrize("tag_model", ["hermes", "qwen_3_coder"])
def test_forced_arguments_keep_to_what_the_compiler_ignores(compiler: Any, tag_model: str) -> None:
    parameters = {"type": "object", "properties": {"s": {"type": "string", "pattern": "^[a-z]+$", "maxLength": 3}}}
    parameters |= {"required": ["s"], "allOf": [{"properties": {"n": {"type": "integer"}}}, {"required": ["n"]}]}
    one = {"type": "function", "function": {"name": "f", "parameters": parameters}}
    grammar = grammar_of(asked(tools=[one], tool_choice="required"), tag_model)

    def written(text: str, number: str) -> str:
        if tag_model == "hermes":
            return call("f", f'{{"s": "{text}", "n": {number}}}')
        values = "".join(f"<parameter={k}>\n{v}\n</parameter>\n" for k, v in (("s", text), ("n", number)))
        return f"<tool_call>\n<function=f>\n{values}</function>\n</tool_call>"

    assert accepts(compiler, grammar, written("abc", "1"))
    assert not accepts(compiler, grammar, written("abcdef", "1"))
    assert not accepts(compiler, grammar, written("abc", "x"))


def test_schema_whose_answer_is_checked_is_taken_without_what_no_grammar_holds(compiler: Any) -> None:
    schema = {"type": "array", "items": {"type": "integer"}, "uniqueItems": True}
    grammar = grammar_of(asked(schema=schema, schema_checked=True), "hermes")
    assert accepts(compiler, grammar, "[1,1]")
    assert not accepts(compiler, grammar, '["a"]')


def test_grammars_make_no_noise(compiler: Any, capfd: Any) -> None:
    marks = [{"type": "object", "properties": {"k": {"const": k}}, "required": ["k"]} for k in "ab"]
    schema = {
        "type": "object",
        "properties": {
            "union": {"oneOf": marks, "discriminator": {"propertyName": "k"}},
            "overlap": {"oneOf": [{"type": "integer", "minimum": 0}, {"type": "integer", "maximum": 5}]},
            "pattern": {"type": "string", "pattern": "^(?=a)[a-z]+$", "maxLength": 3},
            "email": {"type": "string", "format": "email", "maxLength": 30},
            "step": {"type": "number", "multipleOf": 0.5},
            "both": {"allOf": [{"pattern": "^a"}, {"pattern": "b$"}], "type": "string"},
        },
    }
    grammar = grammar_of(asked(schema=schema, schema_checked=True), "hermes")
    assert accepts(compiler, grammar, '{"union":{"k":"b"},"step":1}')
    assert capfd.readouterr().err == ""
