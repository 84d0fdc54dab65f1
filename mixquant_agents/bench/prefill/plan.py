"""Which engines of ``mixquant bench prefill`` live together: as many as fit into the GPU's memory. Pure.

Engines that are compared must be alive at once and take turns. Where not all fit, they come in groups, one after
another: first ``exact`` and ``mixquant-fp8`` with whatever else fits, then the others, each group with ``mixquant-fp8``
again, so that every comparison is one of neighbours. The agents need more KV cache than the single requests: their
group comes last, or is the only one where no other columns are wanted than those two.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mixquant_agents.errors import ConfigError
from mixquant_agents.planning.memory import heads_of, linear_weights

__all__ = [
    "CASES",
    "COLUMNS",
    "NESTED",
    "NESTED_PAIR",
    "OFF",
    "OURS",
    "OWN_PAIR",
    "PAIR",
    "Case",
    "Group",
    "both_fit",
    "engine_of",
    "groups",
    "kv_gib",
    "needed_gib",
]

OURS = "mixquant-fp8"
OFF = "mixquant-fp8-off"
COLUMNS = ("exact_default", "exact", "uniform-fp8", OURS, "mixquant-fp8-exact-last")
NESTED = "mixquant-fp8-nested"
"""Ours with nested weights: an engine of its own, measured where it is asked for."""
PAIR = ("exact", OURS)
NESTED_PAIR = ("exact", NESTED)
OWN_PAIR = (OFF, OURS)
"""One engine under two policies: for models of which two engines do not fit into one GPU."""
GIB = 2**30
AGENT_TOKENS = 107_500
"""KV slots that 32 agents keep in use: a shared beginning, each one's own context, prompts and answers."""
OVERHEAD_GIB = {"exact_default": 3.5, "exact": 4.1, "uniform-fp8": 3.5, OURS: 4.1, NESTED: 4.6}
"""Beside weights and KV cache, for the 8B shape: activations of 8192 rows, captured graphs, the CUDA context."""


@dataclass(frozen=True, slots=True)
class Case:
    """One measurement.

    Attributes:
        request: what the worker is asked to do.
        turns: how often the pair takes turns within a round.
        pair_only: the other engines do not run it.
        tokens: KV slots it takes.
    """

    name: str
    request: dict[str, Any]
    turns: int = 1
    pair_only: bool = False
    tokens: int = 0


@dataclass(frozen=True, slots=True)
class Group:
    """Engines that are alive at once.

    Attributes:
        columns: what they measure; two columns may be one engine under two policies.
        kv: GiB of KV cache by engine.
        max_len: longest request in tokens.
        cases: what they run, none where only the agents are wanted.
        agents: whether the 32 agents run on them.
    """

    columns: tuple[str, ...]
    kv: Mapping[str, float]
    max_len: int
    cases: tuple[Case, ...] = field(default=())
    agents: bool = False

    @property
    def pair(self) -> tuple[str, ...]:
        """The columns that take turns: two, or with nested weights three; none where there are no such."""
        pairs = ((*PAIR, NESTED), PAIR, OWN_PAIR, NESTED_PAIR)
        return next((pair for pair in pairs if set(pair) <= set(self.columns)), ())


def _prefill(cached: int, tokens: int, repeats: int, turns: int) -> Case:
    name = f"warm_{cached}_{tokens}" if cached else f"cold_{tokens}"
    request = {"do": "prefill", "tokens": tokens, "cached": cached, "repeats": repeats}
    return Case(name, request, turns, tokens=cached + tokens)


def _mix(tokens: int, turns: int) -> Case:
    request = {"do": "mix", "batch": 8, "tokens": tokens, "repeats": 4}
    return Case(f"mix_8_{tokens}", request, turns, pair_only=True, tokens=tokens + 8 * 256)


CASES = [
    *(_prefill(0, n, 5, t) for n, t in ((64, 12), (128, 6), (256, 6))),
    *(_prefill(0, n, 5, 4) for n in (512, 1024)),
    *(_prefill(0, n, r, t) for n, r, t in ((2048, 3, 3), (4096, 2, 2), (8192, 2, 2), (16384, 1, 3), (32000, 1, 1))),
    *(_prefill(8192, n, 5, t) for n, t in ((64, 6), (128, 12), (256, 6))),
    *(_prefill(8192, n, r, t) for n, r, t in ((512, 5, 7), (1024, 5, 7), (2048, 3, 4))),
    *(_mix(n, t) for n, t in ((256, 5), (768, 3), (1536, 1))),
    *(Case(f"tpot_{b}", {"do": "decode", "batch": b, "tokens": 72}, 3, tokens=256 * b) for b in (1, 8, 32)),
]
"""The smaller a case, the more it is disturbed by the host's moods, and the more turns it takes. A turn is the median
of its repeats: of five, since the host's stalls were seen to last for two or three. Many short rounds rather than few
long ones, so that the other columns are compared often enough too: one turn of theirs in each."""


def engine_of(column: str) -> str:
    """The engine behind a column."""
    return OURS if column.startswith("mixquant") and column != NESTED else column


def kv_gib(tokens: int, config: Mapping[str, Any]) -> float:
    """GiB of KV cache in 16 bits that hold ``tokens``, and some to spare."""
    _, cached, width = heads_of(config)
    each: int = config["num_hidden_layers"] * 4 * cached * width
    return round(1.05 * (tokens + 64) * each / GIB + 0.05, 2)


def needed_gib(engine: str, kv: float, config: Mapping[str, Any], gpus: int = 1) -> float:
    """GiB of memory that an engine takes of each of ``gpus`` GPUs which share it, ``kv`` of all for its cache."""
    embedding: int = config["vocab_size"] * config["hidden_size"] * (2 if config.get("tie_word_embeddings") else 4)
    each = {"uniform-fp8": 1, OURS: 3, NESTED: 1.52}.get(engine, 2)
    return ((embedding + each * linear_weights(config)) / GIB + kv) / gpus + OVERHEAD_GIB[engine]


def groups(
    columns: Sequence[str], cases: Sequence[Case], config: Mapping[str, Any], total_gib: float, agents: bool = False,
    gpus: int = 1,
) -> list[Group]:  # fmt: skip
    """Who lives with whom on a GPU of ``total_gib``, or on each of ``gpus`` such.

    Raises:
        ConfigError: an engine, or the two that must be compared, does not fit.
    """
    kv = kv_gib(max((case.tokens for case in cases), default=0), config)
    max_len = max((case.tokens for case in cases), default=0) + 64
    room = 0.99 * total_gib
    names = list(dict.fromkeys(map(engine_of, columns)))
    base = [name for name in PAIR if name in names]
    others = sorted((name for name in names if name not in PAIR), key=lambda name: needed_gib(name, kv, config, gpus))
    alone = len(base) > 1 and OFF in columns and not both_fit(cases, config, total_gib, gpus)
    members: list[list[str]] = [[name] for name in reversed(base)] if alone else [base] if base else []
    for name in others:
        last = members[0] if alone else members[-1] if members else []
        if last and sum(needed_gib(each, kv, config, gpus) for each in [*last, name]) <= room:
            last.append(name)
        else:
            members.append([OURS, name] if OURS in names else [name])
    planned = []
    for number, each in enumerate(members):
        own_columns = [c for c in columns if engine_of(c) in each and (number == 0 or c in each)]
        if not own_columns:
            continue
        _fits(each, dict.fromkeys(each, kv), config, total_gib, gpus)
        planned.append(Group(tuple(own_columns), dict.fromkeys(each, kv), max_len, tuple(cases)))
    if agents and set(PAIR) <= set(names):
        large = dict.fromkeys(PAIR, max(kv, kv_gib(AGENT_TOKENS, config)))
        _fits(PAIR, large, config, total_gib, gpus)
        together = set(columns) == set(PAIR)  # the same two engines then run the cases, too
        planned = [] if together or not cases else planned
        planned.append(Group(PAIR, large, max(max_len, 12_288), tuple(cases) if together else (), agents=True))
    return planned


def both_fit(cases: Sequence[Case], config: Mapping[str, Any], total_gib: float, gpus: int = 1) -> bool:
    """Whether ``exact`` and ours can be alive at once."""
    kv = kv_gib(max((case.tokens for case in cases), default=0), config)
    return sum(needed_gib(name, kv, config, gpus) for name in PAIR) <= total_gib


def _fits(
    names: Sequence[str], kv: Mapping[str, float], config: Mapping[str, Any], total_gib: float, gpus: int
) -> None:
    needed = sum(needed_gib(name, kv[name], config, gpus) for name in names)
    if needed > total_gib:
        raise ConfigError(
            f"{' and '.join(names)} take {needed:.0f} GiB together, and this GPU has {total_gib:.0f}: choose a smaller "
            f"shape (--model qwen3-4b), shorter --cases, one column at a time, or add the column {OFF}, which needs no "
            "second engine"
        )
