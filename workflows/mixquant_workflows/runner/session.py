"""Suites on one real engine, switched from policy to policy."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.progress import Progress

from mixquant_agents import EngineConfig, MixQuantChatModel, PrecisionPolicy, VllmEngine
from mixquant_agents.errors import ConfigError
from mixquant_agents.telemetry import StoreRecorder
from mixquant_workflows.runner.constrained import CallMode, ConstrainedModel
from mixquant_workflows.runner.registry import BASE_MODEL, model_folder, suite
from mixquant_workflows.runner.report import compare_runs, merge, session_note
from mixquant_workflows.runner.results import ResultFile, summarise
from mixquant_workflows.runner.run import choose, run_suites
from mixquant_workflows.runner.trace import fitting, read_trace
from mixquant_workflows.runner.trace_run import run_trace
from mixquant_workflows.suites.base import Suite

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["AgentsPlan", "run_agents"]

_FREE = (  # may change from session to session of one result file
    *("results", "store", "concurrency", "suites", "policies", "n", "case_seconds", "trace_threads", "out"),
    *("rerun_of", "command"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentsPlan:
    """What to run; the fields are the options of ``mixquant bench agents``."""

    suites: tuple[str, ...]
    policies: tuple[str, ...]
    n: int | None = None
    concurrency: int = 4
    model: str = "embedded"
    calls: CallMode = "auto"
    seed: int = 0
    max_tokens: int = 256
    max_model_len: int | None = None
    case_seconds: float = 900.0
    reproducible: bool = True
    results: Path | None = None
    store: Path | None = None
    out: Path | None = None
    rerun_of: Path | None = None
    trace: Path | None = None
    trace_threads: int | None = None
    command: str = "mixquant bench agents"

    def policy(self, name: str) -> PrecisionPolicy:
        """The preset ``name``, reproducible if asked."""
        preset = PrecisionPolicy.of(name)
        return preset.model_copy(update={"reproducible": True}) if self.reproducible and preset.quantizes else preset

    def header(self) -> dict[str, Any]:
        """What must be equal for a run to go on in the same file."""
        chosen = {key: str(value) for key, value in asdict(self).items() if key not in _FREE}
        return {**chosen, "weights": Path(model_folder(self.model)).name}

    def wanted(self) -> list[tuple[Suite, int | None]]:
        """Suites and cases of each: ``name``, or ``name:n`` where a suite has its own number.

        Raises:
            ConfigError: an unknown suite, no number, or one that cannot run with such calls.
        """
        found = []
        for text in self.suites:
            name, _, count = text.partition(":")
            if count and not (count.isdigit() and int(count)):
                raise ConfigError(f"{text!r}: after the colon comes a number of cases, as in {name}:100")
            one = suite(name)
            if self.calls == "required" and not one.one_answer:
                raise ConfigError(f"suite {name!r} needs answers in words, too; take --calls strict")
            found.append((one, int(count) if count else self.n))
        return found

    @property
    def section(self) -> str:
        """Where the figures stand in a report."""
        if self.rerun_of is not None:
            return "rerun"
        if self.calls != "auto":
            return "constrained"
        return "base" if self.model == BASE_MODEL else "suites"


async def run_agents(plan: AgentsPlan, console: Console) -> dict[str, Any]:
    """Start the engine, run what ``plan.results`` does not hold yet, end the engine; suite by suite, so that a stopped
    run leaves whole tables. Where nothing is left to run, no engine is started.

    Returns:
        ``{"model", "device", "seed", "suites": {suite: {policy: figures}}}``; figures as in :func:`summarise`. A
        trace is one more suite, without scores, with the times relative to ``exact`` and the number of turns that did
        not fit. With ``plan.rerun_of`` also ``"rerun"``, as in :func:`compare_runs`.

    Raises:
        ConfigError: no suite, no policy, or an unknown one.
        EngineError: the engine did not start.
    """
    if not (plan.suites or plan.trace) or not plan.policies:
        raise ConfigError("name at least one suite (or a trace) and one policy")
    threads = read_trace(plan.trace, plan.trace_threads) if plan.trace else []
    wanted = plan.wanted()
    policies = {name: plan.policy(name) for name in plan.policies}
    first = ResultFile.of(plan.rerun_of).rows if plan.rerun_of else []
    results = ResultFile(plan.results, plan.header())
    left_out = 0

    def told() -> dict[str, Any]:
        """The figures so far, also in the report."""
        summary = summarise(results.rows)
        if "trace" in summary:
            summary["trace"] = _without_scores(summary["trace"], left_out)
        device = results.notes[-1]["device"] if results.notes else None
        found: dict[str, Any] = {"model": plan.model, "device": device, "seed": plan.seed, "suites": summary}
        if plan.rerun_of:
            found["rerun"] = compare_runs(results.rows, first)
        if plan.out:
            merge(plan.out, plan.section, found["rerun" if plan.rerun_of else "suites"], results.notes)
        return found

    # Missing data is told here, before the engine is started.
    if threads or any(_left(plan, one, n, name, results) for one, n in wanted for name in policies):
        left_out = await _run(plan, console, wanted, policies, threads, results, told)
    return told()


def _left(plan: AgentsPlan, one: Suite, n: int | None, policy: str, results: ResultFile) -> bool:
    return bool({case.id for case in choose(one.cases(), n, plan.seed)} - results.done(one.name, policy))


async def _run(
    plan: AgentsPlan,
    console: Console,
    wanted: list[tuple[Suite, int | None]],
    policies: Mapping[str, PrecisionPolicy],
    threads: list[Any],
    results: ResultFile,
    told: Callable[[], Any],
) -> int:
    """Run what is left, with ``told`` after every suite; the number of a trace's turns that did not fit."""
    # An engine started exact has no twin weights and could not switch.
    start = next((policy for policy in policies.values() if policy.quantizes), PrecisionPolicy.of("exact"))
    engine = VllmEngine(
        EngineConfig(
            model=model_folder(plan.model) if plan.model == BASE_MODEL else plan.model,
            policy=start,
            max_model_len=plan.max_model_len,
            max_num_seqs=plan.concurrency,
            seed=plan.seed,
        )
    )
    recorders = (StoreRecorder(plan.store),) if plan.store else ()
    kind = MixQuantChatModel if plan.calls == "auto" else functools.partial(ConstrainedModel, calls=plan.calls)
    try:
        console.print(f"starting {plan.model}", style="dim")
        await engine.start()
        info = engine.info
        threads, left_out = fitting(threads, info.max_model_len or 2**31)
        results.note(
            session_note(
                plan.command,
                device=info.device,
                model=plan.model,
                calls=plan.calls,
                concurrency=plan.concurrency,
                max_tokens=plan.max_tokens,
                seed=plan.seed,
            )
        )

        async def model_for(name: str) -> Any:
            if start.quantizes:
                await engine.set_policy(policies[name])
            await engine.reset_prefix_cache()  # every policy begins cold
            return kind(engine=engine, temperature=0, seed=plan.seed, max_tokens=plan.max_tokens, recorders=recorders)

        with Progress(console=console, transient=True) as bar:
            tasks: dict[tuple[str, str], Any] = {}

            def progress(name: str, policy: str, done: int, total: int) -> None:
                if (name, policy) not in tasks:
                    tasks[name, policy] = bar.add_task(f"{name} {policy}", total=total)
                bar.update(tasks[name, policy], completed=done)

            for one, n in wanted:
                for name in policies:
                    if not _left(plan, one, n, name, results):
                        continue
                    began, before = time.monotonic(), len(results.rows)
                    await run_suites(
                        [one],
                        name,
                        await model_for(name),
                        results,
                        n=n,
                        concurrency=plan.concurrency,
                        seed=plan.seed,
                        case_seconds=plan.case_seconds,
                        progress=progress,
                    )
                    done = results.rows[before:]
                    score = sum(row["score"] for row in done) / len(done)
                    seconds = time.monotonic() - began
                    console.print(f"{one.name} {name}: {len(done)} cases in {seconds:.0f} s, score {score:.3f}")
                    if why := next((row["error"] for row in done if row.get("error")), None):
                        console.print(f"the first that failed: {why}", markup=False, highlight=False)
                told()
            for name in policies if threads else ():
                await model_for(name)
                shown = functools.partial(progress, "trace", name)
                await run_trace(engine, threads, "trace", name, results, concurrency=plan.concurrency, progress=shown)
    finally:
        for recorder in recorders:
            recorder.close()
        await engine.aclose()
    return left_out


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
