"""Patterns for a grammar: read by Python's own parser, and written again in the few forms that every compiler knows.

A compiler matches a pattern against the whole text of a JSON string, as it is written; JSON Schema looks for it
anywhere in the string's value. So ends that are not anchored become ``.*``, and a pattern that needs a character which
JSON escapes is not for a grammar.
"""

from __future__ import annotations

import math
import re
import re._constants as regex  # type: ignore[import-not-found]  # typeshed lacks it; the public sre_parse is deprecated
import re._parser as regex_parser  # type: ignore[import-not-found]  # as above
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from mixquant_agents.errors import GrammarError

__all__ = ["Pattern", "pattern_of", "pattern_weight"]

Node = tuple[Any, Any]
"""Operator and argument, as ``re`` parses them."""

_REPEATS = (regex.MAX_REPEAT, regex.MIN_REPEAT)
_UNHELD = {
    regex.ASSERT: "look-around",
    regex.ASSERT_NOT: "look-around",
    regex.GROUPREF: "a back reference",
    regex.GROUPREF_EXISTS: "a conditional group",
    regex.ATOMIC_GROUP: "an atomic group",
    regex.POSSESSIVE_REPEAT: "a possessive repetition",
}
_CATEGORIES = {
    regex.CATEGORY_DIGIT: r"\d",
    regex.CATEGORY_NOT_DIGIT: r"\D",
    regex.CATEGORY_WORD: r"\w",
    regex.CATEGORY_NOT_WORD: r"\W",
    regex.CATEGORY_SPACE: r"\s",
    regex.CATEGORY_NOT_SPACE: r"\S",
}
_BEGIN = (regex.AT_BEGINNING, regex.AT_BEGINNING_STRING)
_END = (regex.AT_END, regex.AT_END_STRING)


@dataclass(frozen=True, slots=True)
class Pattern:
    """One pattern, read.

    Attributes:
        source: as it was given.
        nodes: what it consists of, without the anchors at its ends.
        begins, ends: whether it has them.
        problem: why no grammar holds it; ``None`` where one does.
    """

    source: str
    nodes: tuple[Node, ...]
    begins: bool
    ends: bool
    problem: str | None

    def searches(self, text: str) -> bool:
        """Whether it occurs in ``text``."""
        return re.search(self.source, text) is not None

    def whole(self) -> str:
        """The pattern of all strings in which it occurs, for a compiler that matches the whole string."""
        body = _written(self.nodes) if self.begins and self.ends else f"({_written(self.nodes)})"
        return "^" + ("" if self.begins else ".*") + body + ("" if self.ends else ".*") + "$"

    def with_length(self, least: int, largest: int | None) -> Pattern | None:
        """The pattern that also keeps the length, where one character or class in it alone is repeated by varying
        numbers; ``None`` elsewhere. ``^[a-z][a-z0-9_]*$`` with at most 8 is ``^[a-z][a-z0-9_]{0,7}$``."""
        if not (self.begins and self.ends):
            return None
        widths = [_width([node]) for node in self.nodes]
        varying = [index for index, (low, high) in enumerate(widths) if low != high]
        if not varying:
            length = sum(low for low, _ in widths)
            return self if least <= length and (largest is None or length <= largest) else None
        index = varying[0]
        operator, argument = self.nodes[index]
        if len(varying) > 1 or operator not in _REPEATS or _width(argument[2]) != (1, 1):
            return None
        fixed = sum(low for position, (low, _) in enumerate(widths) if position != index)
        fewest = max(int(argument[0]), least - fixed)
        times = math.inf if argument[1] is regex.MAXREPEAT else int(argument[1])
        times = times if largest is None else min(times, largest - fixed)
        if times < fewest:
            return None
        bounded = (operator, (fewest, regex.MAXREPEAT if times == math.inf else int(times), argument[2]))
        return replace(self, nodes=(*self.nodes[:index], bounded, *self.nodes[index + 1 :]))


def pattern_of(source: str, path: str) -> Pattern:
    """Read a pattern.

    Raises:
        GrammarError: it is no regular expression that can be read here.
    """
    try:
        tree = regex_parser.parse(source)
        re.compile(source)
    except (re.error, OverflowError, RecursionError) as error:
        raise GrammarError(f"pattern {source!r} at {path} cannot be read ({error})") from error
    nodes = tuple(tree)
    begins = bool(nodes) and nodes[0][0] is regex.AT and nodes[0][1] in _BEGIN
    nodes = nodes[1:] if begins else nodes
    ends = bool(nodes) and nodes[-1][0] is regex.AT and nodes[-1][1] in _END
    nodes = nodes[:-1] if ends else nodes
    problem = "flags" if tree.state.flags & ~re.UNICODE.value else _problem(nodes)
    return Pattern(source, nodes, begins, ends, problem)


def _problem(nodes: Sequence[Node]) -> str | None:
    """Why a grammar cannot hold these nodes, or ``None``."""
    for operator, argument in nodes:
        reason: str | None = _UNHELD.get(operator)
        if operator is regex.AT:
            reason = "a word boundary or an anchor inside"
        elif operator is regex.LITERAL:
            reason = _escape_problem(argument, argument)
        elif operator is regex.IN and argument[0][0] is not regex.NEGATE:
            reason = next(filter(None, (_escape_problem(*_range(kind, value)) for kind, value in argument)), None)
        elif operator in _REPEATS:
            reason = _problem(argument[2])
        elif operator is regex.SUBPATTERN:
            reason = "flags" if argument[1] or argument[2] else _problem(argument[3])
        elif operator is regex.BRANCH:
            reason = next(filter(None, map(_problem, argument[1])), None)
        elif reason is None and operator not in (regex.ANY, regex.NOT_LITERAL, regex.IN):
            reason = str(operator).lower()
        if reason is not None:
            return reason
    return None


def _range(kind: Any, value: Any) -> tuple[int, int]:
    if kind is regex.RANGE:
        return int(value[0]), int(value[1])
    return (value, value) if kind is regex.LITERAL else (0x41, 0x41)


def _escape_problem(low: int, high: int) -> str | None:
    escaped = low < 0x20 or any(low <= code <= high for code in (0x22, 0x5C))
    return "a character that JSON escapes" if escaped else None


def _written(nodes: Sequence[Node]) -> str:
    """The nodes as a pattern again: literals, classes, ``.``, groups, alternatives and greedy repetitions."""
    return "".join(_node(operator, argument) for operator, argument in nodes)


def _node(operator: Any, argument: Any) -> str:
    if operator is regex.LITERAL:
        return _literal(argument)
    if operator is regex.ANY:
        return "."
    if operator is regex.NOT_LITERAL:
        return f"[^{_in_class(argument)}]"
    if operator is regex.IN:
        return _class(argument)
    if operator is regex.BRANCH:
        return f"({'|'.join(map(_written, argument[1]))})"
    if operator is regex.SUBPATTERN:
        return f"({_written(argument[3])})"
    least, largest, repeated = argument
    inner = _written(repeated)
    if len(repeated) != 1 or repeated[0][0] in _REPEATS:
        inner = f"({inner})"
    return inner + f"{{{least},{'' if largest is regex.MAXREPEAT else largest}}}"


def _class(items: Sequence[Node]) -> str:
    if len(items) == 1 and items[0][0] is regex.CATEGORY:
        return _CATEGORIES[items[0][1]]
    parts = []
    for kind, value in items:
        if kind is regex.NEGATE:
            parts.append("^")
        elif kind is regex.CATEGORY:
            parts.append(_CATEGORIES[value])
        elif kind is regex.RANGE:
            parts.append(f"{_in_class(value[0])}-{_in_class(value[1])}")
        else:
            parts.append(_in_class(value))
    return f"[{''.join(parts)}]"


def _literal(code: int) -> str:
    char = chr(code)
    return f"\\{char}" if char in r"\.^$|?*+()[]{}/" else char


def _in_class(code: int) -> str:
    char = chr(code)
    return f"\\{char}" if char in r"\]^[-" else char


def _width(nodes: Sequence[Node]) -> tuple[int, float]:
    """Fewest and most characters that the nodes stand for."""
    low, high = 0, 0.0
    for operator, argument in nodes:
        if operator in _REPEATS:
            inner_low, inner_high = _width(argument[2])
            times = math.inf if argument[1] is regex.MAXREPEAT else int(argument[1])
            low, high = low + int(argument[0]) * inner_low, high + (inner_high * times if inner_high else 0)
        elif operator is regex.SUBPATTERN:
            inner_low, inner_high = _width(argument[3])
            low, high = low + inner_low, high + inner_high
        elif operator is regex.BRANCH:
            widths = [_width(branch) for branch in argument[1]]
            low, high = low + min(w[0] for w in widths), high + max(w[1] for w in widths)
        else:
            low, high = low + 1, high + 1
    return low, high


def pattern_weight(source: str) -> int:
    """States of a grammar for a pattern, roughly: bounded repetitions are written out."""
    return _states(tuple(regex_parser.parse(source)))


def _states(nodes: Sequence[Node]) -> int:
    total = 0
    for operator, argument in nodes:
        if operator in _REPEATS:
            times = argument[0] if argument[1] is regex.MAXREPEAT else argument[1]
            total += max(1, int(times)) * _states(argument[2])
        elif operator is regex.SUBPATTERN:
            total += _states(argument[3])
        elif operator is regex.BRANCH:
            total += sum(map(_states, argument[1]))
        else:
            total += 1
    return total
