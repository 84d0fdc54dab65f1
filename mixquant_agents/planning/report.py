"""One question to the planner, and its answer as a result file holds it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mixquant_agents.errors import ConfigError
from mixquant_agents.files import json_object_in
from mixquant_agents.planning.capacity import Objectives, plan
from mixquant_agents.planning.memory import engine_memory
from mixquant_agents.planning.simulate import EngineLimits, Routing, simulate
from mixquant_agents.planning.steps import MeasuredSteps
from mixquant_agents.planning.trace import write_trace
from mixquant_agents.planning.validate import by_device
from mixquant_agents.planning.workload import Workload
from mixquant_agents.precision.formats import NumberFormat
from mixquant_agents.precision.policy import PrecisionPolicy

__all__ = ["Question", "answer"]

DEFAULT_POLICIES = ("exact", "mixquant-fp8")


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What is planned for; see ``mixquant plan --help``."""

    agents: tuple[int, ...]
    model: str
    gpu: str
    policies: tuple[str, ...] | None = None
    """``None``: those of ``steps``, or else exact and mixquant-fp8."""
    steps: Path | None = None
    workload: Path | None = None
    turns_per_minute: float | None = None
    ttft_ms: float = 2000.0
    itl_ms: float = 100.0
    max_context: int | None = None
    kv_tokens: int | None = None
    gpus_per_engine: int = 1
    routing: Routing = "session"
    spare: float = 0.0
    seconds: float = 600.0


def answer(
    question: Question, *, trace: Path | None = None, say: Callable[[str], None] = lambda _: None
) -> dict[str, Any]:
    """Plans for each number of agents and policy, with what they assume.

    Raises:
        ConfigError: a setting is wrong, or nobody knows step times.
        MissingDependencyError: they are in a package that is not installed.
    """
    for name in ("ttft_ms", "itl_ms", "spare", "seconds"):
        if not math.isfinite(getattr(question, name)):
            raise ConfigError(f"{name} = {getattr(question, name)}: give a finite number")
    workload = _workload(question)
    objectives = Objectives(ttft_ms=question.ttft_ms, itl_ms=question.itl_ms)
    measured = _measured(question.steps)
    plans: list[dict[str, Any]] = []
    sources: dict[str, str] = {}
    names = question.policies or tuple(measured) or DEFAULT_POLICIES
    if measured and (missing := [name for name in names if name not in measured]):
        raise ConfigError(f"--steps holds no policy {missing[0]!r}; it holds {', '.join(measured)}")
    for name in names:
        policy = PrecisionPolicy.of(name)
        steps, limits, bytes_per_token = _engine(question, name, policy, measured, workload.max_context)
        if workload.max_context > limits.kv_tokens:
            raise ConfigError(
                f"a conversation grows to {workload.max_context:,} tokens, and the KV cache of an engine ({name}) "
                f"holds {limits.kv_tokens:,}; summarise earlier (--max-model-len), or give an engine more --gpus"
            )
        sources[name] = steps.source
        tried: dict[int, dict[str, Any]] = {}
        for agents in question.agents:
            made = plan(
                workload,
                steps,
                limits,
                objectives,
                agents=agents,
                gpus_per_engine=question.gpus_per_engine,
                kv_bytes_per_token=bytes_per_token,
                routing=question.routing,
                spare=question.spare,
                seconds=question.seconds,
                warm_up=question.seconds * 0.4,
                tried=tried,
                say=lambda text, name=name: say(f"{name}: {text}"),  # type: ignore[misc]  # mypy: the default
            )
            plans.append({"policy": name, **asdict(made), "limits": limits.model_dump(mode="json")})
            if trace is not None and len(plans) == 1:
                share = min(agents, made.agents_per_engine or 1)
                run = simulate(workload, steps, limits, agents=share, seconds=question.seconds)
                say(f"{write_trace(trace, run, workload)} turns in {trace}")
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "model": question.model,
        "gpu": None if measured else question.gpu,
        "objectives": objectives.model_dump(mode="json"),
        "workload": workload.model_dump(mode="json"),
        "steps": sources,
        "plans": plans,
        "assumptions": _assumptions(question, workload, sources),
    }


def _workload(question: Question) -> Workload:
    fields: dict[str, Any] = {}
    if question.workload is not None:
        fields = json_object_in(question.workload, "--workload")
    if question.turns_per_minute is not None:
        fields["turns_per_minute"] = question.turns_per_minute
    if question.max_context is not None:
        fields["max_context"] = question.max_context
    return Workload(**fields)


def _measured(path: Path | None) -> dict[str, tuple[MeasuredSteps, EngineLimits]]:
    """Policy → what ``mixquant bench plan`` measured of it: the steps of its last run, and the engine's limits."""
    if path is None:
        return {}
    result = json_object_in(path, "--steps")
    measured: dict[str, tuple[MeasuredSteps, EngineLimits]] = {}
    try:
        for device_result in by_device(result).values():
            for name, validated in device_result["policies"].items():
                if name in measured:
                    raise ConfigError(
                        f"--steps {path} holds {name!r} of {', '.join(result)}; give a file of one device"
                    )
                steps = MeasuredSteps(**validated["runs"][-1]["steps"])
                measured[name] = steps, EngineLimits(**validated["limits"])
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise ConfigError(
            f"--steps {path} is no result of `mixquant bench plan`: {type(error).__name__}: {error}"
        ) from error
    if not measured:
        raise ConfigError(f"--steps {path} is no result of `mixquant bench plan`: it holds no policy")
    return measured


def _engine(
    question: Question,
    name: str,
    policy: PrecisionPolicy,
    measured: Mapping[str, tuple[MeasuredSteps, EngineLimits]],
    longest: int,
) -> tuple[MeasuredSteps, EngineLimits, int | None]:
    """Step times, limits, and bytes of KV cache a token takes (where they are known).

    ``longest``: tokens of the longest request.
    """
    if measured:
        steps, limits = measured[name]
        if question.kv_tokens is not None:
            limits = limits.model_copy(update={"kv_tokens": question.kv_tokens})
        return steps, limits, None
    from mixquant_agents.planning.aiconfigurator import step_times

    prefill, decode = _format(policy.prefill_format), _format(policy.decode_format)
    memory = engine_memory(
        question.model, question.gpu, prefill, decode, question.gpus_per_engine, longest, policy.expert_twins_gib
    )
    steps = step_times(
        question.model, question.gpu, prefill=prefill, decode=decode, tensor_parallel=question.gpus_per_engine,
        twin_share=memory.twin_share,
    )  # fmt: skip
    if memory.expert_layers is not None:
        twins, layers = memory.expert_layers
        steps = steps.model_copy(update={"source": f"{steps.source}; {twins} of {layers} layers of experts have twins"})
    limits = EngineLimits(kv_tokens=question.kv_tokens or memory.kv_tokens, max_num_seqs=256, lookahead=1)
    return steps, limits, memory.kv_bytes_per_token


def _format(given: NumberFormat) -> str:
    """The format's name; ``auto`` has no meaning without a device."""
    if given.value == "auto":
        raise ConfigError("policy 'mixquant' takes its format from the device; name one: mixquant-fp8, mixquant-nvfp4")
    return given.value


def _assumptions(question: Question, workload: Workload, sources: Mapping[str, str]) -> list[str]:
    lines = [f"Step times, {name}: {source}." for name, source in sources.items()]
    lines.append(
        f"Agents: sessions of {workload.turns} turns, {workload.shared_tokens} tokens shared by all, "
        f"{workload.tool_tokens} new and {workload.answer_tokens} written a turn, summarised at "
        f"{workload.max_context}; "
        f"86 % of the tools back within {workload.tool_p86_seconds:g} s, 95 % within {workload.tool_p95_seconds:g} s."
    )
    route = "each agent stays on its engine" if question.routing == "session" else "turns go to any engine"
    lines.append(
        f"Routing: {route}. Engines do not help each other; {100 * question.spare:.0f} % spare. A plan is a "
        "simulation: docs/results/plan.json says how far it was off where it was held against real engines."
    )
    return lines
