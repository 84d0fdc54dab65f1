"""How long one engine step takes, by what is in it. :class:`MeasuredSteps` from curves of a real engine.

A step without prompt rows costs what so many writers and their contexts cost. A step with prompt rows costs what so
many rows cost, plus attention to what is cached, plus what its writers add, plus a little for each further prompt in
it; never less than its writers alone.
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Iterable, Sequence
from typing import Annotated, Protocol

from pydantic import Field, model_validator

from mixquant_agents.validation import FrozenConfig

__all__ = ["Curve", "MeasuredSteps", "PromptRows", "Seconds", "StepTimes", "interpolated", "rising"]

FIRST_TEXT = 0.7
"""Of the front end's work for a prompt, the share that is the text of its first token, where nobody measured it: of an
engine that decodes the whole prompt for it, as vLLM does by itself (vllm#51281). Measured in a process of a CPU
machine: 0.35 of 0.5 microseconds a token. On an H200, the tokens of the step that read a prompt of 8,208 tokens came 7
to 13 ms late; 12 ms of that prompt were no steps."""
PromptRows = tuple[int, int]
"""Rows of one prompt in a step, and the tokens before them."""
Seconds = Annotated[float, Field(ge=0)]
Curve = tuple[tuple[int, Seconds], ...]


class StepTimes(Protocol):
    """Step times of one engine on one device."""

    @property
    def way(self) -> float:
        """Seconds of any turn's first token outside of the engine's steps and of the front end's work."""
        ...

    @property
    def launch(self) -> float:
        """Seconds that an idle engine prepares a step; one that runs prepares the next meanwhile."""
        ...

    @property
    def held(self) -> float:
        """Seconds from a step's begin in which its tokens are not handed on where the next one reads a prompt: an
        engine that schedules ahead first prepares that one, and kernels outside of a captured graph one by one."""
        ...

    def front_end(self, prompt: int) -> tuple[float, float]:
        """Seconds of the front end's work for a ``prompt`` of so many tokens, before its first step and behind its
        last. It does one thing at a time: tokens that come meanwhile, of any turn, are handed on when it is through."""
        ...

    def seconds(self, prompts: Sequence[PromptRows], writers: Sequence[int], repeated: int = 0) -> float:
        """Seconds of a step.

        Args:
            prompts: the prompts, or chunks of them, that it reads.
            writers: tokens of context of each request that it writes one token for.
            repeated: tokens among the writers' contexts that another writer of the step has too.
        """
        ...


class MeasuredSteps(FrozenConfig):
    """Step times from curves.

    Attributes:
        source: what measured them, on what.
        prefill: rows of one cold prompt → seconds of the step that reads it.
        decode: writers → seconds a step, with ``decode_context`` tokens each.
        decode_context: tokens of context of the writers above.
        attention: seconds a row and token of context before it.
        writer_context: seconds a writer and token of context beyond ``decode_context``.
        shared_context: the same of a token that another writer of the step has too, and that a cache of the device may
            still hold; ``None`` where that was not measured: it costs what any token does.
        shared_limit: tokens of a step's contexts, each counted once, up to which ``shared_context`` holds: with more of
            them the device's cache is full of others. ``None`` for any number.
        prompt: seconds for each prompt of a step after the first.
        latency: seconds of a TTFT outside of the engine's steps, of any prompt.
        latency_token: the same a token of the prompt, cached or not.
        launch: seconds that an idle engine prepares a step.
        held: seconds from a step's begin until its tokens are handed on, at least, before one that reads a prompt.
        beside: writers → what they add to a step that reads a prompt: where reading and writing have number formats of
            their own, weights are read twice. Empty where that was not measured: a writer costs what any row does.
        first_text: of ``latency_token`` what comes behind the last step; ``None`` where that was not measured:
            :data:`FIRST_TEXT` of it.
    """

    source: str
    prefill: Curve
    decode: Curve
    decode_context: Annotated[int, Field(ge=0)] = 0
    attention: Seconds = 0.0
    writer_context: Seconds = 0.0
    shared_context: Seconds | None = None
    shared_limit: Annotated[int, Field(ge=0)] | None = None
    prompt: Seconds = 0.0
    latency: Seconds = 0.0
    latency_token: Seconds = 0.0
    first_text: Seconds | None = None
    launch: Seconds = 0.0
    held: Seconds = 0.0
    beside: Curve = ()

    @model_validator(mode="after")
    def _ordered(self) -> MeasuredSteps:
        for name, least, words in (("prefill", 2, "two points"), ("decode", 1, "a point")):
            points = [point for point, _ in getattr(self, name)]
            if len(points) < least or points != sorted(set(points)):
                raise ValueError(f"{name} needs {words} at least, in rising order, and has {points}")
        return self

    def with_latency(self, latency: float) -> MeasuredSteps:
        """The same times until a first token, of which ``latency`` seconds are no part of a step."""
        prefill = tuple((rows, max(0.0, seconds - latency + self.latency)) for rows, seconds in self.prefill)
        return self.model_copy(update={"prefill": prefill, "latency": latency})

    @property
    def way(self) -> float:
        """See :class:`StepTimes`."""
        return self.latency

    def front_end(self, prompt: int) -> tuple[float, float]:
        """See :class:`StepTimes`."""
        text = FIRST_TEXT * self.latency_token if self.first_text is None else self.first_text
        return max(0.0, self.latency_token - text) * prompt, text * prompt

    def seconds(self, prompts: Sequence[PromptRows], writers: Sequence[int], repeated: int = 0) -> float:
        """See :class:`StepTimes`."""
        alone, saved = 0.0, 0.0
        within = self.shared_limit is None or sum(writers) - repeated <= self.shared_limit
        if self.shared_context is not None and within:
            saved = max(0.0, self.writer_context - self.shared_context) * repeated
        if writers:
            beyond = sum(writers) - len(writers) * self.decode_context
            alone = max(0.0, interpolated(self.decode, len(writers)) + self.writer_context * beyond - saved)
        if not prompts:
            return alone
        rows = sum(new for new, _ in prompts) + (0 if self.beside else len(writers))
        pairs = sum(new * (before + new / 2) for new, before in prompts) - rows * rows / 2
        time = interpolated(self.prefill, rows) + self.attention * pairs + self.prompt * (len(prompts) - 1)
        time += self.writer_context * sum(writers) - saved
        if writers and self.beside:
            time += interpolated(self.beside, len(writers))
        return max(time, alone)


def interpolated(curve: Curve, at: float) -> float:
    """Linear between the points, and beyond the last with its slope; before the first, and of one alone, its value."""
    points = [point for point, _ in curve]
    if at <= points[0] or len(points) == 1:
        return curve[0][1]
    right = min(max(1, bisect.bisect_left(points, at)), len(points) - 1)
    (low, start), (high, end) = curve[right - 1], curve[right]
    return max(0.0, start + (end - start) * (at - low) / (high - low))


def rising(points: Iterable[tuple[int, float]]) -> Curve:
    """The points in order and without dips, which noise makes: more rows never take less."""
    sizes, seconds = zip(*sorted(points), strict=True)
    return tuple(zip(sizes, itertools.accumulate(seconds, max), strict=True))
