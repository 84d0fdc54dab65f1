"""What a calibration measured of an idle engine, and the step times that follow from it.

A time to first token is more than steps. Of a prompt of ``n`` tokens it holds

* ``latency + latency_token * n`` seconds outside of the steps, in which the engine goes on: the front end, the way to
  it, hashes of the blocks, the first token's text;
* the steps, of at most ``budget`` rows each, that read what is not cached;
* attention of those rows to the tokens before the step, ``attention`` seconds a pair.

An engine with stamps of its own shows what is outside of the steps. Where it has none, prompts that take several steps
and prompts behind a cached context hold the same three unknowns in other proportions, so least squares tells them
apart. Nothing is fitted to the runs that are predicted.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from mixquant_agents.planning.steps import Curve, MeasuredSteps, Seconds, interpolated, rising
from mixquant_agents.validation import FrozenConfig

__all__ = ["Calibration", "Writers"]

Count = Annotated[int, Field(ge=1)]
NO_TIME = 1e-9
"""Seconds that a clock cannot tell from none; errors are relative to more than that."""


class Writers(FrozenConfig):
    """Writers with a long context.

    Attributes:
        count: how many wrote at once.
        context: tokens before each.
        seconds: a step.
    """

    count: Count
    context: Count
    seconds: Seconds


class Calibration(FrozenConfig):
    """Measured times, in seconds.

    Attributes:
        budget: most rows of a step; ``None`` where nobody said: then each cold prompt counts as one step.
        cold: rows of a cold prompt → until its first token.
        warm: rows of a prompt behind ``context`` cached tokens → until its first token.
        context: tokens before the prompts of ``warm``.
        before: tokens of a whole prompt → until the engine begins it, by its own clock; empty where it does not say.
        behind: tokens of a whole prompt → from its first token to the caller.
        decode: writers → a step, with ``decode_context`` tokens each.
        decode_context: tokens of context of the writers above.
        own: writers each of whom has a long context of its own.
        shared: writers who have a long context in common.
        prompt: of each prompt of a step after the first.
        latency: part of a cold TTFT in which a writer beside it does not wait; ``None`` where that was not measured.
        beside: writers → how much longer than a cold prompt's TTFT a step takes that reads it beside them; less than
            none, for part of it is no step. Empty where that was not measured.
        held: between the two tokens of a writer before such a step.
    """

    budget: Count | None = None
    cold: Curve
    warm: Curve = ()
    context: Annotated[int, Field(ge=0)] = 0
    before: Curve = ()
    behind: Curve = ()
    decode: Curve
    decode_context: Annotated[int, Field(ge=0)] = 0
    own: Writers | None = None
    shared: Writers | None = None
    prompt: Seconds = 0.0
    latency: Seconds | None = None
    beside: tuple[tuple[Count, float], ...] = ()
    held: Seconds = 0.0

    def steps(self, source: str) -> MeasuredSteps:
        """The step times that explain these measurements best."""
        outside = self._outside()
        if outside is None:
            return self._by_least_squares(source)
        constant, token, text = outside
        alone = dict(self.beside)[1] + constant
        launch = max(0.0, -alone)
        latency, _, attention = self._parts(constant + launch, token)
        return self._with(source, latency, token, attention).model_copy(
            update={
                "latency": constant,
                "launch": launch,
                "held": self.held,
                "first_text": text,
                "beside": rising((count, max(0.0, more + constant + launch)) for count, more in self.beside),
            }
        )

    def _by_least_squares(self, source: str) -> MeasuredSteps:
        """The step times, where the engine does not say what is outside of its steps."""
        return self._with(source, *self._parts(self.latency, None))

    def _with(self, source: str, latency: float, token: float, attention: float) -> MeasuredSteps:
        """The step times, given what a TTFT holds beside them."""
        single = self._single_steps()
        writer_context = self._writer_context()
        return MeasuredSteps(
            source=source,
            prefill=rising((rows, max(0.0, seconds - latency - token * rows)) for rows, seconds in single),
            decode=rising(self.decode),
            decode_context=self.decode_context,
            attention=attention,
            writer_context=writer_context,
            shared_context=self._shared_context(writer_context),
            shared_limit=self._shared_limit(),
            prompt=self.prompt,
            latency=latency,
            latency_token=token,
        )

    def _outside(self) -> tuple[float, float, float] | None:
        """Seconds outside of the steps: of any prompt, a token of it, and of these a token behind the last step; by the
        engine's clock. ``None`` where it does not say."""
        if min(len(self.before), len(self.behind)) < 2 or 1 not in dict(self.beside):
            return None
        (before, before_token), (behind, behind_token) = _line(self.before), _line(self.behind)
        shortest = min(seconds for _, seconds in self.cold)
        return min(before + behind, shortest), before_token + behind_token, behind_token

    def mean(self, other: Calibration) -> Calibration:
        """The mean of two calibrations with the same probes: of an engine before and after a run."""
        mine, others = self.model_dump(), other.model_dump()
        return Calibration(**{name: _mean(value, others[name]) for name, value in mine.items()})

    def _single_steps(self) -> Curve:
        """The cold prompts that one step reads."""
        budget = self.budget
        single = tuple((rows, seconds) for rows, seconds in self.cold if budget is None or rows <= budget)
        return single if len(single) > 1 else self.cold

    def _parts(self, latency: float | None, token: float | None) -> tuple[float, float, float]:
        """``latency``, ``latency_token`` and ``attention``, by least squares of the relative error; none is negative.

        A prompt whose ``n`` steps have the rows of ``n`` cold prompts that took ``c`` seconds each takes
        ``sum(c) - (n - 1) * latency + latency_token * context + attention * pairs``.

        Args:
            latency, token: what is known of the first two.
        """
        single = self._single_steps()
        budget = self.budget or max(rows for rows, _ in (*self.cold, *self.warm))
        prompts = [(rows, 0, seconds) for rows, seconds in self.cold if rows > budget]
        prompts += [(rows, self.context, seconds) for rows, seconds in self.warm]
        equations, results = [], []
        for rows, context, measured in prompts:
            seconds = max(measured, NO_TIME)
            begins = range(0, rows, budget)
            steps = [min(budget, rows - begin) for begin in begins]
            pairs = sum(size * (context + begin) for size, begin in zip(steps, begins, strict=True))
            rest = seconds - sum(interpolated(single, size) for size in steps)
            rest += (len(steps) - 1) * (latency or 0.0) - context * (token or 0.0)
            equations.append([float(1 - len(steps)) / seconds, context / seconds, pairs / seconds])
            results.append(rest / seconds)
        known = {at for at, part in enumerate((latency, token)) if part is not None}
        solved = _least_squares(equations, results, known)
        if latency is None:
            latency = min(solved[0], min(seconds for _, seconds in single))
        return latency, solved[1] if token is None else token, solved[2]

    def _writer_context(self) -> float:
        if self.own is None:
            return 0.0
        more = self.own.seconds - interpolated(self.decode, self.own.count)
        return max(0.0, more) / (self.own.count * max(1, self.own.context - self.decode_context))

    def _shared_context(self, writer_context: float) -> float | None:
        if self.shared is None or self.shared.count < 2:
            return None
        once = interpolated(self.decode, self.shared.count) + writer_context * self.shared.context
        again = (self.shared.seconds - once) / ((self.shared.count - 1) * self.shared.context)
        return min(max(0.0, again), writer_context)

    def _shared_limit(self) -> int | None:
        """What those who had a context in common had, each token counted once."""
        return None if self.shared is None else self.shared.context + self.shared.count * self.decode_context


def _line(curve: Curve) -> tuple[float, float]:
    """Seconds of any prompt and a token of it, by least squares; neither is negative."""
    tokens, seconds = np.array(curve).T
    around = tokens - tokens.mean()
    slope = max(0.0, float(around @ seconds / (around @ around)))
    return max(0.0, float(seconds.mean() - slope * tokens.mean())), slope


def _least_squares(equations: list[list[float]], results: list[float], without: set[int]) -> list[float]:
    """Three unknowns of which none is negative; those ``without``, and those that nothing tells, are 0."""
    unknowns = [at for at in range(3) if at not in without and any(row[at] for row in equations)]
    while unknowns:
        matrix = np.array([[row[at] for at in unknowns] for row in equations])
        scale = np.abs(matrix).max(axis=0)
        values = np.linalg.lstsq(matrix / scale, np.array(results), rcond=None)[0] / scale
        if values.min() >= 0:
            solved = dict(zip(unknowns, values.tolist(), strict=True))
            return [solved.get(at, 0.0) for at in range(3)]
        del unknowns[int((values * scale).argmin())]
    return [0.0, 0.0, 0.0]


def _mean(first: Any, second: Any) -> Any:
    """Of numbers their mean, of curves and mappings that of their values; what only one has is left out."""
    if first is None or second is None:
        return None
    if isinstance(first, Mapping):
        if first["count"] != second["count"]:
            return None  # other writers
        return {name: _mean(value, second[name]) for name, value in first.items()}
    if isinstance(first, (tuple, list)):
        others = dict(second)
        return tuple((at, (seconds + others[at]) / 2) for at, seconds in first if at in others)
    mean = (first + second) / 2
    return round(mean) if isinstance(first, int) else mean
