"""The templates' environment: autoescape always, numbers written for readers."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from mixquant_agents.dashboard import formatting
from mixquant_agents.records import COUNTS, TIMES, TimeField, TurnRecord

__all__ = ["render"]

_SHORT = {"ttft": "TTFT", "itl_mean": "ITL"}
_PARTS = [count for count in COUNTS if count.role == "part"]
COLUMNS = {
    "counts": _PARTS,
    "prompt_parts": [count for count in _PARTS if count.field != "decode_tokens"],
    "times": [
        (time, _SHORT.get(time.name, time.label)) for time in TIMES if time.summarized and time.field != "total_seconds"
    ],
}
"""Columns of the table of turns."""


def _measured(times: Sequence[tuple[TimeField, str]], turns: Sequence[TurnRecord]) -> list[tuple[TimeField, str]]:
    """Those of ``times`` that some turn has: an engine without a queue or a transfer needs no column for them."""
    return [entry for entry in times if any(getattr(turn, entry[0].field) is not None for turn in turns)]


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("mixquant_agents.dashboard"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    for name in ("clock", "count", "duration", "moment", "pretty", "rate", "ratio", "score", "share"):
        environment.filters[name] = getattr(formatting, name)
    environment.globals |= {"columns": COLUMNS, "measured": _measured}
    return environment


def render(template: str, **values: Any) -> Markup:
    """A template's markup; every value is escaped unless it is :class:`~markupsafe.Markup` already."""
    made = _environment().get_template(f"{template}.jinja").render(**values)
    # A lone surrogate in what was recorded could be neither sent nor written.
    return Markup(made.encode("utf-8", "backslashreplace").decode())  # noqa: S704 # autoescaped
