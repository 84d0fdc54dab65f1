"""Suites on one real engine, switched from policy to policy."""

from __future__ import annotations

import functools
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.progress import Progress

from mixquant_agents import EngineConfig, MixQuantChatModel, PrecisionPolicy, VllmEngine
from mixquant_agents.errors import ConfigError
from mixquant_agents.telemetry import StoreRecorder
from mixquant_workflows.bench.agents import run_suites
from mixquant_workflows.bench.registry import suite
from mixquant_workflows.bench.results import ResultFile, summarise
from mixquant_workflows.bench.trace import fitting, read_trace
from mixquant_workflows.bench.trace_run import run_trace

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["AgentsPlan", "run_agents"]


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentsPlan:
    """What to run; the fields are the options of ``mixquant bench agents``."""

    suites: tuple[str, ...]
    policies: tuple[str, ...]
    n: int | None = None
    concurrency: int = 4
    model: str = "embedded"
    seed: int = 0
    max_tokens: int = 256
    max_model_len: int | None = None
    case_seconds: float = 900.0
    reproducible: bool = True
    results: Path | None = None
    store: Path | None = None
    trace: Path | None = None
    trace_threads: int | None = None

    def policy(self, name: str) -> PrecisionPolicy:
        """The preset ``name``, reproducible if asked."""
        preset = PrecisionPolicy.of(name)
        return preset.model_copy(update={"reproducible": True}) if self.reproducible and preset.quantizes else preset

    def header(self) -> dict[str, Any]:
        """What must be equal for a run to go on in the same file."""
        free = ("results", "store", "concurrency", "suites", "policies", "n", "case_seconds", "trace_threads")
        return {key: str(value) for key, value in asdict(self).items() if key not in free}


async def run_agents(plan: AgentsPlan, console: Console) -> dict[str, Any]:
    """Start the engine, run, end the engine.

    Returns:
        ``{"model", "device", "seed", "suites": {suite: {policy: figures}}}``; figures as in :func:`summarise`. A
        trace is one more suite, without scores, with the times relative to ``exact`` and the number of turns that did
        not fit.

    Raises:
        ConfigError: no suite, no policy, or an unknown one.
        EngineError: the engine did not start.
    """
    if not (plan.suites or plan.trace) or not plan.policies:
        raise ConfigError("name at least one suite (or a trace) and one policy")
    threads = read_trace(plan.trace, plan.trace_threads) if plan.trace else []
    suites = [suite(name) for name in plan.suites]
    policies = {name: plan.policy(name) for name in plan.policies}
    for one in suites:
        one.cases()  # missing data is told before the engine is started
    results = ResultFile(plan.results, plan.header())
    # An engine started exact has no twin weights and could not switch.
    first = next((policy for policy in policies.values() if policy.quantizes), PrecisionPolicy.of("exact"))
    switching = first.quantizes
    config = EngineConfig(
        model=plan.model, policy=first, max_model_len=plan.max_model_len, max_num_seqs=plan.concurrency, seed=plan.seed
    )
    engine = VllmEngine(config)
    recorders = (StoreRecorder(plan.store),) if plan.store else ()
    try:
        console.print(f"[dim]starting {plan.model}[/dim]")
        await engine.start()
        capabilities = await engine.capabilities()
        threads, left_out = fitting(threads, capabilities.max_model_len or 2**31)

        async def model_for(name: str) -> MixQuantChatModel:
            if switching:
                await engine.set_policy(policies[name])
            await engine.reset_prefix_cache()  # every policy begins cold
            return MixQuantChatModel(
                engine=engine, temperature=0, seed=plan.seed, max_tokens=plan.max_tokens, recorders=recorders
            )

        with Progress(console=console, transient=True) as bar:
            tasks: dict[tuple[str, str], Any] = {}

            def progress(name: str, policy: str, done: int, total: int) -> None:
                if (name, policy) not in tasks:
                    tasks[name, policy] = bar.add_task(f"{name} {policy}", total=total)
                bar.update(tasks[name, policy], completed=done)

            for name in policies:  # policy by policy, so that the engine switches once for each
                model = await model_for(name)
                await run_suites(
                    suites,
                    name,
                    model,
                    results,
                    n=plan.n,
                    concurrency=plan.concurrency,
                    seed=plan.seed,
                    case_seconds=plan.case_seconds,
                    progress=progress,
                )
                if threads:
                    told = functools.partial(progress, "trace", name)
                    await run_trace(
                        engine, threads, "trace", name, results, concurrency=plan.concurrency, progress=told
                    )
    finally:
        for recorder in recorders:
            recorder.close()
        await engine.aclose()
    summary = summarise(results.rows)
    if "trace" in summary:
        summary["trace"] = _without_scores(summary["trace"], left_out)
    return {"model": plan.model, "device": capabilities.device, "seed": plan.seed, "suites": summary}


def _without_scores(policies: dict[str, dict[str, Any]], left_out: int) -> dict[str, dict[str, Any]]:
    """A trace has no right answers; what counts are the times, also relative to ``exact``."""
    base = policies.get("exact", {})
    for figures in policies.values():
        for name in ("score", "ci95", "delta", "delta_ci95", "measures"):
            figures.pop(name, None)
        figures["turns_that_did_not_fit"] = left_out
        for name in ("ttft_p50_ms", "prefill_s", "decode_s", "task_p50_s"):
            known = base.get(name) and figures[name] is not None
            figures[f"{name}_vs_exact"] = figures[name] / base[name] if known else None
    return policies
