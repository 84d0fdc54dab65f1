"""What ``vllm serve MODEL --quantization mixquant`` gains: prefix-cache blocks kept apart by policy, and prompt rows
counted by policy in the server's own ``/metrics`` and in its per-request metrics.

Installed in the server's front end, when it makes the configuration of an engine whose method is ours; other processes
and other engines are never touched. This library's own engine salts its requests and counts their rows itself: it marks
its client, which then passes untouched.
"""

from __future__ import annotations

import asyncio
import copy
import functools
import logging
import sys
import weakref
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping
from contextlib import aclosing
from typing import Any, Protocol

from mixquant_agents.precision.policy import PrecisionPolicy
from mixquant_agents.precision.static_prefix import EXTRA_ARG, salted
from mixquant_agents.quant.vllm.patching import wrap

__all__ = ["hook_server"]

_log = logging.getLogger("vllm.mixquant")

_SERVERS = (
    "vllm.entrypoints.launchers.api_server",
    "vllm.entrypoints.launchers.cli_args",  # Ray Serve LLM's engines
    "vllm.entrypoints.openai.api_server",
)
"""Modules of which one is loaded where a server is being started."""
_SERVING = (
    "vllm.entrypoints.openai.chat_completion.serving",
    "vllm.entrypoints.openai.completion.serving",
    "vllm.entrypoints.openai.responses.serving",
)
"""Modules that put per-request metrics into answers (vLLM since July 2026)."""
_OWNED = "mixquant_owner"
"""Attribute of a client whose owner salts and counts by itself (``engine/vllm/core.py``)."""
_ROWS = "mixquant_rows"
"""Attribute of a request's statistics that carries its rows to the answer."""
_COUNTED = ("quantized", "exact", "recomputed")

Counts = Mapping[str, int]


class HasPolicy(Protocol):
    """A quantization config of ours."""

    policy: PrecisionPolicy


def hook_server(method: type[Any]) -> None:
    """Hook the front end of a server, where this process is one. Idempotent.

    Args:
        method: the class of quantization configs whose engines are ours; an instance has a ``policy``.
    """
    if not any(name in sys.modules for name in _SERVERS):
        return
    from vllm.v1.engine.async_llm import AsyncLLM

    wrap(AsyncLLM, "generate", functools.partial(_generate, method))


class ServerRows:
    """Rows of the requests of one server. Lives on the server's event loop.

    The worker is asked at a request's first token, so that its answer is back before the request ends; requests whose
    first token came with the same step share one call. Counting never fails a request.
    """

    def __init__(self, llm: Any, policy: PrecisionPolicy) -> None:
        self.policy = policy
        self._llm = weakref.ref(llm)
        self._rows, self._recomputed, self._info = _counters()
        self._labels = {"model_name": _model_name(llm.vllm_config), "policy": policy.name}
        for kind in ("quantized", "exact"):
            self._rows.labels(**self._labels, precision=kind)  # a policy's series is there from its first request on
        self._recomputed.labels(**self._labels)
        self._pending: dict[str, asyncio.Future[Counts | None]] = {}
        self._counted: dict[str, Counts] = {}
        self._task: asyncio.Task[None] | None = None
        self._described = False

    def ask(self, request_ids: Iterable[str]) -> asyncio.Future[list[Counts | None]]:
        """The rows of these requests by now; counted in the metrics as they come."""
        loop = asyncio.get_running_loop()
        futures = []
        for request_id in request_ids:
            future: asyncio.Future[Counts | None] = loop.create_future()
            self._pending[request_id] = future
            futures.append(future)
        if self._task is None or self._task.done():
            self._task = loop.create_task(self._run(), name="mixquant-server-rows")
        return asyncio.gather(*futures)

    async def answer(self, future: asyncio.Future[list[Counts | None]]) -> Counts | None:
        """The sum of what :meth:`ask` brought; ``None`` where one is unknown, or the engine died meanwhile."""
        while not future.done() and (llm := self._llm()) is not None and not llm.errored:
            await asyncio.wait([future], timeout=1.0)
        rows = future.result() if future.done() and not future.cancelled() else [None]
        known = [counts for counts in rows if counts is not None]
        if len(known) < len(rows):
            return None
        return {name: sum(counts[name] for counts in known) for name in _COUNTED}

    def forget(self, request_ids: Iterable[str]) -> None:
        """These requests are over."""
        for request_id in request_ids:
            self._counted.pop(request_id, None)

    async def _run(self) -> None:
        await asyncio.sleep(0)  # let the other requests of this engine step join
        while self._pending and (llm := self._llm()) is not None:
            batch, self._pending = self._pending, {}
            counts_of: Mapping[str, Counts] = {}
            try:
                if not self._described:
                    self._describe((await llm.collective_rpc("mixquant_status"))[0])
                answers = await llm.collective_rpc("mixquant_row_counts", args=(list(batch),))
                for request_id, counts in answers[0].items():
                    self._count(request_id, counts)
                counts_of = answers[0]
            except Exception as error:
                _log.warning("mixquant: prompt rows are unknown: %s", error)
            for request_id, future in batch.items():
                if not future.done():
                    future.set_result(counts_of.get(request_id))

    def _count(self, request_id: str, counts: Counts) -> None:
        """Add what is new since the request was counted before."""
        before = self._counted.get(request_id, {})
        for kind in ("quantized", "exact"):
            self._rows.labels(**self._labels, precision=kind).inc(max(0, counts[kind] - before.get(kind, 0)))
        self._recomputed.labels(**self._labels).inc(max(0, counts["recomputed"] - before.get("recomputed", 0)))
        self._counted[request_id] = counts

    def _describe(self, status: Mapping[str, Any]) -> None:
        self._described = True
        emulated = str(bool(status.get("emulated"))).lower()
        formats = {name: str(status.get(name)) for name in ("prefill_format", "decode_format")}
        self._info.labels(**self._labels, **formats, emulated=emulated, fingerprint=self.policy.fingerprint).set(1)


_rows_of: weakref.WeakKeyDictionary[Any, ServerRows] = weakref.WeakKeyDictionary()


def _server_rows(llm: Any, method: type[Any]) -> ServerRows | None:
    """The rows of this engine's requests; ``None`` where its method is another, or its owner counts them."""
    if _OWNED in vars(llm):
        return None
    if llm not in _rows_of:
        config = llm.vllm_config.quant_config
        if not isinstance(config, method):
            return None
        own: HasPolicy = config
        _rows_of[llm] = ServerRows(llm, own.policy)
        for module in filter(None, map(sys.modules.get, _SERVING)):
            if "build_per_request_timing_metrics" in vars(module):
                wrap(module, "build_per_request_timing_metrics", _build_metrics)
    return _rows_of[llm]


def _generate(method: type[Any], original: Callable[..., Any]) -> Callable[..., Any]:
    def generate(self: Any, prompt: Any, sampling_params: Any, request_id: str, *args: Any, **kwargs: Any) -> Any:
        rows = _server_rows(self, method)
        if rows is not None:
            sampling_params = _without_static_prefix(sampling_params)
        if rows is None or not isinstance(prompt, dict):
            return original(self, prompt, sampling_params, request_id, *args, **kwargs)
        # Blocks never meet those of another policy, also where a KV store is shared by several servers.
        prompt = {**prompt, "cache_salt": salted(rows.policy.fingerprint, prompt.get("cache_salt"))}
        outputs = original(self, prompt, sampling_params, request_id, *args, **kwargs)
        return _counted(outputs, rows, request_id, sampling_params.n)

    return generate


def _without_static_prefix(sampling_params: Any) -> Any:
    """A server's clients lend nothing: they would say for themselves which rows are exact, and how blocks are found."""
    if EXTRA_ARG not in (sampling_params.extra_args or {}):
        return sampling_params
    own = copy.copy(sampling_params)
    own.extra_args = {name: value for name, value in sampling_params.extra_args.items() if name != EXTRA_ARG}
    return own


async def _counted(outputs: Any, rows: ServerRows, request_id: str, answers: int) -> AsyncGenerator[Any, None]:
    """``outputs``, the last of them with the request's rows among its statistics."""
    ids = [request_id] if answers == 1 else [f"{index}_{request_id}" for index in range(answers)]
    future: asyncio.Future[list[Counts | None]] | None = None
    preempted = 0
    try:
        async with aclosing(outputs):
            async for output in outputs:
                if future is None and any(completion.token_ids for completion in output.outputs):
                    future, preempted = rows.ask(ids), _preemptions(output)
                if output.finished and future is not None:
                    counts = await rows.answer(future)
                    if _preemptions(output) != preempted:  # rows may have run again after the first answer
                        counts = await rows.answer(rows.ask(ids))
                    if output.metrics is not None:
                        setattr(output.metrics, _ROWS, counts)
                yield output
    finally:
        last = rows.ask(ids) if future is None else future  # given up before its first token, its rows ran all the same
        last.add_done_callback(lambda _: rows.forget(ids))


def _preemptions(output: Any) -> int:
    return int(getattr(output.metrics, "num_preemptions", 0) or 0)


def _build_metrics(original: Callable[..., Any]) -> Callable[..., Any]:
    def build(metrics: Any, *args: Any, **kwargs: Any) -> Any:
        result = original(metrics, *args, **kwargs)
        counts: Counts | None = getattr(metrics, _ROWS, None)
        if counts is not None:
            for name in _COUNTED:
                setattr(result, f"mixquant_{name}_rows", counts[name])
        return result

    return build


def _model_name(vllm_config: Any) -> str:
    """The name under which the server serves the model, as vLLM's own metrics label it."""
    name = vllm_config.model_config.served_model_name
    return str(name[0] if isinstance(name, list) else name)


@functools.cache
def _counters() -> tuple[Any, Any, Any]:
    """The metrics of this process, in the registry that ``/metrics`` shows."""
    from prometheus_client import Counter, Gauge

    labels = ("model_name", "policy")
    return (
        Counter("mixquant:prompt_rows", "Prompt rows run for the first time.", (*labels, "precision")),
        Counter("mixquant:recomputed_rows", "Rows run again, after a preemption.", labels),
        Gauge(
            "mixquant:policy_info",
            "The precision policy of this server; always 1.",
            (*labels, "prefill_format", "decode_format", "emulated", "fingerprint"),
            multiprocess_mode="livemax",
        ),
    )
