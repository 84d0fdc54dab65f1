"""Schemas for the grammar: never wider than asked, and what is left out is named. Judged by jsonschema."""

from __future__ import annotations

import json
import math
import random
from typing import Any

import numpy
import pytest
import xgrammar
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from mixquant_agents.engine.json_schema import MAX_DEPTH, grammar_schema, violation
from mixquant_agents.errors import GrammarError

END = 256
VOCABULARY = [*(bytes([byte]) for byte in range(256)), b"</s>"]
COMPILER = xgrammar.GrammarCompiler(xgrammar.TokenizerInfo(VOCABULARY, stop_token_ids=[END]), max_threads=1)


def compiled(schema: dict[str, Any]) -> Any:
    form = {"type": "json_schema", "json_schema": grammar_schema(schema).schema, "max_whitespace_cnt": 1}
    return COMPILER.compile_structural_tag(json.dumps({"type": "structural_tag", "format": form}))


def accepts(schema: dict[str, Any], text: str) -> bool:
    matcher = xgrammar.GrammarMatcher(compiled(schema))
    return all(matcher.accept_token(byte) for byte in text.encode()) and matcher.accept_token(END)


def written(schema: dict[str, Any], choose: random.Random) -> str | None:
    """A text that the grammar lets pass, drawn byte by byte; ``None`` where it does not end in time."""
    matcher = xgrammar.GrammarMatcher(compiled(schema))
    mask = xgrammar.allocate_token_bitmask(1, len(VOCABULARY))
    text = bytearray()
    for step in range(400):
        matcher.fill_next_token_bitmask(mask)
        bits = numpy.unpackbits(mask.numpy().view(numpy.uint8), bitorder="little")[: len(VOCABULARY)]
        allowed = numpy.flatnonzero(bits).tolist()
        ending = [byte for byte in allowed if byte in (END, *b'"]}')]
        plain = [byte for byte in allowed if byte < 127] or allowed
        token = choose.choice(ending if ending and (step > 60 or choose.random() < 0.3) else plain)
        if token == END:
            return text.decode()
        assert matcher.accept_token(token)
        text.append(token)
    return None


STRING = {"type": "string"}
NUMBER = {"type": "integer"}


def thing(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


OPTIONAL = {"type": "object", "properties": {"a": NUMBER, "b": NUMBER}, "additionalProperties": False}

HELD = [
    ("multipleOf of integers", {"type": "integer", "multipleOf": 5}, "10", "7"),
    ("multipleOf in a range", {"type": "integer", "multipleOf": 5, "minimum": 0, "exclusiveMaximum": 20}, "15", "20"),
    ("minimum", {"type": "integer", "minimum": 5}, "10", "4"),
    ("minimum without a type", {"minimum": 3}, "4", "1"),
    ("exclusiveMinimum of draft 4", {"type": "integer", "minimum": 3, "exclusiveMinimum": True}, "4", "3"),
    ("pattern", {"type": "string", "pattern": "^[A-Z]+$"}, '"AB"', '"ab"'),
    ("pattern anywhere", {"type": "string", "pattern": "[A-Z]"}, '"aBc"', '"abc"'),
    ("alternatives anywhere", {"type": "string", "pattern": "x|yy"}, '"ayyb"', '"ab"'),
    ("pattern, maxLength", {"type": "string", "pattern": "^[A-Z]+$", "maxLength": 3}, '"AB"', '"ABCD"'),
    ("pattern, minLength", {"type": "string", "pattern": "^[a-z][a-z0-9_]*$", "minLength": 3}, '"a_1"', '"a1"'),
    ("pattern of fixed length", {"type": "string", "pattern": r"^\d{4}$", "maxLength": 9}, '"1234"', '"123"'),
    ("unknown format", {"type": "string", "format": "path"}, '"/x"', "1"),
    ("unknown format, pattern", {"type": "string", "format": "binary", "pattern": "^a$"}, '"a"', '"b"'),
    ("format without a type", {"format": "date"}, '"2020-01-01"', '"x"'),
    ("items as a list", {"type": "array", "items": [NUMBER, STRING]}, '[1,"a"]', '["a",1]'),
    ("false items", {"type": "array", "items": False}, "[]", "[1]"),
    ("const beside a type", {"const": "a", "type": ["string", "null"]}, '"a"', "null"),
    ("enum beside a type", {"type": "string", "enum": ["a", 1]}, '"a"', "1"),
    ("enum beside a bound", {"enum": [1, 5, 9], "maximum": 5}, "5", "9"),
    ("allOf of one", {"allOf": [NUMBER], "minimum": 3}, "4", "1"),
    ("allOf of two", {"allOf": [NUMBER, {"minimum": 3}, {"maximum": 9}]}, "4", "12"),
    ("allOf of objects", {"allOf": [
        {"type": "object", "properties": {"a": NUMBER}, "required": ["a"]},
        {"properties": {"b": STRING}, "required": ["b"]},
    ]}, '{"a":1,"b":"x"}', '{"a":1}'),
    ("anyOf beside a type", {"type": "string", "anyOf": [{"minLength": 2}, {"maxLength": 0}]}, '"ab"', '"a"'),
    ("anyOf of requirements", {**OPTIONAL, "anyOf": [{"required": ["a"]}, {"required": ["b"]}]}, '{"b":1}', "{}"),
    ("anyOf of constants", {"anyOf": [{"const": "x"}, {"const": 2}]}, "2", '"y"'),
    ("oneOf of types", {"oneOf": [NUMBER, STRING]}, "1", "null"),
    ("oneOf by a mark", {"oneOf": [thing(k={"const": "a"}), thing(k={"const": "b"}, n=NUMBER)]},
     '{"k":"b","n":1}', '{"k":"b"}'),
    ("keywords beside $ref", {"$defs": {"x": NUMBER}, "$ref": "#/$defs/x", "minimum": 3}, "4", "1"),
    ("$ref with ~1", {"$defs": {"a/b": NUMBER}, "$ref": "#/$defs/a~1b"}, "1", '"x"'),
    ("$ref with ~0", {"$defs": {"a~b": NUMBER}, "$ref": "#/$defs/a~0b"}, "1", '"x"'),
    ("$ref with %20", {"$defs": {"a b": NUMBER}, "$ref": "#/$defs/a%20b"}, "1", '"x"'),
    ("$ref to an index", {"type": "array", "prefixItems": [NUMBER, {"$ref": "#/prefixItems/0"}]}, "[1,1]", '[1,"x"]'),
    ("$ref to an anchor", {"$defs": {"x": {"$anchor": "here", **NUMBER}}, "$ref": "#here"}, "1", '"x"'),
    ("$ref to the root", {"type": "object", "properties": {"a": {"$ref": "#"}}, "additionalProperties": False},
     '{"a":{"a":{}}}', '{"a":{"b":{}}}'),
    ("false property", {"type": "object", "properties": {"a": False, "b": NUMBER}}, '{"b":1}', '{"a":1}'),
    ("only a false property", {"type": "object", "properties": {"a": False}}, "{}", '{"a":1}'),
    ("required without properties", {"type": "object", "required": ["z"]}, '{"z":1}', "{}"),
    ("required by a pattern", {
        "type": "object", "patternProperties": {"^x": NUMBER}, "required": ["xa"], "additionalProperties": False,
    }, '{"xa":1}', '{"xa":"s"}'),
    ("propertyNames", {"type": "object", "propertyNames": {"pattern": "^[a-z]+$"}}, '{"a":1}', '{"A":1}'),
]  # fmt: skip


@pytest.mark.parametrize(("schema", "good", "bad"), [pytest.param(*case[1:], id=case[0]) for case in HELD])
def test_grammar_holds(schema: dict[str, Any], good: str, bad: str) -> None:
    assert accepts(schema, good)
    assert not accepts(schema, bad)
    assert violation(schema, json.loads(good)) is None
    if not any(name.startswith("patternProperties") for name in grammar_schema(schema).unenforced):
        assert grammar_schema(schema).unenforced == ()


CHECKED = [
    ("not", {"type": "string", "not": {"const": "x"}}, "y", "x"),
    ("if/then/else", {**OPTIONAL, "if": {"required": ["a"]}, "then": {"required": ["b"]}}, {"a": 1, "b": 1}, {"a": 1}),
    ("dependentRequired", {**OPTIONAL, "dependentRequired": {"a": ["b"]}}, {"a": 1, "b": 1}, {"a": 1}),
    ("dependentRequired", {**OPTIONAL, "dependencies": {"a": ["b"]}}, {"a": 1, "b": 1}, {"a": 1}),
    ("dependentSchemas", {**OPTIONAL, "dependentSchemas": {"a": {"required": ["b"]}}}, {"a": 1, "b": 1}, {"a": 1}),
    ("uniqueItems", {"type": "array", "items": NUMBER, "uniqueItems": True}, [1, 2], [1, 1]),
    ("contains", {"type": "array", "items": NUMBER, "contains": {"const": 3}}, [3], [1]),
    ("contains", {"type": "array", "contains": {"const": 1}, "minContains": 2}, [1, 1], [1]),
    ("multipleOf", {"type": "number", "multipleOf": 0.5}, 1.5, 1.3),
    ("multipleOf", {"type": "integer", "multipleOf": 7, "minimum": 0}, 14, 15),
    ("oneOf", {"oneOf": [{**NUMBER, "minimum": 0}, {**NUMBER, "maximum": 5}]}, 9, 3),
    ("oneOf", {"oneOf": [{"type": "integer"}, {"maxLength": 2}]}, "ab", 3),
    ("pattern", {"type": "string", "pattern": "^(?=.*[0-9])[a-z0-9]+$"}, "a1", "ab"),
    ("pattern", {"type": "string", "pattern": "^(?!x)[a-z]+$"}, "ab", "xb"),
    ("pattern", {"type": "string", "pattern": r"^(a|b)\1$"}, "aa", "ab"),
    ("pattern", {"type": "string", "pattern": r"^a\b.*$"}, "a b", "ab"),
    ("pattern", {"type": "string", "pattern": '^"x"$'}, '"x"', "x"),
    ("pattern", {"type": "string", "pattern": r"^a\\b$"}, "a\\b", "ab"),
    ("minLength/maxLength", {"type": "string", "pattern": "^([a-z]+-)+$", "maxLength": 4}, "a-", "abc-de-"),
    ("minLength/maxLength", {"type": "string", "format": "email", "maxLength": 6}, "a@b.de", "abcdef@b.de"),
    ("unevaluatedItems", {"type": "array", "prefixItems": [NUMBER], "unevaluatedItems": False}, [1], [1, 2]),
    ("allOf", {"allOf": [{"type": "string", "pattern": "^a"}, {"pattern": "b$"}]}, "ab", "ac"),
    ("propertyNames", {**OPTIONAL, "propertyNames": {"maxLength": 0}}, {}, {"a": 1}),
]  # fmt: skip


@pytest.mark.parametrize(("keyword", "schema", "good", "bad"), CHECKED)
def test_keyword_beyond_grammars_is_named_and_checked(keyword: str, schema: Any, good: Any, bad: Any) -> None:
    unenforced = grammar_schema(schema).unenforced
    assert any(name.startswith(keyword) for name in unenforced), unenforced
    assert violation(schema, good) is None
    assert "#/" in str(violation(schema, bad))
    assert accepts(schema, json.dumps(good, separators=(",", ":")))


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({"$ref": "http://example.org/x.json"}, "example.org.*outside the schema"),
        ({"type": "object", "properties": {"a": {"$ref": "file:///etc/passwd"}}}, "outside the schema"),
        ({"const": 1, "$ref": "http://example.org/x.json"}, "outside the schema"),
        ({"$ref": "#/nowhere"}, "nowhere"),
        ({"$ref": "#nowhere"}, "nowhere"),
        ({"$dynamicRef": "#x"}, "dynamicRef"),
        ({"type": "nonsense"}, "nonsense"),
        ({"type": "string", "pattern": "["}, "pattern"),
        ({"type": "string", "pattern": r"^\p{L}+$"}, "pattern"),
        ({"type": "object", "properties": {"a": False}, "required": ["a"]}, "no value satisfies"),
        ({"type": "object", "required": ["z"], "additionalProperties": False}, "no value satisfies"),
        ({"const": 1, "type": "string"}, "no value satisfies"),
        ({"allOf": [STRING, NUMBER]}, "no value satisfies"),
        ({"type": "integer", "minimum": 3, "maximum": 2}, "no value satisfies"),
        ({"enum": []}, "enum|no value"),
        ({"anyOf": []}, "anyOf"),
        ({"enum": [1], "minLength": "x"}, "minLength"),
        ({"type": "integer", "multipleOf": math.inf}, "multipleOf at #.* is inf"),
        ({"type": "integer", "multipleOf": math.nan}, "multipleOf at #.* is nan"),
        ({"type": "number", "maximum": math.nan}, "maximum at #.* is nan"),
        ({"type": "number", "minimum": math.inf}, "minimum at #.* is inf"),
    ],
)
def test_schema_without_answers_is_refused(schema: Any, words: str) -> None:
    with pytest.raises(GrammarError, match=words):
        grammar_schema(schema)


def test_bound_without_end_is_none() -> None:
    bounds = {"minimum": -math.inf, "exclusiveMaximum": math.inf}
    assert grammar_schema({"type": "number", **bounds}).schema == grammar_schema({"type": "number"}).schema
    assert grammar_schema({"type": "integer", "maximum": 10**400}).schema["maximum"] == 10**400


def test_schema_too_deep_or_too_large_is_refused() -> None:
    deep: dict[str, Any] = NUMBER
    for _ in range(3 * MAX_DEPTH):
        deep = {"type": "array", "items": deep}
    with pytest.raises(GrammarError, match="deeper"):
        grammar_schema(deep)
    with pytest.raises(GrammarError, match="parts"):
        grammar_schema({"anyOf": [{"const": index} for index in range(20_000)]})
    doubling: dict[str, Any] = {"type": "object", "properties": {"a": STRING}}
    for level in range(40):  # each alternative is written out once for every alternative beside it
        doubling = {"allOf": [{"anyOf": [{"minProperties": 1}, {"maxProperties": level}]}, doubling]}
    assert grammar_schema(doubling).unenforced
    assert grammar_schema({"enum": [f"item {index}" for index in range(5_000)]}).unenforced == ()


def test_comments_are_no_constraints() -> None:
    noisy = {
        "$schema": "http://json-schema.org/draft-07/schema#", "$id": "http://example.org/s", "title": "T", "x-own": 1,
        "description": "d", "default": 3, "examples": [4], "readOnly": True, "contentEncoding": "base64", **STRING,
    }  # fmt: skip
    assert grammar_schema(noisy).schema == STRING
    named = {"type": "object", "properties": {"not": NUMBER, "uniqueItems": STRING, "format": STRING}}
    assert grammar_schema(named).unenforced == ()


def test_recursive_schema_stays_recursive() -> None:
    tree = {
        "$defs": {"node": {
            "type": "object",
            "properties": {"value": NUMBER, "children": {"type": "array", "items": {"$ref": "#/$defs/node"}}},
            "required": ["value"],
            "additionalProperties": False,
        }},
        "$ref": "#/$defs/node",
    }  # fmt: skip
    assert accepts(tree, '{"value":1,"children":[{"value":2,"children":[]}]}')
    assert not accepts(tree, '{"value":1,"children":[{}]}')
    beside = {"$defs": {"n": {**tree["$defs"]["node"], "properties": {  # type: ignore[dict-item, index]  # plain JSON
        "value": NUMBER, "next": {"$ref": "#/$defs/n", "minProperties": 1},
    }}}, "$ref": "#/$defs/n"}  # fmt: skip
    assert accepts(beside, '{"value":1,"next":{"value":2,"next":{"value":3}}}')
    assert not accepts(beside, '{"value":1,"next":{"value":2,"next":{}}}')
    growing = {"$defs": {"x": {"properties": {"a": {"allOf": [{"$ref": "#/$defs/x"}, {"$ref": "#/$defs/y"}]}}}}}
    growing |= {"$ref": "#/$defs/x"}
    growing["$defs"]["y"] = {"properties": {"a": {"allOf": [{"$ref": "#/$defs/y"}, {"$ref": "#/$defs/x"}]}}}
    try:
        assert not accepts(growing, '{"a":{"a":1}}')
    except GrammarError as error:
        assert "refers to itself" in str(error)  # noqa: PT017  either is right
    endless = {"$defs": {"x": {"allOf": [{"$ref": "#/$defs/x"}]}}, "$ref": "#/$defs/x"}
    assert grammar_schema(endless) is not None


NAMES = st.sampled_from(["a", "b", "cd"])


def bounds(low: str, high: str, least: int = 0) -> st.SearchStrategy[dict[str, Any]]:
    pair = st.tuples(st.integers(least, 4), st.integers(0, 6))
    return st.one_of(st.just({}), pair.map(lambda p: {low: p[0], high: p[0] + p[1]}))


SCALARS = st.one_of(
    bounds("minimum", "maximum", -3).map(lambda extra: {"type": "integer", **extra}),
    bounds("minimum", "maximum", -3).map(lambda extra: {"type": "number", **extra}),
    st.sampled_from([1, 2, 3, 10]).map(lambda step: {"type": "integer", "multipleOf": step, "minimum": 0}),
    bounds("minLength", "maxLength").map(lambda extra: {"type": "string", **extra}),
    st.tuples(
        st.sampled_from(["^[a-c]+$", "^x[0-9]*$", "b", "^(ab)*$", "^a|c$", "[^a]", r"^\d{2,3}$", "^ab?c{1,2}$"]),
        bounds("minLength", "maxLength"),
    ).map(lambda pair: {"type": "string", "pattern": pair[0], **pair[1]}),
    st.sampled_from([{"type": "boolean"}, {"type": "null"}, {"enum": [1, "a", None]}, {"const": [1]}, {}]),
    st.sampled_from(["minimum", "maxLength", "minItems"]).map(lambda keyword: {keyword: 2}),
)  # fmt: skip


def composed(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    properties = st.dictionaries(NAMES, st.one_of(inner, st.booleans()), max_size=3)
    objects = st.tuples(properties, st.sets(NAMES, max_size=2), st.sampled_from([None, True, False, NUMBER])).map(
        lambda parts: (
            {"type": "object", "properties": parts[0], "required": sorted(parts[1])}
            | ({} if parts[2] is None else {"additionalProperties": parts[2]})
        )
    )
    arrays = st.tuples(inner, bounds("minItems", "maxItems"), st.lists(inner, max_size=2)).map(
        lambda parts: {"type": "array", "items": parts[0], **parts[1]} | ({"prefixItems": parts[2]} if parts[2] else {})
    )
    several = st.lists(inner, min_size=1, max_size=3)
    beside = st.one_of(st.just({}), SCALARS)
    alternatives = st.tuples(st.sampled_from(["anyOf", "oneOf", "allOf"]), several, beside).map(
        lambda parts: {**parts[2], parts[0]: parts[1]}
    )
    referred = st.tuples(inner, beside).map(
        lambda parts: {
            "type": "object",
            "properties": {"a": {"$ref": "#/properties/b~1c", **parts[1]}, "b/c": parts[0]},
        }
    )
    return st.one_of(objects, arrays, alternatives, referred)


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(st.recursive(SCALARS, composed, max_leaves=5), st.randoms(use_true_random=False))
def test_grammar_is_never_wider_than_its_schema(schema: dict[str, Any], choose: random.Random) -> None:
    """Whatever the grammar lets a model write satisfies the schema, unless the schema's unenforced parts were named."""
    root = {"type": "object", "properties": {"v": schema}, "required": ["v"], "additionalProperties": False}
    if "$ref" in json.dumps(schema):
        root = schema  # its references lead from the root
    try:
        prepared = grammar_schema(root)
    except GrammarError as error:
        assert "no value satisfies" in str(error) or "$ref" in str(error)  # noqa: PT017  nothing else is wrong with them
        return
    text = written(root, choose)
    if text is None:
        return
    value = json.loads(text, strict=False)  # xgrammar lets control characters stand in strings of a given length
    if not prepared.unenforced:
        assert violation(root, value) is None, text
    assert Draft202012Validator(root).is_valid(value) == (violation(root, value) is None)
