"""Frozen configuration: what precision reads and writes, and how the engine is started.

Unknown settings are refused (``extra="forbid"``); nothing here imports torch, vllm or langchain.
"""

from __future__ import annotations

import enum
import hashlib
import json
import re
from typing import Annotated, Any, Literal

from pydantic import Field, JsonValue, StringConstraints, model_validator

from mixquant_agents.errors import UnknownPolicyError
from mixquant_agents.validation import FrozenConfig

__all__ = [
    "POLICY_PRESETS",
    "EngineConfig",
    "NumberFormat",
    "Phase",
    "PolicyName",
    "PrecisionPolicy",
]


class Phase(enum.StrEnum):
    """What a token row of a forward pass is doing.

    A row is ``PREFILL`` iff its absolute position is below ``prompt_len - 1``; the last prompt token produces the first
    answer token, so it belongs to ``DECODE`` unless the policy says otherwise.
    """

    PREFILL = "prefill"
    DECODE = "decode"


class NumberFormat(enum.StrEnum):
    """Number format of the Linear layers inside the transformer blocks.

    ``EXACT`` is the engine's own dtype (BF16 on GPU, float32 on CPU). ``NVFP4`` is W4A4: E2M1 in blocks of 16 with
    FP8-E4M3 block scales. ``FP8`` is E4M3 with per-channel weight and per-token activation scales. ``INT8`` likewise.
    ``AUTO`` takes what the device runs natively: NVFP4 on Blackwell, FP8 on Hopper and Ada, EXACT elsewhere.
    """

    AUTO = "auto"
    EXACT = "exact"
    NVFP4 = "nvfp4"
    FP8 = "fp8"
    INT8 = "int8"


PolicyName = Literal[
    "exact",
    "mixquant",
    "mixquant-nvfp4",
    "mixquant-fp8",
    "mixquant-int8",
    "uniform-nvfp4",
    "uniform-fp8",
    "uniform-int8",
]


class PrecisionPolicy(FrozenConfig):
    """Which number format reads (prefill) and which writes (decode), row by row.

    Attributes:
        prefill_format: format of prefill rows.
        decode_format: format of decode rows; equal to ``prefill_format`` it makes a *uniform* policy.
        row_threshold: a step with at most this many rows runs exact altogether, because quantizing would cost more than
            it saves. ``"auto"`` measures it at start on a GPU and is 0 on a CPU, where nothing is saved by emulation.
        exact_last_token: run the last prompt token exact, as the paper's deployment does. ``"auto"``: on for NVFP4, off
            for FP8 and INT8, because it costs a full pass over the exact weights.
        ignored_layers: names of Linear layers (full, or a ``re:`` pattern) that stay exact in both phases.
        weight_only: quantize weights but not activations (W4A16 for NVFP4). For studies of where the error comes from.
        reproducible: a row's precision never depends on what else is in the batch (threshold 0).
        prefill_checkpoint: path or id of a pre-quantized NVFP4 checkpoint of the same model, used for the twin weights.
    """

    prefill_format: NumberFormat = NumberFormat.AUTO
    decode_format: NumberFormat = NumberFormat.EXACT
    row_threshold: Literal["auto"] | Annotated[int, Field(ge=0)] = "auto"
    exact_last_token: Literal["auto"] | bool = "auto"  # noqa: S105 - a token of text, not a secret
    ignored_layers: tuple[str, ...] = ()
    weight_only: bool = False
    reproducible: bool = False
    prefill_checkpoint: str | None = None

    @model_validator(mode="after")
    def _consistent(self) -> PrecisionPolicy:
        if self.decode_format is NumberFormat.AUTO:
            raise ValueError("decode_format cannot be 'auto'; name a format, or leave it 'exact'")
        if self.prefill_format is NumberFormat.EXACT and self.decode_format is not NumberFormat.EXACT:
            raise ValueError(f"decode_format={self.decode_format.value!r} with an exact prefill is not supported")
        if self.decode_format is not NumberFormat.EXACT and self.decode_format is not self.prefill_format:
            raise ValueError(
                f"decode_format={self.decode_format.value!r} is not prefill_format={self.prefill_format.value!r}; "
                "a quantized decode must use the prefill's format, or stay 'exact'"
            )
        if self.reproducible and self.row_threshold not in ("auto", 0):
            raise ValueError(f"reproducible=True needs row_threshold 0, not {self.row_threshold}")
        if self.prefill_checkpoint is not None and self.prefill_format is not NumberFormat.NVFP4:
            raise ValueError("prefill_checkpoint needs prefill_format='nvfp4'")
        for layer in self.ignored_layers:
            try:
                re.compile(layer.removeprefix("re:"))
            except re.error as error:
                raise ValueError(f"ignored_layers holds {layer!r}, which is no pattern: {error}") from None
        if self.weight_only and self.prefill_format not in (NumberFormat.NVFP4, NumberFormat.FP8, NumberFormat.INT8):
            raise ValueError("weight_only=True needs a named quantized prefill_format")
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
    def name(self) -> str:
        """The preset's name when this equals a preset, else ``custom-`` and a short fingerprint."""
        for name, preset in POLICY_PRESETS.items():
            if self == preset:
                return name
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
            raise UnknownPolicyError(f"no policy preset {value!r}; choose one of {', '.join(POLICY_PRESETS)}")
        return POLICY_PRESETS[value]


POLICY_PRESETS: dict[str, PrecisionPolicy] = {
    "exact": PrecisionPolicy(prefill_format=NumberFormat.EXACT),
    "mixquant": PrecisionPolicy(),
    **{f"mixquant-{f}": PrecisionPolicy(prefill_format=NumberFormat(f)) for f in ("nvfp4", "fp8", "int8")},
    **{
        f"uniform-{f}": PrecisionPolicy(prefill_format=NumberFormat(f), decode_format=NumberFormat(f))
        for f in ("nvfp4", "fp8", "int8")
    },
}


class EngineConfig(FrozenConfig):
    """Everything that makes two engines different; chat models with equal settings share one engine.

    Attributes:
        model: ``"embedded"``, a local folder, or a hub id.
        revision: hub revision (branch, tag or commit).
        policy: a preset's name or a :class:`PrecisionPolicy`.
        dtype: ``"auto"`` is float32 on CPU (bfloat16 is emulated there) and the checkpoint's own on GPU.
        max_model_len: context window in tokens; ``None`` takes the model's own, capped on CPU at 8192.
        max_num_seqs: most turns running at once.
        max_num_batched_tokens: most rows of one engine step; longer prompts are prefilled in chunks.
        kv_cache_bytes: memory for the KV cache; ``None`` sizes it from the device.
        gpu_memory_utilization: share of GPU memory vLLM may take.
        tensor_parallel_size: GPUs that share each layer.
        enable_prefix_caching: reuse KV blocks of equal prompt beginnings.
        enforce_eager: no compilation, no CUDA graphs. ``None``: true on CPU, false on GPU unless the policy's format
            is emulated there.
        capture_sizes: CUDA graph sizes in rows; ``None``: to 2048, and to 4352 for a quantizing policy on GPUs
            of 40 GiB and more.
        seed: engine seed.
        tool_parser: name of a vLLM tool parser, ``"auto"`` (from the model) or ``None``.
        reasoning_parser: name of a vLLM reasoning parser, ``"auto"`` or ``None``.
        chat_template: path of a Jinja template, or ``None`` for the tokenizer's own.
        trust_remote_code: let the checkpoint run its own code. Off unless you trust its author.
        vllm_args: further ``AsyncEngineArgs`` by name; an unknown name is refused.
    """

    model: Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]
    revision: str | None = None
    policy: PrecisionPolicy = PrecisionPolicy()
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    max_model_len: Annotated[int, Field(ge=16)] | None = None
    max_num_seqs: Annotated[int, Field(ge=1)] | None = None
    max_num_batched_tokens: Annotated[int, Field(ge=16)] | None = None
    kv_cache_bytes: Annotated[int, Field(ge=2**20)] | None = None
    gpu_memory_utilization: Annotated[float, Field(gt=0, le=1)] = 0.9
    tensor_parallel_size: Annotated[int, Field(ge=1)] = 1
    enable_prefix_caching: bool = True
    enforce_eager: bool | None = None
    capture_sizes: tuple[Annotated[int, Field(ge=1)], ...] | None = None
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    tool_parser: str | None = "auto"
    reasoning_parser: str | None = "auto"
    chat_template: str | None = None
    trust_remote_code: bool = False
    vllm_args: dict[str, JsonValue] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _policy_by_name(cls, data: Any) -> Any:
        if isinstance(data, dict) and isinstance(data.get("policy"), str):
            return {**data, "policy": PrecisionPolicy.of(data["policy"])}
        return data

    @property
    def fingerprint(self) -> str:
        """Hex digest of every setting: the key under which engines are shared."""
        return hashlib.sha256(json.dumps(self.model_dump(mode="json"), sort_keys=True).encode()).hexdigest()
