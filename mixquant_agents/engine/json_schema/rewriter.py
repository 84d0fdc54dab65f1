"""The schema on its way to the grammar compiler."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

from mixquant_agents.engine.json_schema.drafts import modern
from mixquant_agents.engine.json_schema.keywords import CONSTRAINTS, FORMATS, Schema, constraints, types_of
from mixquant_agents.engine.json_schema.merge import NotMergedError, merge
from mixquant_agents.engine.json_schema.patterns import Pattern, pattern_of
from mixquant_agents.engine.json_schema.validation import MAX_DEPTH, check_schema, check_size, validator
from mixquant_agents.engine.json_schema.weight import weight
from mixquant_agents.errors import GrammarError

__all__ = ["GrammarSchema", "grammar_schema"]

MAX_NODES = 20_000
"""Subschemas after rewriting; merging copies."""

MAX_MERGED = 100_000
"""Characters of schemas that are merged into one: where each merge meets itself again inside, they double."""

MAX_LISTED = 1_000
"""Multiples in a range that are written out."""


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
    check_size(schema)
    root = modern(dict(schema))
    check_schema(root)
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
    total = sum(map(weight, (rewritten, *definitions.values())))
    return GrammarSchema(rewritten, tuple(dict.fromkeys(rewriter.unenforced)), total)


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
        self._validator = validator(root)

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
        if schema is True or not CONSTRAINTS & schema.keys():
            self._refuse_unknown(schema, path)
            return {}
        self._refuse_unknown(schema, path)
        if "$ref" in schema and not constraints(schema, "$ref"):
            return self._reference(schema["$ref"], path)
        if "enum" in schema or "const" in schema:
            return self._listed(schema)
        if "$ref" in schema or "allOf" in schema:
            return self._merged_once(schema, path)
        for keyword in ("anyOf", "oneOf"):
            if keyword in schema:
                return self._alternatives(schema, keyword, path)
        schema = self._checked_later(schema, path)
        types = types_of(schema)
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
        if not constraints(schema, "const" if "const" in schema else "enum"):
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
        parts: list[Any] = [own] if constraints(own) else []
        if "$ref" in schema:
            parts.append({"$ref": schema["$ref"]})
        parts += schema.get("allOf", ())
        try:
            flat = [self._flat(part, path, 0) for part in parts]
            merged: Schema = functools.reduce(merge, flat) if flat else {}
        except NotMergedError as error:
            keyword = "allOf" if "allOf" in schema else "the keywords beside $ref"
            self.unenforced.append(f"{keyword} ({error}) at {path}")
            return _first_useful(parts)
        return merged

    def _flat(self, part: Any, path: str, depth: int) -> Schema:
        """``part`` without references and ``allOf`` on its top level."""
        if not isinstance(part, Mapping) or not ({"$ref", "allOf"} & part.keys()):
            return dict(part) if isinstance(part, Mapping) else bool(part)
        if depth > MAX_DEPTH:
            raise NotMergedError("$ref leads into itself")
        own = {key: value for key, value in part.items() if key not in ("$ref", "allOf")}
        parts: list[Schema] = [own] if constraints(own) else []
        if "$ref" in part:
            parts.append(self._flat(self._target(part["$ref"], path), path, depth + 1))
        parts += [self._flat(branch, path, depth + 1) for branch in part.get("allOf", ())]
        return functools.reduce(merge, parts) if parts else {}

    def _alternatives(self, schema: Mapping[str, Any], keyword: str, path: str) -> Schema:
        """``anyOf``/``oneOf``; keywords beside it go into each branch."""
        beside = {key: value for key, value in schema.items() if key in CONSTRAINTS and key != keyword}
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
        except NotMergedError:
            return False
        if not all(isinstance(branch, dict) for branch in flat):
            return False
        # As declared: a keyword such as maxLength alone admits values of every other type.
        kinds = [set(types_of(branch)) if "type" in branch else set() for branch in flat if isinstance(branch, dict)]
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
                if fitting := [part for pattern, part in patterns.items() if pattern_of(pattern, path).searches(name)]:
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
            held = self._held_pattern(pattern, f"{path}/patternProperties")
            if rewritten is not False and held is not None:
                others[held.whole()] = rewritten
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
        source = schema.get("pattern")
        known_format = schema.get("format") in FORMATS
        if source is not None and (pattern := self._held_pattern(source, path)) is not None:
            if known_format:
                self.unenforced.append(f"format (beside pattern) at {path}")
            if bounded:
                fitted = pattern.with_length(least, None if largest is None else int(largest))
                if fitted is None:
                    self.unenforced.append(f"minLength/maxLength (beside pattern) at {path}")
                pattern = fitted or pattern
            return {**result, "pattern": pattern.whole()}
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
            unbounded = math.inf if "aximum" in keyword else -math.inf  # what pydantic writes of le=math.inf
            if schema.get(keyword, unbounded) != unbounded:
                result[keyword] = _finite(schema[keyword], keyword, path)
        lower = max(result.get("minimum", -math.inf), result.get("exclusiveMinimum", -math.inf))
        upper = min(result.get("maximum", math.inf), result.get("exclusiveMaximum", math.inf))
        if lower > upper:
            return False
        step = schema.get("multipleOf")
        if step is not None:
            _finite(step, "multipleOf", path)
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

    def _held_pattern(self, source: str, path: str) -> Pattern | None:
        """The pattern, where a grammar holds it; notes it where not.

        Raises:
            GrammarError: nobody here can read it.
        """
        pattern = pattern_of(source, path)
        if pattern.problem is not None:
            self.unenforced.append(f"pattern ({pattern.problem}) at {path}")
            return None
        return pattern


def _finite(value: int | float, keyword: str, path: str) -> int | float:
    """A keyword's number.

    Raises:
        GrammarError: JSON has no such number.
    """
    if isinstance(value, float) and not math.isfinite(value):
        raise GrammarError(f"the schema is no JSON schema: {keyword} at {path} is {value}; give a finite number")
    return value


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
