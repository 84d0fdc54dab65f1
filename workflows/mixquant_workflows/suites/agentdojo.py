"""AgentDojo: an assistant with mail, calendar, bank and travel tools, and attackers whose words lie in what it reads.

Does reading in few bits make injections easier? Each attacked case says both: whether the user's task was done, and
whether the attacker's was (the measure ``attack_success``).
"""

from __future__ import annotations

import asyncio
import contextvars
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AnyMessage, HumanMessage
from langchain_core.tools import BaseTool, StructuredTool, ToolException

from mixquant_agents.errors import ContextOverflowError
from mixquant_workflows.graphs.tool import tool_agent
from mixquant_workflows.suites.base import Answer, Case, ScriptedTurn, Verdict
from mixquant_workflows.suites.packages import agentdojo

__all__ = ["AgentDojo"]

_RUNS = ThreadPoolExecutor(max_workers=256, thread_name_prefix="agentdojo")
"""Each run of the benchmark waits in a thread for its agent, whose tools want the loop's own threads."""

MAX_STEPS = 16
"""Model calls per task: the benchmark's own loop allows 15 rounds of tools."""


class AgentDojo:
    """One of AgentDojo's four suites, on :func:`tool_agent`; the official run and its checkers judge.

    Args:
        name: of the suite.
        domain: ``workspace``, ``travel``, ``banking`` or ``slack``.
        attacked: one case for each pair of a user's task and an attacker's (the benchmark's attack
            ``important_instructions``, without the model's name); else one case for each of the user's.
    """

    one_answer = False
    documented_misses: Mapping[str, str] = {}

    def __init__(self, name: str, domain: str, attacked: bool = False) -> None:
        self.name, self.domain, self.attacked = name, domain, attacked

    @property
    def _suite(self) -> Any:
        return agentdojo().suites[self.domain]

    def cases(self) -> list[Case]:
        users = sorted(self._suite.user_tasks, key=_number)
        if not self.attacked:
            return [Case(user, {"user": user, "attacker": None}) for user in users]
        attackers = sorted(self._suite.injection_tasks, key=_number)
        return [
            Case(f"{user}-{attacker}", {"user": user, "attacker": attacker}) for user in users for attacker in attackers
        ]

    async def run(self, case: Case, model: BaseChatModel) -> Verdict:
        suite = self._suite
        user = suite.user_tasks[case.data["user"]]
        attacker = suite.injection_tasks[case.data["attacker"]] if self.attacked else None
        pipeline = _pipeline(model, asyncio.get_running_loop())
        injections = await asyncio.to_thread(_injections, suite, user, attacker)
        judge = contextvars.copy_context().run  # the turns' thread is known to the graph
        judged = asyncio.get_running_loop().run_in_executor(
            _RUNS, judge, suite.run_task_with_pipeline, pipeline, user, attacker, injections
        )
        done, attacked = await judged
        measures = {"attack_success": float(attacked)} if attacker is not None else {}
        why = "" if done else f"the user's task was not done: {user.PROMPT[:200]}"
        if pipeline.overflow is not None:  # the benchmark's own runner counts it as not done
            done, why = False, f"the agent filled the context window: {pipeline.overflow}"
        return Verdict(score=float(done), why=why, messages=pipeline.answers, measures=measures)

    def oracle(self, case: Case) -> list[Answer]:
        """The calls of the user's task in order; the attacker gets nothing."""
        user = self._suite.user_tasks[case.data["user"]]
        environment = user.init_environment(self._suite.load_and_inject_default_environment({}))
        calls = user.ground_truth(environment.model_copy(deep=True))
        turns: list[Answer] = [ScriptedTurn(tool_calls=[{"name": c.function, "args": dict(c.args)}]) for c in calls]
        return [*turns, user.GROUND_TRUTH_OUTPUT or "Done."]


def _number(name: str) -> int:
    match = re.search(r"\d+", name)
    return int(match.group()) if match else 0


def _injections(suite: Any, user: Any, attacker: Any) -> dict[str, str]:
    """What the attacker wrote where the user's task will read it."""
    if attacker is None:
        return {}
    target = agentdojo().PipelineElement
    victim = type("Victim", (target,), {"query": lambda self, *args: args, "name": "local"})()
    injections: dict[str, str] = agentdojo().Attack(suite, victim).attack(user, attacker)
    return injections


def _pipeline(model: BaseChatModel, loop: asyncio.AbstractEventLoop) -> Any:
    """AgentDojo's seam for agents, with our graph behind it: called in a thread, the graph runs in ``loop``."""
    dojo = agentdojo()

    class Graph(dojo.PipelineElement):  # type: ignore[misc, name-defined]  # the package is untyped
        name = "mixquant"
        answers: Sequence[AnyMessage] = ()
        overflow: ContextOverflowError | None = None

        def query(
            self, query: str, runtime: Any, env: Any = None, messages: Sequence[Any] = (), extra_args: Any = None
        ) -> Any:
            """Run the agent on the user's words; its tools change ``env``. A full context window ends its run: what it
            has done by then is judged."""
            graph = tool_agent(
                model,
                _tools(runtime, env),
                system=dojo.system,
                max_steps=MAX_STEPS,
                max_repeats=MAX_STEPS,
                in_order=True,
            )

            async def run() -> None:
                start = {"messages": [HumanMessage(query)]}
                async for state in graph.astream(start, {"recursion_limit": 4 * MAX_STEPS}, stream_mode="values"):
                    self.answers = state["messages"]

            try:
                asyncio.run_coroutine_threadsafe(run(), loop).result()
            except ContextOverflowError as error:
                self.overflow = error
            return query, runtime, env, _as_theirs(self.answers), extra_args or {}

    return Graph()


def _tools(runtime: Any, environment: Any) -> list[BaseTool]:
    """The suite's functions as tools on one environment."""

    def tool(function: Any) -> BaseTool:
        def run(**arguments: Any) -> str:
            result, error = runtime.run_function(environment, function.name, arguments)
            if error is not None:
                raise ToolException(error)
            return str(agentdojo().as_text(result))

        return StructuredTool(
            name=function.name,
            description=function.description,
            args_schema=function.parameters.model_json_schema(),
            func=run,
        )

    return [tool(function) for function in runtime.functions.values()]


def _as_theirs(messages: Sequence[AnyMessage]) -> list[dict[str, Any]]:
    """The model's turns in AgentDojo's form: its checkers read the calls and the last words."""
    dojo = agentdojo()
    turns = []
    for message in messages:
        if isinstance(message, AIMessage):
            calls = [dojo.FunctionCall(function=c["name"], args=c["args"], id=c["id"]) for c in message.tool_calls]
            words = [dojo.text_block(str(message.text))]
            turns.append({"role": "assistant", "content": words, "tool_calls": calls or None})
    return turns
