"""A logits processor of vLLM's by which a real engine writes a given script, token by token.

For measurements that need the same answers whatever was read before: prefill, decode and the KV cache are the real
ones. Give its name as ``vllm_args={"logits_processors": [SCRIPTED_LOGITS]}``, and a script with
``Sampling(extra=scripted(ids))``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from vllm.v1.sample.logits_processor import AdapterLogitsProcessor

__all__ = ["SCRIPTED_LOGITS", "ScriptedLogits", "scripted"]

SCRIPTED_LOGITS = f"{__name__}:ScriptedLogits"
_KEY = "mixquant_script"


def scripted(token_ids: Sequence[int]) -> dict[str, Any]:
    """Sampling values of a turn that writes ``token_ids``."""
    return {"extra_args": {_KEY: list(token_ids)}}


class ScriptedLogits(AdapterLogitsProcessor):  # type: ignore[misc]  # vLLM's classes are untyped here
    """Leaves only the script's next token possible; behind its end the model writes as it likes."""

    def is_argmax_invariant(self) -> bool:
        """It decides the token."""
        return False

    def new_req_logits_processor(self, params: Any) -> Any:
        """``(output token ids, logits of one row)`` → logits; ``None`` for a turn without a script."""
        script = (params.extra_args or {}).get(_KEY)
        if not script:
            return None

        def forced(output_ids: Sequence[int], logits: torch.Tensor) -> torch.Tensor:
            if len(output_ids) < len(script):
                only = torch.full_like(logits, -torch.inf)
                only[script[len(output_ids)]] = 0.0
                return only
            return logits

        return forced
