"""The text that calibration and fidelity use: enough of it, all different, and the two sets share nothing."""

from __future__ import annotations

import json

import pytest

from mixquant_agents.quant.calibration.contexts import conversations, plain_texts


@pytest.mark.parametrize("split", ["calibration", "measured"])
def test_conversations_are_well_formed_and_differ(split: str) -> None:
    made = conversations(120, split)  # type: ignore[arg-type]
    assert {each.kind for each in made} == {"question", "result", "turns"}
    assert len({json.dumps(each.messages) for each in made}) == 120
    for each in made:
        roles = [message["role"] for message in each.messages]
        assert roles[:2] == ["system", "user"]
        assert roles[-1] in ("user", "tool")
        names = {tool["function"]["name"] for tool in each.tools}
        assert len(names) == 6
        for message in each.messages:
            assert "{n}" not in message["content"]
            for call in message.get("tool_calls", ()):
                assert call["function"]["name"] in names
        if each.kind == "turns":
            assert roles.count("user") >= 3


def test_seed_decides() -> None:
    assert conversations(9, "measured", 1) == conversations(9, "measured", 1)
    assert conversations(9, "measured", 1) != conversations(9, "measured", 2)


def test_sets_share_no_tool_and_no_text() -> None:
    sets = {split: conversations(200, split) for split in ("calibration", "measured")}
    tools = {name: {tool["function"]["name"] for each in made for tool in each.tools} for name, made in sets.items()}
    assert len(tools["calibration"]) == len(tools["measured"]) == 18
    assert not tools["calibration"] & tools["measured"]
    texts = {name: {m["content"] for each in made for m in each.messages} for name, made in sets.items()}
    assert texts["calibration"] & texts["measured"] == {""}  # a call has no words
    assert not set(plain_texts("calibration")) & set(plain_texts("measured"))
