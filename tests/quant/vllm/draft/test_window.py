"""What drafts read of a long context: by block tables that name some of its blocks."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from hypothesis import example, given
from hypothesis import strategies as st

from mixquant_agents.quant.vllm.draft.window import DraftTables

SIZE, COLUMNS = 4, 12


def tables(first: int, last: int | None, groups: int = 1) -> tuple[DraftTables, Any]:
    """Of three requests, whose block ``b`` is ``100 * request + b``."""
    table = torch.arange(COLUMNS, dtype=torch.int32) + 100 * torch.arange(3, dtype=torch.int32).view(-1, 1)
    source = SimpleNamespace(block_sizes=[SIZE] * groups, input_block_tables=[table] * groups, cp_size=1)
    return DraftTables(source, first, last), source


def read(own: DraftTables, request: int, length: int) -> list[tuple[int, int]]:
    """Blocks and places in them that one row of attention reads."""
    return [(int(own.tables[0][request, at // SIZE]), at % SIZE) for at in range(length)]


@example(6, 0, 4, 3)  # the first kept block begins just behind the oldest of the four
@given(st.integers(1, COLUMNS * SIZE - 3), st.integers(0, 9), st.integers(1, 30), st.integers(1, 3))
def test_first_and_last_tokens_are_read_once_each(length: int, first: int, last: int, drafts: int) -> None:
    """Of each cycle step: all up to the row's own position, or of a longer context both ends."""
    own, _ = tables(first, last)
    lengths = torch.tensor([length + 1], dtype=torch.int32)
    own.follow(1, torch.tensor([length + drafts]), lengths)
    for step in range(drafts):
        position = length + step
        seen = [block * SIZE + at for block, at in read(own, 0, int(lengths[0]) + step)]
        assert len(set(seen)) == len(seen)
        assert set(seen) <= set(range(position + 1)), "nothing beyond the row"
        assert set(range(max(0, length + drafts - last), position + 1)) <= set(seen)
        assert set(range(min(first, position + 1))) <= set(seen)
        assert own.longest is not None
        assert len(seen) <= own.longest


def test_short_contexts_are_read_whole() -> None:
    own, _ = tables(4, 16)
    lengths = torch.tensor([20, 7], dtype=torch.int32)
    own.follow(2, torch.tensor([21, 9]), lengths)
    assert lengths.tolist() == [20, 7]
    assert own.tables[0][:2, :6].tolist() == [list(range(6)), list(range(100, 106))]


def test_no_window_reads_everything() -> None:
    own, source = tables(4, None)
    lengths = torch.tensor([45], dtype=torch.int32)
    own.follow(1, torch.tensor([47]), lengths)
    assert lengths.tolist() == [45]
    assert torch.equal(own.tables[0][0], source.input_block_tables[0][0])
    assert own.longest is None


def test_groups_of_unlike_layers_leave_nothing_out() -> None:
    own, source = tables(4, 8, groups=2)
    lengths = torch.tensor([45], dtype=torch.int32)
    own.follow(1, torch.tensor([47]), lengths)
    assert lengths.tolist() == [45]
    assert all(torch.equal(own.tables[group][0], source.input_block_tables[group][0]) for group in range(2))
    assert own.longest is None


def test_captures_read_the_drafts_tables_and_all_else_is_vllms() -> None:
    own, source = tables(4, 8)
    assert own.get_dummy_block_tables(2)[0].data_ptr() == own.tables[0].data_ptr()
    assert own.cp_size == source.cp_size
