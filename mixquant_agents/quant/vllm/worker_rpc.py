"""What the front end may ask of a worker, by ``collective_rpc(name, args=…)``: methods added to vLLM's WorkerBase."""

from __future__ import annotations

import dataclasses
from typing import Any

from mixquant_agents.errors import ConfigError
from mixquant_agents.precision.policy import PrecisionPolicy
from mixquant_agents.quant.runtime import Runtime, runtime_of
from mixquant_agents.quant.vllm.draft.settings import check_same_drafts, draft_status
from mixquant_agents.quant.vllm.host_memory import reserve

__all__ = [
    "install",
    "mixquant_reserve_host_memory",
    "mixquant_row_counts",
    "mixquant_set_policy",
    "mixquant_status",
]


def _runtime(worker: Any) -> Runtime:
    runtime = runtime_of(worker.vllm_config)
    if runtime is None:
        raise ConfigError("this engine was not started with quantization='mixquant'")
    return runtime


def mixquant_status(self: Any) -> dict[str, Any]:
    """Formats in use, whether they are emulated, device, threshold, and the bytes of exact weights and twins."""
    runtime = _runtime(self)
    status: dict[str, Any] = runtime.status(self.get_model())
    drafts = draft_status(
        runtime.resolved.policy, self.vllm_config, runtime.draft_status, runtime.lookup_cycles, runtime.draft_shares
    )
    return {**status, "draft": drafts}


def mixquant_row_counts(self: Any, request_ids: list[str]) -> dict[str, dict[str, int]]:
    """Prompt rows by precision, per front-end request id; see ``counters``. Unknown ids are left out."""
    counts = _runtime(self).counter.read(request_ids)
    return {name: dataclasses.asdict(rows) for name, rows in counts.items()}


def mixquant_set_policy(self: Any, policy: dict[str, Any]) -> dict[str, Any]:
    """Switch to a policy, given by its fields; returns the new status.

    Takes effect between two steps, so do it on an idle engine; a running request would change its precision midway. The
    prefix cache does not know precisions: salt it, or reset it, between policies.

    Raises:
        ConfigError: the engine is compiled, or the policy is wrong.
    """
    runtime, asked = _runtime(self), PrecisionPolicy(**policy)
    check_same_drafts(asked, self.vllm_config)
    runtime.set_policy(asked)
    return mixquant_status(self)


def mixquant_reserve_host_memory(self: Any) -> int:
    """Pin the host's memory that sleep will need; returns the bytes. With vLLM's sleep mode alone."""
    return reserve()


def install() -> None:
    """Add the methods to WorkerBase. Idempotent."""
    from vllm.v1.worker.worker_base import WorkerBase

    for method in (
        mixquant_status,
        mixquant_row_counts,
        mixquant_set_policy,
        mixquant_reserve_host_memory,
    ):
        setattr(WorkerBase, method.__name__, method)
