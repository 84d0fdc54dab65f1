"""Requests to the real engine, and the tool that they offer."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

from mixquant_agents.engine.base import EngineRequest, Sampling

ADD = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "Add two numbers",
        "parameters": {
            "type": "object",
            "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
            "required": ["a", "b"],
        },
    },
}

_numbers = itertools.count()


def asked(messages: Sequence[dict[str, Any]], tokens: int = 8, **fields: Any) -> EngineRequest:
    """A greedy request for so many tokens, where ``sampling`` says nothing else."""
    sampling = fields.pop("sampling", None) or Sampling(temperature=0.0, max_tokens=tokens)
    return EngineRequest(request_id=f"t{next(_numbers)}", messages=messages, sampling=sampling, **fields)
