"""How numbers and instants are written."""

from __future__ import annotations

import pytest

from mixquant_agents.dashboard import formatting


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "–"), (0, "0 s"), (8.4e-05, "84 µs"), (0.0123, "12.3 ms"), (0.9996, "1.00 s"), (1.25, "1.25 s"),
     (12.34, "12.3 s"), (99.96, "1 min 40 s"), (200, "3 min 20 s"), (7500, "2 h 5 min"), (200_000, "2 d 7 h")],
)  # fmt: skip
def test_durations(value: float | None, text: str) -> None:
    assert formatting.duration(value).replace("\u202f", " ") == text


def test_shares_never_round_to_certainty() -> None:
    shown = [formatting.share(value).replace("\u202f", " ") for value in (None, 0, 0.00001, 0.5, 0.99999, 1)]
    assert shown == ["–", "0 %", "0.1 %", "50.0 %", "99.9 %", "100 %"]


def test_counts_and_rates() -> None:
    shown = [formatting.count(value).replace("\u202f", " ") for value in (None, 0, 9999, 10_000, 1.234e6, 5e9)]
    assert shown == ["–", "0", "9 999", "10.0 k", "1.23 M", "5.00 G"]
    assert formatting.rate(0.123) == "0.12"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(60, "minute"), (3_600, "hour"), (21_600, "6 hours"), (86_400, "day"), (3 * 86_400, "3 days"), (90, "90 seconds")],
)
def test_intervals_are_named_by_their_length(seconds: int, text: str) -> None:
    assert formatting.interval(seconds) == text


@pytest.mark.parametrize(
    ("text", "lines"),
    [('{"a":[1,"ä"]}', ["{", '  "a": [', "    1,", '    "ä"', "  ]", "}"]), ("12", ["12"]), ('"words"', ['"words"']),
     ("{no json", ["{no json"]), ("[" * 100_000, ["[" * 100_000])],
)  # fmt: skip
def test_json_gets_lines_and_other_text_stays(text: str, lines: list[str]) -> None:
    assert formatting.pretty(text).splitlines() == lines
