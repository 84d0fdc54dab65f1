"""The counter and time relations, written once in ``records.py``, hold or refuse."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from mixquant_agents.records import (
    COUNTS,
    PHASES,
    RECORD_VERSION,
    TIMES,
    TurnCounts,
    TurnRecord,
    TurnTimes,
    percentile,
    utc_now,
)

counts = st.integers(0, 10**6)
seconds = st.floats(0, 1e4, allow_nan=False)


@given(cached=counts, quantized=counts, exact=counts, slip=st.integers(-3, 3))
def test_counts_add_up_or_are_refused(cached: int, quantized: int, exact: int, slip: int) -> None:
    prefill = quantized + exact + slip
    if prefill < 0:
        return
    fields = {
        "prompt_tokens": cached + prefill,
        "cached_tokens": cached,
        "prefill_tokens": prefill,
        "quantized_tokens": quantized,
        "exact_tokens": exact,
    }
    if slip == 0:
        assert TurnCounts(**fields).prompt_tokens == cached + quantized + exact
    else:
        with pytest.raises(ValidationError, match="prefill_tokens"):
            TurnCounts(**fields)


@given(cached=counts, prefill=counts, slip=st.integers(1, 9))
def test_prompt_is_cached_plus_prefill(cached: int, prefill: int, slip: int) -> None:
    assert TurnCounts(prompt_tokens=cached + prefill, cached_tokens=cached, prefill_tokens=prefill)
    with pytest.raises(ValidationError, match="prompt_tokens"):
        TurnCounts(prompt_tokens=cached + prefill + slip, cached_tokens=cached, prefill_tokens=prefill)


@given(queue=seconds, prefill=seconds, delivery=seconds, decode=seconds)
def test_times_add_up_or_are_refused(queue: float, prefill: float, delivery: float, decode: float) -> None:
    ttft = queue + prefill + delivery
    parts = {"queue_seconds": queue, "prefill_seconds": prefill, "delivery_seconds": delivery}
    assert TurnTimes(**parts, ttft_seconds=ttft, total_seconds=ttft + decode)
    with pytest.raises(ValidationError, match="ttft_seconds"):
        TurnTimes(**parts, ttft_seconds=ttft + 1)
    with pytest.raises(ValidationError, match="total_seconds"):
        TurnTimes(ttft_seconds=ttft + 1, total_seconds=ttft)


@pytest.mark.parametrize("field", ["queue_seconds", "prefill_seconds", "decode_seconds", "itl_mean_seconds"])
def test_negative_times_are_refused(field: str) -> None:
    with pytest.raises(ValidationError, match=field):
        TurnTimes(**{field: -1e-9})


def test_unknown_values_are_none_not_zero() -> None:
    record = TurnRecord(turn_id="t", model="m", engine="scripted", policy="exact", started_at=utc_now())
    dumped = record.model_dump(mode="json")
    assert dumped["record_version"] == RECORD_VERSION
    assert {dumped[name] for name in (*TurnCounts.model_fields, *TurnTimes.model_fields)} == {None}


def test_record_survives_json() -> None:
    record = TurnRecord(
        turn_id="t", model="m", engine="vllm", policy="mixquant-nvfp4", emulated=True, started_at=utc_now(),
        prompt_tokens=10, cached_tokens=4, prefill_tokens=6, quantized_tokens=5, exact_tokens=1, tool_calls=("add",),
    )  # fmt: skip
    assert TurnRecord.model_validate_json(record.model_dump_json()) == record


def test_unknown_fields_are_refused() -> None:
    with pytest.raises(ValidationError, match="extra"):
        TurnCounts(promt_tokens=3)  # type: ignore[call-arg]


@given(st.lists(st.floats(-1e6, 1e6), min_size=1), st.floats(0, 1))
def test_percentile_stays_between_the_extremes(values: list[float], share: float) -> None:
    place = percentile(values, share)
    assert place is not None
    slack = 1e-9 * max(1.0, *map(abs, values))
    assert min(values) - slack <= place <= max(values) + slack


def test_percentile_by_hand() -> None:
    assert percentile([], 0.5) is None
    assert percentile([3, 1, 2], 0.5) == 2
    assert math.isclose(percentile([0.0, 1.0], 0.95) or 0, 0.95)


def test_phases_are_listed_in_their_order() -> None:
    assert [phase.name for phase in PHASES] == ["queue", "prefill", "transfer", "delivery", "decode"]
    assert [phase.field for phase in PHASES if phase.phase == "first_token"] == [
        "queue_seconds", "prefill_seconds", "transfer_seconds", "delivery_seconds",
    ]  # fmt: skip


def test_field_lists_cover_every_count_and_duration() -> None:
    assert [count.field for count in COUNTS] == list(TurnCounts.model_fields)
    assert [*(time.field for time in TIMES), "timing_source"] == list(TurnTimes.model_fields)
    assert all(item.label and item.help.endswith(".") for item in (*COUNTS, *TIMES))
    assert len({item.label for item in (*COUNTS, *TIMES)}) == len(COUNTS) + len(TIMES)


@given(cached=counts, quantized=counts, exact=counts, decode=counts)
def test_count_parts_add_up_to_all_tokens(cached: int, quantized: int, exact: int, decode: int) -> None:
    turn = TurnCounts(
        prompt_tokens=cached + quantized + exact, cached_tokens=cached, prefill_tokens=quantized + exact,
        quantized_tokens=quantized, exact_tokens=exact, decode_tokens=decode,
    )  # fmt: skip
    parts = sum(getattr(turn, count.field) for count in COUNTS if count.role == "part")
    assert parts == turn.prompt_tokens + decode


def test_engine_name_is_open_but_not_empty() -> None:
    record = TurnRecord(turn_id="t", model="m", engine="somebody's", policy="exact", started_at=utc_now())
    assert record.engine == "somebody's"
    with pytest.raises(ValidationError, match="engine"):
        TurnRecord(turn_id="t", model="m", engine="", policy="exact", started_at=utc_now())


def test_record_of_an_earlier_version_is_read() -> None:
    written = {
        "record_version": 1, "turn_id": "t", "model": "m", "engine": "vllm", "policy": "exact",
        "started_at": utc_now(), "transfer_seconds": None,
    }  # fmt: skip
    assert TurnRecord.model_validate(written).turn_id == "t"


def test_transfer_counts_until_the_first_token_where_there_is_one() -> None:
    times = {"queue_seconds": 1.0, "prefill_seconds": 2.0, "delivery_seconds": 0.5, "total_seconds": 9.0}
    assert TurnTimes(**times, ttft_seconds=3.5).transfer_seconds is None
    assert TurnTimes(**times, transfer_seconds=0.25, ttft_seconds=3.75).ttft_seconds == 3.75
    with pytest.raises(ValidationError, match="transfer"):
        TurnTimes(**times, transfer_seconds=0.25, ttft_seconds=3.5)
