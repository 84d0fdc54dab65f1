"""The block of reasoning at an answer's beginning, whatever follows and however the text is cut."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixquant_agents.engine.hermes.thoughts import ThoughtSplitter


def split(pieces: Sequence[str], *, begun: bool = False) -> tuple[str, str]:
    splitter = ThoughtSplitter("<think>", "</think>", ("<call>",), begun=begun)
    outs = [splitter.feed(piece) for piece in pieces] + [splitter.finish()]
    return "".join(thought for thought, _ in outs), "".join(rest for _, rest in outs)


@pytest.mark.parametrize(
    ("text", "begun", "expected"),
    [
        ("<think>\nHm.\n</think>\n\nYes.", False, ("Hm.", "Yes.")),
        ("\nHm.\n</think>\n\nYes.", True, ("Hm.", "Yes.")),
        ("Yes, </think> is a tag.", False, ("", "Yes, </think> is a tag.")),
        ("<think>Hm.\n<call>x", False, ("Hm.", "<call>x")),
        ("<think>Hm", False, ("Hm", "")),
        ("<thin", False, ("", "<thin")),
        (" <b>", False, ("", " <b>")),
        ("<think></think>", False, ("", "")),
    ],
)
def test_thought_and_rest(text: str, begun: bool, expected: tuple[str, str]) -> None:
    assert split([text], begun=begun) == split(list(text), begun=begun) == expected


texts = st.lists(st.sampled_from(["<think>", "</think>", "<call>", "<", "</", "word", "\n", " "]), max_size=10)


@given(texts, st.booleans(), st.integers(1, 12))
def test_cuts_do_not_matter_and_no_word_is_lost(parts: list[str], begun: bool, step: int) -> None:
    text = "".join(f"w{index}w" if part == "word" else part for index, part in enumerate(parts))
    whole = split([text], begun=begun)
    assert split([text[at : at + step] for at in range(0, len(text), step)], begun=begun) == whole
    assert all(f"w{index}w" in "".join(whole) for index, part in enumerate(parts) if part == "word")
