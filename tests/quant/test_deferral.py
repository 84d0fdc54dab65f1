"""Which prefills a step leaves for a later one."""

from hypothesis import given
from hypothesis import strategies as st

from mixquant_agents.config import BACKGROUND_PRIORITY, CAPTURE_SIZES
from mixquant_agents.quant.deferral import MEMORY_SECONDS, Deferral, PrefillDeferral

AHEAD = BACKGROUND_PRIORITY
PRIORITIES = st.sampled_from([-5, 0, 10, AHEAD, AHEAD + 1])


def test_one_priority_is_left_to_vllm() -> None:
    rule = PrefillDeferral()
    for step in range(3):
        assert rule.decide([0], None, 8, step) is None
        assert rule.decide([], None, 8, step) is None
        assert rule.decide([], 0, 8, step) == Deferral(up_to=0)  # nothing that waits behind it is less urgent


def test_less_urgent_prompts_wait() -> None:
    rule = PrefillDeferral()
    assert rule.decide([10, 10], 0, 8, 0.0) == Deferral(up_to=0)
    assert rule.decide([10, 0], None, 8, 0.0) == Deferral(up_to=0)


def test_steps_are_short_while_an_urgent_thread_may_come_back() -> None:
    rule = PrefillDeferral()
    assert rule.decide([], 10, 16, 0.0) == Deferral(up_to=10), "nobody more urgent is known"
    rule.decide([], 0, 16, 1.0)
    assert rule.decide([10], None, 16, 2.0) == Deferral(up_to=10, rows=rule.step_rows)
    assert rule.decide([10], None, 3000, 2.0) == Deferral(up_to=10, rows=3000 + rule.step_rows // 2)
    assert rule.decide([0], None, 16, 3.0) is None, "the urgent prompt itself may fill the step"
    assert rule.decide([10], None, 16, 4.0 + MEMORY_SECONDS) is None


def test_reading_ahead_beside_writing_takes_one_step_in_many() -> None:
    rule = PrefillDeferral(background_gap=64)
    steps = [rule.decide([], AHEAD, 8, 0.0) for _ in range(640)]
    reads = Deferral(rows=rule.background_rows)
    assert steps[0] == reads
    assert steps.count(reads) == rule.background == 10
    assert steps.count(Deferral(up_to=AHEAD - 1)) == 630


def test_reading_ahead_in_an_idle_engine_goes_on_step_by_step() -> None:
    rule = PrefillDeferral()
    assert [rule.decide([AHEAD], AHEAD, 0, 0.0) for _ in range(5)] == [Deferral(rows=rule.background_rows)] * 5


def test_step_that_reads_ahead_is_captured_beside_any_usual_number_of_writers() -> None:
    for writers in (1, 8, 512, 2000):
        assert PrefillDeferral().decide([], AHEAD, writers, 0.0) == Deferral(rows=CAPTURE_SIZES[-1])
    many = PrefillDeferral().decide([], AHEAD, 4000, 0.0)
    assert many == Deferral(rows=4000 + CAPTURE_SIZES[-1] // 2), "and there is always room for the prompt"


def test_turns_prompts_go_before_what_is_read_ahead() -> None:
    rule = PrefillDeferral()
    assert rule.decide([AHEAD], 0, 0, 0.0) == Deferral(up_to=0)
    assert rule.decide([AHEAD, 0], None, 4, 0.0) == Deferral(up_to=0)


def test_switched_off_it_leaves_all_to_vllm() -> None:
    rule = PrefillDeferral(enabled=False)
    assert rule.decide([10, AHEAD], 0, 8, 0.0) is None


@given(
    begun=st.lists(PRIORITIES, max_size=4),
    waiting=st.none() | PRIORITIES,
    decode_rows=st.integers(0, 300),
    seen=st.lists(st.integers(-10, 10), max_size=3),
)
def test_every_step_has_work(begun: list[int], waiting: int | None, decode_rows: int, seen: list[int]) -> None:
    """The most urgent prompt is never left out but for writing; and there is always room for its rows."""
    rule = PrefillDeferral()
    for priority in seen:
        rule.decide([], priority, 0, 0.0)
    deferral = rule.decide(begun, waiting, decode_rows, 1.0) or Deferral()
    prompts = [*begun, *([] if waiting is None else [waiting])]
    if prompts and deferral.up_to is not None:
        assert min(prompts) <= deferral.up_to or decode_rows
    if deferral.rows is not None:
        assert deferral.rows >= decode_rows + min(rule.step_rows // 2, rule.background_rows)
