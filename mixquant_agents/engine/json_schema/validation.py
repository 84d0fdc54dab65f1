"""Judging a schema, and an answer by its whole schema; by ``jsonschema``, which never fetches anything here."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from mixquant_agents.engine.json_schema.drafts import modern
from mixquant_agents.engine.json_schema.keywords import FORMATS
from mixquant_agents.errors import GrammarError

__all__ = ["check_schema", "check_size", "validator", "violation"]

MAX_DEPTH = 64
"""Levels of nesting in a schema; the cost of a grammar grows with the cube of it."""

MAX_PARTS = 5_000
"""Objects in a schema; values of an ``enum`` are free."""


def violation(schema: Mapping[str, Any], value: Any) -> str | None:
    """What is wrong with ``value`` by the whole ``schema`` (``"path: reason"``); ``None`` if it satisfies it, or if the
    schema leads to another document (:func:`grammar_schema` refuses such a one).

    Raises:
        GrammarError: the schema is none.
    """
    from jsonschema.exceptions import best_match  # type: ignore[import-untyped]  # it has no stubs
    from referencing.exceptions import Unresolvable

    rewritten = modern(dict(schema))
    try:
        error = best_match(validator(rewritten).iter_errors(value))
    except RecursionError:
        return "#: the answer is nested too deeply to be checked"
    except (Unresolvable, re.error):  # a schema that only a server of its own can read
        return None
    except Exception:  # jsonschema relies on the schema
        check_schema(rewritten)
        raise
    if error is None:
        return None
    path = "/".join(str(part) for part in error.absolute_path)
    return f"#/{path}: {error.message}"


def validator(root: Mapping[str, Any]) -> Any:
    """A validator that never fetches anything: jsonschema's own would ask the network for a reference it lacks."""
    from jsonschema import Draft202012Validator, FormatChecker  # type: ignore[import-untyped]  # it has no stubs
    from referencing import Registry

    schema = {key: value for key, value in root.items() if key != "$schema"}
    formats = FormatChecker(formats=FORMATS & FormatChecker.checkers.keys())
    return Draft202012Validator(schema, registry=Registry(), format_checker=formats)


def check_schema(root: dict[str, Any]) -> None:
    """Judge the schema itself, by the meta-schema of draft 2020-12.

    Raises:
        GrammarError: a keyword has a value that JSON Schema does not allow.
    """
    from jsonschema import Draft202012Validator
    from jsonschema.exceptions import best_match

    error = best_match(Draft202012Validator(Draft202012Validator.META_SCHEMA).iter_errors(root))
    if error is not None:
        path = "/".join(str(part) for part in error.absolute_path)
        raise GrammarError(f"the schema is no JSON schema: at #/{path}: {error.message}")


def check_size(schema: Any) -> None:
    """Looks at every level at once, so that no depth can hurt.

    Raises:
        GrammarError: the schema is too deep, or too large, to be worth reading.
    """
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
