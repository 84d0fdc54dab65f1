"""Where the plugin meets vLLM's runners: a plan for each step, carried by the forward context.

Installed in the worker, when the model is built: the runner exists by then, so only the runner generation in use is
patched, and other processes never are. Each hook asks the runner's own ``vllm_config`` whether its method is ours, so
other engines of the process are untouched. Every symbol touched here is named in ``contract``.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

from mixquant_agents.precision.plan import RequestRows
from mixquant_agents.precision.static_prefix import StaticPrefix
from mixquant_agents.quant.runtime import runtime_of
from mixquant_agents.quant.vllm import worker_rpc
from mixquant_agents.quant.vllm.context import CONTEXT_KEY
from mixquant_agents.quant.vllm.patching import moved, wrap
from mixquant_agents.quant.vllm.small_graphs import check_mode

__all__ = ["install"]

_V1 = "vllm.v1.worker.gpu_model_runner"
_V2 = "vllm.v1.worker.gpu.model_runner"


@runtime_checkable
class Renewable(Protocol):
    """A drafter that holds something made of the model's weights."""

    def renew(self) -> None:
        """They were loaded anew."""


@runtime_checkable
class ReadsTokens(Protocol):
    """A drafter that looks at what was read and written."""

    def read_tokens(self, states: Any) -> None:
        """``states`` is vLLM's ``RequestState``, which holds the tokens of all requests."""


def install() -> None:
    """Hook this worker process. Idempotent.

    Raises:
        EngineStartError: a symbol is not where it is expected; names it and the vLLM version.
    """
    from vllm.platforms import current_platform

    v1 = getattr(sys.modules.get(_V1), "GPUModelRunner", None)
    v2 = getattr(sys.modules.get(_V2), "GPUModelRunner", None)
    if v1 is None and v2 is None:
        raise moved(f"GPUModelRunner of {_V1} or {_V2}")
    if v1 is not None:
        wrap(v1, "_prepare_inputs", _prepare_v1)
        wrap(v1, "execute_model", _execute)
    if v2 is not None:
        wrap(v2, "prepare_inputs", _prepare_v2)
        wrap(v2, "execute_model", functools.partial(_execute, coming=_coming_v2))
        if hasattr(v2, "initialize_kv_cache"):
            wrap(v2, "initialize_kv_cache", _kv_cache)
        if hasattr(v2, "reload_weights"):
            wrap(v2, "reload_weights", _reload)
    wrap(current_platform, "set_additional_forward_context", _forward_context)
    worker_rpc.install()


def _execute(
    original: Callable[..., Any], coming: Callable[[Any, Any], list[RequestRows]] | None = None
) -> Callable[..., Any]:
    """``coming`` gives a step's requests by the runner and the scheduler's output, before inputs are prepared;
    ``None``: this runner chooses its graph afterwards."""

    def execute_model(self: Any, scheduler_output: Any, *args: Any, **kwargs: Any) -> Any:
        runtime = runtime_of(self.vllm_config)
        dummy = kwargs.get("dummy_run", False) or (len(args) > 1 and args[1] is True)
        if runtime is None or dummy:
            return original(self, scheduler_output, *args, **kwargs)
        runtime.counter.finished(scheduler_output.finished_req_ids)
        runtime.counter.preempted(scheduler_output.preempted_req_ids or ())
        runtime.requests_changed(_prefixes(scheduler_output), scheduler_output.finished_req_ids)
        runtime.begin_step(None if coming is None else functools.partial(coming, self, scheduler_output))
        try:
            result = original(self, scheduler_output, *args, **kwargs)
        finally:
            planned = runtime.end_step()
        if (
            not planned
            and scheduler_output.total_num_scheduled_tokens
            and not scheduler_output.scheduled_encoder_inputs
        ):
            raise moved("the step ran without a row plan; the runner's preparation of inputs")
        return result

    return execute_model


def _coming_v2(runner: Any, scheduler_output: Any) -> list[RequestRows]:
    """The step's requests in the scheduler's order; the batch has them in another."""
    states = runner.req_states
    rows = []
    for name, tokens in scheduler_output.num_scheduled_tokens.items():
        index = states.req_id_to_index[name]
        rows.append(
            RequestRows(name, int(states.prompt_len.np[index]), int(states.num_computed_tokens_np[index]), tokens)
        )
    return rows


def _prefixes(scheduler_output: Any) -> list[tuple[str, StaticPrefix | None]]:
    """What new requests say of a static beginning; those of pooling models have no sampling parameters."""
    return [
        (new.req_id, None if new.sampling_params is None else StaticPrefix.of(new.sampling_params.extra_args))
        for new in scheduler_output.scheduled_new_reqs
    ]


def _drafts(scheduler_output: Any) -> dict[str, int]:
    return {name: len(tokens) for name, tokens in scheduler_output.scheduled_spec_decode_tokens.items()}


def _prepare_v1(original: Callable[..., Any]) -> Callable[..., Any]:
    def _prepare_inputs(self: Any, scheduler_output: Any, num_scheduled_tokens: Any, *args: Any, **kwargs: Any) -> Any:
        result = original(self, scheduler_output, num_scheduled_tokens, *args, **kwargs)
        runtime = runtime_of(self.vllm_config)
        if runtime is not None:
            batch = self.input_batch
            count = batch.num_reqs
            try:
                columns = zip(
                    batch.req_ids[:count],
                    batch.num_prompt_tokens[:count].tolist(),
                    batch.num_computed_tokens_cpu[:count].tolist(),
                    num_scheduled_tokens[:count].tolist(),
                    strict=True,
                )
                rows = [RequestRows(*column) for column in columns]
            except (AttributeError, TypeError, ValueError) as error:
                raise moved("InputBatch of runner V1", error) from error
            runtime.plan_step(rows, _drafts(scheduler_output))
        return result

    return _prepare_inputs


def _prepare_v2(original: Callable[..., Any]) -> Callable[..., Any]:
    def prepare_inputs(self: Any, scheduler_output: Any, *args: Any, **kwargs: Any) -> Any:
        batch = original(self, scheduler_output, *args, **kwargs)
        runtime = runtime_of(self.vllm_config)
        if runtime is not None:
            count = batch.num_reqs
            index = batch.idx_mapping_np[:count]
            try:
                columns = zip(
                    batch.req_ids[:count],
                    self.req_states.prompt_len.np[index].tolist(),
                    self.req_states.num_computed_tokens_np[index].tolist(),
                    batch.num_scheduled_tokens[:count].tolist(),
                    strict=True,
                )
                rows = [RequestRows(*column) for column in columns]
            except (AttributeError, TypeError, ValueError) as error:
                raise moved("InputBatch or RequestState of runner V2", error) from error
            step = runtime.plan_step(rows, _drafts(scheduler_output))
            check_mode(args[0] if args else kwargs.get("batch_desc"), step)
            runtime.ask_for_drafts(getattr(scheduler_output, "num_spec_tokens_to_schedule", 0))
        return batch

    return prepare_inputs


def _reload(original: Callable[..., Any]) -> Callable[..., Any]:
    """A drafter keeps a twin of the output layer, which is no routed layer: it follows the new weights, too."""

    def reload_weights(self: Any, *args: Any, **kwargs: Any) -> Any:
        result = original(self, *args, **kwargs)
        _renew(self.speculator)
        return result

    return reload_weights


def _kv_cache(original: Callable[..., Any]) -> Callable[..., Any]:
    """The runner is complete by now."""

    def initialize_kv_cache(self: Any, *args: Any, **kwargs: Any) -> Any:
        result = original(self, *args, **kwargs)
        _show_tokens(self.speculator, self.req_states)
        return result

    return initialize_kv_cache


def _show_tokens(drafter: object, states: Any) -> None:
    if isinstance(drafter, ReadsTokens):
        drafter.read_tokens(states)


def _renew(drafter: object) -> None:
    if isinstance(drafter, Renewable):
        drafter.renew()


def _forward_context(original: Callable[..., Any]) -> Callable[..., Any]:
    def set_additional_forward_context(*args: Any, **kwargs: Any) -> dict[str, Any]:
        extra = dict(original(*args, **kwargs) or {})
        runtime = runtime_of(kwargs.get("vllm_config"))
        if runtime is not None:
            extra[CONTEXT_KEY] = runtime.take_plan(kwargs.get("num_tokens"))
        return extra

    return set_additional_forward_context
