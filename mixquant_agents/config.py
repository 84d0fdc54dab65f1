"""How the engine is started. The policy's own types are in :mod:`mixquant_agents.precision`, and named here too.

Unknown settings are refused (``extra="forbid"``); nothing here imports torch, vllm or langchain.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, JsonValue, StringConstraints, model_validator

from mixquant_agents.precision.formats import NumberFormat
from mixquant_agents.precision.policy import POLICY_PRESETS, PolicyName, PrecisionPolicy
from mixquant_agents.validation import FrozenConfig

__all__ = [
    "BACKGROUND_PRIORITY",
    "BACKGROUND_ROWS",
    "CAPTURE_SIZES",
    "POLICY_PRESETS",
    "EngineConfig",
    "NumberFormat",
    "PolicyName",
    "PrecisionPolicy",
]

CAPTURE_SIZES = (
    *(1, 2, 4, *range(8, 256, 8), *range(256, 512, 32), *range(512, 1024, 64), *range(1024, 2048, 128)),
    *(2048, 2112, 2176, 2304, *range(2560, 4097, 256), 4160, 4352),
)
"""Rows of captured CUDA graphs, by default. An agent's warm turn adds hundreds to thousands of rows, and the decode
rows of other agents come on top, so 2048 is not where it ends: up to about 4352 rows a step that is not captured is
bound by launches."""

BACKGROUND_PRIORITY = 2**20
"""From this priority on a request is no turn that somebody waits for: it reads ahead, behind all turns and where it
costs their writing little (:mod:`mixquant_agents.quant.deferral`)."""

BACKGROUND_ROWS = CAPTURE_SIZES[-1]
"""Most rows of a step that reads ahead, decode rows included: it holds up whoever writes, and lasts half as long as the
step of 8,192 rows that it saves. A larger one would not be captured as a CUDA graph by default."""


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
        gpu_memory_utilization: share of GPU memory vLLM may take, and that must be free at the start. ``None``: 0.9,
            or, with ``kv_cache_bytes``, what weights, cache and steps need, beside whatever other programs hold.
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
        sleep_mode: on a GPU: ``sleep()`` puts the weights into the host's memory, from where they are back within
            seconds, instead of ending the engine's processes. That memory is pinned while the engine starts. vLLM then
            allocates in its own way.
        liveness_seconds: a turn is given up with ``EngineDeadError`` when the engine's processes have done nothing at
            all (no CPU time) for so long while it waited; ``None`` waits for ever. Slow is not stopped.
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
    gpu_memory_utilization: Annotated[float, Field(gt=0, le=1)] | None = None
    tensor_parallel_size: Annotated[int, Field(ge=1)] = 1
    enable_prefix_caching: bool = True
    enforce_eager: bool | None = None
    capture_sizes: tuple[Annotated[int, Field(ge=1)], ...] | None = None
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    tool_parser: str | None = "auto"
    reasoning_parser: str | None = "auto"
    chat_template: str | None = None
    sleep_mode: bool = False
    liveness_seconds: Annotated[float, Field(gt=0)] | None = 60.0
    trust_remote_code: bool = False
    vllm_args: dict[str, JsonValue] = Field(default_factory=dict)

    if TYPE_CHECKING:  # what may be given is more than what the fields hold: a policy's name

        def __init__(
            self,
            *,
            model: str,
            revision: str | None = ...,
            policy: PrecisionPolicy | str = ...,
            dtype: Literal["auto", "float32", "bfloat16", "float16"] = ...,
            max_model_len: int | None = ...,
            max_num_seqs: int | None = ...,
            max_num_batched_tokens: int | None = ...,
            kv_cache_bytes: int | None = ...,
            gpu_memory_utilization: float | None = ...,
            tensor_parallel_size: int = ...,
            enable_prefix_caching: bool = ...,
            enforce_eager: bool | None = ...,
            capture_sizes: Sequence[int] | None = ...,
            seed: int = ...,
            tool_parser: str | None = ...,
            reasoning_parser: str | None = ...,
            chat_template: str | None = ...,
            sleep_mode: bool = ...,
            liveness_seconds: float | None = ...,
            trust_remote_code: bool = ...,
            vllm_args: dict[str, JsonValue] = ...,
        ) -> None: ...

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
