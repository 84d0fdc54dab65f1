"""How much of NVFP4's loss each recipe removes, where that loss comes from, and what a recipe costs.

The exact model writes a greedy answer to each prompt; each recipe then reads prompt and answer in one pass and is
compared over the answer (see :mod:`~mixquant_agents.bench.fidelity.measure` for why answers are forced). Prompts are
agent contexts and plain text that calibration never saw. All recipes are held against each other in one run.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch

from mixquant_agents.bench.fidelity.answers import Divergence, Prompt, Reference, compare, greedy, reference
from mixquant_agents.bench.fidelity.cost import added_time, flops_by_format, within_budget
from mixquant_agents.bench.fidelity.recipes import (
    BASELINE,
    BUDGET,
    EMULATION,
    RANKED,
    CalibrationKind,
    StudyRecipe,
    budget_recipes,
    layer_sources,
    recipes,
    sources,
    unit_sources,
    worst_layers,
)
from mixquant_agents.bench.fidelity.turns import by_turn
from mixquant_agents.errors import ConfigError
from mixquant_agents.precision.plan import Reach
from mixquant_agents.precision.policy import PrecisionPolicy
from mixquant_agents.precision.recipe import FIRST_TOKENS
from mixquant_agents.precision.resolve import ResolvedPolicy, resolve
from mixquant_agents.quant.calibration.collect import Seen, collect, layer_calibrations
from mixquant_agents.quant.calibration.contexts import Conversation, conversations, plain_texts
from mixquant_agents.quant.calibration.distill import Lesson, Training, distill
from mixquant_agents.quant.calibration.network import batches, groups, prompt_ids, routed
from mixquant_agents.quant.twins.base import Twin
from mixquant_agents.quant.twins.calibrated import LayerCalibration
from mixquant_agents.quant.twins.emulated import Grid

__all__ = ["Settings", "StudyResult", "known_recipes", "prompts_of", "run"]

EARLY, LATE = 8, 16
"""Answer tokens: the first by itself, early ones up to here, late ones from here on."""

Progress = Callable[[str, float], None]


@dataclass(frozen=True, slots=True)
class Settings:
    """Of one study.

    Attributes:
        prompts: agent prompts; published figures have 100 and more.
        plain: prompts of plain text.
        tokens: longest answer.
        calibration: conversations that twins are rounded by.
        layers: measure each block alone, and with the worst ones in FP8.
        units: measure each layer alone, and with those in FP8 that a budget of time allows.
        ranking: prompts that layers and blocks are ranked on.
        sources: measure single sources of error, where all recipes are measured.
        lessons: conversations that twins are trained on.
        training: how long they are.
        turns: conversations whose loss is followed turn by turn; 0: none.
        only: names of recipes; empty: all.
        seed: of prompts and intervals.
        rows: tokens of a batch.
    """

    prompts: int = 120
    plain: int = 4
    tokens: int = 48
    calibration: int = 64
    layers: bool = True
    units: bool = True
    ranking: int = 16
    sources: bool = True
    lessons: int = 320
    training: Training = field(default_factory=Training)
    turns: int = 8
    only: tuple[str, ...] = ()
    seed: int = 0
    rows: int = 32_768


@dataclass(slots=True)
class StudyResult:
    """What was found; :meth:`json` is the result file.

    Attributes:
        head: model, device, prompts and how they were made.
        rows: of recipes and sources, by name.
        turns: mean KL by recipe and turn.
        layers: mean KL of each block alone in NVFP4, worst first; on calibration prompts, since recipes follow it.
        units: the same of each layer.
        chosen: layers that the budget of time puts in FP8.
    """

    head: dict[str, Any]
    rows: dict[str, dict[str, Any]] = field(default_factory=dict)
    turns: dict[str, dict[str, float]] = field(default_factory=dict)
    layers: dict[int, float] = field(default_factory=dict)
    units: dict[str, float] = field(default_factory=dict)
    chosen: list[str] = field(default_factory=list)

    def json(self) -> dict[str, Any]:
        """Plain JSON: ``recipes``, ``sources`` and ``turns`` beside the head."""
        named = {True: "sources", False: "recipes"}
        split: dict[str, dict[str, Any]] = {"recipes": {}, "sources": {}}
        for name, row in self.rows.items():
            split[named[row.get("source", False)]][name] = {key: row[key] for key in row if key != "source"}
        ranking = {"layers": self.layers, "units": self.units, "fp8_within_budget": self.chosen}
        return {**self.head, **split, **ranking, "turns": self.turns}


def prompts_of(tokenizer: Any, asked: Sequence[Conversation], plain: Sequence[str]) -> list[Prompt]:
    """Conversations and plain texts as tokens, answers still to come.

    Raises:
        ConfigError: the model has no chat template and there are conversations.
    """
    if asked and tokenizer.chat_template is None:
        raise ConfigError("the model has no chat template, so it takes no agent prompts; ask for plain text alone")
    made = []
    for conversation in asked:
        ids = prompt_ids(tokenizer, conversation.messages, conversation.tools)
        other = [conversation.messages[0], {"role": "user", "content": "?"}]
        start = prompt_ids(tokenizer, other, conversation.tools)
        static = next((at for at, (a, b) in enumerate(zip(ids, start, strict=False)) if a != b), len(start))
        made.append(Prompt(conversation.kind, tuple(ids), static))
    for text in plain:
        ids = tokenizer(text).input_ids
        made.append(Prompt("plain", tuple(ids[: max(2, len(ids) // 2)]), 0))
    return made


def known_recipes(only: Sequence[str] = ()) -> dict[str, StudyRecipe]:
    """All recipes by name.

    Raises:
        ConfigError: one of ``only`` is not among them.
    """
    named = recipes()
    if unknown := [name for name in only if name not in named and name not in RANKED]:
        raise ConfigError(f"no recipe {unknown[0]!r}; choose from {', '.join((*named, *RANKED))}")
    return named


class _Study:
    """The parts of one run."""

    def __init__(self, network: Any, tokenizer: Any, settings: Settings, progress: Progress) -> None:
        self.network, self.tokenizer, self.settings, self._progress = network, tokenizer, settings, progress
        self._share = 0.0
        self.members = groups(network)
        self.calibrations: dict[tuple[CalibrationKind, bool, object], Mapping[str, LayerCalibration] | None] = {}
        self.losses: dict[str, list[float]] = {}
        self._lessons: list[Lesson] = []
        self._seen: dict[CalibrationKind, Mapping[str, Seen]] = {}
        calibration = conversations(settings.calibration, "calibration", settings.seed, turns=(2, 6))
        self.calibration_prompts = prompts_of(tokenizer, calibration, plain_texts("calibration"))
        self._batches = batches([prompt.ids for prompt in self.calibration_prompts], network.device, 16_384)

    def progress(self, what: str, share: float | None = None) -> None:
        """Say what is being done; ``None`` leaves the share done where it was."""
        self._share = self._share if share is None else share
        self._progress(what, self._share)

    # --- calibration --------------------------------------------------------------------------------------------------

    def calibration(
        self, kind: CalibrationKind, four_over_six: bool, policy: PrecisionPolicy | None = None
    ) -> Mapping[str, LayerCalibration] | None:
        """What twins of this kind are built with; made once. Trained ones are for the formats of ``policy``."""
        if kind == "none":
            return None
        key = kind, four_over_six and kind != "scales", policy.formats if policy and kind == "distilled" else None
        if key not in self.calibrations:
            what = f"calibrating: {kind}{', 4/6' if key[1] else ''}"
            self.progress(what)
            if policy is not None and kind == "distilled":
                self.calibrations[key] = self._distilled(policy, four_over_six)
            else:
                self.calibrations[key] = layer_calibrations(
                    self.network,
                    self._look(kind, what),
                    twins=kind != "scales",
                    four_over_six=four_over_six,
                    sweep=kind == "gptq-sweep",
                    ordered=kind == "gptq-ordered",
                    channel_scales=kind == "gptq-balanced",
                    progress=lambda share: self.progress(f"{what}: weights, {share:.0%}"),
                )
        return self.calibrations[key]

    def calibration_of(self, recipe: StudyRecipe) -> Mapping[str, LayerCalibration] | None:
        """What the twins of ``recipe`` are built with."""
        return self.calibration(recipe.calibration, recipe.policy.weight_scales == "4/6", recipe.policy)

    def _distilled(self, policy: PrecisionPolicy, four_over_six: bool) -> Mapping[str, LayerCalibration]:
        start = self.calibration("gptq", four_over_six)
        if start is None:
            raise ConfigError("twins are trained from rounded ones")
        if not self._lessons:
            asked = conversations(self.settings.lessons, "calibration", self.settings.seed + 7, turns=(2, 6))
            answered = greedy(self.network, prompts_of(self.tokenizer, asked, ()), 32)
            self._lessons = [Lesson(prompt.whole, len(prompt.ids)) for prompt in answered]
        resolved = resolve(policy.model_copy(update={"exact_first_tokens": 0, "exact_last_tokens": 1}), EMULATION)
        trained, losses = distill(
            self.network,
            resolved,
            start,
            self._lessons,
            self.settings.training,
            lambda share: self.progress(f"training twins, {share:.0%}"),
        )
        self.losses["+".join(dict.fromkeys(str(name.value) for _, name in policy.formats)) or "nvfp4"] = losses
        return trained

    def _look(self, kind: CalibrationKind, what: str) -> Mapping[str, Seen]:
        """Activations of the calibration prompts; ``what`` is told as progress."""
        kind = "gptq" if kind in ("gptq-ordered", "gptq-sweep") else kind
        if kind not in self._seen:
            paired = None
            if kind == "gptq-paired":
                paired = resolve(
                    PrecisionPolicy.model_validate(
                        {"prefill_format": "nvfp4", "formats": {"k_proj": "fp8", "v_proj": "fp8"}}
                    ),
                    EMULATION,
                )
            self._seen[kind] = collect(
                self.network,
                self._batches,
                moments=kind != "scales",
                sampled=kind == "gptq-balanced",
                behind=FIRST_TOKENS if kind == "gptq-behind" else 0,
                quantized=paired,
                scales=self.calibration("scales", False) if paired else None,
                progress=lambda share: self.progress(f"{what}: activations, {share:.0%}"),
            )
        return self._seen[kind]

    # --- one recipe ---------------------------------------------------------------------------------------------------

    def divergence(
        self, name: str, recipe: StudyRecipe, exact: Reference, share: float
    ) -> tuple[Divergence, ResolvedPolicy]:
        """How far ``recipe`` is from the reference; ``share`` of the work is done before."""
        resolved = resolve(recipe.policy, EMULATION)
        self._share = share
        known = self.calibration_of(recipe)  # tells of itself where it takes long
        self.progress(name)
        build = _exact_weights if recipe.exact_weights else _twin
        with routed(self.network, resolved, known, build) as plan:
            divergence = compare(self.network, exact, plan, lambda prompt: [self.span(recipe, resolved, prompt)])
        return divergence, resolved

    @staticmethod
    def span(recipe: StudyRecipe, resolved: ResolvedPolicy, prompt: Prompt) -> tuple[int, int]:
        """The quantized positions of a prompt with its answer: those of the engine's own row rule."""
        first, stop = resolved.rule().interval(len(prompt.ids))
        if recipe.static_exact:
            first = max(first, prompt.static)
        return first, min(stop, len(prompt.whole))

    def row(
        self, recipe: StudyRecipe, divergence: Divergence, resolved: ResolvedPolicy, exact: Reference
    ) -> dict[str, Any]:
        """A row of the result file, but for what is relative to the baseline."""
        agents = [number for number, prompt in enumerate(exact.prompts) if prompt.kind != "plain"]
        plain = [number for number, prompt in enumerate(exact.prompts) if prompt.kind == "plain"]
        rows = sum(len(exact.prompts[number].ids) for number in agents)
        spans = [
            (self.span(recipe, resolved, exact.prompts[number]), len(exact.prompts[number].ids)) for number in agents
        ]
        share = sum(max(0, min(stop, length) - first) for (first, stop), length in spans) / max(1, rows)
        row: dict[str, Any] = {
            "kl": _mean(divergence.kl, agents),
            "kl_ci95": _interval(divergence.kl, agents, self.settings.seed),
            "kl_first": _mean(divergence.kl, agents, 0, 1),
            "kl_early": _mean(divergence.kl, agents, 1, EARLY),
            "kl_late": _mean(divergence.kl, agents, LATE),
            "top1": _mean(divergence.same, agents),
            "top1_first": _mean(divergence.same, agents, 0, 1),
            "kl_by_kind": {
                kind: _mean(divergence.kl, [number for number in agents if exact.prompts[number].kind == kind])
                for kind in dict.fromkeys(exact.prompts[number].kind for number in agents)
            },
            "kl_plain": _mean(divergence.kl, plain) if plain else None,
            "rows_quantized": share,
            "flops_quantized": flops_by_format(self.members, resolved, share),
            "policy": recipe.policy.model_dump(mode="json", exclude_defaults=True),
            "calibration": recipe.calibration,
            "static_exact": recipe.static_exact,
        }
        if recipe.source:
            row["source"] = True
        elif resolved.prefill_format.value == "nvfp4" and resolved.rule().reach is not Reach.EVERYTHING:
            row["predicted_added_time"] = {"b200": added_time(self.members, resolved)}
        return row


def run(
    network: Any,
    tokenizer: Any,
    settings: Settings = Settings(),
    progress: Progress = lambda what, share: None,
    found_so_far: Callable[[StudyResult], None] = lambda result: None,
) -> StudyResult:
    """Measure all recipes, or those of ``settings.only``.

    Args:
        network, tokenizer: see :func:`~mixquant_agents.quant.calibration.network.load`.
        settings: how much is measured.
        progress: called with what is being done and the share done.
        found_so_far: given the result after each recipe, the baseline's being the first.

    Raises:
        ConfigError: an unknown recipe, or nothing to measure.
    """
    started = time.perf_counter()
    named = known_recipes(settings.only)
    if settings.prompts + settings.plain < 1 or settings.tokens < 2:
        raise ConfigError(f"{settings.prompts + settings.plain} prompts and {settings.tokens} tokens: give 1 and 2")
    study = _Study(network, tokenizer, settings, progress)
    asked = conversations(settings.prompts, "measured", settings.seed)
    prompts = prompts_of(tokenizer, asked, plain_texts("measured")[: settings.plain])
    study.progress("exact answers", 0.0)
    exact = reference(network, greedy(network, prompts, settings.tokens), settings.rows)
    todo = {BASELINE: named[BASELINE]} | {
        name: recipe for name, recipe in named.items() if _asked(settings, name, recipe)
    }
    projections = list(dict.fromkeys(name.rpartition(".")[2] for group in study.members for name in group.names))
    if settings.sources and not settings.only:
        todo |= sources(projections)
    result = StudyResult(_head(network, exact, study, settings))
    ranked_only = settings.units and (not settings.only or any(name in RANKED for name in settings.only))
    if ranked_only:
        names = [group.name for group in study.members]
        result.units = _loss_alone(study, unit_sources(names))
        result.chosen = within_budget(study.members, result.units, BUDGET)
        ranked = budget_recipes(result.chosen)
        todo |= {name: recipe for name, recipe in ranked.items() if _asked(settings, name, recipe)}
    if settings.layers:
        blocks = sum(group.name.endswith(("qkv_proj", "query_key_value", "c_attn")) for group in study.members)
        loss = _loss_alone(study, layer_sources(blocks))
        result.layers = {int(name.split()[1]): kl for name, kl in loss.items()}
        order = list(result.layers)
        for count in (1, 2, 4, 8):
            todo[f"worst-{count}-fp8"] = worst_layers(order, count, named["plain"])
            todo[f"kv-fp8+worst-{count}-fp8"] = worst_layers(order, count, named["kv-fp8"])
    for number, (name, recipe) in enumerate(todo.items()):
        divergence, resolved = study.divergence(name, recipe, exact, number / len(todo))
        row = result.rows[name] = study.row(recipe, divergence, resolved, exact)
        base = result.rows[BASELINE]
        row["kl_removed"] = 1 - row["kl"] / base["kl"]
        row["first_removed"] = 1 - row["kl_first"] / base["kl_first"]
        result.head["distillation_kl"] = {name: [*losses[:1], *losses[9::10]] for name, losses in study.losses.items()}
        result.head["seconds"] = round(time.perf_counter() - started, 1)
        found_so_far(result)
    if settings.turns:
        result.turns = by_turn(
            network,
            tokenizer,
            named,
            study.calibration_of,
            count=settings.turns,
            seed=settings.seed,
            rows=settings.rows,
            progress=study.progress,
        )
    result.head["seconds"] = round(time.perf_counter() - started, 1)
    return result


def _asked(settings: Settings, name: str, recipe: StudyRecipe) -> bool:
    """Whether to measure it: what is named, else all but trained twins, which take longer than the others together."""
    return name in settings.only if settings.only else recipe.calibration != "distilled"


def _loss_alone(study: _Study, alone: Mapping[str, StudyRecipe]) -> dict[str, float]:
    """The loss of each, worst first, on calibration prompts: what is measured later had no part in it."""
    sample = [prompt for prompt in study.calibration_prompts if prompt.kind != "plain"][: study.settings.ranking]
    exact = reference(study.network, greedy(study.network, sample, 24), study.settings.rows)
    loss = {}
    for number, (name, recipe) in enumerate(alone.items()):
        divergence, _ = study.divergence(f"ranking: {name}", recipe, exact, number / len(alone))
        loss[name] = _mean(divergence.kl, list(range(len(sample))))
    return dict(sorted(loss.items(), key=lambda item: -item[1]))


def _head(network: Any, exact: Reference, study: _Study, settings: Settings) -> dict[str, Any]:
    cuda = network.device.type == "cuda"
    lengths = [len(prompt.ids) for prompt in exact.prompts if prompt.kind != "plain"]
    return {
        "model": str(network.config._name_or_path),
        "dtype": str(network.dtype).removeprefix("torch."),
        "device": torch.cuda.get_device_name() if cuda else "cpu",
        "arithmetic": "emulated: values rounded as the kernels round them, multiplied in the dtype above",
        "prompts": settings.prompts,
        "plain_prompts": settings.plain,
        "prompt_tokens": [min(lengths, default=0), int(np.median(lengths or [0])), max(lengths, default=0)],
        "static_tokens": int(np.median([prompt.static for prompt in exact.prompts if prompt.kind != "plain"] or [0])),
        "answer_tokens": sum(len(prompt.answer) for prompt in exact.prompts),
        "calibration_prompts": len(study.calibration_prompts),
        "calibration_tokens": sum(len(prompt.ids) for prompt in study.calibration_prompts),
        "baseline": BASELINE,
        "lessons": settings.lessons,
        "distillation": asdict(settings.training),
        "seed": settings.seed,
    }


def _mean(values: Mapping[int, torch.Tensor], numbers: Sequence[int], first: int = 0, stop: int | None = None) -> float:
    """Over all answer tokens from ``first`` to ``stop`` of these prompts; NaN where there are none."""
    kept = [values[number][first:stop] for number in numbers]
    return float(torch.cat(kept).mean()) if kept else float("nan")


def _interval(values: Mapping[int, torch.Tensor], numbers: Sequence[int], seed: int, draws: int = 2000) -> list[float]:
    """95 % interval of the mean over all answer tokens, by drawing prompts again and again."""
    sums = np.array([float(values[number].sum()) for number in numbers])
    counts = np.array([values[number].numel() for number in numbers])
    drawn = np.random.default_rng(seed).integers(0, len(numbers), size=(draws, len(numbers)))
    means = sums[drawn].sum(1) / counts[drawn].sum(1)
    return [float(value) for value in np.percentile(means, (2.5, 97.5))]


def _twin(twin: Twin[Any], weight: torch.Tensor, calibration: LayerCalibration) -> Any:
    return twin.build(weight, calibration)


def _exact_weights(twin: Twin[Any], weight: torch.Tensor, calibration: LayerCalibration) -> Any:
    """The twin's rounding of activations, on the weight as it is."""
    state = twin.build(weight, calibration)
    if not isinstance(state, Grid):
        raise ConfigError(f"{twin.name!r} has parts of several formats; exact weights are for one")
    return state._replace(grid=weight.to(state.grid.dtype), scale=torch.ones((), device=weight.device))
