"""Suites on one real engine, switched from policy to policy."""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.progress import Progress, TaskID

from mixquant_agents import EngineConfig, MixQuantChatModel, OpenAIEngine, PrecisionPolicy, VllmEngine
from mixquant_agents.engine.base import Engine
from mixquant_agents.errors import ConfigError
from mixquant_agents.telemetry import Score, StoreRecorder
from mixquant_workflows.engines import EngineGroup, engine_groups
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

__all__ = ["SERVER", "AgentsPlan", "run_agents"]

SERVER = "server"
"""Stands for the policy where a server's model runs: which one it runs under was decided where it was started."""

_FREE = (  # may change from session to session of one result file
    *("results", "store", "concurrency", "suites", "policies", "n", "case_seconds", "trace_threads", "out"),
    *("rerun_of", "command", "engine"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentsPlan:
    """What to run; the fields are the options of ``mixquant bench agents``."""

    suites: tuple[str, ...]
    policies: tuple[str, ...]
    n: int | None = None
    concurrency: int = 4
    model: str = "embedded"
    base_url: str | None = None
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
    engine: Mapping[str, Any] = field(default_factory=dict)
    command: str = "mixquant bench agents"

    def policy(self, name: str) -> PrecisionPolicy:
        """The preset ``name``, reproducible if asked."""
        preset = PrecisionPolicy.of(name)
        return preset.model_copy(update={"reproducible": True}) if self.reproducible and preset.quantizes else preset

    def header(self) -> dict[str, Any]:
        """What must be equal for a run to go on in the same file."""
        fixed = {key: str(value) for key, value in asdict(self).items() if key not in _FREE}
        if self.base_url is None:
            del fixed["base_url"]  # as in files of earlier versions
        return {**fixed, "weights": self.model if self.base_url else Path(model_folder(self.model)).name}

    def check_server(self) -> None:
        """Refuse what a server cannot be asked for.

        Raises:
            ConfigError: a policy, a trace or an engine's setting is given beside its address.
        """
        given = {
            "--policy": self.policies != (SERVER,),
            "--trace": self.trace is not None,
            "--engine": bool(self.engine),
        }
        if wrong := [name for name, there in given.items() if there]:
            raise ConfigError(
                f"--base-url {self.base_url} names a server, which was started with its own policy and settings: leave "
                f"out {' and '.join(wrong)}"
            )

    def chosen_suites(self) -> list[tuple[Suite, int | None]]:
        """Suites and cases of each: ``name``, or ``name:n`` where a suite has its own number.

        Raises:
            ConfigError: an unknown suite, no number, or one that cannot run with such calls.
        """
        pairs = []
        for text in self.suites:
            name, _, count = text.partition(":")
            if count and not (count.isdigit() and int(count)):
                raise ConfigError(f"{text!r}: after the colon comes a number of cases, as in {name}:100")
            benchmark = suite(name)
            if self.calls == "required" and not benchmark.one_answer:
                raise ConfigError(f"suite {name!r} needs answers in words, too; take --calls strict")
            pairs.append((benchmark, int(count) if count else self.n))
        return pairs

    @property
    def section(self) -> str:
        """Where the figures stand in a report."""
        if self.rerun_of is not None:
            return "rerun"
        if self.calls != "auto":
            return "constrained"
        return "base" if self.model == BASE_MODEL else "suites"


async def run_agents(plan: AgentsPlan, console: Console) -> dict[str, Any]:
    """Start an engine, run what ``plan.results`` does not hold yet, end the engine; suite by suite, so that a stopped
    run leaves whole tables. A compiled engine cannot be switched: on a GPU each policy has an engine of its own, one
    after the other. Where nothing is left to run, none is started.

    Returns:
        ``{"model", "device", "seed", "suites": {suite: {policy: figures}}}``; figures as in :func:`summarise`. A
        trace is one more suite, without scores, with the times relative to ``exact`` and the number of turns that did
        not fit. With ``plan.rerun_of`` also ``"rerun"``, as in :func:`compare_runs`.

    Raises:
        ConfigError: no suite, no policy, or an unknown one.
        EngineError: the engine did not start.
    """
    session = _Session(plan, console)
    if not session.is_complete():  # missing data is told here, before the engine is started
        await session.run()
    return session.report()


class _Session:
    """One call of :func:`run_agents`: what is to run, what it has shown, and the engine in between."""

    def __init__(self, plan: AgentsPlan, console: Console) -> None:
        if not (plan.suites or plan.trace) or not plan.policies:
            raise ConfigError(
                "nothing to run: give --suite (for example bundled, or bfcl_simple:100; a wrong name lists all) or "
                "--trace, and at least one --policy"
            )
        if plan.base_url is not None:
            plan.check_server()
        self._plan, self._console = plan, console
        self._threads = read_trace(plan.trace, plan.trace_threads) if plan.trace else []
        self._left_out_turns = 0
        self._suites = plan.chosen_suites()
        self._policies = {} if plan.base_url else {name: plan.policy(name) for name in plan.policies}
        self._first_rows = ResultFile.of(plan.rerun_of).rows if plan.rerun_of else []
        self._results = ResultFile(plan.results, plan.header())
        for policy in list(self._policies.values())[:1]:
            self._config(policy)  # a wrong setting is told before anything is loaded

    def is_complete(self) -> bool:
        """Whether the results hold every case already; a trace looks for itself."""
        return not self._threads and not any(map(self._is_missing, self._plan.policies))

    def _is_missing(self, policy: str) -> bool:
        return any(self._missing(benchmark, n, policy) for benchmark, n in self._suites)

    def _missing(self, benchmark: Suite, n: int | None, policy: str) -> bool:
        cases = {case.id for case in choose(benchmark.cases(), n, self._plan.seed)}
        return bool(cases - self._results.done(benchmark.name, policy))

    def report(self) -> dict[str, Any]:
        """The figures so far, put into the report file, too."""
        plan, results = self._plan, self._results
        summary = summarise(results.rows)
        if "trace" in summary:
            summary["trace"] = _without_scores(summary["trace"], self._left_out_turns)
        device = results.notes[-1]["device"] if results.notes else None
        report: dict[str, Any] = {"model": plan.model, "device": device, "seed": plan.seed, "suites": summary}
        if plan.rerun_of:
            report["rerun"] = compare_runs(results.rows, self._first_rows)
        if plan.out:
            merge(plan.out, plan.section, report["rerun" if plan.rerun_of else "suites"], results.notes)
        return report

    async def run(self) -> None:
        """Run what is missing, on one engine if it can be switched, else on one after the other; the report is renewed
        after every suite."""
        waiting = {name: policy for name, policy in self._policies.items() if self._threads or self._is_missing(name)}
        recorder = StoreRecorder(self._plan.store) if self._plan.store else None
        groups = engine_groups(waiting, self._config)
        try:
            if self._plan.base_url is not None:
                await self._run_server(self._plan.base_url, recorder)
                return
            self._console.print(f"starting {self._plan.model}", style="dim")
            async with contextlib.aclosing(groups):
                async for group in groups:
                    self._note(group.engine)
                    await self._run_group(group, recorder)
        finally:
            if recorder is not None:
                recorder.close()

    async def _run_server(self, base_url: str, recorder: StoreRecorder | None) -> None:
        """Run what is missing on a server's model."""
        async with OpenAIEngine(self._plan.model, base_url=base_url, max_model_len=self._plan.max_model_len) as engine:
            self._note(engine)
            with Progress(console=self._console, transient=True) as bar:
                progress = _Bars(bar)
                for benchmark, n in self._suites:
                    if self._missing(benchmark, n, SERVER):
                        await self._run_suite(benchmark, n, SERVER, engine, recorder, progress)
                    self.report()

    async def _run_group(self, group: EngineGroup, recorder: StoreRecorder | None) -> None:
        """Run what is missing of the policies that one engine serves."""
        with Progress(console=self._console, transient=True) as bar:
            progress = _Bars(bar)
            for benchmark, n in self._suites:
                for policy in group.policies:
                    if self._missing(benchmark, n, policy):
                        await group.enter(policy)
                        await self._run_suite(benchmark, n, policy, group.engine, recorder, progress)
                self.report()
            for policy in group.policies if self._threads else ():
                await group.enter(policy)
                await self._run_trace(group.engine, policy, progress)

    def _config(self, policy: PrecisionPolicy) -> EngineConfig:
        """The engine to start; settings by ``--engine`` go before what the command chooses by itself."""
        plan = self._plan
        settings: dict[str, Any] = {
            "model": model_folder(plan.model) if plan.model == BASE_MODEL else plan.model,
            "policy": policy,
            "max_model_len": plan.max_model_len,
            "max_num_seqs": plan.concurrency,
            "seed": plan.seed,
        }
        return EngineConfig(**{**settings, **plan.engine})

    def _note(self, engine: Engine) -> None:
        """Note what runs where, and leave out what of a trace does not fit this engine."""
        plan, info = self._plan, engine.info
        self._threads, left_out = fitting(self._threads, info.max_model_len or 2**31)
        self._left_out_turns += left_out
        self._results.note(
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

    def _model(self, engine: Engine, recorder: StoreRecorder | None) -> MixQuantChatModel:
        """A chat model on the engine, which runs under the policy in question."""
        plan = self._plan
        settings: dict[str, Any] = {
            "engine": engine,
            "temperature": 0,
            "seed": plan.seed,
            "max_tokens": plan.max_tokens,
            "recorders": (recorder,) if recorder is not None else (),
        }
        return MixQuantChatModel(**settings) if plan.calls == "auto" else ConstrainedModel(calls=plan.calls, **settings)

    async def _run_suite(
        self,
        benchmark: Suite,
        n: int | None,
        policy: str,
        engine: Engine,
        recorder: StoreRecorder | None,
        progress: _Bars,
    ) -> None:
        plan, rows = self._plan, self._results.rows
        began, before = time.monotonic(), len(rows)
        await run_suites(
            [benchmark],
            policy,
            self._model(engine, recorder),
            self._results,
            n=n,
            concurrency=plan.concurrency,
            seed=plan.seed,
            case_seconds=plan.case_seconds,
            progress=progress,
            scored=functools.partial(_record_score, recorder),
        )
        new_rows = rows[before:]
        score = sum(row["score"] for row in new_rows) / len(new_rows)
        seconds = time.monotonic() - began
        self._console.print(f"{benchmark.name} {policy}: {len(new_rows)} cases in {seconds:.0f} s, score {score:.3f}")
        if reason := next((row["error"] for row in new_rows if row.get("error")), None):
            self._console.print(f"the first that failed: {reason}", markup=False, highlight=False)

    async def _run_trace(self, engine: VllmEngine, policy: str, progress: _Bars) -> None:
        await run_trace(
            engine,
            self._threads,
            "trace",
            policy,
            self._results,
            concurrency=self._plan.concurrency,
            progress=functools.partial(progress, "trace", policy),
        )


def _record_score(recorder: StoreRecorder | None, thread: str, suite: str, row: Mapping[str, Any]) -> None:
    """Put a task's score beside its turns, so that the dashboard shows it by policy."""
    if recorder is not None:
        recorder.record_score(Score(thread_id=thread, name=suite, score=row["score"], comment=row["why"] or None))


class _Bars:
    """A progress bar for each suite and policy, made when it begins."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._tasks: dict[tuple[str, str], TaskID] = {}

    def __call__(self, suite: str, policy: str, done: int, total: int) -> None:
        if (suite, policy) not in self._tasks:
            self._tasks[suite, policy] = self._progress.add_task(f"{suite} {policy}", total=total)
        self._progress.update(self._tasks[suite, policy], completed=done)


def _without_scores(policies: dict[str, dict[str, Any]], left_out: int) -> dict[str, dict[str, Any]]:
    """A trace has no right answers; what counts are the times, also relative to ``exact``."""
    base = policies.get("exact", {})
    for figures in policies.values():
        for name in ("score", "ci95", "delta", "delta_ci95", "measures"):
            figures.pop(name, None)
        figures["turns_that_did_not_fit"] = left_out
        for name in ("ttft_p50_ms", "prefill_s", "decode_s", "task_p50_s"):
            comparable = base.get(name) and figures[name] is not None
            figures[f"{name}_vs_exact"] = figures[name] / base[name] if comparable else None
    return policies
