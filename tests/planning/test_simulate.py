"""The simulation on step times that can be followed by hand, and what must hold of any run."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixquant_agents.planning.simulate import EngineLimits, Outcome, simulate
from mixquant_agents.planning.steps import MeasuredSteps
from mixquant_agents.planning.workload import Workload

STEPS = MeasuredSteps(source="test", prefill=((1, 0.001), (1001, 1.001)), decode=((1, 0.01), (101, 0.11)))
"""A millisecond a row, and a centisecond a step of one writer with one more millisecond for each further one."""
LIMITS = EngineLimits(kv_tokens=100_000, max_num_batched_tokens=1000)
PLAIN = Workload(
    turns=3, shared_tokens=160, own_tokens=40, tool_tokens=100, answer_tokens=11, spread=0, max_context=2000,
    summary_tokens=100, tool_p86_seconds=1.0, tool_p95_seconds=1.0, ramp_seconds=0.0,
)  # fmt: skip


def run(workload: Workload = PLAIN, limits: EngineLimits = LIMITS, **fields: object) -> Outcome:
    return simulate(workload, STEPS, limits, **{"agents": 1, "seconds": 1000.0, "turns_each": 3, **fields})  # type: ignore[arg-type]


def test_one_agent_takes_what_its_steps_take() -> None:
    first, second, third = run().turns
    assert (first.prompt, second.prompt, third.prompt) == (200, 311, 422)
    assert (first.cached, second.cached, third.cached) == (0, 208, 320), "whole blocks of what was said before"
    assert first.ttft == pytest.approx(0.2)
    assert second.ttft == pytest.approx(0.103)
    assert list(first.gaps) == pytest.approx([0.01] * 10)
    assert second.asked == pytest.approx(first.stamps[-1] + 1.0)


def test_latency_makes_its_own_turn_wait_and_no_writer() -> None:
    workload = PLAIN.model_copy(update={"ramp_seconds": 0.5, "shared_tokens": 0})
    plain = run(workload=workload, agents=2, turns_each=1).turns
    late = simulate(workload, STEPS.model_copy(update={"latency": 0.005}), LIMITS, agents=2, seconds=1000, turns_each=1)
    first, second = late.turns
    assert first.ttft == pytest.approx(plain[0].ttft + 0.005)
    assert max(first.gaps) == pytest.approx(max(plain[0].gaps))
    assert sum(first.gaps) == pytest.approx(sum(plain[0].gaps))
    assert second.ttft > 0.005


def test_idle_engine_prepares_its_step_first() -> None:
    """The second turn comes while the first one writes: its step was prepared meanwhile."""
    workload = PLAIN.model_copy(update={"ramp_seconds": 0.17, "shared_tokens": 0})
    plain = run(workload=workload, agents=2, turns_each=1).turns
    steps = STEPS.model_copy(update={"launch": 0.005})
    first, second = simulate(workload, steps, LIMITS, agents=2, seconds=1000, turns_each=1).turns
    assert first.ttft == pytest.approx(plain[0].ttft + 0.005)
    assert list(first.gaps) == pytest.approx(list(plain[0].gaps))
    assert second.stamps[0] == pytest.approx(plain[1].stamps[0] + 0.005), "no more than the first was late"


def test_engine_that_schedules_ahead_prepares_a_prompt_before_it_hands_on_what_it_has() -> None:
    """The writer's token before the second turn's step comes 40 ms after the one before it, and no step is longer."""
    workload = PLAIN.model_copy(update={"ramp_seconds": 0.17, "shared_tokens": 0})
    ahead = LIMITS.model_copy(update={"lookahead": 1})
    plain = run(workload=workload, limits=ahead, agents=2, turns_each=1).turns
    steps = STEPS.model_copy(update={"held": 0.04})
    first, second = simulate(workload, steps, ahead, agents=2, seconds=1000, turns_each=1).turns
    late = [a - b for a, b in zip(first.stamps, plain[0].stamps, strict=True)]
    assert sorted(late)[-2:] == pytest.approx([0, 0.03]), "one token, which else came after a step of 10 ms"
    assert second.stamps == pytest.approx(plain[1].stamps)
    assert simulate(workload, steps, LIMITS, agents=2, seconds=1000, turns_each=1).turns == tuple(
        run(workload=workload, agents=2, turns_each=1).turns
    )


def test_front_end_hands_nothing_on_while_it_makes_a_first_text() -> None:
    """14 of the 20 ms for a prompt of 200 tokens are its first token's text. A writer's token of the same step comes
    behind it, and the token after that at its own time: no step is longer."""
    workload = PLAIN.model_copy(update={"ramp_seconds": 0.5, "shared_tokens": 0, "own_tokens": 200})
    steps = STEPS.model_copy(update={"latency_token": 1e-4})
    plain = run(workload=workload, agents=2, turns_each=1).turns
    first, second = simulate(workload, steps, LIMITS, agents=2, seconds=1000, turns_each=1).turns
    assert first.ttft == pytest.approx(plain[0].ttft + 0.02)
    assert second.ttft == pytest.approx(0.2 + 0.02, abs=0.012), "and what was left of a step"
    at = max(range(10), key=list(first.gaps).__getitem__)
    assert first.stamps[at + 1] == pytest.approx(second.stamps[0])
    assert list(first.gaps)[at] == pytest.approx(0.2 + 0.001 + 0.014, abs=0.003)
    assert list(first.gaps)[at + 1] < 0.003, "the next step ended meanwhile"
    assert first.stamps[-1] == pytest.approx(plain[0].stamps[-1] + 0.006, abs=0.002)


def test_front_end_takes_one_prompt_after_the_other() -> None:
    steps = STEPS.model_copy(update={"latency_token": 1e-3})
    workload = PLAIN.model_copy(update={"shared_tokens": 0, "own_tokens": 200})
    apart = simulate(workload, steps, LIMITS, agents=2, engines=2, seconds=1000, turns_each=1).turns
    together = simulate(workload, steps, LIMITS, agents=2, seconds=1000, turns_each=1).turns
    assert apart[0].stamps[0] == apart[1].stamps[0] == pytest.approx(0.06 + 0.2 + 0.14)
    assert together[0].stamps[0] == pytest.approx(apart[0].stamps[0])
    assert together[1].stamps[0] == pytest.approx(0.06 + 0.2 + 0.201 + 0.14)


def test_shared_beginning_is_read_once() -> None:
    turns = run(agents=2, turns_each=1, workload=PLAIN.model_copy(update={"ramp_seconds": 4.0})).turns
    assert [turn.cached for turn in turns] == [0, 160]


def test_long_prompt_is_read_in_chunks_beside_the_writers() -> None:
    limits = LIMITS.model_copy(update={"max_num_batched_tokens": 100})
    (turn,) = run(limits=limits, turns_each=1).turns
    assert turn.ttft == pytest.approx(0.2)
    workload = PLAIN.model_copy(update={"ramp_seconds": 0.5})
    first, second = run(workload=workload, limits=limits, agents=2, turns_each=1).turns
    assert max(first.gaps) == pytest.approx(0.041), "40 new rows of the second, and itself"
    assert second.cached == 160


def test_turns_wait_for_a_place() -> None:
    limits = LIMITS.model_copy(update={"max_num_seqs": 1})
    turns = run(limits=limits, agents=3, turns_each=1).turns
    begins = [turn.stamps[0] for turn in turns]
    assert begins == sorted(begins)
    assert all(later.stamps[0] > earlier.stamps[-1] for earlier, later in itertools.pairwise(turns))


def test_cache_that_is_too_small_forgets_the_longest_unused() -> None:
    limits = LIMITS.model_copy(update={"kv_tokens": 900})
    small, large = run(limits=limits, agents=4), run(agents=4)
    assert small.summary()["cached_share"] < large.summary()["cached_share"]
    assert all(len(turn.stamps) == turn.answer for turn in small.turns), "and still answers everybody"


def test_conversation_is_forgotten_from_its_end() -> None:
    """Blocks are freed with the last one first, so what is left of it is a beginning."""
    workload = PLAIN.model_copy(update={"shared_tokens": 0, "own_tokens": 320, "ramp_seconds": 2.0})
    limits = LIMITS.model_copy(update={"kv_tokens": 600})
    first, second, again = run(workload=workload, limits=limits, agents=2, turns_each=2).turns[:3]
    assert (first.agent, second.agent, again.agent) == (0, 1, 0) or (first.agent, again.agent) == (0, 0)
    assert 0 < again.cached < 320
    assert again.cached % limits.block == 0


def test_random_routing_loses_the_cache() -> None:
    kept, lost = (run(agents=8, engines=4, routing=routing).summary() for routing in ("session", "random"))
    assert lost["cached_share"] < kept["cached_share"]


def test_scheduling_ahead_costs_a_step() -> None:
    ahead = LIMITS.model_copy(update={"lookahead": 1})
    workload = PLAIN.model_copy(update={"ramp_seconds": 0.5})
    late = run(workload=workload, limits=ahead, agents=2, turns_each=1).turns[1].ttft
    assert late > run(workload=workload, agents=2, turns_each=1).turns[1].ttft


def test_pace_bounds_the_turns() -> None:
    paced = run(workload=PLAIN.model_copy(update={"turns_per_minute": 6.0}))
    asked = [turn.asked for turn in paced.turns]
    assert [later - earlier for earlier, later in itertools.pairwise(asked)] == pytest.approx([10, 10])


@settings(max_examples=40)
@given(
    agents=st.integers(1, 12), engines=st.integers(1, 3), kv=st.integers(400, 5000), seqs=st.integers(1, 6),
    batch=st.integers(16, 600), spread=st.floats(0, 1), lookahead=st.integers(0, 1), seed=st.integers(0, 9),
    token=st.sampled_from([0.0, 1e-5, 1e-3]),
)  # fmt: skip
def test_every_turn_is_answered_once_and_in_order(
    agents: int, engines: int, kv: int, seqs: int, batch: int, spread: float, lookahead: int, seed: int, token: float
) -> None:
    limits = EngineLimits(kv_tokens=kv, max_num_seqs=seqs, max_num_batched_tokens=batch, lookahead=lookahead)
    workload = PLAIN.model_copy(update={"spread": spread, "ramp_seconds": 1.0})
    steps = STEPS.model_copy(update={"latency_token": token, "latency": 10 * token})
    outcome = simulate(workload, steps, limits, agents=agents, engines=engines, seconds=1e6, turns_each=3, seed=seed)
    assert len(outcome.turns) == 3 * agents
    for turn in outcome.turns:
        assert len(turn.stamps) == turn.answer
        assert turn.asked < turn.stamps[0]
        assert turn.stamps == sorted(turn.stamps)
        assert 0 <= turn.cached < turn.prompt
        assert turn.cached % limits.block == 0
