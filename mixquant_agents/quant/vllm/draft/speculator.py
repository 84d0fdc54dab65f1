"""The drafter: the model itself, run by its twins, on its own KV cache.

While answers copy what they have read, the lookup of what followed before drafts in the twin's place (``lookup``).

A cycle begins where the exact step ended: the last token is known, its KV is not. Each quantized step feeds one token a
request, writes its K and V where the exact step will write them over, and samples the next. Nothing of a draft stays:
the exact step computes every row of it anew before it is read, and the prefix cache holds confirmed tokens alone.

The draft's noise has an offset of its own. With the target's noise at the same position (as in vLLM 0.26) a sampled
answer would not be distributed as the exact model's.
"""

from __future__ import annotations

import logging
from typing import Any

import torch
from vllm.config import CUDAGraphMode
from vllm.forward_context import BatchDescriptor, set_forward_context
from vllm.v1.attention.backends.utils import PAD_SLOT_ID
from vllm.v1.worker.gpu.attn_utils import build_attn_metadata, build_slot_mappings_by_layer
from vllm.v1.worker.gpu.spec_decode.speculator import DraftModelSpeculator

from mixquant_agents.quant.autotune import DraftChoice, choose_drafts
from mixquant_agents.quant.runtime import runtime_of
from mixquant_agents.quant.step import DRAFT, forced
from mixquant_agents.quant.vllm.draft.graphs import DraftGraphs
from mixquant_agents.quant.vllm.draft.head import DraftHead
from mixquant_agents.quant.vllm.draft.lookup import NEVER, Lookup
from mixquant_agents.quant.vllm.draft.settings import FIRST_TOKENS, draft_policy, draft_rule, never_pays, window_of
from mixquant_agents.quant.vllm.draft.window import DraftTables

__all__ = ["NOISE_OFFSET", "TwinSpeculator"]

_log = logging.getLogger("vllm.mixquant")

NOISE_OFFSET = 1 << 29
"""Added to the position by which a draft's noise is drawn; beyond any context, and not what later vLLMs add."""


class TwinSpeculator(DraftModelSpeculator):  # type: ignore[misc] # vllm is untyped here
    """Drafts with the target model under :data:`~mixquant_agents.quant.step.DRAFT`."""

    def __init__(self, vllm_config: Any, device: torch.device) -> None:
        super().__init__(vllm_config, device)
        self.supports_mm_inputs = False
        self.graphs: DraftGraphs | None = None
        self._head: DraftHead | None = None
        self._choices: dict[int, DraftChoice] = {}
        self._lookup: Lookup | None = None
        self._set_up(self.max_num_reqs, device)

    def _set_up(self, rows: int, device: torch.device) -> None:
        """Buffers at fixed addresses, which captured graphs read and write.

        - ``current_draft_step``: which draft of the cycle;
        - ``_drafting``: rows that write KV: of requests that have a last token, and room for another;
        - ``_one``: 1 for rows of requests, 0 for padding;
        - ``_starts``: 0, 1, 2, …
        """
        self.current_draft_step = torch.zeros((), dtype=torch.int64, device=device)
        self._drafting = torch.zeros(rows, dtype=torch.bool, device=device)
        self._one = torch.zeros(rows, dtype=torch.int32, device=device)
        self._starts = torch.arange(rows + 1, dtype=torch.int32, device=device)

    # --- set-up, called by the runner ---------------------------------------------------------------------------------

    def load_draft_model(self, target_model: torch.nn.Module, target_attn_layer_names: set[str]) -> torch.nn.Module:
        """The target itself, whose output layer gets a twin for drafts."""
        self._layer_names = set(target_attn_layer_names)
        runtime = runtime_of(self.vllm_config)
        layer_format = None if runtime is None else runtime.resolved.default_format
        if layer_format is not None:  # the output layer stays as it is, with its twin beside it
            self._head = DraftHead.of(target_model, layer_format)
        return target_model

    def renew(self) -> None:
        """The model's weights were loaded anew."""
        if self._head is not None:
            self._head.renew()

    def read_tokens(self, states: Any) -> None:
        """Tokens of all requests are at hand in ``states``: what occurred before may be guessed again."""
        policy = draft_policy(self.vllm_config.model_config)
        if policy is not None and policy.draft_ngram:
            self._lookup = Lookup(states)

    def set_attn(self, *args: Any, **kwargs: Any) -> None:
        """Metadata builders of our own for the target's layers. To all others the draft has no attention layers, so
        that nobody allocates a KV cache for them."""
        self.draft_attn_layer_names = self._layer_names
        try:
            super().set_attn(*args, **kwargs)
        finally:
            self.draft_attn_layer_names = set()
        policy = draft_policy(self.vllm_config.model_config)
        self._tables = DraftTables(self.block_tables, FIRST_TOKENS, None if policy is None else window_of(policy))

    def init_cudagraph_manager(self, cudagraph_mode: CUDAGraphMode) -> None:
        """One full graph a draft step, where decode steps have full graphs."""
        full = cudagraph_mode.decode_mode() == CUDAGraphMode.FULL
        mode = CUDAGraphMode.FULL_DECODE_ONLY if full else CUDAGraphMode.NONE
        policy = draft_policy(self.vllm_config.model_config)
        max_requests = self.max_num_reqs if policy is None else draft_rule(policy).max_batch
        self.graphs = DraftGraphs(self.vllm_config, self.device, mode, max_requests)

    def capture(self) -> None:
        """Capture the draft step for each number of requests."""
        if self.graphs is None:
            raise RuntimeError("the graphs of the draft were not set up")
        self.idx_mapping.zero_()
        runtime = runtime_of(self.vllm_config)
        layers = [] if runtime is None else runtime.captured_layers
        if layers and layers[0].device.type == "cuda" and not self._choices:
            self._choices = choose_drafts(layers, self.graphs.sizes)
            _log.info("mixquant: %s", describe(self._choices))
            if runtime is not None:
                runtime.draft_status = status_of(self._choices)
                runtime.draft_shares = {rows: choice.share for rows, choice in self._choices.items()}
                policy = draft_policy(self.vllm_config.model_config)
                if policy is not None and (reason := never_pays(draft_rule(policy), runtime.draft_shares)):
                    _log.warning("mixquant: the twin will draft nothing: %s", reason)
        self.graphs.record(
            self._step, self.model_state, self.input_buffers, self._tables, self.attn_groups, self.kv_cache_config
        )

    @property
    def choices(self) -> dict[int, DraftChoice]:
        """How drafts run, by number of rows, once they were measured."""
        return self._choices

    # --- a cycle ------------------------------------------------------------------------------------------------------

    def propose(
        self,
        input_batch: Any,
        attn_metadata: Any,
        slot_mappings: Any,
        last_hidden_states: torch.Tensor,
        aux_hidden_states: Any,
        num_sampled: torch.Tensor,
        num_rejected: torch.Tensor,
        last_sampled: torch.Tensor,
        next_prefill_tokens: torch.Tensor,
        temperature: torch.Tensor,
        seeds: torch.Tensor,
        *args: Any,
        dummy_run: bool = False,
        **kwargs: Any,
    ) -> torch.Tensor:
        """Draft as many tokens as the scheduler asked for: int64 ``[requests, drafts at most]``, what lies beyond is
        left over from before and not scheduled.

        Args:
            input_batch: the step that was verified.
            num_sampled, num_rejected: ``[requests]``, of that step. Nothing sampled: a prompt not yet at its end.
            last_sampled: ``[most requests, 1]``, by the request's place in the runner's state.
            temperature, seeds: the same.
        """
        count = input_batch.num_reqs
        runtime = runtime_of(self.vllm_config)
        drafts = 0 if runtime is None else runtime.take_drafts()
        if runtime is None or dummy_run or not drafts or self.graphs is None:
            return self.draft_tokens[:count]
        self._begin(input_batch, num_sampled, num_rejected, last_sampled, temperature, seeds)
        longest = int(input_batch.seq_lens_cpu_upper_bound[:count].max()) + drafts
        if self._looked_up(count, drafts, num_sampled, longest):
            runtime.lookup_cycles += 1
            return self.draft_tokens[:count]
        self._tables.follow(count, self.input_buffers.positions[:count] + drafts, self.input_buffers.seq_lens[:count])
        self.draft_max_seq_len = min(longest, self._tables.longest or longest, self.max_model_len)
        desc = self.graphs.smallest(count)
        rows = count if desc is None else desc.num_tokens
        begins = self._drafting[:count].clone()
        for step in range(drafts):
            self.current_draft_step.fill_(step)
            slots = self._slots(count, rows)
            metadata = self._metadata(count, rows)
            if desc is not None:
                self.graphs.run_fullgraph(desc)
            else:
                by_layer = build_slot_mappings_by_layer(slots, self.kv_cache_config)
                self._step(count, count, metadata, by_layer, None, CUDAGraphMode.NONE)
        if self._lookup is not None:
            self._lookup.judge(self.draft_tokens[:count, :drafts], begins)
        return self.draft_tokens[:count]

    def _looked_up(self, count: int, drafts: int, num_sampled: torch.Tensor, longest: int) -> bool:
        """Draft what followed the same tokens before, where that is to be done; the twin then has nothing to do.

        Such a draft is certain of itself: its distribution is one token's, by which rejection sampling stays exact.
        """
        if self._lookup is None:
            return False
        idx_mapping, drafting = self.idx_mapping[:count], self._drafting[:count]
        tokens = self._lookup.drafts(idx_mapping, drafting, num_sampled[:count], drafts, longest)
        if tokens is None:
            return False
        self.draft_tokens[:count, :drafts].copy_(tokens)
        if self.draft_logits is not None:
            logits = torch.full((count, drafts, self.draft_logits.shape[2]), NEVER, dtype=self.draft_logits.dtype,
                                device=tokens.device)  # fmt: skip
            logits.scatter_(2, tokens.unsqueeze(2), 0.0)
            self.draft_logits[idx_mapping.long(), :drafts] = logits
        return True

    def _begin(
        self,
        input_batch: Any,
        num_sampled: torch.Tensor,
        num_rejected: torch.Tensor,
        last_sampled: torch.Tensor,
        temperature: torch.Tensor,
        seeds: torch.Tensor,
    ) -> None:
        """The first draft step's input: each request's last token, at the first position without KV."""
        count, buffers = input_batch.num_reqs, self.input_buffers
        index = input_batch.idx_mapping
        self.temperature.copy_(temperature)
        self.seeds.copy_(seeds)
        self.idx_mapping[:count].copy_(index)
        self.idx_mapping[count:].fill_(-1)
        position = input_batch.seq_lens[:count] - num_rejected[:count]
        torch.logical_and(num_sampled[:count] > 0, position < self.max_model_len, out=self._drafting[:count])
        self._one[:count].fill_(1)
        self._one[count:].zero_()
        buffers.input_ids[:count].copy_(last_sampled[index].view(-1))
        buffers.positions[:count].copy_(position.clamp(max=self.max_model_len - 1))
        buffers.seq_lens[:count].copy_((position + 1).clamp(max=self.max_model_len))
        buffers.seq_lens[count:].zero_()
        torch.clamp(self._starts, max=count, out=buffers.query_start_loc[: self.max_num_reqs + 1])

    def _slots(self, count: int, rows: int) -> torch.Tensor:
        """Where the step writes K and V, ``[groups, rows]``; nowhere for rows that do not draft."""
        slots = self.block_tables.compute_slot_mappings(
            self.idx_mapping[:count],
            self.input_buffers.query_start_loc[: count + 1],
            self.input_buffers.positions[:count],
            rows,
        )
        slots[:, :count].masked_fill_(~self._drafting[:count], PAD_SLOT_ID)
        return slots

    def _metadata(self, count: int, rows: int) -> Any:
        """Attention metadata of ``rows`` requests of one row each, the last ``rows - count`` of them padding."""
        starts = torch.arange(rows + 1, dtype=torch.int32).clamp_(max=count)
        return build_attn_metadata(
            attn_groups=self.attn_groups,
            num_reqs=rows,
            num_tokens=rows,
            query_start_loc_gpu=self.input_buffers.query_start_loc[: rows + 1],
            query_start_loc_cpu=starts,
            max_query_len=1,
            seq_lens=self.input_buffers.seq_lens[:rows],
            max_seq_len=self.draft_max_seq_len,
            block_tables=[table[:rows] for table in self._tables.tables],
            slot_mappings=self.block_tables.slot_mappings[:, :rows],
            kv_cache_config=self.kv_cache_config,
        )

    def _step(
        self, count: int, rows: int, metadata: Any, slots: Any, across_ranks: Any, graph_mode: CUDAGraphMode
    ) -> None:
        """One draft step: the model on ``rows`` rows, sampling, and the next step's input. Captured whole."""
        buffers = self.input_buffers
        with forced(self._choices[rows].step if rows in self._choices else DRAFT):
            with set_forward_context(
                metadata,
                self.vllm_config,
                num_tokens=rows,
                cudagraph_runtime_mode=graph_mode,
                num_tokens_across_dp=across_ranks,
                slot_mapping=slots,
                batch_descriptor=BatchDescriptor(num_tokens=rows),
            ):
                hidden = self.model(input_ids=buffers.input_ids[:rows], positions=buffers.positions[:rows])
            sampled = self.sample_draft(  # with the output layer's twin
                hidden[:count],
                buffers.positions[:count] + NOISE_OFFSET,
                self.idx_mapping[:count],
                self.temperature,
                self.seeds,
                self.current_draft_step,
                self.draft_logits,
            )
        self.draft_tokens[:count].index_copy_(1, self.current_draft_step.view(1), sampled.view(-1, 1))
        buffers.input_ids[:count].copy_(sampled)
        buffers.positions[:count].add_(1)
        self._drafting[:count].logical_and_(buffers.positions[:count] < self.max_model_len)
        buffers.positions[:count].clamp_(max=self.max_model_len - 1)
        buffers.seq_lens[:count].add_(self._one[:count]).clamp_(max=self.max_model_len)


def status_of(choices: dict[int, DraftChoice]) -> dict[str, Any]:
    """Plain JSON: by number of rows, whether drafts quantize them, and the microseconds of their products."""
    return {
        str(rows): {"quantizes_rows": choice.step.fused, "microseconds": choice.microseconds}
        for rows, choice in choices.items()
    }


def describe(choices: dict[int, DraftChoice]) -> str:
    """One line for the log."""
    parts = (
        f"{rows}: {'unquantized' if choice.step.few_rows else 'quantized'} {choice.share:.2f}"
        for rows, choice in choices.items()
    )
    return f"drafts by rows, and their products' time over the exact ones: {', '.join(parts)}"
