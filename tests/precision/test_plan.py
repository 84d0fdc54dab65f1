"""The row rule, as a property over all batches that a scheduler can make."""

from __future__ import annotations

import sys

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from mixquant_agents.precision.plan import Mode, Reach, RequestRows, RowPlan, RowRule, plan_rows

requests = st.lists(st.tuples(st.integers(1, 40), st.integers(0, 60), st.integers(1, 30)), min_size=1, max_size=8).map(
    lambda batch: [RequestRows(f"r{i}", *values) for i, values in enumerate(batch)]
)
reaches = st.sampled_from(Reach)
rules = st.builds(
    RowRule, reaches, st.integers(0, 8), st.integers(0, 40), last_exact_from=st.integers(0, 50), last=st.integers(1, 9)
)


def by_hand(batch: list[RequestRows], rule: RowRule) -> list[bool]:
    """The rule, row by row, as the documentation says it."""
    rows = []
    for request in batch:
        end = request.num_prompt_tokens
        last = end - rule.last if rule.reach is Reach.BEFORE_LAST else end - 1
        for position in range(request.num_computed_tokens, request.num_computed_tokens + request.num_scheduled_tokens):
            if position < rule.first or rule.reach is Reach.NOTHING:
                rows.append(False)
            elif position < last:
                rows.append(True)
            elif position < end:
                short = rule.reach is Reach.BEFORE_LAST and request.num_prompt_tokens < rule.last_exact_from
                rows.append(short or rule.reach in (Reach.PROMPT, Reach.EVERYTHING))
            else:
                rows.append(rule.reach is Reach.EVERYTHING)
    return rows if len(rows) > rule.threshold else [False] * len(rows)


def quantized_rows(plan: RowPlan) -> list[int]:
    return np.flatnonzero(plan.mask()).tolist()


@given(requests, rules)
def test_rows_follow_the_rule(batch: list[RequestRows], rule: RowRule) -> None:
    plan = plan_rows(batch, rule)
    expected = by_hand(batch, rule)
    assert plan.rows == len(expected)
    assert plan.mask().tolist() == expected
    assert (plan.num_quantized, plan.num_exact) == (sum(expected), len(expected) - sum(expected))
    modes = {(False,): Mode.EXACT, (True,): Mode.QUANTIZED, (False, True): Mode.MIXED}
    assert plan.mode is modes[tuple(sorted(set(expected)))]


@given(requests, rules, st.data())
def test_counts_of_any_stretch_of_positions(batch: list[RequestRows], rule: RowRule, data: st.DataObject) -> None:
    plan, row = plan_rows(batch, rule), 0
    for index, request in enumerate(batch):
        first, end = request.num_computed_tokens, request.num_computed_tokens + request.num_scheduled_tokens
        start = data.draw(st.integers(first, end))
        stop = data.draw(st.integers(start, end))
        rows = plan.mask()[row + start - first : row + stop - first]
        assert plan.quantized_between(index, start, stop) == np.count_nonzero(rows)
        row += request.num_scheduled_tokens


@given(st.integers(1, 60), reaches, st.integers(0, 8))
def test_interval_of_the_rule_holds_what_is_planned(num_prompt_tokens: int, reach: Reach, first: int) -> None:
    rule = RowRule(reach, first)
    start, stop = rule.interval(num_prompt_tokens)
    plan = plan_rows([RequestRows("r", num_prompt_tokens, 0, 100)], rule)
    assert quantized_rows(plan) == list(range(start, min(stop, 100)))
    assert rule.always == (start == 0 and stop > sys.maxsize)


@given(requests, rules)
def test_all_exact_plan_keeps_rows_and_requests(batch: list[RequestRows], rule: RowRule) -> None:
    plan = plan_rows(batch, rule)
    exact = plan.all_exact()
    assert (exact.mode, exact.rows, exact.requests) == (Mode.EXACT, plan.rows, plan.requests)
    assert not exact.mask().any()


@given(requests, st.integers(0, 8))
def test_phase_aware_rows_do_not_depend_on_their_batch(batch: list[RequestRows], first: int) -> None:
    rule = RowRule(Reach.PROMPT, first)
    plan, start = plan_rows(batch, rule), 0
    for request in batch:
        alone = plan_rows([request], rule)
        assert np.array_equal(plan.mask()[start : start + request.num_scheduled_tokens], alone.mask())
        start += request.num_scheduled_tokens


@given(st.integers(1, 50), st.integers(0, 8), st.data())
def test_chunks_of_a_prompt_route_as_the_whole(num_prompt_tokens: int, first: int, data: st.DataObject) -> None:
    rule = RowRule(Reach.BEFORE_LAST, first)
    whole = plan_rows([RequestRows("r", num_prompt_tokens, 0, num_prompt_tokens + 5)], rule).mask().tolist()
    chunks: list[bool] = []
    while len(chunks) < len(whole):
        size = data.draw(st.integers(1, len(whole) - len(chunks)))
        chunks += plan_rows([RequestRows("r", num_prompt_tokens, len(chunks), size)], rule).mask().tolist()
    assert chunks == whole


def test_recomputed_answer_rows_stay_exact() -> None:
    resumed = plan_rows([RequestRows("r", 10, 0, 14)], RowRule(Reach.BEFORE_LAST))
    assert quantized_rows(resumed) == list(range(9))
    assert resumed.num_exact == 5


def test_one_token_chunks_and_one_token_prompts() -> None:
    batch = [RequestRows("chunk", 10, 4, 1), RequestRows("whole", 1, 0, 1), RequestRows("decode", 5, 5, 1)]
    assert quantized_rows(plan_rows(batch, RowRule(Reach.BEFORE_LAST))) == [0]


def test_threshold_counts_the_whole_step() -> None:
    batch = [RequestRows("a", 10, 0, 6), RequestRows("b", 3, 7, 1)]
    assert plan_rows(batch, RowRule(Reach.PROMPT, threshold=7)).num_quantized == 0
    assert plan_rows(batch, RowRule(Reach.PROMPT, threshold=6)).num_quantized == 6


@given(requests, reaches, st.integers(0, 80))
def test_small_mixed_steps_run_exact_and_others_by_the_rule(batch: list[RequestRows], reach: Reach, mixed: int) -> None:
    by_rule = plan_rows(batch, RowRule(reach))
    plan = plan_rows(batch, RowRule(reach, mixed=mixed))
    expected = by_rule.all_exact() if by_rule.mode is Mode.MIXED and by_rule.rows <= mixed else by_rule
    assert plan.mask().tolist() == expected.mask().tolist()
    assert plan.num_quantized == expected.num_quantized
