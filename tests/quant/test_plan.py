"""The row rule, as a property over all batches that a scheduler can make."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from mixquant_agents.quant.plan import RequestRows, RowRule, plan_rows

requests = st.lists(st.tuples(st.integers(1, 40), st.integers(0, 60), st.integers(1, 30)), min_size=1, max_size=8).map(
    lambda found: [RequestRows(f"r{i}", *values) for i, values in enumerate(found)]
)
rules = st.builds(RowRule, st.booleans(), st.booleans(), st.booleans(), st.integers(0, 40))


def by_hand(batch: list[RequestRows], rule: RowRule) -> list[bool]:
    """The rule, row by row, as the documentation says it."""
    rows = []
    for request in batch:
        for position in range(request.computed, request.computed + request.scheduled):
            if position < request.prompt_len - 1:
                rows.append(rule.prefill)
            elif position == request.prompt_len - 1:
                rows.append(rule.last)
            else:
                rows.append(rule.decode)
    return rows if len(rows) > rule.threshold else [False] * len(rows)


@given(requests, rules)
def test_every_row_follows_the_rule(batch: list[RequestRows], rule: RowRule) -> None:
    plan = plan_rows(batch, rule)
    expected = by_hand(batch, rule)
    assert plan.rows == len(expected)
    assert plan.mask.tolist() == expected
    assert plan.quantized.tolist() == [i for i, quantized in enumerate(expected) if quantized]
    assert plan.exact.tolist() == [i for i, quantized in enumerate(expected) if not quantized]


@given(requests)
def test_phase_aware_decode_rows_are_exact_in_any_company(batch: list[RequestRows]) -> None:
    rule = RowRule(prefill=True, last=True, decode=False)
    plan, start = plan_rows(batch, rule), 0
    for request in batch:
        alone = plan_rows([request], rule)
        assert np.array_equal(plan.mask[start : start + request.scheduled], alone.mask), "depends on its batch"
        start += request.scheduled


@given(st.integers(1, 50), st.data())
def test_chunks_of_a_prompt_route_as_the_whole(prompt_len: int, data: st.DataObject) -> None:
    rule = RowRule(prefill=True, last=False, decode=False)
    whole = plan_rows([RequestRows("r", prompt_len, 0, prompt_len + 5)], rule).mask.tolist()
    chunks: list[bool] = []
    while len(chunks) < len(whole):
        size = data.draw(st.integers(1, len(whole) - len(chunks)))
        chunks += plan_rows([RequestRows("r", prompt_len, len(chunks), size)], rule).mask.tolist()
    assert chunks == whole


def test_recomputed_answer_rows_after_a_preemption_stay_exact() -> None:
    rule = RowRule(prefill=True, last=False, decode=False)
    resumed = plan_rows([RequestRows("r", 10, 0, 14)], rule)
    assert resumed.quantized.tolist() == list(range(9))
    assert resumed.exact.tolist() == [9, 10, 11, 12, 13]


def test_one_token_chunks_and_one_token_prompts() -> None:
    rule = RowRule(prefill=True, last=False, decode=False)
    batch = [RequestRows("chunk", 10, 4, 1), RequestRows("whole", 1, 0, 1), RequestRows("decode", 5, 5, 1)]
    assert plan_rows(batch, rule).quantized.tolist() == [0]


def test_the_threshold_counts_the_whole_step() -> None:
    batch = [RequestRows("a", 10, 0, 6), RequestRows("b", 3, 7, 1)]
    assert plan_rows(batch, RowRule(True, True, False, threshold=7)).quantized.size == 0
    assert plan_rows(batch, RowRule(True, True, False, threshold=6)).quantized.size == 6


@given(requests, st.booleans(), st.integers(0, 80))
def test_small_mixed_steps_run_exact_and_others_by_the_rule(batch: list[RequestRows], last: bool, mixed: int) -> None:
    by_rule = plan_rows(batch, RowRule(prefill=True, last=last, decode=False))
    plan = plan_rows(batch, RowRule(prefill=True, last=last, decode=False, mixed=mixed))
    both = by_rule.quantized.size and by_rule.exact.size
    expected = [False] * by_rule.rows if both and by_rule.rows <= mixed else by_rule.mask.tolist()
    assert plan.mask.tolist() == expected
    assert plan.quantized.size == sum(expected)
    assert plan.quantized.size + plan.exact.size == plan.rows
