"""What the tools answer when they are used as meant."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from pathlib import Path

import pytest

from mixquant_tools.calculator import calculate
from mixquant_tools.clock import convert_units, time_tools
from mixquant_tools.errors import LimitError, ToolError, ToolInputError, ToolSetupError
from mixquant_tools.file_tools import file_tools
from mixquant_tools.files import Folder
from mixquant_tools.jail import PythonJail


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


def test_jail_runs_programs() -> None:
    jail = PythonJail()
    assert jail.as_text("import json, statistics\nprint(json.dumps(statistics.mean([1, 2])))") == "1.5"
    assert jail.as_text("open('x', 'w').write('hi'); print(open('x').read())") == "hi"
    assert "nothing printed" in jail.as_text("1 + 1")
    # What looks names up in __main__ finds the program's, and the names that an interactive Python has are there.
    assert jail.as_text("import pickle\nclass A: x = 3\nprint(pickle.loads(pickle.dumps(A())).x)\nexit()") == "3"
    with pytest.raises(ToolError) as failure:
        jail.as_text("def f():\n    return 1 / 0\nf()")
    assert "ZeroDivisionError" in str(failure.value)
    assert str(Path(__file__).parents[2]) not in str(failure.value)


@pytest.mark.slow
def test_jail_says_so_where_the_processor_s_time_is_up() -> None:
    jail = PythonJail(seconds=10)
    jail._settings["cpu"] = 1  # as several threads would use it up before the wall clock's
    with pytest.raises(LimitError, match="stopped after"):
        jail.as_text("while True: pass")


def test_jail_with_packages() -> None:
    assert PythonJail(packages=True, memory_bytes=2**30).as_text("import numpy; print(numpy.arange(3).sum())") == "3"


def test_jail_refuses_to_run_where_it_cannot_be_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mixquant_tools.jail.landlock.abi", lambda: 0)
    with pytest.raises(ToolSetupError, match="Landlock"):
        PythonJail()


@pytest.mark.slow
def test_jail_leaves_no_process_behind() -> None:
    jail = PythonJail(seconds=0.5)
    began = time.monotonic()
    assert jail.run("import time; time.sleep(60)").stopped == "time"
    assert time.monotonic() - began < 3
    running = [path for path in Path("/proc").glob("[0-9]*/cmdline") if b"jail/child.py" in _read(path)]
    assert running == []


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""
