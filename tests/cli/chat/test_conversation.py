"""``mixquant chat`` keeps the conversation, reports each turn, hears Ctrl-C, and takes commands where somebody sits."""

from __future__ import annotations

import io
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from mixquant_agents import MixQuantChatModel, ScriptedEngine, TurnStore
from mixquant_agents.cli.chat.conversation import Conversation
from mixquant_agents.cli.chat.slash import take
from mixquant_agents.engine.scripted import ScriptedTurn
from mixquant_agents.errors import ContextOverflowError
from mixquant_agents.telemetry import StoreRecorder


def conversation(
    engine: ScriptedEngine, out: Console | None = None, *, interactive: bool = False, **settings: Any
) -> Conversation:
    chat = MixQuantChatModel(engine=engine, max_tokens=settings.pop("max_tokens", 16), temperature=0, **settings)
    console = out or Console(file=io.StringIO(), width=300)
    return Conversation(chat, console, system="Be brief.", interactive=interactive)


def shown(talk: Conversation) -> str:
    text: str = talk._out.file.getvalue()  # type: ignore[attr-defined]  # a StringIO
    return text


def take_all(talk: Conversation, lines: Iterable[str]) -> list[bool]:
    return [take(talk, line) for line in lines]


def test_conversation_grows_and_each_turn_is_reported() -> None:
    engine = ScriptedEngine(["Hello [there].", "Fine."])
    talk = conversation(engine)
    take_all(talk, ["hi", "how are you?"])
    assert [turn["answer"] for turn in talk.turns] == ["Hello [there].", "Fine."]
    assert [turn["turn"]["turn_index"] for turn in talk.turns] == [0, 1]
    assert [message["role"] for message in engine.requests[1].messages] == ["system", "user", "assistant", "user"]
    assert "Hello [there]." in shown(talk)
    assert shown(talk).count("first token after") == 2


class Interrupted(Console):
    """A console on which somebody presses Ctrl-C when the second token of the first answer comes."""

    tokens = 0

    def print(self, *things: Any, **style: Any) -> None:
        self.tokens += 1
        if self.tokens == 2:
            raise KeyboardInterrupt
        super().print(*things, **style)


@pytest.mark.parametrize("interactive", [True, False])
def test_ctrl_c_ends_an_answer_or_the_command(interactive: bool) -> None:
    engine = ScriptedEngine([ScriptedTurn(text=["one ", "two ", "three"], token_seconds=0.05), "Yes."])
    talk = conversation(engine, Interrupted(file=io.StringIO()), interactive=interactive)
    if not interactive:
        with pytest.raises(KeyboardInterrupt):
            talk.ask("count")
        assert (engine.running, engine.aborted) == (0, 1)
        return
    take_all(talk, ["count", "still there?"])
    assert (engine.running, engine.aborted) == (0, 1)
    assert [turn["answer"] for turn in talk.turns] == ["Yes."]
    assert engine.requests[1].messages[2]["content"].startswith("one ")
    assert "(stopped)" in shown(talk)


def test_refused_message_ends_no_conversation() -> None:
    lines = ["short", "long " * 200, "short again"]
    with pytest.raises(ContextOverflowError):
        take_all(conversation(ScriptedEngine(["Yes.", "No."], max_model_len=120), max_tokens=4), lines)
    engine = ScriptedEngine(["Yes.", "", "No."], max_model_len=120)
    talk = conversation(engine, interactive=True, max_tokens=4)
    take_all(talk, lines)
    assert [turn["answer"] for turn in talk.turns] == ["Yes.", "No."]
    assert "context window holds 120" in shown(talk)
    assert [message["role"] for message in engine.requests[-1].messages] == ["system", "user", "assistant", "user"]


def test_slash_lines_are_commands_where_somebody_sits() -> None:
    engine = ScriptedEngine(["One.", "Two.", "Three.", "Four."])
    talk = conversation(engine, interactive=True)
    lines = [
        "/help",
        "hi",
        "/new",
        "again",
        "/system Talk like a pirate.",
        "and now",
        "//etc/passwd is a file",
        "/nope",
    ]
    assert all(take_all(talk, lines))
    assert take(talk, "/quit") is False
    roles = [[message["role"] for message in request.messages] for request in engine.requests]
    assert roles == [["system", "user"]] * 3 + [["system", "user", "assistant", "user"]]
    assert engine.requests[2].messages[0]["content"] == "Talk like a pirate."
    assert engine.requests[3].messages[-1]["content"] == "/etc/passwd is a file"
    assert "/policy [NAME]" in shown(talk)
    assert "there is no /nope; there are /help, /new, /system, /policy, /quit" in shown(talk)


def test_slash_of_a_pipe_is_a_message() -> None:
    engine = ScriptedEngine(["One."])
    take(conversation(engine), "/help")
    assert engine.requests[0].messages[-1]["content"] == "/help"


def test_policy_is_shown_and_switched() -> None:
    talk = conversation(ScriptedEngine(["One."], policy="mixquant-nvfp4"), interactive=True)
    assert "policy mixquant-nvfp4: reads in NVFP4, writes exact (emulated here" in talk.heading()
    take_all(talk, ["/policy exact", "/policy nope"])
    assert "policy exact: reads and writes exact" in shown(talk)
    assert "no policy preset 'nope'" in shown(talk)


def test_each_conversation_is_a_thread_of_its_own_in_the_store(tmp_path: Path) -> None:
    recorder = StoreRecorder(tmp_path / "turns.sqlite")
    talk = conversation(ScriptedEngine(["One.", "Two.", "Three."]), interactive=True, recorders=(recorder,))
    take_all(talk, ["a", "b", "/new", "c"])
    recorder.close()
    with TurnStore(tmp_path / "turns.sqlite") as store:
        threads = {thread.thread_id: thread.turns for thread in store.threads()}
    assert sorted(threads.values()) == [1, 2]
    assert all(name.startswith("chat-") for name in threads)
