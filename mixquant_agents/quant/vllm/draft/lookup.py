"""Drafts that cost no model step: what followed the last tokens when they occurred before (prompt lookup, n-gram).

Agents copy: file names, code, tool results. While an answer copies, the tokens that followed are as good a guess as the
twin's and need no quantized step. Whether they occurred is known on the device alone, and the host is a step ahead of
it. So the twin drafts, and each cycle is judged in passing: had the lookup of every request guessed what the twin did?
That verdict is read two cycles later, when it has long arrived, and then the answers are taken to be copies: now
the host waits for each lookup, and leaves the twin's steps out while every request has one and at least half of the
last guesses were right. Verdicts follow from tokens alone and never from when they arrive, so all ranks decide alike.
"""

from __future__ import annotations

from collections import deque
from typing import Any

import torch

__all__ = ["NGRAM", "Lookup", "guesses"]

NGRAM = 4
"""Tokens that must have occurred before."""

AFTER = 2
"""Cycles after which a verdict is read without waiting for it."""

WIDTH = 1024
"""Contexts are searched in multiples of so many tokens, so that memory is asked for in few sizes."""

NEVER = -6e4
"""Logit of tokens that a lookup does not guess; finite, and in float16's range."""


def guesses(tokens: torch.Tensor, lengths: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """What followed the last occurrence of each row's last :data:`NGRAM` tokens.

    Args:
        tokens: int32 ``[rows, width]``, of which the first ``lengths`` are known.
        lengths: int ``[rows]``, at most ``width``.
        count: how many tokens to guess.

    Returns:
        int64 ``[rows, count]``, and bool ``[rows]``: they occurred, followed by so many tokens.
    """
    width = tokens.shape[1]
    lengths = lengths.long()
    last = tokens.gather(1, (lengths.view(-1, 1) - NGRAM + _ramp(NGRAM, tokens)).clamp_(min=0))
    starts = width - NGRAM + 1
    same = torch.ones(tokens.shape[0], max(starts, 1), dtype=torch.bool, device=tokens.device)
    for offset in range(NGRAM if starts > 0 else 0):
        same &= tokens[:, offset : offset + starts] == last[:, offset : offset + 1]
    ends = _ramp(same.shape[1], tokens) + NGRAM
    same &= ends + count <= lengths.view(-1, 1)  # it has so many followers, and is not the end itself
    following = (ends * same).amax(1)
    index = (following.view(-1, 1) + _ramp(count, tokens)).clamp_(max=width - 1)
    return tokens.gather(1, index).long(), following > 0


def _ramp(count: int, like: torch.Tensor) -> torch.Tensor:
    return torch.arange(count, device=like.device)


class Lookup:
    """Decides, cycle by cycle, whether lookups are the drafts."""

    def __init__(self, states: Any) -> None:
        """``states`` is vLLM's ``RequestState``: the tokens of all requests, on the device."""
        self._states = states
        self._guesses: torch.Tensor | None = None
        self._sound: torch.Tensor | None = None
        self._verdicts: deque[tuple[torch.Tensor, torch.cuda.Event | None]] = deque()
        self._copying = self._guessed = False

    def drafts(
        self, idx_mapping: torch.Tensor, drafting: torch.Tensor, num_sampled: torch.Tensor, count: int, longest: int
    ) -> torch.Tensor | None:
        """The cycle's drafts, int64 ``[requests, count]``; ``None``: the twin is to draft, then call :meth:`judge`.

        Args:
            idx_mapping: ``[requests]``, in the runner's state.
            drafting: bool ``[requests]``; others have nothing to draft.
            num_sampled: ``[requests]``, tokens of the step that was verified.
            count: drafts of the cycle.
            longest: tokens of the longest request, at least.
        """
        states = self._states
        index = idx_mapping.long()
        width = min(-(-longest // WIDTH) * WIDTH, states.all_token_ids.gpu.shape[1])
        tokens = states.all_token_ids.gpu[:, :width].index_select(0, index)
        lengths = states.total_len.gpu.index_select(0, index)
        self._guesses, occurred = guesses(tokens, lengths, count)
        self._sound = (occurred | ~drafting).all() & drafting.any()
        if len(self._verdicts) >= AFTER:
            self._copying = _read(self._verdicts.popleft())
        if not self._copying:
            self._guessed = False
            return None
        goes_on = self._sound
        if self._guessed:  # a step yields its verified drafts and one token more
            right = torch.where(drafting, num_sampled - 1, 0).sum()
            goes_on = goes_on & (2 * right >= count * drafting.sum())
        self._copying = self._guessed = bool(goes_on)
        return self._guesses if self._copying else None

    def judge(self, drafted: torch.Tensor, drafting: torch.Tensor) -> None:
        """The twin has drafted ``[requests, count]``: would the lookups have guessed the same?"""
        if self._guesses is None or self._sound is None:
            return
        verdict = ((self._guesses == drafted).all(1) | ~drafting).all() & self._sound
        event = None
        if verdict.device.type == "cuda":
            verdict = torch.empty((), dtype=torch.bool, pin_memory=True).copy_(verdict, non_blocking=True)
            event = torch.cuda.Event()
            event.record()
        self._verdicts.append((verdict, event))


def _read(verdict: tuple[torch.Tensor, torch.cuda.Event | None]) -> bool:
    value, event = verdict
    if event is not None:
        event.synchronize()
    return bool(value)
