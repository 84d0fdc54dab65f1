"""Banking documents, on two of our own in the shape of the package's data."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from mixquant_agents import MixQuantChatModel, ScriptedEngine
from mixquant_agents.engine.scripted import ScriptedTurn
from mixquant_agents.errors import MixQuantError
from mixquant_workflows.runner.registry import suite
from mixquant_workflows.suites import banking


async def test_banking_documents_are_to_be_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / banking._FOLDER
    folder.mkdir(parents=True)
    documents = [
        {"id": "doc_a", "title": "Gold card", "content": "The gold card costs nothing."},
        {"id": "doc_b", "title": "Loans", "content": "A loan needs a signature."},
    ]
    (folder / "documents.json.gz").write_bytes(gzip.compress(json.dumps(documents).encode()))
    task = {
        "id": "task_1",
        "user_scenario": {"instructions": "You want a card."},
        "required_documents": ["doc_a", "doc_b"],
    }
    (folder / "tasks.json").write_text(json.dumps([task]))
    monkeypatch.setattr(banking, "package_folder", lambda module, requirement: tmp_path)
    monkeypatch.setattr(banking, "BANKING", {})
    banking._index.cache_clear()
    try:
        chosen = suite("banking_knowledge")
        (case,) = chosen.cases()

        def searches(*queries: str) -> MixQuantChatModel:
            asked = [
                ScriptedTurn(tool_calls=[{"name": "search_documents", "args": {"query": query}}]) for query in queries
            ]
            return MixQuantChatModel(engine=ScriptedEngine([*asked, "Take it [1].", "Take it [1]."]))

        half = await chosen.run(case, searches("gold"))
        assert (half.score, half.measures["all_found"]) == (0.5, 0)
        assert "doc_b" in half.why
        assert (await chosen.run(case, searches("gold", "signature"))).score == 1
        with pytest.raises(MixQuantError, match="no ground truth"):
            chosen.oracle(case)
    finally:
        banking._index.cache_clear()
