"""The state of the plugin in one worker: policy, layers, the plan of the step at hand, counters."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch

from mixquant_agents.errors import ConfigError, FormatRefusedError, MixQuantError
from mixquant_agents.precision.layer_filter import parts_of
from mixquant_agents.precision.plan import Mode, RequestRows
from mixquant_agents.precision.policy import PrecisionPolicy
from mixquant_agents.precision.resolve import ResolvedPolicy, RoutedFormat, resolve
from mixquant_agents.precision.static_prefix import StaticPrefix
from mixquant_agents.precision.support import DeviceInfo
from mixquant_agents.quant.calibration.at_load import calibration_for
from mixquant_agents.quant.counters import RowCounter
from mixquant_agents.quant.experts.layer import ExpertShape
from mixquant_agents.quant.experts.memory import GIB, ExpertsMemory, Offer
from mixquant_agents.quant.formats.registry import twin_of
from mixquant_agents.quant.kernel_check import KernelCheck, check, first_of_each_shape
from mixquant_agents.quant.layer import RoutedLayer
from mixquant_agents.quant.router import GraphSettings, Router
from mixquant_agents.quant.step import EXACT, StepPlan, forced_step
from mixquant_agents.quant.twins.calibrated import UNCALIBRATED, UNKNOWN, LayerCalibration
from mixquant_agents.quant.twins.checkpoint import TwinCheckpoint
from mixquant_agents.quant.twins.memory import TwinMemory

__all__ = ["Runtime", "runtime_of"]

_log = logging.getLogger("vllm.mixquant")
"""Below vLLM's logger, whose handlers the worker has set up."""


class Runtime:
    """One per worker and engine; created with the model's first Linear.

    A step meets it in this order: :meth:`begin_step`, :meth:`plan_step` (from the runner's hook), :meth:`take_plan`
    (when the model's forward context is made), :meth:`end_step`.

    Attributes:
        resolved: the policy in force on this device.
        captured: twins run inside captured graphs.
        router: from rows to a step's plan.
        complete: all layers of the model are made.
        layers: the routed layers, in the model's order.
        counter: rows per request.
        checkpoint: where twins are read from, if not made from the weights.
        kernels: what the products' check at start found, where they are the device's own.
        calibration: what is known of the layers' activations, if anything.
        uncalibrated: why nothing is, although the policy asked for it.
        draft_status: plain JSON of the drafts that the twins make; empty where they make none.
        lookup_cycles: cycles whose drafts followed the same tokens before, without a step of the twin.
        full_graph_rows: rows of the full graph that was chosen for the step at hand, or is being captured; 0: another
            kind of graph, or none.
        draft_shares: time of a draft's products over the exact ones, by the number of rows for which it was measured.
    """

    def __init__(
        self,
        policy: PrecisionPolicy,
        device: DeviceInfo,
        *,
        switchable: bool,
        fused: Mapping[str, Sequence[str]] | None = None,
        graphs: GraphSettings | None = None,
        model: str | None = None,
        room: Callable[[int, int], int] | None = None,
        most_rows: int = 0,
    ) -> None:
        """
        Args:
            policy: what was asked for.
            device: where it runs.
            switchable: the engine is eager, so that twins may change after the model was built.
            fused: vLLM's fused layers and their parts, ``{"qkv_proj": ["q_proj", "k_proj", "v_proj"]}``.
            graphs: what the engine's captured graphs ask of routing, should the twins run inside them.
            model: the checkpoint's folder, for its calibration.
            room: bytes that twins of experts may take, given those of other twins and of the workspace of experts;
                ``None``: the device sets no limit.
            most_rows: of a step.

        Raises:
            FormatRefusedError: the device cannot run the policy, or lacks what its twins need.
            ConfigError: the policy's threshold cannot be honoured in captured graphs.
        """
        self.device = device
        self.switchable = switchable
        self._fused = fused or {}
        first = resolve(policy, device)
        self.calibration, self.uncalibrated = None, None
        if first.calibrated_by:
            self.calibration, self.uncalibrated = calibration_for(first.policy, model, device, make=True)
        self._unknown: set[str] = set()
        self._loaded = _rounding(first), self.calibration, self.uncalibrated
        if self.uncalibrated:
            _log.warning("mixquant: without a calibration (%s)", self.uncalibrated)
        self.resolved = resolve(policy, device, calibrated=self.uncalibrated is None)
        default = self.resolved.default_format
        twins = [twin_of(layer_format) for layer_format in self.resolved.formats]
        for twin in twins:
            twin.prepare()  # refuse before weights are loaded
        self.captured = bool(twins) and all(twin.captured for twin in twins)
        self.router = Router(self.resolved, (graphs or GraphSettings(1, False)) if self.captured else None)
        self.checkpoint = TwinCheckpoint(policy.prefill_checkpoint) if policy.prefill_checkpoint else None
        self._model = model
        self.counter = RowCounter()
        self._prefixes: dict[str, int] = {}
        self.layers: list[RoutedLayer] = []
        self.complete = False
        self._in_blocks, self._first_layer = False, ""
        self.experts = ExpertsMemory()
        self._room, self._most_rows, self._workspace = room, most_rows, 0
        self._memory = TwinMemory(f"{default.name if default else 'exact'} on {device.name}")
        self.kernels: KernelCheck | None = None
        self._step: StepPlan | None = None
        self._coming: Callable[[], Sequence[RequestRows]] | None = None
        self.full_graph_rows = 0
        self._drafts = 0
        self.draft_status: dict[str, Any] = {}
        self.lookup_cycles = 0
        self.draft_shares: dict[int, float] = {}
        self._planned = False
        self._serving = False
        if self.resolved.emulated:
            _log.warning("mixquant: %s is emulated: %s", self.resolved.prefill_format.value, self.resolved.reason)
        elif self.resolved.reason:
            _log.warning("mixquant: %s", self.resolved.reason)

    # --- layers -------------------------------------------------------------------------------------------------------

    def layer_format(self, prefix: str) -> RoutedFormat | None:
        """How quantized rows run in the layer ``prefix``; ``None`` where every row stays exact.

        Raises:
            ConfigError: see :func:`~mixquant_agents.precision.layer_filter.is_ignored`.
        """
        return self._layer_format(self.resolved, prefix)

    def _layer_format(self, resolved: ResolvedPolicy, prefix: str) -> RoutedFormat | None:
        return None if prefix in self.experts.exact else resolved.layer_format(prefix, self._fused)

    def parts_of(self, prefix: str) -> list[str]:
        """Names that a checkpoint has for the layer ``prefix``."""
        return parts_of(prefix, self._fused)

    def calibration_of(self, prefix: str, n: int, k: int) -> LayerCalibration:
        """What is known of the layer ``prefix``, ``[n, k]`` on this rank.

        Raises:
            FormatRefusedError: the calibration that the policy names does not have it; the cache's may lack layers.
        """
        if self.calibration is None:
            return UNCALIBRATED
        if prefix in self._unknown:
            return UNKNOWN
        try:
            return self.calibration.layer(prefix, n, k)
        except FormatRefusedError as error:
            if not self.calibration_is_cached:
                raise
            self.forget_calibration(prefix, str(error))
            return UNKNOWN

    @property
    def calibration_is_cached(self) -> bool:
        """The calibration is the cache's, which may lack layers, not one that the policy names."""
        return self._loaded[0][0] == "auto"

    def forget_calibration(self, prefix: str, reason: str) -> None:
        """The calibration does not hold for the layer ``prefix``: its values are rounded to the nearest from now on."""
        if not self._unknown:
            _log.warning("mixquant: some layers are not calibrated (%s)", reason)
        self._unknown.add(prefix)

    def reserve(self, nbytes: int, beside: bool = True) -> None:
        """A twin of ``nbytes`` is going to be built: once all weights are read, ``beside`` its own, or while they are.

        Raises:
            OutOfMemoryError: it will not fit.
        """
        self._memory.add(nbytes, beside)

    def offer(self, prefix: str, nbytes: int, shape: ExpertShape) -> None:
        """The layer of experts ``prefix`` would have a twin of ``nbytes``, if there is room."""
        self.experts.offers.append(Offer(prefix, nbytes, shape.work))
        rows = self._most_rows * shape.chosen
        self._workspace = max(self._workspace, 4 * rows * max(shape.up, shape.hidden))  # two buffers of 16 bits

    def see(self, prefix: str, known: bool) -> None:
        """The model has a layer ``prefix``; ``known``: by its name it is in a block of the language model."""
        self._in_blocks = self._in_blocks or known
        self._first_layer = self._first_layer or prefix

    def settle(self) -> None:
        """All layers of the model are made: decide which layers of experts have twins. Once; layers that come later
        are a drafter's, and run exact.

        Raises:
            ConfigError: the model has no layer whose rows could be routed.
        """
        self.complete = True
        if self.resolved.quantizes and self._first_layer and not self._in_blocks:
            raise ConfigError(
                f"policy {self.resolved.name!r} would quantize nothing of this model: none of its Linear layers is in "
                f"a numbered block, by its name (layers.0, h.0 or blocks.0; {self._first_layer!r} is one of them); use "
                "policy 'exact'"
            )
        if self.experts.settled or not self.experts.offers:
            return
        limit = self.resolved.policy.expert_twins_gib
        rooms = [] if limit is None else [int(limit * GIB)]
        if self._room is not None:
            rooms.append(self._room(self._memory.needed, self._workspace))
        self.experts.settle(min(rooms, default=None))
        if self.experts.exact:
            _log.warning("mixquant: %s", self.experts.describe())

    def add_layer(self, layer: RoutedLayer) -> None:
        """A routed layer has its weights. Idempotent."""
        if layer not in self.layers:
            self.layers.append(layer)

    @property
    def captured_layers(self) -> list[RoutedLayer]:
        """The layers whose twins run inside captured graphs."""
        return [layer for layer in self.layers if layer.captured]

    @property
    def kinds(self) -> list[RoutedLayer]:
        """Of those, one of each format and shape."""
        return first_of_each_shape(self.captured_layers)

    def check_kernels(self) -> None:
        """Hold the device's products against our references, on one layer of each shape.

        Raises:
            FormatRefusedError: one of them is wrong.
        """
        self.kernels = check(trial for layer in self.kinds for trial in layer.trials())

    # --- policy -------------------------------------------------------------------------------------------------------

    def set_policy(self, policy: PrecisionPolicy) -> None:
        """Switch to ``policy`` between two steps.

        Raises:
            ConfigError: the engine's weights or graphs are those of the first policy; the old policy stays.
            FormatRefusedError: the device cannot run it; the old policy stays.
        """
        if policy.prefill_checkpoint != self.resolved.policy.prefill_checkpoint and policy.quantizes:
            raise ConfigError(
                f"prefill_checkpoint={policy.prefill_checkpoint!r} is not what this engine was started with "
                f"({self.resolved.policy.prefill_checkpoint!r}); start another engine"
            )
        asked = resolve(policy, self.device)
        calibration, uncalibrated, loaded = None, None, self._loaded
        if asked.calibrated_by and _rounding(asked) == loaded[0]:
            _, calibration, uncalibrated = loaded
        elif asked.calibrated_by:
            if not self.switchable or asked.calibrated_by != "auto":
                raise ConfigError(
                    f"calibration={asked.calibrated_by!r} with weight_rounding={asked.policy.weight_rounding!r} is not "
                    "what this engine was started with; start another engine"
                )
            calibration, uncalibrated = calibration_for(asked.policy, self._model, self.device, make=False)
            loaded = _rounding(asked), calibration, uncalibrated
        own = self.resolved.policy
        drafts = [(each.draft, each.draft_tokens, each.draft_ngram, each.draft_window) for each in (own, policy)]
        if "twin" in (own.draft, policy.draft) and drafts[0] != drafts[1]:
            raise ConfigError(
                f"draft={policy.draft!r} is not what this engine was started with ({own.draft!r}, draft_tokens="
                f"{own.draft_tokens!r}, draft_ngram={own.draft_ngram!r}, draft_window={own.draft_window!r}): drafts "
                "are set up with the engine; start another one"
            )
        limits = own.expert_twins_gib, policy.expert_twins_gib
        if limits[0] != limits[1] and policy.quantizes and any(layer.reads_by_row for layer in self.layers):
            raise ConfigError(
                f"expert_twins_gib={limits[1]} is not what this engine was started with ({limits[0]}): which experts "
                "have twins is decided before weights are read; start another engine"
            )
        resolved = resolve(policy, self.device, calibrated=uncalibrated is None)
        for layer_format in resolved.formats:
            twin_of(layer_format).prepare()
        formats = [self._layer_format(resolved, layer.prefix) for layer in self.layers]
        changed = any(layer.layer_format != new for layer, new in zip(self.layers, formats, strict=True))
        if changed and not self.switchable:
            raise ConfigError(
                f"policy {policy.name!r} needs other weights than the running {self.resolved.policy.name!r}, which a "
                "compiled engine cannot swap; start another engine, or this one with enforce_eager=True"
            )
        before = self.calibration, self.uncalibrated, self._loaded
        running = [layer.layer_format for layer in self.layers]
        self.calibration, self.uncalibrated, self._loaded = calibration, uncalibrated, loaded
        try:
            for layer, new in zip(self.layers, formats, strict=True):
                layer.use(new)
            self.router.switch(resolved)
        except MixQuantError:
            self.calibration, self.uncalibrated, self._loaded = before
            for layer, old in zip(self.layers, running, strict=True):
                layer.use(old)
            raise
        self.resolved = resolved

    # --- steps --------------------------------------------------------------------------------------------------------

    def begin_step(self, coming: Callable[[], Sequence[RequestRows]] | None = None) -> None:
        """The runner starts to execute a step; what an earlier one left over is void. ``coming`` gives its requests, in
        any order, once the runner knows them; ``None``: they come with :meth:`plan_step` alone."""
        self._step = None
        self._coming = coming
        self.full_graph_rows = 0
        self._drafts = 0
        self._planned = False
        self._serving = True

    def end_step(self) -> bool:
        """The forward is over. Returns whether there was a plan."""
        self._step = self._coming = None
        self.full_graph_rows = 0
        return self._planned

    def coming_mode(self) -> Mode | None:
        """In which mode the step at hand will run, before its inputs are prepared; ``None``: not known, or in no
        captured graph."""
        return None if self._coming is None else self.router.graph_mode(self._prefixed(self._coming()))

    def _prefixed(self, requests: Iterable[RequestRows]) -> tuple[RequestRows, ...]:
        prefixes = self._prefixes
        if not prefixes:
            return tuple(requests)
        return tuple(request._replace(exact_first=prefixes.get(request.request_id, 0)) for request in requests)

    def ask_for_drafts(self, tokens: int) -> None:
        """The scheduler wants so many tokens drafted for each request once the step is verified."""
        self._drafts = tokens

    def draft_share(self, rows: int) -> float | None:
        """Time of a draft of so many rows over an exact step's, by the next size measured; ``None``: none was."""
        sizes = [size for size in self.draft_shares if size >= rows]
        return self.draft_shares[min(sizes)] if sizes else None

    def take_drafts(self) -> int:
        """How many tokens to draft now; asked once a step."""
        drafts, self._drafts = self._drafts, 0
        return drafts

    def requests_changed(self, new: Iterable[tuple[str, StaticPrefix | None]], finished: Iterable[str]) -> None:
        """Requests come to this worker, with what they say of a static beginning, and others have ended."""
        for request_id in finished:
            self._prefixes.pop(request_id, None)
        for request_id, static in new:
            if static is not None:
                self._prefixes[request_id] = static.tokens

    def plan_step(self, requests: Iterable[RequestRows], drafts: dict[str, int] | None = None) -> StepPlan:
        """Route the step's rows and count them."""
        rows, step = self.router.route(self._prefixed(requests))
        self._step = step
        self._planned = True
        self.counter.record(rows, drafts)
        return step

    def take_plan(self, num_tokens: int | None) -> StepPlan:
        """What a new forward context is to carry: the step's plan once, for the first that is wide enough for it.

        Before the first step (profiling, warm-up) the number of tokens decides; later, contexts other than the model's
        own forward run exact: a draft model's, and an encoder's, which names no number of tokens and comes before that
        forward. Inside of :func:`~mixquant_agents.quant.step.forced` all carry what that asks for.
        """
        forced = forced_step()
        if forced is not None:
            return forced
        if not self._serving:
            return self.router.warmup_step(num_tokens)
        step = self._step
        if step is None or num_tokens is None or num_tokens < step.rows:
            return EXACT
        self._step = None
        return step

    def status(self, model: torch.nn.Module | None = None) -> dict[str, Any]:
        """Plain JSON; see ``vllm/worker_rpc.py``."""
        resolved, default = self.resolved, self.resolved.default_format
        weights = {} if model is None else {p.data_ptr(): p for p in model.parameters()}
        twins = {name: value for each in resolved.formats for name, value in twin_of(each).status().items()}
        twins |= {k: v for each in self.kinds for k, v in each.tuning()[0].status().items()}
        kernels = {} if self.kernels is None else self.kernels.status()
        names = [layer.layer_format.name for layer in self.layers if layer.layer_format is not None]
        return {
            "policy": resolved.name,
            "fingerprint": (resolved.asked or resolved.policy).fingerprint,
            "exact_static_prefix": resolved.policy.exact_static_prefix,
            "prefill_format": resolved.prefill_format.value,
            "decode_format": resolved.decode_format.value,
            "emulated": resolved.emulated,
            "native": resolved.quantizes and not resolved.emulated,
            "reason": resolved.reason,
            "device": self.device.name,
            "row_threshold": self.router.rule.threshold,
            "exact_last_token": resolved.exact_last_token,
            "weight_only": resolved.policy.weight_only,
            "storage": resolved.storage,
            "calibration": None if self.calibration is None else str(self.calibration.path),
            "uncalibrated": self.uncalibrated,
            "uncalibrated_layers": len(self._unknown),
            "routed_layers": sum(layer.layer_format is not None for layer in self.layers),
            "twin": "" if default is None else default.name,
            "layer_formats": {name: names.count(name) for name in dict.fromkeys(names)},
            "twin_bytes": sum(layer.twin_bytes for layer in self.layers),
            "weight_bytes": sum(p.numel() * p.element_size() for p in weights.values()),
            **self.experts.status(),
            **({"gpu": {**self.router.status(), **twins, **kernels}} if self.captured else {}),
        }


def _rounding(resolved: ResolvedPolicy) -> tuple[object, ...]:
    """What a calibration is made for."""
    policy = resolved.policy
    return resolved.calibrated_by, policy.weight_rounding, policy.weight_scales, policy.channel_scales


def runtime_of(vllm_config: Any) -> Runtime | None:
    """The plugin's state in the engine with this configuration of vLLM's; ``None`` when it uses another method."""
    runtime = getattr(getattr(vllm_config, "quant_config", None), "runtime", None)
    return runtime if isinstance(runtime, Runtime) else None
