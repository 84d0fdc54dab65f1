"""What a user asks for: which number format reads (prefill) and which writes (decode)."""

from __future__ import annotations

import difflib
import hashlib
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from mixquant_agents.errors import UnknownPolicyError
from mixquant_agents.precision.formats import FORMATS, FormatName, NumberFormat
from mixquant_agents.precision.recipe import FIRST_TOKENS, PLAIN, BlockScales, ChannelScales, Recipe, WeightRounding
from mixquant_agents.validation import FrozenConfig

__all__ = ["NVFP4_RECIPE", "POLICY_PRESETS", "PolicyName", "PrecisionPolicy"]

PolicyName = Literal[
    "exact",
    "mixquant",
    "mixquant-nvfp4",
    "mixquant-fp8",
    "mixquant-int8",
    "mixquant-mxfp4",
    "mixquant-nvfp4-plain",
    "uniform-nvfp4",
    "uniform-fp8",
    "uniform-int8",
    "uniform-mxfp4",
]


class PrecisionPolicy(FrozenConfig):
    """Which number format reads (prefill) and which writes (decode), row by row.

    Attributes:
        prefill_format: format of prefill rows.
        decode_format: format of decode rows; equal to ``prefill_format`` it makes a *uniform* policy.
        row_threshold: a step with at most this many rows runs exact altogether, because quantizing would cost more than
            it saves. ``"auto"`` measures it at start on a GPU and is 0 on a CPU, where nothing is saved by emulation.
        exact_last_token: run the last prompt token exact, as the paper's deployment does. ``"auto"``: on for 4-bit
            formats, off for FP8 and INT8, because it costs a full pass over the exact weights. Off in uniform policies,
            where ``True`` is refused.
        exact_last_token_from: prompts shorter than this many tokens have no exact last token after all: its cost, one
            pass over the exact weights, is a smaller share of a longer prompt's.
        exact_last_tokens: where the last prompt token runs exact, so many of the last ones do: a pass over the exact
            weights costs the same for a few dozen rows as for one.
        exact_first_tokens: so many tokens at a prompt's beginning stay exact. Those that the prefix cache holds cost
            nothing again.
        exact_static_prefix: the system prompt and the tools of a chat stay exact. They are read once: the prefix cache
            lends their KV blocks to all requests that begin alike, whatever their policy.
        formats: number formats of single projections or layers, ``{"k_proj": "fp8", "v_proj": "fp8"}``: a name as in
            ``ignored_layers`` and the format of its quantized rows (``"exact"`` for none). The first that matches
            counts; a layer that none names has ``prefill_format``. Of layers that vLLM runs as one (q, k, v; gate, up)
            the parts may differ: such a layer is split along its outputs.
        weight_rounding, weight_scales, activation_scales, channel_scales, residual_channels: see
            :class:`~mixquant_agents.precision.recipe.Recipe`; for layers in NVFP4.
        ignored_layers: names of Linear layers (full, or a ``re:`` pattern) that stay exact in both phases.
        expert_twins_gib: layers of experts have twins of so many GiB together on a GPU at most, the others run exact.
            ``None``: as many have one as fit beside the model and its KV cache.
        weight_only: quantize weights but not activations (W4A16 for NVFP4). For studies of where the error comes from.
        reproducible: a row's precision never depends on what else is in the batch (threshold 0).
        draft: ``"twin"``: the twin drafts the next tokens of an answer and the exact weights verify them in one step:
            writing is faster, and the answer stays the exact model's. ``"auto"``: where that pays and nothing stands
            against it. ``None``: off.
        draft_tokens: how many tokens are drafted at a time.
        draft_ngram: while all answers copy what they have read, what followed the same tokens before is drafted,
            without a step of the twin. Off by default: no GPU has run it yet.
        draft_window: of a longer context drafts read the beginning and so many of its last tokens; ``None``: all of it.
        prefill_checkpoint: path or id of a pre-quantized NVFP4 checkpoint of the same model, used for the twin weights.
        storage: how exact weights and FP8 twins are held. ``"separate"``: two copies. ``"nested"``: one, of twelve bits
            a weight, less than the exact weights alone take; each of those comes back bit for bit.
            Hopper and Ada have it, a CPU emulates it. ``"auto"``: nested where nothing measured is slower by it.
        calibration: folder that ``mixquant calibrate`` wrote for the same model, ``"auto"`` for the one in the cache:
            scales of activations for NVFP4, and twins rounded by GPTQ. ``None``: activations are scaled by 1.
    """

    prefill_format: NumberFormat = NumberFormat.AUTO
    decode_format: NumberFormat = NumberFormat.EXACT
    row_threshold: Literal["auto"] | Annotated[int, Field(ge=0)] = "auto"
    exact_last_token: Literal["auto"] | bool = "auto"  # noqa: S105 - a token of text, not a secret
    exact_last_token_from: Annotated[int, Field(ge=0)] = 0
    exact_last_tokens: Annotated[int, Field(ge=1)] = 1
    exact_first_tokens: Annotated[int, Field(ge=0)] = 0
    exact_static_prefix: bool = False
    formats: tuple[tuple[str, NumberFormat], ...] = ()
    weight_rounding: WeightRounding = "nearest"
    weight_scales: BlockScales = "max"
    activation_scales: BlockScales = "max"
    channel_scales: ChannelScales = "none"
    residual_channels: Annotated[int, Field(ge=0)] = 0
    ignored_layers: tuple[str, ...] = ()
    expert_twins_gib: Annotated[float, Field(ge=0)] | None = None
    weight_only: bool = False
    reproducible: bool = False
    draft: Literal["twin", "auto"] | None = None
    draft_tokens: Literal["auto"] | Annotated[int, Field(ge=1, le=8)] = "auto"
    draft_ngram: bool = False
    draft_window: Literal["auto"] | Annotated[int, Field(ge=64)] | None = "auto"
    prefill_checkpoint: str | None = None
    calibration: str | None = None
    storage: Literal["auto", "separate", "nested"] = "auto"

    if TYPE_CHECKING:  # what may be given is more than what the fields hold: names of formats, a mapping of them

        def __init__(
            self,
            *,
            prefill_format: NumberFormat | FormatName = ...,
            decode_format: NumberFormat | FormatName = ...,
            row_threshold: Literal["auto"] | int = ...,
            exact_last_token: Literal["auto"] | bool = ...,
            exact_last_token_from: int = ...,
            exact_last_tokens: int = ...,
            exact_first_tokens: int = ...,
            exact_static_prefix: bool = ...,
            formats: Mapping[str, NumberFormat | FormatName] | Sequence[tuple[str, NumberFormat | FormatName]] = ...,
            weight_rounding: WeightRounding = ...,
            weight_scales: BlockScales = ...,
            activation_scales: BlockScales = ...,
            channel_scales: ChannelScales = ...,
            residual_channels: int = ...,
            ignored_layers: Sequence[str] = ...,
            expert_twins_gib: float | None = ...,
            weight_only: bool = ...,
            reproducible: bool = ...,
            draft: Literal["twin", "auto"] | None = ...,
            draft_tokens: Literal["auto"] | int = ...,
            draft_ngram: bool = ...,
            draft_window: Literal["auto"] | int | None = ...,
            prefill_checkpoint: str | None = ...,
            calibration: str | None = ...,
            storage: Literal["auto", "separate", "nested"] = ...,
        ) -> None: ...

    @field_validator("formats", mode="before")
    @classmethod
    def _formats_by_name(cls, value: Any) -> Any:
        return tuple(value.items()) if isinstance(value, Mapping) else value

    @model_validator(mode="after")
    def _check_phases(self) -> PrecisionPolicy:
        if self.decode_format is NumberFormat.AUTO:
            raise ValueError("decode_format cannot be 'auto'; name a format, or leave it 'exact'")
        if self.prefill_format is NumberFormat.EXACT and self.decode_format is not NumberFormat.EXACT:
            raise ValueError(
                f"decode_format={self.decode_format.value!r} with prefill_format='exact' is not supported; leave "
                "decode_format 'exact', or use that format for both"
            )
        if self.decode_format is not NumberFormat.EXACT and self.decode_format is not self.prefill_format:
            raise ValueError(
                f"decode_format={self.decode_format.value!r} is not prefill_format={self.prefill_format.value!r}; "
                "a quantized decode must use the prefill's format, or stay 'exact'"
            )
        if self.reproducible and self.row_threshold not in ("auto", 0):
            raise ValueError(f"reproducible=True needs row_threshold 0, not {self.row_threshold}")
        if self.weight_only and self.prefill_format not in FORMATS:
            raise ValueError("weight_only=True needs a named quantized prefill_format")
        return self

    @model_validator(mode="after")
    def _check_drafts(self) -> PrecisionPolicy:
        if self.draft == "twin" and (self.uniform or not self.quantizes):
            raise ValueError(
                f"draft='twin' with prefill_format={self.prefill_format.value!r}, decode_format="
                f"{self.decode_format.value!r}: drafts come from a quantized twin and are verified by the exact "
                "weights; use a phase-aware policy, or leave draft None"
            )
        if self.draft is None and self.draft_tokens != "auto":
            raise ValueError(f"draft_tokens={self.draft_tokens} without drafts; set draft='twin', or leave it 'auto'")
        if self.draft is None and self.draft_ngram:
            raise ValueError("draft_ngram=True without drafts; set draft='twin', or leave it False")
        if self.draft is None and isinstance(self.draft_window, int):
            raise ValueError(f"draft_window={self.draft_window} without drafts; set draft='twin', or leave it 'auto'")
        return self

    @model_validator(mode="after")
    def _check_exact_rows(self) -> PrecisionPolicy:
        if self.uniform and self.exact_last_token is True:
            raise ValueError(
                f"exact_last_token=True with decode_format={self.decode_format.value!r} is not supported: the rows of "
                "a request that are quantized are one run of positions, and a uniform policy quantizes them on both "
                "sides of that token; leave exact_last_token 'auto', or decode_format 'exact'"
            )
        if self.exact_last_tokens > 1 and (self.uniform or self.exact_last_token is False):
            reason = f"decode_format={self.decode_format.value!r}" if self.uniform else "exact_last_token=False"
            raise ValueError(
                f"exact_last_tokens={self.exact_last_tokens} with {reason}: no prompt token at the end runs exact; "
                "leave it 1"
            )
        if self.uniform and self.exact_first_tokens:
            raise ValueError(
                f"exact_first_tokens={self.exact_first_tokens} with decode_format={self.decode_format.value!r}: a "
                "uniform policy quantizes every row; leave it 0"
            )
        if self.uniform and self.exact_static_prefix:
            raise ValueError(
                f"exact_static_prefix=True with decode_format={self.decode_format.value!r}: a uniform policy quantizes "
                "every row; leave it False"
            )
        return self

    @model_validator(mode="after")
    def _check_formats(self) -> PrecisionPolicy:
        if not self.formats:
            return self
        if self.prefill_format in (NumberFormat.AUTO, NumberFormat.EXACT):
            raise ValueError(
                f"formats needs a named quantized prefill_format for all other layers, not "
                f"{self.prefill_format.value!r}"
            )
        for layer, layer_format in self.formats:
            if layer_format is NumberFormat.AUTO:
                raise ValueError(f"formats: {layer!r} cannot be 'auto'; name a format, or 'exact'")
        return self

    @model_validator(mode="after")
    def _check_recipe(self) -> PrecisionPolicy:
        if self.recipe != PLAIN and self.prefill_format is not NumberFormat.NVFP4:
            raise ValueError(
                f"weight_rounding, weight_scales, activation_scales, channel_scales and residual_channels are NVFP4's, "
                f"not {self.prefill_format.value!r}'s; leave them as they are"
            )
        if self.weight_only and self.recipe.of_activations:
            raise ValueError(
                f"{self.recipe.of_activations} is about activations, and weight_only=True leaves them as they are; "
                "leave one of them out"
            )
        reads = [self.prefill_format, *(layer_format for _, layer_format in self.formats)]
        if self.calibration is not None and not {NumberFormat.AUTO, NumberFormat.NVFP4} & set(reads):
            raise ValueError(
                f"calibration={self.calibration!r} is for layers in NVFP4, and prefill_format is "
                f"{self.prefill_format.value!r}; leave calibration None"
            )
        if self.recipe.needs_calibration and self.calibration is None:
            raise ValueError(
                f"weight_rounding={self.weight_rounding!r}, channel_scales={self.channel_scales!r} and "
                f"residual_channels={self.residual_channels} need a calibration: run mixquant calibrate once, and set "
                "calibration='auto'"
            )
        if self.weight_rounding == "gptq-behind" and self.exact_first_tokens < FIRST_TOKENS:
            raise ValueError(
                f"weight_rounding='gptq-behind' rounds for tokens behind the first {FIRST_TOKENS}, and "
                f"exact_first_tokens={self.exact_first_tokens} quantizes earlier ones; use 'gptq', or "
                f"exact_first_tokens={FIRST_TOKENS}"
            )
        if self.channel_scales != "none" and self.residual_channels:
            raise ValueError(
                f"channel_scales={self.channel_scales!r} with residual_channels={self.residual_channels} is not "
                "supported: residuals are taken of the channels as they are; use one of them"
            )
        return self

    @model_validator(mode="after")
    def _check_checkpoint(self) -> PrecisionPolicy:
        if self.prefill_checkpoint is None:
            return self
        spec = FORMATS.get(self.prefill_format)
        if not (spec and spec.has_checkpoints):
            names = " or ".join(repr(name.value) for name, spec in FORMATS.items() if spec.has_checkpoints)
            raise ValueError(f"prefill_checkpoint={self.prefill_checkpoint!r} needs prefill_format={names}")
        if self.weight_rounding != "nearest" or self.weight_scales != "max":
            setting = (
                f"weight_rounding={self.weight_rounding!r}"
                if self.weight_rounding != "nearest"
                else f"weight_scales={self.weight_scales!r}"
            )
            raise ValueError(f"{setting} and prefill_checkpoint each bring the twins; leave one of them out")
        if self.channel_scales != "none":
            raise ValueError(
                f"channel_scales={self.channel_scales!r} with a prefill_checkpoint: its weights were made for inputs "
                "as they are; leave channel_scales 'none'"
            )
        for layer, layer_format in self.formats:
            if layer_format not in (self.prefill_format, NumberFormat.EXACT):
                raise ValueError(
                    f"formats gives {layer!r} the format {layer_format.value!r}, and prefill_checkpoint="
                    f"{self.prefill_checkpoint!r} holds twins in {self.prefill_format.value!r} alone; leave one of "
                    "them out"
                )
        return self

    @model_validator(mode="after")
    def _check_storage(self) -> PrecisionPolicy:
        if self.storage != "nested":
            return self
        if self.prefill_format not in (NumberFormat.AUTO, NumberFormat.FP8):
            raise ValueError(
                f"storage='nested' holds FP8 twins, not prefill_format={self.prefill_format.value!r}; use "
                "prefill_format 'fp8', or leave storage 'auto'"
            )
        if self.weight_only:
            raise ValueError("storage='nested' with weight_only=True has no product; leave storage 'auto'")
        if self.formats:
            raise ValueError(
                "storage='nested' holds whole layers in FP8, and formats gives some parts others; leave formats empty "
                "(ignored_layers keeps layers exact), or storage 'auto'"
            )
        return self

    @model_validator(mode="after")
    def _check_layer_names(self) -> PrecisionPolicy:
        named = [("ignored_layers", layer) for layer in self.ignored_layers]
        for field, layer in [*named, *(("formats", layer) for layer, _ in self.formats)]:
            try:
                re.compile(layer.removeprefix("re:"))
            except re.error as error:
                raise ValueError(f"{field} holds {layer!r}, which is no pattern: {error}") from None
        return self

    @property
    def quantizes(self) -> bool:
        """Whether any row may be quantized."""
        return self.prefill_format is not NumberFormat.EXACT

    @property
    def uniform(self) -> bool:
        """Whether both phases use the same quantized format."""
        return self.quantizes and self.decode_format is self.prefill_format

    @property
    def recipe(self) -> Recipe:
        """How layers in NVFP4 are rounded."""
        return Recipe(
            self.weight_rounding,
            self.weight_scales,
            self.activation_scales,
            self.residual_channels,
            self.channel_scales,
        )

    @property
    def name(self) -> str:
        """The preset's name when this equals a preset, with ``-reproducible`` behind it when it differs from one in
        that alone; else ``custom-`` and a short fingerprint."""
        for name, preset in POLICY_PRESETS.items():
            if self == preset:
                return name
            if self.reproducible and self == preset.model_copy(update={"reproducible": True}):
                return f"{name}-reproducible"
        return f"custom-{self.fingerprint[:8]}"

    @property
    def fingerprint(self) -> str:
        """Hex digest of every setting; used to salt the prefix cache, so that policies never share KV blocks."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()

    @classmethod
    def of(cls, value: PrecisionPolicy | str) -> PrecisionPolicy:
        """A policy, or the preset of that name.

        Raises:
            UnknownPolicyError: no preset has this name.
        """
        if isinstance(value, PrecisionPolicy):
            return value
        if not isinstance(value, str) or value not in POLICY_PRESETS:
            near = difflib.get_close_matches(str(value), POLICY_PRESETS, 1)
            meant = f" (did you mean {near[0]!r}?)" if near else ""
            raise UnknownPolicyError(f"no policy preset {value!r}{meant}; choose one of {', '.join(POLICY_PRESETS)}")
        return POLICY_PRESETS[value]


NVFP4_RECIPE: dict[str, Any] = {
    "exact_static_prefix": True,
    "exact_first_tokens": 4,
    "exact_last_tokens": 124,
    "weight_rounding": "gptq",
    "weight_scales": "4/6",
    "channel_scales": "balanced",
    "calibration": "auto",
}
"""What NVFP4 reads with by default, by the figures of ``docs/nvfp4-fidelity.md``: to a prefill that finds its static
beginning in the cache it adds what 128 exact rows take beyond one. Predicted: 1 to 3 % at 2k tokens, less beyond."""

POLICY_PRESETS: dict[str, PrecisionPolicy] = {
    "exact": PrecisionPolicy(prefill_format=NumberFormat.EXACT),
    "mixquant": PrecisionPolicy(),
    **{f"mixquant-{name}": PrecisionPolicy(prefill_format=name) for name in FORMATS},
    "mixquant-nvfp4": PrecisionPolicy(prefill_format=NumberFormat.NVFP4, **NVFP4_RECIPE),
    "mixquant-nvfp4-plain": PrecisionPolicy(prefill_format=NumberFormat.NVFP4),
    **{f"uniform-{name}": PrecisionPolicy(prefill_format=name, decode_format=name) for name in FORMATS},
}
"""Policies by name: ``mixquant-FORMAT`` reads in the format and writes exact, ``uniform-FORMAT`` does both in it.
``mixquant-nvfp4`` has :data:`NVFP4_RECIPE`; ``mixquant-nvfp4-plain`` is the same without it, for comparison."""
