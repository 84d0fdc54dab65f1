"""harness-bench-fast: 351 tasks of a deep agent on files (edits, CSV, SQLite, memory), checked by programs.

The agent is deepagents' own with its file tools on a folder made for the task; nothing outside it is reached.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import HumanMessage

from mixquant_agents.errors import ConfigError, MissingDependencyError
from mixquant_workflows.suites.base import Answer, Case, ScriptedTurn, Verdict
from mixquant_workflows.suites.packages import harness_bench

__all__ = ["HarnessBench"]

RECURSION_LIMIT = 200
"""Graph steps per task; the benchmark's own runner stops there, too."""


class HarnessBench:
    """The benchmark's tasks on ``create_deep_agent`` with the file tools of a virtual folder (no shell). Needs a model
    of 8B or more to show anything."""

    name = "harness_bench"
    one_answer = False
    documented_misses: Mapping[str, str] = {}

    def cases(self) -> list[Case]:
        return [Case(task.id, {"task": task}) for task in harness_bench().ALL_TASKS]

    async def run(self, case: Case, model: BaseChatModel) -> Verdict:
        task: Any = case.data["task"]
        with tempfile.TemporaryDirectory(prefix="mixquant-harness-") as folder:
            workspace = Path(folder)
            await asyncio.to_thread(task.setup, workspace)
            agent = _agent(model, workspace)
            state = await agent.ainvoke({"messages": [HumanMessage(task.prompt)]}, {"recursion_limit": RECURSION_LIMIT})
            result = await asyncio.to_thread(task.verify, workspace)
        return Verdict(score=float(result.passed), why=result.message[:300], messages=state["messages"])

    async def verify_gold(self, case: Case) -> Verdict:
        """The benchmark's own solution, judged by its own verifier; no agent runs."""
        task: Any = case.data["task"]
        with tempfile.TemporaryDirectory(prefix="mixquant-harness-") as folder:
            await asyncio.to_thread(task.setup, Path(folder))
            await asyncio.to_thread(task.apply_gold, Path(folder))
            result = await asyncio.to_thread(task.verify, Path(folder))
        return Verdict(score=float(result.passed), why=result.message[:300])

    def oracle(self, case: Case) -> list[Answer]:
        """The benchmark's text solutions as calls of the file tools.

        Raises:
            ConfigError: its solution is a program, or nothing is to be changed.
        """
        task: Any = case.data["task"]
        if task.gold_callback is not None or not task.gold_files:
            raise ConfigError(f"{case.id}: its solution is no set of files")
        removed = {name for name, content in task.gold_files.items() if content is None}
        kept = {*task.setup_files, *task.gold_files} - removed
        folders = dict.fromkeys(_emptied(name, kept) for name in task.gold_files if name in removed)
        calls: list[dict[str, Any]] = [{"name": "delete", "args": {"file_path": f"/{path}"}} for path in folders]
        for name, content in task.gold_files.items():
            path, old = f"/{name}", task.setup_files.get(name)
            if content is None:
                continue
            if old:
                calls.append({"name": "read_file", "args": {"file_path": path}})
                edit = {"file_path": path, "old_string": old, "new_string": content}
                calls.append({"name": "edit_file", "args": edit})
                continue
            if old is not None:  # an empty file holds nothing to edit
                calls.append({"name": "delete", "args": {"file_path": path}})
            calls.append({"name": "write_file", "args": {"file_path": path, "content": content}})
        return [*(ScriptedTurn(tool_calls=[call]) for call in calls), "Done."]


def _emptied(name: str, kept: set[str]) -> str:
    """The file, or the outermost folder around it that is left without files."""
    folders = [str(folder) for folder in reversed(PurePosixPath(name).parents) if folder.name]
    return next((folder for folder in folders if not any(each.startswith(f"{folder}/") for each in kept)), name)


def _agent(model: BaseChatModel, workspace: Path) -> Any:
    try:
        from deepagents import create_deep_agent
        from deepagents.backends import FilesystemBackend
    except ImportError as error:
        raise MissingDependencyError(
            "this benchmark needs deepagents; install mixquant-agents[langchain] and deepagents"
        ) from error
    return create_deep_agent(model=model, backend=FilesystemBackend(root_dir=str(workspace), virtual_mode=True))
