"""``mixquant bench turns`` measures what it says, and the chat layer stays cheap."""

import json

import pytest
import typer
from typer.testing import CliRunner

from mixquant_agents.bench.overhead.turns import leaks, measure
from mixquant_agents.cli.bench.turns import command

pytestmark = pytest.mark.slow


async def test_small_run_measures_everything_and_leaks_nothing() -> None:
    """Whether the targets hold is for ``mixquant bench turns`` to say, on a quiet machine."""
    told: list[str] = []
    result = await measure(rounds=2, stream_tokens=1000, tool_tokens=800, streams=16, progress=told.append)
    assert min(result.stream_cost_ratio, result.stream_seconds, result.stream_baseline_seconds) > 0
    assert min(result.tool_call_growth, result.tool_seconds, result.tool_half_seconds) > 0
    assert (result.leaked_requests, result.leaked_tasks) == (0, 0)
    assert len(told) == 3


@pytest.mark.parametrize("streams", [3, 64])
async def test_third_is_cancelled(streams: int) -> None:
    requests, tasks, cancelled = await leaks(streams)
    assert (requests, tasks) == (0, 0)
    assert cancelled == -(-streams // 3)


def test_command_prints_one_object() -> None:
    app = typer.Typer()
    app.command()(command)
    arguments = ["--json", "--rounds", "1", "--tokens", "100", "--tool-tokens", "100", "--streams", "3"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert {"stream_cost_ratio", "tool_call_growth", "leaked_requests"} <= json.loads(result.stdout).keys()
    assert CliRunner().invoke(app, ["--rounds", "0"]).exit_code == 2
