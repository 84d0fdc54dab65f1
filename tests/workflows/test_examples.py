"""Every example runs: on the scripted engine, and two of them on the embedded model."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from mixquant_agents import MixQuantChatModel, ScriptedEngine
from mixquant_agents.engine.scripted import ScriptedTurn

FOLDER = Path(__file__).parents[2] / "examples"
NAMES = sorted(path.stem for path in FOLDER.glob("*.py"))


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"example_{name}", FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def scripted(*answers: Any, **settings: Any) -> MixQuantChatModel:
    return MixQuantChatModel(engine=ScriptedEngine(list(answers), policy="mixquant-nvfp4"), **settings)


def calls(name: str, **args: Any) -> ScriptedTurn:
    return ScriptedTurn(tool_calls=[{"name": name, "args": args}])


async def first_turn(tmp_path: Path) -> None:
    turn = await load("first_turn").main(scripted("Because of the air."))
    assert turn["policy"] == "mixquant-nvfp4"


async def stream(tmp_path: Path) -> None:
    model = scripted("one two three four five six")
    assert (await load("stream").main(model, 3)).split()[:3] == ["one", "two", "three"]
    assert model.engine.running == 0


async def tools(tmp_path: Path) -> None:
    said = await load("tools").main(scripted(calls("price_of", item="saw"), "It costs 27 euros."))
    assert said == "It costs 27 euros."


async def structured_output(tmp_path: Path) -> None:
    city = await load("structured_output").main(scripted('{"name": "Paris", "country": "France"}'))
    assert (city.name, city.country) == ("Paris", "France")


async def retrieval(tmp_path: Path) -> None:
    (tmp_path / "barn.md").write_text("# Barn\nThe barn is red.\n")
    model = scripted(calls("search_documents", query="barn"), "It is red [1].")
    state = await load("retrieval").main(model, tmp_path, "What colour is the barn?")
    assert state["citations"] == [{"number": 1, "source": "barn.md:1-2"}]


async def memory(tmp_path: Path) -> None:
    assert await load("memory").main(scripted("Hello Ann.", "Nice.", "In Oslo."), tmp_path) == "In Oslo."
    assert (tmp_path / "dialogue.db").is_file()


async def resume(tmp_path: Path) -> None:
    assert await load("resume").main(scripted(calls("do_step", number=1), "All done."), tmp_path) == [1]


async def many_agents(tmp_path: Path) -> None:
    assert await load("many_agents").main(scripted(*["Something."] * 4)) == ["Something."] * 4


async def records(tmp_path: Path) -> None:
    kept: list[Any] = []
    model = scripted(
        calls("convert_units", value=5, source="mile", target="km"), "About 8 km.", recorders=[kept.append]
    )
    found = await load("records").main(model, kept)
    model.close()
    assert [record.tool_calls for record in found] == [("convert_units",), ()]
    assert found[1].cached_tokens > 0


async def mcp_server(tmp_path: Path) -> None:
    from mcp.server.mcpserver import MCPServer

    server = MCPServer("farm")

    @server.tool()
    def count(animal: str) -> str:
        """Count animals."""
        return f"3 {animal}"

    model = scripted(calls("count", animal="goats"), "There are 3 goats.")
    assert await load("mcp_server").main(model, server) == "There are 3 goats."


async def scripted_engine(tmp_path: Path) -> None:
    assert "1591" in await load("scripted").main()


async def read_ahead(tmp_path: Path) -> None:
    model = scripted(calls("read_log", day="Monday"), "88 cm.")
    assert await load("read_ahead").main(model) == "88 cm."
    assert [request.priority for request in model.engine.requests] == [-1, -1]
    texts = [request.messages[-1]["content"] for request, _ in model.engine.prefetched]
    assert len(texts) > 2
    assert "12:00" in texts[-1]
    assert list(model.engine.released) == ["log"]


async def own_engine(tmp_path: Path) -> None:
    assert await load("own_engine").main() == "Here I am."


RUNS: dict[str, Callable[[Path], Any]] = {
    "first_turn": first_turn,
    "many_agents": many_agents,
    "mcp_server": mcp_server,
    "own_engine": own_engine,
    "memory": memory,
    "read_ahead": read_ahead,
    "records": records,
    "resume": resume,
    "retrieval": retrieval,
    "scripted": scripted_engine,
    "stream": stream,
    "structured_output": structured_output,
    "tools": tools,
}


def test_every_example_is_run() -> None:
    assert sorted(RUNS) == NAMES


@pytest.mark.parametrize("name", sorted(RUNS))
async def test_runs_on_the_scripted_engine(name: str, tmp_path: Path) -> None:
    await RUNS[name](tmp_path)


async def test_example_of_the_readme(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    readme = (FOLDER.parent / "README.md").read_text()
    program = readme.split("```python\n")[1].split("```")[0]
    asked: list[dict[str, Any]] = []

    def model(**settings: Any) -> MixQuantChatModel:
        asked.append(settings)
        return scripted(calls("add", a=3, b=4), "It is 7.")

    monkeypatch.setattr("mixquant_agents.MixQuantChatModel", model)
    names: dict[str, Any] = {"__name__": "readme"}
    exec(compile(program, "README.md", "exec"), names)  # noqa: S102 - our own README
    await names["main"]()
    assert asked == [{"model": "embedded", "policy": "mixquant"}]
    assert capsys.readouterr().out.startswith("It is 7. {")


@pytest.mark.engine
async def test_runs_on_the_embedded_model(engine: Any, tmp_path: Path) -> None:
    model = MixQuantChatModel(engine=engine, temperature=0, max_tokens=48)
    turn = await load("first_turn").main(model)
    assert turn["engine"] == "vllm"
    assert turn["emulated"] is True
    assert turn["quantized_tokens"] + turn["exact_tokens"] == turn["prefill_tokens"]
    (tmp_path / "barn.md").write_text("# Barn\nThe barn of the northern farm is painted red every spring.\n")
    state = await load("retrieval").main(model, tmp_path, "What colour is the barn?")
    assert [source["path"] for source in state["sources"]] == ["barn.md"]
    assert state["messages"][-1].text.strip()
