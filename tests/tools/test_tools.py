"""What the tools answer when they are used as meant."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from mixquant_tools.calculator import calculate
from mixquant_tools.clock import convert_units, time_tools
from mixquant_tools.errors import ToolInputError, ToolSetupError
from mixquant_tools.file_tools import file_tools
from mixquant_tools.files import Folder


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("37*43", "1591"),
        ("0.1 + 0.2", "0.3"),
        ("1/3", "0.333333333333333"),
        ("6/3", "2"),
        ("2^10", "1024"),
        ("-2^2", "-4"),
        ("2^3^2", "512"),
        ("2^-1", "0.5"),
        ("7 % 3", "1"),
        ("-7 % 3", "2"),
        ("-7 // 2", "-4"),
        ("15% of 80", "12"),
        ("200 + 10%", "200.1"),
        ("50%", "0.5"),
        ("1,234,567 + 1", "1234568"),
        ("5!", "120"),
        ("sqrt(16) + abs(-3)", "7"),
        ("max(1, 2, 3) - min(4, 5)", "-1"),
        ("mean(1, 2)", "1.5"),
        ("round(2.675, 2)", "2.68"),
        ("floor(-1.5)", "-2"),
        ("log10(1000)", "3"),
        ("ln(e)", "1"),
        ("sin(pi/2)", "1"),
        ("2 × 3 ÷ 4 − 1", "0.5"),
        ("comb(5, 2)", "10"),
        ("2^200", str(2**200)),
        ("1.5e3", "1500"),
        (".5 + .5", "1"),
        ("(1 + 2) * (3 + 4)", "21"),
        ("gcd(12, 18) + lcm(4, 6)", "18"),
        ("10^50 % 7", str(10**50 % 7)),
        ("-(10^50) // 7", str(-(10**50) // 7)),
        ("10^50 % 0.3", "0.1"),
        ("5.5 mod -2", "-0.5"),
        ("round(2^200, 1)", str(2**200)),
        ("floor(log(125, 5))", "3"),
        ("floor(log10(10^29))", "29"),
        ("sqrt(1,000,000) + max(5)", "1005"),
    ],
)
def test_calculator(expression: str, value: str) -> None:
    assert calculate(expression) == value


@pytest.mark.parametrize("expression", ["max(1,234)", "sum(100,200,300)", "mean(1,200, 1,400)"])
def test_a_comma_between_arguments_is_not_taken_for_one_between_thousands(expression: str) -> None:
    with pytest.raises(ToolInputError, match="one number or several"):
        calculate(expression)


@pytest.mark.parametrize(
    ("value", "source", "target", "result"),
    [
        (1, "mile", "km", 1.609344),
        (100, "degC", "degF", 212),
        (100, "celsius", "fahrenheit", 212),
        (20, "C", "F", 68),
        (0, "°C", "kelvin", 273.15),
        (36, "km/h", "m/s", 10),
        (1, "mile per hour", "km/h", 1.609344),
        (1, "kg*m^2/s^2", "joule", 1),
        (1, "acre", "m**2", 4046.872609874252),
    ],
)
def test_units(value: float, source: str, target: str, result: float) -> None:
    assert convert_units(value, source, target) == pytest.approx(result)


def test_times() -> None:
    tools = {tool.name: tool for tool in time_tools(lambda: datetime(2026, 3, 1, 12, tzinfo=UTC))}
    assert tools["current_time"].invoke({"timezone": "Asia/Tokyo"}) == "2026-03-01 21:00:00+09:00 (Sunday)"
    asked = {"when": "2026-07-01T09:00", "source": "America/New_York", "target": "Europe/Berlin"}
    assert tools["convert_time"].invoke(asked) == "2026-07-01 15:00:00+02:00 (Wednesday)"
    gap = tools["time_between"].invoke({"start": "2026-03-01", "end": "2026-02-01T12:00"})
    assert gap == "-27 days, 12 hours, 0 minutes, 0 seconds"
    assert tools["shift_time"].invoke({"when": "2026-03-01", "days": -1}) == "2026-02-28 00:00:00 (Saturday)"


def test_files(tmp_path: Path) -> None:
    tools = {tool.name: tool for tool in file_tools(Folder(tmp_path))}
    tools["write_file"].invoke({"path": "a/b/poem.txt", "text": "roses\nviolets\nsugar\n"})
    assert (tmp_path / "a/b/poem.txt").read_text() == "roses\nviolets\nsugar\n"
    assert (
        tools["read_file"]
        .invoke({"path": "a/b/poem.txt", "start": 2, "lines": 1})
        .startswith("2\tviolets\n(1 more lines")
    )
    assert "Replaced" in tools["replace_in_file"].invoke({"path": "a/b/poem.txt", "old": "violets", "new": "tulips"})
    (tmp_path / "a/b/poem.txt").chmod(0o640)
    tools["replace_in_file"].invoke({"path": "a/b/poem.txt", "old": "sugar", "new": "salt"})
    assert (tmp_path / "a/b/poem.txt").stat().st_mode & 0o777 == 0o640
    assert tools["find_in_files"].invoke({"text": "TULIPS", "folder": "a"}) == "a/b/poem.txt:2: tulips"
    assert "write_file" not in {tool.name for tool in file_tools(Folder(tmp_path, writable=False))}
    with pytest.raises(ToolSetupError):
        Folder(tmp_path / "none")
