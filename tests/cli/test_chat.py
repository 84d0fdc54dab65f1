"""``mixquant chat`` keeps the conversation, reports each turn, and hears Ctrl-C."""

import io
from typing import Any

import pytest
from rich.console import Console

from mixquant_agents import ScriptedEngine
from mixquant_agents.cli.chat import _lines, _talk
from mixquant_agents.engine.scripted import ScriptedTurn
from mixquant_agents.errors import ContextOverflowError, RequestError


def test_conversation_grows_and_each_turn_is_reported() -> None:
    engine = ScriptedEngine(["Hello [there].", "Fine."])
    out = Console(file=io.StringIO(), width=200, markup=False)
    result = _talk(engine, iter(["hi", "how are you?"]), "Be brief.", 16, 0.0, out)
    assert [turn["answer"] for turn in result["turns"]] == ["Hello [there].", "Fine."]
    assert [turn["turn"]["turn_index"] for turn in result["turns"]] == [0, 1]
    assert [message["role"] for message in engine.requests[1].messages] == ["system", "user", "assistant", "user"]
    shown = out.file.getvalue()  # type: ignore[attr-defined]
    assert "Hello [there]." in shown
    assert shown.count("first token after") == 2


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
    out = Interrupted(file=io.StringIO())
    if not interactive:
        with pytest.raises(KeyboardInterrupt):
            _talk(engine, iter(["count", "still there?"]), None, 16, None, out)
        assert (engine.running, engine.aborted) == (0, 1)
        return
    result = _talk(engine, iter(["count", "still there?"]), None, 16, None, out, interactive=True)
    assert (engine.running, engine.aborted) == (0, 1)
    assert [turn["answer"] for turn in result["turns"]] == ["Yes."]
    assert engine.requests[1].messages[1]["content"].startswith("one ")
    assert "(stopped)" in out.file.getvalue()  # type: ignore[attr-defined]


def test_refused_message_ends_no_conversation() -> None:
    out = Console(file=io.StringIO(), width=300)
    engine = ScriptedEngine(["Yes.", "No."], max_model_len=120)
    said = ["short", "long " * 200, "short again"]
    with pytest.raises(ContextOverflowError):
        _talk(engine, iter(said), None, 4, None, out)
    engine = ScriptedEngine(["Yes.", "", "No."], max_model_len=120)
    result = _talk(engine, iter(said), None, 4, None, out, interactive=True)
    assert [turn["answer"] for turn in result["turns"]] == ["Yes.", "No."]
    assert "context window holds 120" in out.file.getvalue()  # type: ignore[attr-defined]
    assert [message["role"] for message in engine.requests[-1].messages] == ["user", "assistant", "user"]


def test_input_that_is_no_text_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"a\xff\n"), encoding="utf-8"))
    with pytest.raises(RequestError, match="give UTF-8"):
        next(_lines(None))


def test_messages_are_read_line_by_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("a\n\n  b  \n"))
    asked = Console(file=io.StringIO())
    assert list(_lines(asked)) == ["a", "b"]
    assert asked.file.getvalue().count("you> ") == 4  # type: ignore[attr-defined]
    monkeypatch.setattr("sys.stdin", io.StringIO("a"))
    assert list(_lines(None)) == ["a"]
