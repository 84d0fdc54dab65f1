"""What is measured on one engine of ``mixquant bench prefill``: reading, writing, both at once, agents, answers.

Prompts are random token ids, which no prefix cache knows; nothing is tokenized or detokenized.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Container, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np

__all__ = ["Measurements", "own_name"]

PREFIX_SEED = 7
VOCABULARY = (1000, 100_000)
"""Range that random token ids are drawn from."""


@dataclass(slots=True)
class _Turn:
    """An agent's turn: when it was asked for, and when each token came, by the clock of ``perf_counter``."""

    agent: int
    asked: float
    stamps: list[float] = field(default_factory=list)


def _agents_result(turns: Iterable[_Turn], since: float, ended: float) -> dict[str, Any]:
    """Tokens per second between two instants; TTFT and ITL of the turns asked for since the first."""
    turns = list(turns)
    counted = [turn for turn in turns if turn.asked >= since and turn.stamps]
    return {
        "tokens_per_s": sum(stamp > since for turn in turns for stamp in turn.stamps) / (ended - since),
        "turns": len(counted),
        "ttft_ms": [(turn.stamps[0] - turn.asked) * 1e3 for turn in counted],
        "itl_ms": [(after - before) * 1e3 for turn in counted for before, after in pairwise(turn.stamps)],
    }


class Measurements:
    """An engine and the measurements that can be asked of it."""

    def __init__(self, arguments: dict[str, Any]) -> None:
        from vllm.engine.arg_utils import EngineArgs
        from vllm.v1.engine.llm_engine import LLMEngine

        started = time.perf_counter()
        self.engine = LLMEngine.from_engine_args(EngineArgs(**arguments))
        self.start_seconds = time.perf_counter() - started
        self._vocabulary = self.engine.model_config.get_vocab_size()
        self._random = np.random.default_rng(os.getpid())
        self._count = 0

    def _tokens(self, count: int, seed: int | None = None) -> list[int]:
        random = self._random if seed is None else np.random.default_rng(seed)
        low, high = VOCABULARY
        tokens: list[int] = random.integers(low, min(high, self._vocabulary), size=count).tolist()
        return tokens

    def _add(self, tokens: list[int], answer: int, logprobs: int | None = None, lora: str = "") -> str:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        self._count += 1
        params = SamplingParams(
            temperature=0.0,
            max_tokens=answer,
            ignore_eos=True,
            logprobs=logprobs,
            detokenize=False,
            output_kind=RequestOutputKind.DELTA,
        )
        name = f"bench-{self._count}"
        self.engine.add_request(name, {"prompt_token_ids": tokens}, params, lora_request=_adapter(lora))
        return name

    def _run(self) -> Iterator[tuple[float, Any]]:
        """Every output with the instant it came, until nothing is left to do."""
        while self.engine.has_unfinished_requests():
            for output in self.engine.step():
                yield time.perf_counter(), output

    def prefill(self, tokens: int, cached: int = 0, repeats: int = 1) -> dict[str, Any]:
        """Milliseconds from asking to the first token, of ``cached`` tokens known and ``tokens`` new ones."""
        prefix = self._tokens(cached, PREFIX_SEED) if cached else []
        self._add([*prefix, *self._tokens(16)], 1)  # the prefix becomes known, and an idle host awake
        for _ in self._run():
            pass
        times, hits = [], []
        for _ in range(repeats):
            prompt = [*prefix, *self._tokens(tokens)]
            started = time.perf_counter()
            self._add(prompt, 1)
            for instant, output in self._run():
                times.append((instant - started) * 1e3)
                hits.append(output.num_cached_tokens)
        return {"ms": times, "cached": hits}

    def decode(self, batch: int, tokens: int = 96, prompt: int = 128) -> dict[str, Any]:
        """Milliseconds per token and request while ``batch`` requests write, the first eight steps left out."""
        names = {self._add(self._tokens(prompt), tokens) for _ in range(batch)}
        written = dict.fromkeys(names, 0)
        started, at = 0.0, 0
        last = 0.0
        for instant, output in self._run():
            written[own_name(output.request_id, names)] += len(output.outputs[0].token_ids)
            if not started and min(written.values()) >= 8:
                started, at = instant, min(written.values())
            last = instant
        return {"ms": (last - started) * 1e3 / (tokens - at)}

    def mix(self, tokens: int, batch: int, repeats: int) -> dict[str, Any]:
        """Milliseconds to the first token of ``tokens`` new ones while ``batch`` other requests write."""
        names = {self._add(self._tokens(128), 24 + 16 * repeats) for _ in range(batch)}
        waiting = set(names)
        while waiting:
            waiting -= {own_name(output.request_id, names) for output in self.engine.step()}
        times = []
        for _ in range(repeats):
            for _ in range(4):
                self.engine.step()
            started = time.perf_counter()
            name = self._add(self._tokens(tokens), 1)
            while not any(own_name(output.request_id, {name}) == name for output in self.engine.step()):
                pass
            times.append((time.perf_counter() - started) * 1e3)
        self.engine.abort_request(list(names))
        for _ in self._run():
            pass
        return {"ms": times}

    def agents(
        self,
        agents: int,
        seconds: float,
        shared: int,
        own: int,
        new: int,
        answer: int,
        rate: float | None = None,
        seed: int = 0,
        turns_each: int = 0,
    ) -> dict[str, Any]:
        """Turns of many agents: each has ``shared + own`` cached tokens, reads ``new`` and writes ``answer``.

        With a ``rate`` turns arrive at random (Poisson), so many a second, for ``seconds``; those of the first fifth
        are left out of the latencies. Without one every agent asks again once it was answered, ``turns_each`` times:
        the same work whatever the engine's speed, so that no window cuts through a wave of prompts.
        """
        contexts = self._known_contexts(agents, shared, own)
        turns: dict[str, _Turn] = {}
        begin = time.perf_counter()

        def ask(agent: int, asked: float) -> None:
            name = self._add([*contexts[agent], *self._tokens(new)], answer)
            turns[name] = _Turn(agent, asked)

        if rate is None:
            self._closed_loop(agents, turns_each, turns, ask)
        else:
            self._open_loop(agents, seconds, rate, seed, turns, ask)
        ended = time.perf_counter()
        self.engine.abort_request([name for name, turn in turns.items() if len(turn.stamps) < answer])
        for _ in self._run():
            pass
        return _agents_result(turns.values(), begin + (0.0 if rate is None else seconds / 5), ended)

    def _known_contexts(self, agents: int, shared: int, own: int) -> list[list[int]]:
        """Each agent's tokens, of which the first ``shared`` are everybody's, put into the prefix cache."""
        common = self._tokens(shared, PREFIX_SEED)
        contexts = [[*common, *self._tokens(own, PREFIX_SEED + 1 + agent)] for agent in range(agents)]
        for context in contexts:
            self._add([*context, *self._tokens(16)], 1)
        for _ in self._run():
            pass
        return contexts

    def _closed_loop(
        self, agents: int, turns_each: int, turns: dict[str, _Turn], ask: Callable[[int, float], None]
    ) -> None:
        begin = time.perf_counter()
        for agent in range(agents):
            ask(agent, begin)
        unanswered = agents * turns_each
        while unanswered:
            for turn in self._step(turns):
                unanswered -= 1
                if unanswered >= agents:
                    ask(turn.agent, turn.stamps[-1])

    def _open_loop(
        self, agents: int, seconds: float, rate: float, seed: int, turns: dict[str, _Turn],
        ask: Callable[[int, float], None],
    ) -> None:  # fmt: skip
        arrivals = np.random.default_rng(seed)
        begin = due = time.perf_counter()
        while (now := time.perf_counter()) < begin + seconds:
            while due <= now:
                ask(len(turns) % agents, due)
                due += float(arrivals.exponential(1 / rate))
            if self.engine.has_unfinished_requests():
                self._step(turns)
            else:
                time.sleep(max(0.0, min(due - time.perf_counter(), 0.001)))

    def _step(self, turns: dict[str, _Turn]) -> list[_Turn]:
        """One step of the engine, its tokens noted; the turns that it ended."""
        finished = []
        for output in self.engine.step():
            turn = turns[own_name(output.request_id, turns)]
            turn.stamps.extend([time.perf_counter()] * len(output.outputs[0].token_ids))
            if output.finished:
                finished.append(turn)
        return finished

    def greedy(
        self,
        prompts: list[list[int]],
        answer: int,
        company: list[list[int]] | None = None,
        lora: str = "",
        at_once: int = 1,
    ) -> dict[str, Any]:
        """The answers to some prompts as token ids, and how clear each choice was; ``at_once`` prompts at a time.

        With ``company`` all are answered at once, begun two steps apart, and those further prompts are read meanwhile,
        one every four steps. A margin is the likeliest token's log probability less the second's. ``lora`` is an
        adapter's folder.
        """
        answers: list[list[int]] = []
        margins: list[list[float]] = []
        size = len(prompts) if company else at_once
        for group in (prompts[begin : begin + size] for begin in range(0, len(prompts), size)):
            ids: dict[str, list[int]] = {}
            clear: dict[str, list[float]] = {}
            unasked, waiting, steps = list(group), list(company or ()), 0
            while unasked or self.engine.has_unfinished_requests():
                if unasked and steps % 2 == 0:
                    name = self._add(unasked.pop(0), answer, logprobs=2, lora=lora)
                    ids[name], clear[name] = [], []
                elif not unasked and waiting and steps % 4 == 1:
                    self._add(waiting.pop(), 1, lora=lora)
                for output in self.engine.step():
                    name = own_name(output.request_id, ids)
                    if name in ids:
                        ids[name].extend(output.outputs[0].token_ids)
                        for candidates in output.outputs[0].logprobs or ():
                            best, second = sorted((value.logprob for value in candidates.values()), reverse=True)[:2]
                            clear[name].append(best - second)
                steps += 1
            answers += ids.values()
            margins += clear.values()
        return {"answers": answers, "margins": margins}

    def score(self, prompts: list[list[int]]) -> dict[str, Any]:
        """The log probability of each prompt's tokens but its first, read in one go and not from the prefix cache."""
        from vllm import SamplingParams

        logprobs: list[list[float]] = []
        for prompt in prompts:
            self._count += 1
            params = SamplingParams(temperature=0.0, max_tokens=1, prompt_logprobs=0, detokenize=False, ignore_eos=True)
            self.engine.add_request(f"bench-{self._count}", {"prompt_token_ids": prompt}, params)
            for _, output in self._run():
                choices = zip(prompt[1:], (output.prompt_logprobs or [])[1:], strict=False)
                logprobs.append([candidates[token].logprob for token, candidates in choices if candidates])
        return {"logprobs": logprobs}


def own_name(request_id: str, names: Container[str]) -> str:
    """The name a request was added under; vLLM may have appended a suffix."""
    return request_id if request_id in names else request_id.rsplit("-", 1)[0]


def _adapter(folder: str) -> Any | None:
    """vLLM's request for the LoRA adapter in ``folder``, if any."""
    if not folder:
        return None
    from vllm.lora.request import LoRARequest

    return LoRARequest("adapter", 1, folder)
