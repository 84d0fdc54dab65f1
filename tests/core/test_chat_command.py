"""``mixquant chat`` keeps the conversation and reports each turn."""

import io

from rich.console import Console

from mixquant_agents import ScriptedEngine
from mixquant_agents.cli.chat import _lines, _talk


async def test_a_conversation_grows_and_each_turn_is_reported() -> None:
    engine = ScriptedEngine(["Hello there.", "Fine."])
    out = Console(file=io.StringIO(), width=200)
    result = await _talk(engine, iter(["hi", "how are you?"]), "Be brief.", 16, 0.0, out)
    assert [turn["answer"] for turn in result["turns"]] == ["Hello there.", "Fine."]
    assert [turn["turn"]["turn_index"] for turn in result["turns"]] == [0, 1]
    assert [message["role"] for message in engine.requests[1].messages] == ["system", "user", "assistant", "user"]
    shown = out.file.getvalue()  # type: ignore[attr-defined]
    assert "Hello there." in shown
    assert shown.count("first token after") == 2


def test_messages_given_on_the_command_line_are_all_there_are() -> None:
    assert list(_lines(["a", "b"], Console(file=io.StringIO()))) == ["a", "b"]
