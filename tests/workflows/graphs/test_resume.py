"""A graph whose process is killed in the middle goes on where it was, and runs nothing twice."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

# Imports once (they cost seconds), then forks a fresh process for every run.
PROGRAM = '''
import json, os, signal, sys, time, traceback
from pathlib import Path
from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.tools import tool
from list_model import ListModel, call, say
from mixquant_tools.retrieval import Document, DocumentIndex, NoteBook
from mixquant_workflows import memory_agent, retrieval_agent, tool_agent

index = DocumentIndex([Document("barn.md", "The barn is red.")])

def run(kind, folder, resume):
    log = folder / "log"

    def note(what):
        with log.open("a") as file:
            file.write(what + "\\n")

    def answer(text, then):
        """A model answer that is written down; the process dies in the middle of the one that says so."""
        def give(messages):
            note("model " + text)
            if text == "DIE" and not resume:
                os.kill(os.getpid(), signal.SIGKILL)
            return then
        return give

    @tool
    def step(number: int) -> str:
        "Do one step."
        note(f"tool {number}")
        return f"done {number}"

    @tool
    def last() -> str:
        "The process dies in it, once the step beside it has ended and is kept."
        if not resume:
            time.sleep(0.5)
            os.kill(os.getpid(), signal.SIGKILL)
        note("tool last")
        return "done"

    both = AIMessage("", tool_calls=[*call("step", "a", number=1).tool_calls, *call("last", "b").tool_calls])
    answers = {
        "parallel": [answer("1", both), answer("2", say("end"))],
        "tool": [
            answer("1", call("step", "a", number=1)),
            answer("2", call("step", "b", number=2)),
            answer("DIE", say("end")),
        ],
        "retrieval": [answer("1", call("search_documents", query="barn")), answer("DIE", say("It is red [1]."))],
        "memory": [answer("1", call("save_note", text="Ann likes tea.")), answer("DIE", say("end"))],
    }[kind]
    model = ListModel(answers=answers[-1:] if resume else answers)
    make = {
        "parallel": lambda where: tool_agent(model, [step, last], checkpointer=where),
        "tool": lambda where: tool_agent(model, [step], checkpointer=where),
        "retrieval": lambda where: retrieval_agent(model, index, checkpointer=where),
        "memory": lambda where: memory_agent(model, NoteBook(folder / "notes.db"), use_tools=True, checkpointer=where),
    }[kind]
    config = {"configurable": {"thread_id": "one"}}
    question = None if resume else {"messages": [HumanMessage("go")]}
    state = make(folder / "state.db").invoke(question, config, durability="sync")
    note("answer " + state["messages"][-1].text)
    note(f"messages {len(state['messages'])}")

def fork(kind, resume):
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        run(kind, Path(sys.argv[1]) / kind, resume)
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)

def run_all(resume):
    "Exit status of each run; negative is the signal that ended it."
    children = {kind: fork(kind, resume) for kind in sys.argv[2:]}
    return {kind: os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for kind, child in children.items()}

print(json.dumps([run_all(False), run_all(True)]))
'''


CASES = {
    "parallel": (["model 1", "tool 1"], ["tool last", "model 2", "answer end", "messages 5"]),
    "tool": (["model 1", "tool 1", "model 2", "tool 2", "model DIE"], ["model DIE", "answer end", "messages 6"]),
    "retrieval": (["model 1", "model DIE"], ["model DIE", "answer It is red [1].", "messages 4"]),
    "memory": (["model 1", "model DIE"], ["model DIE", "answer end", "messages 4"]),
}


def test_goes_on_after_a_kill(tmp_path: Path) -> None:
    for kind in CASES:
        (tmp_path / kind).mkdir()
    ended = subprocess.run(  # noqa: S603 - this very interpreter on the text above
        [sys.executable, "-c", PROGRAM, str(tmp_path), *CASES],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    killed, resumed = json.loads(ended.stdout)
    for kind, (before, after) in CASES.items():
        assert killed[kind] == -signal.SIGKILL, ended.stderr
        assert resumed[kind] == 0, ended.stderr
        assert (tmp_path / kind / "log").read_text().splitlines() == before + after
