"""A plan against reality: the same sessions simulated and run, and how far the simulation is off."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mixquant_agents.engine.base import Engine
from mixquant_agents.planning.measure import Probes, calibrate, run_workload
from mixquant_agents.planning.simulate import EngineLimits, Outcome, simulate
from mixquant_agents.planning.steps import MeasuredSteps
from mixquant_agents.planning.workload import Workload

__all__ = ["COMPARED", "again", "compare", "validate"]

COMPARED = ("ttft_p50_ms", "ttft_p95_ms", "itl_p50_ms", "itl_p95_ms", "tokens_per_s")


def compare(predicted: Outcome, measured: Mapping[str, Any]) -> dict[str, Any]:
    """The summary of a simulation beside that of a run, and the relative error of each figure that is compared."""
    plan, real = predicted.summary(), dict(measured)
    errors = {}
    for name in COMPARED:
        expected, observed = plan[name], real[name]
        errors[name] = round(expected / observed - 1, 4) if expected is not None and observed else None
    known = [abs(error) for error in errors.values() if error is not None]
    return {"predicted": plan, "measured": real, "error": errors, "largest_error": max(known, default=None)}


async def validate(
    engine: Engine,
    workload: Workload,
    limits: EngineLimits,
    *,
    agents: Sequence[int],
    seconds: float,
    warm_up: float,
    probes: Probes,
    source: str,
    say: Callable[[str], None] = lambda _: None,
    keep: Callable[[dict[str, Any]], None] = lambda _: None,
) -> dict[str, Any]:
    """Calibrate an engine, predict and run the workload for each number of agents.

    The engine is calibrated before each run, and each prediction uses the curves from before and after it: their mean,
    for a machine is not equally fast all the time. ``keep`` gets the result so far after each run.
    """
    runs: list[dict[str, Any]] = []
    result: dict[str, Any] = {
        "source": source,
        "workload": workload.model_dump(mode="json"),
        "limits": limits.model_dump(mode="json"),
        "seconds": seconds,
        "warm_up": warm_up,
        "runs": runs,
    }
    before = await calibrate(engine, probes, source=source, kv_tokens=limits.kv_tokens, say=say)
    for number in agents:
        measured = await run_workload(engine, workload, agents=number, seconds=seconds, warm_up=warm_up, seed=number)
        after = await calibrate(engine, probes, source=source, kv_tokens=limits.kv_tokens, say=say)
        steps = _mean(before, after)
        predicted = simulate(workload, steps, limits, agents=number, seconds=seconds, warm_up=warm_up, seed=number)
        run = {"agents": number, **compare(predicted, measured.summary()), "steps": steps.model_dump(mode="json")}
        runs.append(run)
        keep(result)
        say(f"{number} agents: errors {run['error']}")
        before = after
    return result


def again(validated: Mapping[str, Any], latency: float | None = None) -> dict[str, Any]:
    """The same runs, predicted again from the steps that stand beside them; nothing is run.

    Args:
        latency: seconds of a TTFT outside of the steps, for steps that were measured without it.
    """
    workload, limits = Workload(**validated["workload"]), EngineLimits(**validated["limits"])
    seconds, warm_up = validated["seconds"], validated["warm_up"]
    runs = []
    for run in validated["runs"]:
        number, steps = run["agents"], MeasuredSteps(**run["steps"])
        if latency is not None:
            steps = steps.with_latency(latency)
        predicted = simulate(workload, steps, limits, agents=number, seconds=seconds, warm_up=warm_up, seed=number)
        runs.append({"agents": number, **compare(predicted, run["measured"]), "steps": steps.model_dump(mode="json")})
    return {**validated, "runs": runs}


def _mean(first: MeasuredSteps, second: MeasuredSteps) -> MeasuredSteps:
    """The mean of two calibrations with the same probes."""

    def curve(a: Any, b: Any) -> Any:
        return tuple((at, (x + y) / 2) for (at, x), (_, y) in zip(a, b, strict=True))

    return first.model_copy(
        update={
            "prefill": curve(first.prefill, second.prefill),
            "decode": curve(first.decode, second.decode),
            "attention": (first.attention + second.attention) / 2,
            "writer_context": (first.writer_context + second.writer_context) / 2,
            "prompt": (first.prompt + second.prompt) / 2,
            "latency": (first.latency + second.latency) / 2,
        }
    )
