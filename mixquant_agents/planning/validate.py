"""A plan against reality: the same sessions simulated and run, and how far the simulation is off."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mixquant_agents.engine.base import Engine
from mixquant_agents.planning.calibration import Calibration
from mixquant_agents.planning.measure import Probes, calibrate, run_workload
from mixquant_agents.planning.simulate import EngineLimits, Outcome, simulate
from mixquant_agents.planning.steps import MeasuredSteps
from mixquant_agents.planning.workload import Workload

__all__ = ["COMPARED", "again", "by_device", "compare", "validate"]

COMPARED = ("ttft_p50_ms", "ttft_p95_ms", "itl_p50_ms", "itl_p95_ms", "tokens_per_s")


def by_device(result: Mapping[str, Any]) -> Mapping[str, Any]:
    """Device → its result; a result of one device alone is under ``""``."""
    return {"": result} if "policies" in result else result


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
    before = await calibrate(engine, probes, limits=limits, say=say)
    for number in agents:
        measured = await run_workload(engine, workload, agents=number, seconds=seconds, warm_up=warm_up, seed=number)
        after = await calibrate(engine, probes, limits=limits, say=say)
        run = {
            "agents": number,
            "measured": measured.summary(),
            "measured_distribution": measured.distribution(),
            "calibration": before.mean(after).model_dump(mode="json"),
        }
        runs.append(_predicted(result, run))
        keep(result)
        say(f"{number} agents: errors {runs[-1]['error']}")
        before = after
    return result


def again(validated: Mapping[str, Any], latency: float | None = None) -> dict[str, Any]:
    """The same runs, predicted again from the calibration that stands beside them; nothing is run.

    Args:
        latency: seconds of a TTFT outside of the steps, for steps that were measured without it.
    """
    return {**validated, "runs": [_predicted(validated, run, latency) for run in validated["runs"]]}


def _predicted(validated: Mapping[str, Any], run: Mapping[str, Any], latency: float | None = None) -> dict[str, Any]:
    """A measured run beside its prediction."""
    workload, limits = Workload(**validated["workload"]), EngineLimits(**validated["limits"])
    kept = {"agents": run["agents"]}
    if "measured_distribution" in run:
        kept["measured_distribution"] = run["measured_distribution"]
    if "calibration" in run:
        calibration = Calibration(**run["calibration"])
        if latency is not None:
            calibration = calibration.model_copy(update={"latency": latency})
        steps = calibration.steps(validated["source"])
        kept["calibration"] = calibration.model_dump(mode="json")
    else:  # results before calibrations were kept
        steps = MeasuredSteps(**run["steps"])
        steps = steps if latency is None else steps.with_latency(latency)
    predicted = simulate(
        workload, steps, limits, agents=run["agents"], seconds=validated["seconds"], warm_up=validated["warm_up"],
        seed=run["agents"],
    )  # fmt: skip
    if "measured_distribution" in run:
        kept["predicted_distribution"] = predicted.distribution()
    return {**kept, **compare(predicted, run["measured"]), "steps": steps.model_dump(mode="json")}
