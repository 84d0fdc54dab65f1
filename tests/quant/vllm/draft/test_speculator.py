"""The drafter beside a model that tells what it was given: which token, at which position, written to which slot."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from vllm.v1.attention.backends.utils import PAD_SLOT_ID

from mixquant_agents.quant.step import DRAFT, forced_step
from mixquant_agents.quant.vllm.draft import speculator as module
from mixquant_agents.quant.vllm.draft.speculator import NOISE_OFFSET, TwinSpeculator
from mixquant_agents.quant.vllm.draft.window import DraftTables

PLACES, VOCABULARY, BLOCK, LONGEST = 6, 50, 4, 40


class Tables:
    """vLLM's block tables in plain words: a request's block ``b`` is ``100 * place + b``."""

    def __init__(self) -> None:
        self.block_sizes = [BLOCK]
        self.slot_mappings = torch.full((1, PLACES), -7)
        self.input_block_tables = [torch.zeros(PLACES, LONGEST // BLOCK, dtype=torch.int32)]

    def compute_slot_mappings(
        self, places: torch.Tensor, starts: torch.Tensor, positions: torch.Tensor, rows: int
    ) -> torch.Tensor:
        assert starts.tolist() == list(range(len(places) + 1))
        self.slot_mappings.fill_(PAD_SLOT_ID)
        for row, (place, position) in enumerate(zip(places.tolist(), positions.tolist(), strict=True)):
            self.slot_mappings[0, row] = (100 * place + position // BLOCK) * BLOCK + position % BLOCK
        return self.slot_mappings[:, :rows]


class Model:
    """Its next token is the last one plus one; remembers each call."""

    def __init__(self, tables: Tables) -> None:
        self.tables = tables
        self.calls: list[dict[str, Any]] = []

    def __call__(self, input_ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        step = forced_step()
        self.calls.append(
            {"tokens": input_ids.tolist(), "positions": positions.tolist(), "step": step,
             "slots": self.tables.slot_mappings[0, : len(positions)].tolist()}
        )  # fmt: skip
        return input_ids.float().view(-1, 1)


def drafter(drafts: int, monkeypatch: pytest.MonkeyPatch, longest: int = LONGEST) -> TwinSpeculator:
    """A drafter on the CPU, of three tokens at most, whose scheduler asks for ``drafts``."""
    monkeypatch.setattr(module, "set_forward_context", lambda *args, **kwargs: nullcontext())
    monkeypatch.setattr(module, "build_attn_metadata", lambda **kwargs: kwargs)
    monkeypatch.setattr(module, "build_slot_mappings_by_layer", lambda slots, config: {"layer": slots})
    runtime = SimpleNamespace(take_drafts=lambda: drafts, lookup_cycles=0)
    monkeypatch.setattr(module, "runtime_of", lambda config: runtime)
    own = TwinSpeculator.__new__(TwinSpeculator)
    device = torch.device("cpu")
    own.vllm_config = own.kv_cache_config = own.attn_groups = None
    own.max_num_reqs, own.max_model_len, own.vocab_size = PLACES, longest, VOCABULARY
    own.draft_logits, own._head, own._lookup, own._choices = None, None, None, {}
    own.input_buffers = SimpleNamespace(
        input_ids=torch.zeros(PLACES, dtype=torch.int32), positions=torch.zeros(PLACES, dtype=torch.int64),
        seq_lens=torch.full((PLACES,), 9, dtype=torch.int32),
        query_start_loc=torch.zeros(PLACES + 1, dtype=torch.int32),
    )  # fmt: skip
    own.idx_mapping = torch.zeros(PLACES, dtype=torch.int32)
    own.temperature, own.seeds = torch.zeros(PLACES), torch.zeros(PLACES, dtype=torch.int64)
    own.draft_tokens = torch.zeros(PLACES, 3, dtype=torch.int64)
    own.graphs = SimpleNamespace(smallest=lambda requests: None)
    own.block_tables = Tables()
    own._tables = DraftTables(own.block_tables, 0, None)
    own.model = Model(own.block_tables)
    own._set_up(PLACES, device)
    own.sampled_at, own.sampled_under = [], []

    def sample_draft(hidden: torch.Tensor, positions: torch.Tensor, *args: Any) -> torch.Tensor:
        own.sampled_at.append(positions.tolist())
        own.sampled_under.append(forced_step())
        return (hidden.view(-1).long() + 1) % VOCABULARY

    own.sample_draft = sample_draft
    return own


def propose(own: TwinSpeculator, *requests: tuple[int, int, int, int, int], **more: Any) -> torch.Tensor:
    """``requests``: place in the runner's state, positions with KV after the step, sampled, rejected, last token."""
    places, lengths, sampled, rejected, last = (list(column) for column in zip(*requests, strict=True))
    tokens = torch.zeros(PLACES, 1, dtype=torch.int64)
    tokens[places] = torch.tensor(last).view(-1, 1)
    batch = SimpleNamespace(
        num_reqs=len(requests), idx_mapping=torch.tensor(places, dtype=torch.int32),
        seq_lens=torch.tensor(lengths, dtype=torch.int32),
        seq_lens_cpu_upper_bound=torch.tensor(lengths, dtype=torch.int32),
    )  # fmt: skip
    return own.propose(
        batch, None, None, torch.zeros(0), None, torch.tensor(sampled), torch.tensor(rejected), tokens,
        torch.zeros(PLACES), torch.ones(PLACES), torch.arange(PLACES), **more,
    )  # fmt: skip


def test_drafts_begin_at_the_first_position_without_kv(monkeypatch: pytest.MonkeyPatch) -> None:
    """The exact step had rows for four tokens, of which two were rejected."""
    own = drafter(3, monkeypatch)
    drafts = propose(own, (4, 20, 2, 2, 7), (1, 11, 1, 0, 30))
    assert drafts.tolist() == [[8, 9, 10], [31, 32, 33]]
    assert [call["tokens"] for call in own.model.calls] == [[7, 30], [8, 31], [9, 32]]
    assert [call["positions"] for call in own.model.calls] == [[18, 11], [19, 12], [20, 13]]
    slots = [[400 * BLOCK + at, 100 * BLOCK + other] for at, other in ((18, 11), (19, 12), (20, 13))]
    assert [call["slots"] for call in own.model.calls] == slots
    assert own.input_buffers.seq_lens.tolist() == [22, 15, 0, 0, 0, 0], "as far as the next step would read"
    assert all(call["step"] is DRAFT for call in own.model.calls)
    assert own.sampled_under == [DRAFT] * 3, "the output layer's twin is a draft's, too"
    assert forced_step() is None


def test_fewer_drafts_are_asked_for_step_by_step(monkeypatch: pytest.MonkeyPatch) -> None:
    own = drafter(1, monkeypatch)
    own.draft_tokens.fill_(49)
    assert propose(own, (0, 5, 1, 0, 3)).tolist() == [[4, 49, 49]]
    assert len(own.model.calls) == 1
    own = drafter(0, monkeypatch)
    propose(own, (0, 5, 1, 0, 3))
    assert not own.model.calls
    own = drafter(3, monkeypatch)
    propose(own, (0, 5, 1, 0, 3), dummy_run=True)
    assert not own.model.calls, "a pass that measures memory"


def test_prompts_half_read_write_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    own = drafter(2, monkeypatch)
    propose(own, (0, 8, 0, 0, 3), (1, 8, 1, 0, 3))
    assert [call["slots"][0] for call in own.model.calls] == [PAD_SLOT_ID, PAD_SLOT_ID]
    assert PAD_SLOT_ID not in [call["slots"][1] for call in own.model.calls]


def test_end_of_the_context_is_not_written_beyond(monkeypatch: pytest.MonkeyPatch) -> None:
    own = drafter(3, monkeypatch, longest=20)
    propose(own, (0, 18, 1, 0, 3), (1, 20, 1, 0, 3))
    assert [call["positions"] for call in own.model.calls] == [[18, 19], [19, 19], [19, 19]]
    assert [call["slots"] for call in own.model.calls] == [
        [18, PAD_SLOT_ID], [19, PAD_SLOT_ID], [PAD_SLOT_ID, PAD_SLOT_ID],
    ]  # fmt: skip
    assert own.input_buffers.seq_lens[:2].tolist() == [20, 20]


def test_lookup_drafts_in_the_twins_place_and_is_certain(monkeypatch: pytest.MonkeyPatch) -> None:
    own = drafter(2, monkeypatch)
    own.draft_logits = torch.full((PLACES, 3, VOCABULARY), 9.0)
    own._lookup = SimpleNamespace(drafts=lambda *given: torch.tensor([[5, 6], [7, 8]]))
    drafts = propose(own, (4, 20, 2, 2, 7), (1, 11, 1, 0, 30))
    assert drafts[:, :2].tolist() == [[5, 6], [7, 8]]
    assert not own.model.calls
    assert module.runtime_of(None).lookup_cycles == 1
    chances = own.draft_logits[[4, 1], :2].softmax(-1)
    assert chances.gather(2, drafts[:, :2].unsqueeze(2)).flatten().tolist() == [1, 1, 1, 1]
    assert (own.draft_logits[[0, 2, 3, 5]] == 9).all(), "by the request's place in the runner's state"
    assert (own.draft_logits[:, 2] == 9).all()


def test_twins_drafts_are_held_against_the_lookups(monkeypatch: pytest.MonkeyPatch) -> None:
    own = drafter(2, monkeypatch)
    judged = []
    own._lookup = SimpleNamespace(
        drafts=lambda *given: None,
        judge=lambda drafted, drafting: judged.append((drafted.tolist(), drafting.tolist())),
    )
    propose(own, (0, 8, 1, 0, 3), (1, 8, 0, 0, 3))
    assert judged == [([[4, 5], [4, 5]], [True, False])]
    assert len(own.model.calls) == 2


def test_policy_says_whether_lookups_draft(monkeypatch: pytest.MonkeyPatch) -> None:
    own = drafter(2, monkeypatch)
    own.vllm_config = SimpleNamespace(model_config=None)
    for asked in (True, False):
        own._lookup = None
        monkeypatch.setattr(module, "draft_policy", lambda config, asked=asked: SimpleNamespace(draft_ngram=asked))
        own.read_tokens(SimpleNamespace())
        assert (own._lookup is not None) == asked


def test_noise_of_drafts_is_not_the_targets(monkeypatch: pytest.MonkeyPatch) -> None:
    own = drafter(2, monkeypatch)
    propose(own, (0, 8, 1, 0, 3))
    assert np.ravel(own.sampled_at).tolist() == [8 + NOISE_OFFSET, 9 + NOISE_OFFSET]
    assert NOISE_OFFSET > 2**24, "beyond any context"


def test_target_layers_are_the_drafts_only_while_builders_are_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """Later vLLM would allocate a KV cache of their own for them."""
    own = drafter(1, monkeypatch)
    model = torch.nn.Linear(1, 1)
    monkeypatch.setattr(module, "runtime_of", lambda config: None)
    assert own.load_draft_model(model, {"layers.0.attn"}) is model
    seen: list[set[str]] = []
    monkeypatch.setattr(
        module.DraftModelSpeculator, "set_attn", lambda self, *args: seen.append(set(self.draft_attn_layer_names))
    )
    own.draft_attn_layer_names = set()
    own.vllm_config = SimpleNamespace(model_config=None)
    own.set_attn(None)
    assert seen == [{"layers.0.attn"}]
    assert own.draft_attn_layer_names == set()
