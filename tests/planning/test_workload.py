"""What agents do: sessions are repeatable, contexts grow and are summarised, lengths and tools are as asked."""

import itertools
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixquant_agents.errors import ConfigError
from mixquant_agents.planning.workload import TurnDraw, Workload, session


def draws(workload: Workload, count: int, agent: int = 0, seed: int = 0) -> list[TurnDraw]:
    return list(itertools.islice(session(workload, agent, seed), count))


@given(
    shared=st.integers(0, 500), own=st.integers(1, 200), tool=st.integers(1, 300), answer=st.integers(1, 100),
    spread=st.floats(0, 1), turns=st.integers(1, 9), room=st.integers(0, 2000), seed=st.integers(0, 99),
)  # fmt: skip
def test_conversation_grows_by_what_was_said_and_fits(
    shared: int, own: int, tool: int, answer: int, spread: float, turns: int, room: int, seed: int
) -> None:
    workload = Workload(
        shared_tokens=shared, own_tokens=own, tool_tokens=tool, answer_tokens=answer, spread=spread, turns=turns,
        summary_tokens=50, max_context=shared + own + 50 + answer + room,
    )  # fmt: skip
    before: TurnDraw | None = None
    for draw in draws(workload, 40, seed=seed):
        assert draw.prompt + draw.answer <= workload.max_context
        assert min(draw.answer, draw.prompt) >= 1
        if before is not None and draw.conversation == before.conversation:
            assert draw.known == before.prompt + before.answer < draw.prompt
        else:
            assert draw.known == 0
        before = draw


def test_sessions_are_repeatable_and_differ_by_agent() -> None:
    workload = Workload()
    assert draws(workload, 50) == draws(workload, 50)
    assert draws(workload, 50) != draws(workload, 50, agent=1)
    assert draws(workload, 50) != draws(workload, 50, seed=1)


def test_default_is_that_of_the_public_figures() -> None:
    """AgentX: 142K in and 444 out a turn, 96 % cached; router#285: 86 % back within 1 s, 95 % within 10 s."""
    seen = [draw for agent in range(40) for draw in draws(Workload(), 43, agent)]
    mean = statistics.fmean(draw.prompt for draw in seen)
    assert mean == pytest.approx(142_000, rel=0.15)
    assert statistics.fmean(draw.answer for draw in seen) == pytest.approx(444, rel=0.05)
    known = sum(draw.known for draw in seen) / sum(draw.prompt for draw in seen)
    assert known == pytest.approx(0.96, abs=0.01)
    for seconds, share in ((1.0, 0.86), (10.0, 0.95)):
        assert sum(draw.tool_seconds <= seconds for draw in seen) / len(seen) == pytest.approx(share, abs=0.02)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"turns": 0}, "turns"),
        ({"tool_p95_seconds": 0.5}, "below tool_p86_seconds"),
        ({"max_context": 9000}, "does not hold a beginning"),
        ({"agents": 3}, "agents"),
    ],
)
def test_wrong_workload_is_refused(fields: dict[str, float], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Workload(**fields)
