"""JSON schemas as a grammar can hold them, and the check of a finished answer against the whole schema.

A grammar compiler (xgrammar) follows only part of JSON Schema, and ignores the rest without an error: ``not``,
``if``, ``uniqueItems``, a look-ahead in a pattern, keywords beside ``$ref`` or ``anyOf``. So a schema is rewritten
before it gets there:

* what can be said in other words is: ``allOf`` and keywords beside ``$ref`` and ``anyOf`` are merged, lengths move into
  a pattern, a ``const`` or ``enum`` is filtered by the keywords beside it, references get plain names;
* what cannot is left out of the grammar and named in :attr:`GrammarSchema.unenforced`: the caller checks the answer
  with :func:`violation`, or refuses the request;
* what no answer can satisfy, and what nobody here can look up (a reference to another document), is refused.

A grammar may be narrower than its schema, never wider: an object has no properties beside the listed ones unless
``additionalProperties`` says so, and a schema that only has keywords of one type means that type.

Formats that the compiler does not know are comments, as JSON Schema says. Pure: imports neither vllm nor xgrammar.
"""

from __future__ import annotations

import functools
import json
import math
import re
import re._constants as regex  # type: ignore[import-not-found]  # typeshed lacks it; the public sre_parse is deprecated
import re._parser as regex_parser  # type: ignore[import-not-found]  # as above
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

from mixquant_agents.errors import GrammarError

__all__ = ["FORMATS", "MAX_DEPTH", "GrammarSchema", "grammar_schema", "violation"]

MAX_DEPTH = 64
"""Levels of nesting in a schema; the cost of a grammar grows with the cube of it."""

MAX_PARTS = 5_000
"""Objects in a schema; values of an ``enum`` are free."""

MAX_NODES = 20_000
"""Subschemas after rewriting; merging copies."""

MAX_MERGED = 100_000
"""Characters of schemas that are merged into one: where each merge meets itself again inside, they double."""

MAX_LISTED = 1_000
"""Multiples in a range that are written out."""

FORMATS = frozenset(
    {"email", "date", "time", "date-time", "duration", "ipv4", "ipv6", "hostname", "uuid", "uri", "uri-reference"}
    | {"uri-template", "json-pointer", "relative-json-pointer"}
)
"""Formats that xgrammar has a grammar for."""

_TYPES = ("null", "boolean", "object", "array", "number", "string")
_KEYWORDS_OF: dict[str, tuple[str, ...]] = {
    kind: tuple(keywords.split())
    for kind, keywords in {
        "object": "properties patternProperties additionalProperties propertyNames required minProperties "
        "maxProperties dependentRequired dependentSchemas unevaluatedProperties",
        "array": "items prefixItems minItems maxItems uniqueItems contains minContains maxContains unevaluatedItems",
        "string": "pattern format minLength maxLength",
        "number": "minimum maximum exclusiveMinimum exclusiveMaximum multipleOf",
    }.items()
}
_ANY_TYPE = ("type", "enum", "const", "not", "if", "then", "else", "anyOf", "oneOf", "allOf", "$ref")
_CONSTRAINTS = frozenset((*_ANY_TYPE, *(keyword for keywords in _KEYWORDS_OF.values() for keyword in keywords)))
"""Keywords that constrain a value. Every other one is a comment, or holds definitions."""

_LOWER = ("minimum", "exclusiveMinimum", "minLength", "minItems", "minProperties", "minContains")
_UPPER = ("maximum", "exclusiveMaximum", "maxLength", "maxItems", "maxProperties", "maxContains")


@dataclass(frozen=True, slots=True)
class GrammarSchema:
    """A schema for the grammar compiler.

    Attributes:
        schema: what the grammar holds; references lead to its own ``$defs`` only.
        unenforced: ``"keyword at path"`` of everything the grammar does not hold an answer to.
        weight: estimate of the states a grammar needs (bounded repetitions are written out).
    """

    schema: dict[str, Any]
    unenforced: tuple[str, ...]
    weight: int


def grammar_schema(schema: Mapping[str, Any], *, integer_multiples: bool = True) -> GrammarSchema:
    """Rewrite ``schema`` for the grammar compiler.

    Args:
        integer_multiples: whether the compiler holds ``multipleOf`` of integers.

    Raises:
        GrammarError: it is no JSON schema, is nested deeper than :data:`MAX_DEPTH`, refers to another document, holds a
            pattern that cannot be read, or no value satisfies it. The message names the keyword and its path.
    """
    _check_size(schema)
    root = _modern(dict(schema))
    _check_schema(root)
    rewriter = _Rewriter(root, integer_multiples)
    try:
        rewritten = rewriter.rewrite(root, "#")
    except RecursionError:  # each time around it would be merged with something else
        raise GrammarError(
            "the schema refers to itself with keywords beside the $ref (or in an allOf), and no end of it is in sight; "
            "write the $ref alone"
        ) from None
    if rewritten is False:
        raise GrammarError("no value satisfies the schema; correct its required, enum, const or false parts")
    assert isinstance(rewritten, dict)  # noqa: S101  narrows the type: False was refused above
    definitions = rewriter.used(rewritten)
    if definitions:
        rewritten = {**rewritten, "$defs": definitions}
    weight = sum(map(_weight, (rewritten, *definitions.values())))
    return GrammarSchema(rewritten, tuple(dict.fromkeys(rewriter.unenforced)), weight)


def violation(schema: Mapping[str, Any], value: Any) -> str | None:
    """What is wrong with ``value`` by the whole ``schema`` (``"path: reason"``); ``None`` if it satisfies it, or if the
    schema leads to another document (:func:`grammar_schema` refuses such a one)."""
    from jsonschema.exceptions import best_match  # type: ignore[import-untyped]  # it has no stubs
    from referencing.exceptions import Unresolvable

    try:
        error = best_match(_validator(_modern(dict(schema))).iter_errors(value))
    except RecursionError:
        return "#: the answer is nested too deeply to be checked"
    except (Unresolvable, re.error):  # a schema that only a server of its own can read
        return None
    if error is None:
        return None
    path = "/".join(str(part) for part in error.absolute_path)
    return f"#/{path}: {error.message}"


def _validator(root: Mapping[str, Any]) -> Any:
    """A validator that never fetches anything: jsonschema's own would ask the network for a reference it lacks."""
    from jsonschema import Draft202012Validator, FormatChecker  # type: ignore[import-untyped]  # it has no stubs
    from referencing import Registry

    schema = {key: value for key, value in root.items() if key != "$schema"}
    formats = FormatChecker(formats=FORMATS & FormatChecker.checkers.keys())
    return Draft202012Validator(schema, registry=Registry(), format_checker=formats)


def _check_schema(root: dict[str, Any]) -> None:
    from jsonschema import Draft202012Validator
    from jsonschema.exceptions import best_match

    error = best_match(Draft202012Validator(Draft202012Validator.META_SCHEMA).iter_errors(root))
    if error is not None:
        path = "/".join(str(part) for part in error.absolute_path)
        raise GrammarError(f"the schema is no JSON schema: at #/{path}: {error.message}")


def _check_size(schema: Any) -> None:
    level, depth, parts = [schema], 0, 0
    while level:
        if depth > 2 * MAX_DEPTH:  # a level of a schema is two of JSON: the keyword and the name in it
            raise GrammarError(f"the schema is nested deeper than {MAX_DEPTH} levels; flatten it")
        following: list[Any] = []
        for value in level:
            if isinstance(value, Mapping):
                parts += 1
                following.extend(value.values())
            elif isinstance(value, list | tuple):
                following.extend(value)
        if parts > MAX_PARTS:
            raise GrammarError(f"the schema has more than {MAX_PARTS} parts; simplify it (an enum may be long)")
        level, depth = following, depth + 1


def _modern(schema: Any) -> Any:
    """The same schema in the words of draft 2020-12, where it uses those of drafts 4 to 7."""
    if not isinstance(schema, Mapping):
        return schema
    result: dict[str, Any] = {}
    for key, value in schema.items():
        if key in ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas"):
            value = {name: _modern(part) for name, part in value.items()} if isinstance(value, Mapping) else value
        elif key in ("allOf", "anyOf", "oneOf", "prefixItems"):
            value = [_modern(part) for part in value] if isinstance(value, list | tuple) else value
        elif key in _SUBSCHEMAS:
            value = [_modern(part) for part in value] if isinstance(value, list | tuple) else _modern(value)
        elif isinstance(value, tuple):
            value = list(value)
        result[key] = value
    if isinstance(result.get("items"), list):
        result["prefixItems"] = result.pop("items")
        if "additionalItems" in result:
            result["items"] = result.pop("additionalItems")
    for exclusive, bound in (("exclusiveMinimum", "minimum"), ("exclusiveMaximum", "maximum")):
        if isinstance(result.get(exclusive), bool) and result.pop(exclusive) and bound in result:
            result[exclusive] = result.pop(bound)
    dependencies = result.pop("dependencies", None)
    if isinstance(dependencies, Mapping):
        for name, needed in dependencies.items():
            kind = "dependentRequired" if isinstance(needed, list | tuple) else "dependentSchemas"
            result[kind] = {**result.get(kind, {}), name: _modern(needed)}
    return result


_SUBSCHEMAS = frozenset(
    {"items", "additionalItems", "additionalProperties", "propertyNames", "contains", "not", "if", "then", "else"}
    | {"unevaluatedItems", "unevaluatedProperties"}
)


class _NotMergedError(Exception):
    """Two schemas have no common one that a grammar can hold."""


Schema = dict[str, Any] | bool


class _Rewriter:
    """One schema on its way to the compiler. Paths are JSON pointers into the original, for messages."""

    def __init__(self, root: dict[str, Any], integer_multiples: bool) -> None:
        self.unenforced: list[str] = []
        self._root = root
        self._integer_multiples = integer_multiples
        self._definitions: dict[str, Schema] = {}
        self._names: dict[str, str] = {}
        self._merging: dict[str, str] = {}
        self._nodes = 0
        self._validator = _validator(root)

    def used(self, rewritten: Any) -> dict[str, Any]:
        """The definitions that ``rewritten`` leads to."""
        names: list[str] = []
        pending = [rewritten]
        while pending:
            for name in _references(pending.pop()):
                if name not in names:
                    names.append(name)
                    pending.append(self._definitions[name])
        return {name: self._definitions[name] for name in names}

    def rewrite(self, schema: Any, path: str) -> Schema:
        """``schema`` for the compiler; ``False`` where no value satisfies it."""
        self._nodes += 1
        if self._nodes > MAX_NODES:
            raise GrammarError(
                f"the schema has more than {MAX_NODES} parts once its references are merged; simplify it"
            )
        if schema is False:
            return False
        if schema is True or not _CONSTRAINTS & schema.keys():
            self._refuse_unknown(schema, path)
            return {}
        self._refuse_unknown(schema, path)
        if "$ref" in schema and not _constraints(schema, "$ref"):
            return self._reference(schema["$ref"], path)
        if "enum" in schema or "const" in schema:
            return self._listed(schema)
        if "$ref" in schema or "allOf" in schema:
            return self._merged_once(schema, path)
        for keyword in ("anyOf", "oneOf"):
            if keyword in schema:
                return self._alternatives(schema, keyword, path)
        schema = self._checked_later(schema, path)
        types = _types(schema)
        if "type" in schema and not types:
            return False
        parts = [part for kind in types if (part := self._of_type(kind, schema, path)) is not False]
        if not types:
            return {}
        if not parts:
            return False
        return parts[0] if len(parts) == 1 else {"anyOf": parts}

    def _refuse_unknown(self, schema: Any, path: str) -> None:
        if not isinstance(schema, Mapping):
            return
        for keyword in ("$dynamicRef", "$recursiveRef"):
            if keyword in schema:
                raise GrammarError(f"{keyword} at {path} is not supported; write a plain $ref")

    def _reference(self, reference: str, path: str) -> Schema:
        """A plain reference to a definition of our own naming."""
        name = self._names.get(reference)
        if name is None:
            target = self._target(reference, path)
            name = self._names[reference] = f"d{len(self._names)}"
            self._definitions[name] = {}
            self._definitions[name] = self.rewrite(target, reference)
        if self._definitions[name] is False:
            return False
        return {"$ref": f"#/$defs/{name}"}

    def _merged_once(self, schema: Mapping[str, Any], path: str) -> Schema:
        """What a merge gives. One that meets itself inside (a reference with keywords beside it, in a tree) becomes a
        definition."""
        key = json.dumps(schema, sort_keys=True)
        if len(key) > MAX_MERGED:
            raise RecursionError
        if (name := self._merging.get(key)) is not None:
            self._definitions.setdefault(name, {})
            return {"$ref": f"#/$defs/{name}"}
        name = self._merging[key] = f"m{self._nodes}"
        result = self.rewrite(self._merged(schema, path), path)
        del self._merging[key]
        if name not in self._definitions:
            return result
        self._definitions[name] = result
        return False if result is False else {"$ref": f"#/$defs/{name}"}

    def _target(self, reference: str, path: str) -> Any:
        """What a reference leads to in this document (RFC 6901 pointers, percent-encoded or not, and anchors)."""
        if not reference.startswith("#"):
            own = self._root.get("$id")
            if not (isinstance(own, str) and own and reference.partition("#")[0] == own.rstrip("#")):
                raise GrammarError(
                    f"$ref at {path} leads to {reference!r}, outside the schema; put that schema into $defs"
                )
            reference = "#" + reference.partition("#")[2]
        fragment = reference[1:]
        if fragment and not fragment.startswith("/"):
            anchored = _anchored(self._root, fragment)
            if anchored is None:
                raise GrammarError(f"$ref at {path} leads to {reference!r}, and no $anchor has this name")
            return anchored
        node: Any = self._root
        for part in fragment.split("/")[1:]:
            for key in (part, part.replace("~1", "/").replace("~0", "~"), _decoded(part)):
                if isinstance(node, Mapping) and key in node:
                    node = node[key]
                    break
                if isinstance(node, list) and key.isdecimal() and int(key) < len(node):
                    node = node[int(key)]
                    break
            else:
                raise GrammarError(f"$ref at {path} leads to {reference!r}, which is not in the schema")
        if not isinstance(node, Mapping | bool):
            raise GrammarError(f"$ref at {path} leads to {reference!r}, which is no schema")
        return node

    def _listed(self, schema: Mapping[str, Any]) -> Schema:
        """``enum`` and ``const``: the values that satisfy everything beside them."""
        values = [schema["const"]] if "const" in schema else list(schema["enum"])
        if not _constraints(schema, "const" if "const" in schema else "enum"):
            return {"enum": values} if values else False
        if "$ref" in schema:
            self._target(schema["$ref"], "an enum or const")
        checker = self._validator.evolve(schema=dict(schema))
        fitting = [value for value in values if checker.is_valid(value)]
        return {"enum": fitting} if fitting else False

    # -- several schemas at once --

    def _merged(self, schema: Mapping[str, Any], path: str) -> Schema:
        """One schema for ``schema``, its ``$ref`` and its ``allOf``; not yet rewritten."""
        own = {key: value for key, value in schema.items() if key not in ("$ref", "allOf")}
        parts: list[Any] = [own] if _constraints(own) else []
        if "$ref" in schema:
            parts.append({"$ref": schema["$ref"]})
        parts += schema.get("allOf", ())
        try:
            flat = [self._flat(part, path, 0) for part in parts]
            merged: Schema = functools.reduce(_merge, flat) if flat else {}
        except _NotMergedError as error:
            keyword = "allOf" if "allOf" in schema else "the keywords beside $ref"
            self.unenforced.append(f"{keyword} ({error}) at {path}")
            return _first_useful(parts)
        return merged

    def _flat(self, part: Any, path: str, depth: int) -> Schema:
        """``part`` without references and ``allOf`` on its top level."""
        if not isinstance(part, Mapping) or not ({"$ref", "allOf"} & part.keys()):
            return dict(part) if isinstance(part, Mapping) else bool(part)
        if depth > MAX_DEPTH:
            raise _NotMergedError("$ref leads into itself")
        own = {key: value for key, value in part.items() if key not in ("$ref", "allOf")}
        parts: list[Schema] = [own] if _constraints(own) else []
        if "$ref" in part:
            parts.append(self._flat(self._target(part["$ref"], path), path, depth + 1))
        parts += [self._flat(branch, path, depth + 1) for branch in part.get("allOf", ())]
        return functools.reduce(_merge, parts) if parts else {}

    def _alternatives(self, schema: Mapping[str, Any], keyword: str, path: str) -> Schema:
        """``anyOf``/``oneOf``; keywords beside it go into each branch."""
        beside = {key: value for key, value in schema.items() if key in _CONSTRAINTS and key != keyword}
        branches = [branch for branch in schema[keyword] if branch is not False]
        parts: list[dict[str, Any]] = []
        for index, branch in enumerate(branches):
            branch_path = f"{path}/{keyword}/{index}"
            both: Any = {"allOf": [beside, branch]} if beside else branch
            rewritten = self.rewrite(both, branch_path)
            if rewritten is False:
                continue
            assert isinstance(rewritten, dict)  # noqa: S101  narrows the type: False was left out above
            parts += rewritten["anyOf"] if rewritten.keys() == {"anyOf"} else [rewritten]
        if keyword == "oneOf" and len(parts) > 1 and not self._disjoint(branches, path):
            self.unenforced.append(f"oneOf (its alternatives overlap) at {path}")
        if not parts:
            return False
        if all(part.keys() == {"enum"} for part in parts):
            return {"enum": [value for part in parts for value in part["enum"]]}
        return parts[0] if len(parts) == 1 else {"anyOf": parts}

    def _disjoint(self, branches: Sequence[Any], path: str) -> bool:
        """Whether no value can satisfy two branches, as far as that is plain: by type, or by a constant property."""
        try:
            flat = [self._flat(branch, path, 0) for branch in branches]
        except _NotMergedError:
            return False
        if not all(isinstance(branch, dict) for branch in flat):
            return False
        kinds = [set(_types(branch)) for branch in flat if isinstance(branch, dict)]
        if all(kinds) and sum(map(len, kinds)) == len(set().union(*kinds)):
            return not {"integer", "number"} <= set().union(*kinds)
        marks = [_constants(branch) for branch in flat if isinstance(branch, dict)]
        shared = set(marks[0]).intersection(*marks[1:])
        return any(_all_differ([mark[name] for mark in marks]) for name in shared)

    # -- one type at a time --

    def _checked_later(self, schema: Mapping[str, Any], path: str) -> dict[str, Any]:
        """``schema`` without the keywords that no grammar here holds, which are noted."""
        rest = dict(schema)
        for keyword in ("not", "if", "dependentRequired", "dependentSchemas", "contains"):
            if keyword in rest:
                value = rest.pop(keyword)
                if keyword == "not" and value is not False:
                    self.unenforced.append(f"not at {path}")
                elif keyword == "if" and ("then" in rest or "else" in rest):
                    self.unenforced.append(f"if/then/else at {path}")
                elif keyword == "contains" or (keyword.startswith("dependent") and value):
                    self.unenforced.append(f"{keyword} at {path}")
        for keyword in ("then", "else", "minContains", "maxContains"):
            rest.pop(keyword, None)
        if rest.pop("uniqueItems", False):
            self.unenforced.append(f"uniqueItems at {path}")
        for keyword in ("unevaluatedProperties", "unevaluatedItems"):
            value = rest.pop(keyword, True)
            if value is False and keyword == "unevaluatedProperties" and "additionalProperties" not in rest:
                continue  # an object has no other properties in a grammar
            if value is not True:
                self.unenforced.append(f"{keyword} at {path}")
        return rest

    def _of_type(self, kind: str, schema: Mapping[str, Any], path: str) -> Schema:
        match kind:
            case "object":
                return self._object(schema, path)
            case "array":
                return self._array(schema, path)
            case "string":
                return self._string(schema, path)
            case "integer" | "number":
                return self._number(kind, schema, path)
            case _:
                return {"type": kind}

    def _object(self, schema: Mapping[str, Any], path: str) -> Schema:
        result: dict[str, Any] = {"type": "object"}
        additional = schema.get("additionalProperties")
        patterns: Mapping[str, Any] = schema.get("patternProperties", {})
        required = list(dict.fromkeys(schema.get("required", ())))
        named: dict[str, Any] = dict(schema.get("properties", {}))
        for name in required:
            if name not in named:
                named[name] = True if additional is None else additional
                if fitting := [part for pattern, part in patterns.items() if _searches(pattern, name, path)]:
                    named[name] = {"allOf": fitting}
        properties: dict[str, Any] = {}
        for name, part in named.items():
            rewritten = self.rewrite(part, f"{path}/properties/{name}")
            if rewritten is not False:
                properties[name] = rewritten
            elif name in required:
                return False
            elif additional not in (None, False):
                self.unenforced.append(f"properties/{name} (false) at {path}")
        if properties:
            result["properties"] = properties
        if required:
            result["required"] = required
        others = {}
        for pattern, part in patterns.items():
            rewritten = self.rewrite(part, f"{path}/patternProperties/{pattern}")
            if rewritten is not False and self._plain_pattern(pattern, f"{path}/patternProperties"):
                others[pattern] = rewritten
        if others:
            result["patternProperties"] = others
            if properties or len(others) > 1:
                self.unenforced.append(f"patternProperties (beside others) at {path}")
        if "propertyNames" in schema:
            self._property_names(schema["propertyNames"], result, path)
        if additional is not None:
            result["additionalProperties"] = self.rewrite(additional, f"{path}/additionalProperties")
        elif not properties and not others:
            result["additionalProperties"] = {} if not named else False
        for keyword in ("minProperties", "maxProperties"):
            if keyword in schema:
                result[keyword] = int(schema[keyword])
        if result.get("maxProperties", len(required)) < len(required):
            return False
        return result

    def _property_names(self, names: Any, result: dict[str, Any], path: str) -> None:
        where = f"propertyNames at {path}"
        rewritten = self.rewrite({"type": "string", **names} if isinstance(names, Mapping) else names, where)
        if rewritten is False:
            result["maxProperties"] = 0
        elif rewritten != {"type": "string"}:
            if "properties" in result or "patternProperties" in result:
                self.unenforced.append(where)
            else:
                result["propertyNames"] = rewritten

    def _array(self, schema: Mapping[str, Any], path: str) -> Schema:
        result: dict[str, Any] = {"type": "array"}
        least, largest = int(schema.get("minItems", 0)), schema.get("maxItems")
        prefix: list[dict[str, Any]] = []
        for index, part in enumerate(schema.get("prefixItems", ())):
            rewritten = self.rewrite(part, f"{path}/prefixItems/{index}")
            if rewritten is False:
                largest = index if largest is None else min(largest, index)
                break
            assert isinstance(rewritten, dict)  # noqa: S101  narrows the type: False ended the loop above
            prefix.append(rewritten)
        items = self.rewrite(schema.get("items", True), f"{path}/items")
        if items is False:
            largest = len(prefix) if largest is None else min(largest, len(prefix))
        if largest is not None and least > largest:
            return False
        if largest is not None and len(prefix) >= largest:
            prefix, items = prefix[: int(largest)], False
        if prefix:
            result["prefixItems"] = prefix
        if items is False:
            result["items"] = False
        elif "items" in schema or not prefix or least > len(prefix):
            result["items"] = items
        if least:
            result["minItems"] = least
        if largest is not None:
            result["maxItems"] = int(largest)
        return result

    def _string(self, schema: Mapping[str, Any], path: str) -> Schema:
        result: dict[str, Any] = {"type": "string"}
        least, largest = int(schema.get("minLength", 0)), schema.get("maxLength")
        if largest is not None and least > largest:
            return False
        bounded = least > 0 or largest is not None
        pattern = schema.get("pattern")
        known_format = schema.get("format") in FORMATS
        if pattern is not None and self._plain_pattern(pattern, path):
            if known_format:
                self.unenforced.append(f"format (beside pattern) at {path}")
            if bounded:
                fitted = _with_length(pattern, least, None if largest is None else int(largest))
                if fitted is None:
                    self.unenforced.append(f"minLength/maxLength (beside pattern) at {path}")
                pattern = fitted or pattern
            result["pattern"] = _anchored_pattern(pattern)
            return result
        if known_format:
            result["format"] = schema["format"]
            if bounded:
                self.unenforced.append(f"minLength/maxLength (beside format) at {path}")
            return result
        if least:
            result["minLength"] = least
        if largest is not None:
            result["maxLength"] = int(largest)
        return result

    def _number(self, kind: str, schema: Mapping[str, Any], path: str) -> Schema:
        result: dict[str, Any] = {"type": kind}
        for keyword in ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"):
            if keyword in schema:
                result[keyword] = schema[keyword]
        lower = max(result.get("minimum", -math.inf), result.get("exclusiveMinimum", -math.inf))
        upper = min(result.get("maximum", math.inf), result.get("exclusiveMaximum", math.inf))
        if lower > upper:
            return False
        step = schema.get("multipleOf")
        if step is None or (kind == "integer" and step == 1):
            return result
        if kind == "integer" and step == int(step):
            if -math.inf < lower and upper < math.inf and (upper - lower) / step <= MAX_LISTED:
                first, last = math.ceil(lower / step), math.floor(upper / step)
                values = [index * int(step) for index in range(first, last + 1)]
                return self._listed({**result, "enum": values}) if values else False
            if len(result) == 1 and self._integer_multiples:
                return {**result, "multipleOf": int(step)}
        self.unenforced.append(f"multipleOf at {path}")
        return result

    def _plain_pattern(self, pattern: str, path: str) -> bool:
        """Whether a grammar holds ``pattern``; notes it where not.

        Raises:
            GrammarError: nobody here can read it.
        """
        reason = _pattern_problem(pattern, path)
        if reason is not None:
            self.unenforced.append(f"pattern ({reason}) at {path}")
        return reason is None


def _constraints(schema: Any, *besides: str) -> set[str]:
    """Keywords of a schema that constrain a value, but for some."""
    return (
        {key for key in schema if key in _CONSTRAINTS and key not in besides} if isinstance(schema, Mapping) else set()
    )


def _types(schema: Mapping[str, Any]) -> list[str]:
    """Types a schema allows: as it says, or those that its keywords are about; none where it says nothing."""
    declared = schema.get("type")
    if declared is not None:
        kinds = [declared] if isinstance(declared, str) else list(dict.fromkeys(declared))
        return [kind for kind in kinds if not (kind == "integer" and "number" in kinds)]
    return [kind for kind in _TYPES if any(keyword in schema for keyword in _KEYWORDS_OF.get(kind, ()))]


def _references(node: Any) -> list[str]:
    """Names of the definitions that a rewritten schema refers to."""
    names: list[str] = []
    pending = [node]
    while pending:
        value = pending.pop()
        if isinstance(value, dict):
            reference = value.get("$ref")
            if isinstance(reference, str):
                names.append(reference.rpartition("/")[2])
            pending.extend(part for key, part in value.items() if key not in ("enum", "$ref"))
        elif isinstance(value, list):
            pending.extend(value)
    return names


def _decoded(part: str) -> str:
    return unquote(part).replace("~1", "/").replace("~0", "~")


def _anchored(node: Any, name: str) -> Any:
    pending = [node]
    while pending:
        value = pending.pop()
        if isinstance(value, Mapping):
            if value.get("$anchor") == name:
                return value
            pending.extend(part for key, part in value.items() if key not in ("enum", "const", "default", "examples"))
        elif isinstance(value, list):
            pending.extend(value)
    return None


def _constants(schema: Mapping[str, Any]) -> dict[str, list[str]]:
    """Required properties that have one of a few values → these, as JSON."""
    result = {}
    for name, part in schema.get("properties", {}).items():
        if isinstance(part, Mapping) and name in schema.get("required", ()):
            values = [part["const"]] if "const" in part else part.get("enum")
            if values:
                result[name] = [json.dumps(value, sort_keys=True) for value in values]
    return result


def _all_differ(lists: Sequence[list[str]]) -> bool:
    return sum(map(len, lists)) == len({value for values in lists for value in values})


def _first_useful(parts: Sequence[Any]) -> Schema:
    """The part that says most: the others are checked on the answer."""
    mappings: list[dict[str, Any]] = [dict(part) for part in parts if isinstance(part, Mapping)]
    return max(mappings, key=lambda part: len(part.get("properties", ())) + ("$ref" in part))


def _merge(a: Schema, b: Schema) -> Schema:
    """One schema for "both ``a`` and ``b``"; parts that meet inside become ``allOf`` again.

    Raises:
        _NotMergedError: two keywords have no common form.
    """
    if a is False or b is False:
        return False
    if a is True:
        return b
    if b is True:
        return a
    assert isinstance(a, dict) and isinstance(b, dict)  # noqa: S101, PT018  narrows the types
    _check_closed(a, b)
    result: dict[str, Any] = dict(a)
    for key, value in b.items():
        if key not in result or result[key] == value:
            result[key] = value
        elif key not in _CONSTRAINTS and key not in ("minContains", "maxContains"):
            continue  # a comment
        else:
            result[key] = _both(key, result[key], value)
    return result if result.get("type") != [] else False


def _both(key: str, first: Any, second: Any) -> Any:
    match key:
        case "type":
            return _common_types(first, second)
        case "properties" | "patternProperties":
            both = {name: {"allOf": [first[name], second[name]]} for name in first if name in second}
            return {**first, **second, **both}
        case "required":
            return list(dict.fromkeys((*first, *second)))
        case "enum":
            listed = [json.dumps(value, sort_keys=True) for value in second]
            return [value for value in first if json.dumps(value, sort_keys=True) in listed]
        case "items" | "additionalProperties" | "propertyNames":
            return {"allOf": [first, second]}
        case "not":
            return {"anyOf": [first, second]}
        case "dependentRequired":
            return {**first, **second} if not first.keys() & second.keys() else _unmerged(key)
        case "uniqueItems":
            return True
        case "anyOf" if len(first) * len(second) <= _MAX_ALTERNATIVES:
            return [{"allOf": [one, other]} for one in first for other in second]
        case _ if key in _LOWER:
            return max(first, second)
        case _ if key in _UPPER:
            return min(first, second)
        case "multipleOf" if isinstance(first, int) and isinstance(second, int):
            return math.lcm(first, second)
        case _:
            return _unmerged(key)


_MAX_ALTERNATIVES = 64


def _unmerged(key: str) -> Any:
    raise _NotMergedError(f"{key} stands in several parts")


def _check_closed(a: dict[str, Any], b: dict[str, Any]) -> None:
    """Refuse where what one part says of further properties is about properties that the other names."""
    for one, other in ((a, b), (b, a)):
        if one.get("additionalProperties", True) is True:
            continue
        named = one.get("properties", {}).keys()
        if other.get("properties", {}).keys() - named or other.get("patternProperties"):
            raise _NotMergedError("additionalProperties of one part is about properties of another")
    for one, other in ((a, b), (b, a)):
        if "prefixItems" in one and "items" in other:
            raise _NotMergedError("prefixItems of one part meet items of another")


def _common_types(first: Any, second: Any) -> list[str]:
    names = [[kinds] if isinstance(kinds, str) else list(kinds) for kinds in (first, second)]
    common = []
    for kind in names[0]:
        if kind in names[1] or (kind == "integer" and "number" in names[1]):
            common.append(kind)
        elif kind == "number" and "integer" in names[1]:
            common.append("integer")
    return common


# -- patterns --


def _parsed(pattern: str) -> Any:
    return regex_parser.parse(pattern)


def _searches(pattern: str, text: str, path: str) -> bool:
    try:
        return re.search(pattern, text) is not None
    except re.error as error:
        raise GrammarError(f"pattern {pattern!r} at {path} cannot be read ({error})") from error


_UNHELD = {
    regex.ASSERT: "look-around",
    regex.ASSERT_NOT: "look-around",
    regex.GROUPREF: "a back reference",
    regex.GROUPREF_EXISTS: "a conditional group",
    regex.ATOMIC_GROUP: "an atomic group",
    regex.POSSESSIVE_REPEAT: "a possessive repetition",
}


def _pattern_problem(pattern: str, path: str) -> str | None:
    """Why a grammar cannot hold a pattern, or ``None``.

    Raises:
        GrammarError: it is no regular expression that can be read here.
    """
    try:
        tree = _parsed(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        raise GrammarError(f"pattern {pattern!r} at {path} cannot be read ({error})") from error
    if tree.state.flags & ~re.UNICODE.value:
        return "flags"
    return _problem(list(tree), top=True)


def _problem(nodes: Sequence[Any], *, top: bool) -> str | None:
    for index, (operator, argument) in enumerate(nodes):
        if operator in _UNHELD:
            return _UNHELD[operator]
        if operator is regex.AT:
            outer = top and (
                (argument in (regex.AT_BEGINNING, regex.AT_BEGINNING_STRING) and index == 0)
                or (argument in (regex.AT_END, regex.AT_END_STRING) and index == len(nodes) - 1)
            )
            if not outer:
                return "a word boundary or an anchor inside"
        elif operator in (regex.LITERAL, regex.NOT_LITERAL):
            if operator is regex.LITERAL and _needs_escape(argument):
                return "a character that JSON escapes"
        elif operator is regex.IN:
            negated = bool(argument) and argument[0][0] is regex.NEGATE
            for kind, value in argument:
                low, high = value if kind is regex.RANGE else (value, value)
                if kind in (regex.LITERAL, regex.RANGE) and not negated and _escapes_within(low, high):
                    return "a character that JSON escapes"
        elif operator in (regex.MAX_REPEAT, regex.MIN_REPEAT):
            if reason := _problem(list(argument[2]), top=False):
                return reason
        elif operator is regex.SUBPATTERN:
            if argument[1] or argument[2]:
                return "flags"
            if reason := _problem(list(argument[3]), top=False):
                return reason
        elif operator is regex.BRANCH:
            for branch in argument[1]:
                if reason := _problem(list(branch), top=False):
                    return reason
    return None


def _needs_escape(code: int) -> bool:
    return code < 0x20 or code in (0x22, 0x5C)


def _escapes_within(low: int, high: int) -> bool:
    return low < 0x20 or any(low <= code <= high for code in (0x22, 0x5C))


def _anchored_pattern(pattern: str) -> str:
    """``pattern`` for a compiler that matches the whole string: JSON Schema looks for it anywhere."""
    nodes = list(_parsed(pattern))
    begins = bool(nodes) and nodes[0][0] is regex.AT
    ends = bool(nodes) and nodes[-1][0] is regex.AT
    body = pattern if begins or ends or len(nodes) < 2 or nodes[0][0] is not regex.BRANCH else f"({pattern})"
    if len(nodes) == 1 and nodes[0][0] is regex.BRANCH:
        body = f"({pattern})"
    return ("" if begins else "^.*") + body + ("" if ends else ".*$")


def _with_length(pattern: str, least: int, largest: int | None) -> str | None:
    """``pattern`` that also keeps the length, where it is a row of characters of which one is repeated without bound;
    ``None`` elsewhere. ``^[a-z][a-z0-9_]*$`` with ``maxLength`` 8 is ``^[a-z][a-z0-9_]{0,7}$``."""
    nodes = list(_parsed(pattern))
    if len(nodes) < 3 or nodes[0][0] is not regex.AT or nodes[-1][0] is not regex.AT:
        return None
    widths = [_width(node) for node in nodes[1:-1]]
    variable = [index for index, (low, high) in enumerate(widths) if low != high]
    if not variable:
        low = sum(width[0] for width in widths)
        return pattern if least <= low and (largest is None or low <= largest) else None
    tokens = _atoms(pattern[1:-1])
    if len(variable) != 1 or tokens is None or len(tokens) != len(widths):
        return None
    index = variable[0]
    operator, argument = nodes[1 + index]
    if operator not in (regex.MAX_REPEAT, regex.MIN_REPEAT) or _width_of(argument[2]) != (1, 1):
        return None
    fixed = sum(width[0] for position, width in enumerate(widths) if position != index)
    fewest = max(int(argument[0]), least - fixed)
    times = math.inf if argument[1] is regex.MAXREPEAT else int(argument[1])
    times = times if largest is None else min(times, largest - fixed)
    if times < fewest:
        return None
    tokens[index] = (tokens[index][0], f"{{{fewest},{'' if times == math.inf else int(times)}}}")
    return "^" + "".join(atom + count for atom, count in tokens) + "$"


def _atoms(body: str) -> list[tuple[str, str]] | None:
    """A row of single characters and classes with their repetitions; ``None`` where there is anything else."""
    piece = re.compile(
        r"(\[\^?\]?(?:\\.|[^\]\\])*\]|\\[dwsDWS]|\\[^a-zA-Z0-9]|[^\\\[\](){}*+?|^$])([*+?]|\{\d*,?\d*\})?\??"
    )
    atoms, at = [], 0
    while at < len(body):
        match = piece.match(body, at)
        if match is None:
            return None
        atoms.append((match[1], match[2] or ""))
        at = match.end()
    return atoms


def _width(node: Any) -> tuple[int, float]:
    operator, argument = node
    if operator in (regex.LITERAL, regex.NOT_LITERAL, regex.IN, regex.ANY, regex.CATEGORY):
        return 1, 1
    if operator in (regex.MAX_REPEAT, regex.MIN_REPEAT):
        low, high = _width_of(argument[2])
        most = math.inf if argument[1] is regex.MAXREPEAT else int(argument[1])
        return int(argument[0]) * low, high * most if high else 0
    if operator is regex.SUBPATTERN:
        return _width_of(argument[3])
    return 0, math.inf


def _width_of(nodes: Any) -> tuple[int, float]:
    widths = [_width(node) for node in nodes]
    return sum(low for low, _ in widths), sum(high for _, high in widths)


# -- what a grammar costs --


def _weight(schema: Any, factor: int = 1) -> int:
    """States of a grammar for a rewritten schema, roughly: bounded repetitions multiply what they repeat."""
    if not isinstance(schema, dict):
        return factor
    total: int = factor * (1 + len(schema.get("enum", ())))
    if "pattern" in schema:
        total += factor * _pattern_weight(list(_parsed(schema["pattern"])))
    total += factor * max(schema.get("maxLength", 0), schema.get("minLength", 0))
    repeats = max(schema.get("maxItems", 0), schema.get("minItems", 0), 1)
    optional = len(schema.get("properties", ())) - len(schema.get("required", ()))
    total += factor * max(optional, 0) ** 2 // 2
    for part in schema.get("properties", {}).values():
        total += _weight(part, factor)
    for part in (
        *schema.get("anyOf", ()),
        *schema.get("prefixItems", ()),
        *schema.get("patternProperties", {}).values(),
    ):
        total += _weight(part, factor)
    for keyword, times in (("items", repeats), ("additionalProperties", 1), ("propertyNames", 1)):
        if keyword in schema:
            total += _weight(schema[keyword], factor * times)
    return total


def _pattern_weight(nodes: Sequence[Any]) -> int:
    total = 0
    for operator, argument in nodes:
        if operator in (regex.MAX_REPEAT, regex.MIN_REPEAT):
            times = argument[0] if argument[1] is regex.MAXREPEAT else argument[1]
            total += max(1, int(times)) * _pattern_weight(list(argument[2]))
        elif operator is regex.SUBPATTERN:
            total += _pattern_weight(list(argument[3]))
        elif operator is regex.BRANCH:
            total += sum(_pattern_weight(list(branch)) for branch in argument[1])
        else:
            total += 1
    return total
