"""A server's prompt rows, counted by policy, and its salts: the front end's hooks on a stand-in for its client."""

import asyncio
import gc
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client import REGISTRY

from mixquant_agents.precision.policy import PrecisionPolicy
from mixquant_agents.precision.static_prefix import EXTRA_ARG, StaticPrefix, exact_salt
from mixquant_agents.quant.vllm import server_hooks
from mixquant_agents.quant.vllm.server_hooks import hook_server


class Method:
    """A quantization config of the method under test."""

    def __init__(self, policy: PrecisionPolicy) -> None:
        self.policy = policy


class Client:
    """vLLM's ``AsyncLLM``: two tokens for each request, and a worker that knows its rows."""

    def __init__(self, config: Any, name: str) -> None:
        model = SimpleNamespace(served_model_name=[name])
        self.vllm_config = SimpleNamespace(quant_config=config, model_config=model)
        self.errored = False
        self.salts: list[str | None] = []
        self.extra_args: list[dict[str, Any] | None] = []
        self.asked: list[list[str]] = []
        self.rows = {"quantized": 5, "exact": 1, "recomputed": 0, "preemptions": 0}
        self.preempted = 0

    async def generate(self, prompt: Any, sampling_params: Any, request_id: str) -> AsyncIterator[Any]:
        self.salts.append(prompt.get("cache_salt"))
        self.extra_args.append(sampling_params.extra_args)
        for finished in (False, True):
            await asyncio.sleep(0)
            metrics = SimpleNamespace(num_preemptions=self.preempted if finished else 0)
            completion = SimpleNamespace(token_ids=[7])
            yield SimpleNamespace(outputs=[completion], finished=finished, metrics=metrics)

    async def collective_rpc(self, method: str, args: tuple[Any, ...] = ()) -> list[Any]:
        if method == "mixquant_status":
            return [{"prefill_format": "int8", "decode_format": "exact", "emulated": True}]
        self.asked.append(list(args[0]))
        return [{name: dict(self.rows) for name in args[0]}]


@pytest.fixture
def hooked(monkeypatch: pytest.MonkeyPatch) -> type[Client]:
    """A client class of its own, hooked."""
    made = type("Hooked", (Client,), {"generate": Client.generate})
    made.generate = server_hooks._generate(Method, Client.generate)  # type: ignore[attr-defined]
    return made


def total(name: str, precision: str, model: str) -> float | None:
    labels = {"model_name": model, "policy": "mixquant-int8", "precision": precision}
    return REGISTRY.get_sample_value(name, labels)


POLICY = PrecisionPolicy.of("mixquant-int8")
PROMPT = {"prompt_token_ids": [1, 2]}


async def outputs(client: Any, request_id: str, prompt: dict[str, Any] = PROMPT, n: int = 1) -> list[Any]:
    return [output async for output in client.generate(prompt, SimpleNamespace(n=n, extra_args=None), request_id)]


async def test_rows_are_counted_and_told_with_the_last_output(hooked: type[Client]) -> None:
    client = hooked(Method(POLICY), "counted")
    first, last = await outputs(client, "a")
    assert not hasattr(first.metrics, "mixquant_rows")
    assert last.metrics.mixquant_rows == {"quantized": 5, "exact": 1, "recomputed": 0}
    await asyncio.gather(*(outputs(client, name) for name in "bc"))
    assert client.asked == [["a"], ["b", "c"]], "requests of one step share a call"
    assert total("mixquant:prompt_rows_total", "quantized", "counted") == 15
    assert total("mixquant:prompt_rows_total", "exact", "counted") == 3
    info = {
        "model_name": "counted",
        "policy": "mixquant-int8",
        "prefill_format": "int8",
        "decode_format": "exact",
        "emulated": "true",
        "fingerprint": POLICY.fingerprint,
    }
    assert REGISTRY.get_sample_value("mixquant:policy_info", info) == 1


async def test_rows_of_several_answers_are_summed(hooked: type[Client]) -> None:
    client = hooked(Method(POLICY), "several")
    assert (await outputs(client, "a", n=2))[-1].metrics.mixquant_rows["quantized"] == 10
    assert client.asked == [["0_a", "1_a"]]


async def test_rows_that_ran_again_are_asked_for_once_more(hooked: type[Client]) -> None:
    client = hooked(Method(POLICY), "again")
    client.preempted = 1
    await outputs(client, "a")
    assert client.asked == [["a"], ["a"]]
    assert total("mixquant:prompt_rows_total", "quantized", "again") == 5, "and not counted twice"


async def test_request_given_up_early_is_counted_all_the_same(hooked: type[Client]) -> None:
    client = hooked(Method(POLICY), "left")
    stream = client.generate(PROMPT, SimpleNamespace(n=1, extra_args=None), "a")
    await anext(stream)
    await stream.aclose()
    await asyncio.sleep(0.01)
    assert total("mixquant:prompt_rows_total", "quantized", "left") == 5
    assert not server_hooks._rows_of[client]._counted


async def test_counting_never_fails_a_request(hooked: type[Client]) -> None:
    client = hooked(Method(POLICY), "failing")
    client.rows = {}
    assert (await outputs(client, "a"))[-1].metrics.mixquant_rows is None
    client = hooked(Method(POLICY), "dead")

    async def never(*_: Any, **__: Any) -> list[Any]:
        client.errored = True
        return await asyncio.Event().wait()  # type: ignore[return-value]

    client.collective_rpc = never  # type: ignore[method-assign]
    assert (await outputs(client, "a"))[-1].metrics.mixquant_rows is None


async def test_salts_keep_policies_apart(hooked: type[Client]) -> None:
    client = hooked(Method(POLICY), "salted")
    await outputs(client, "a")
    await outputs(client, "b", {**PROMPT, "cache_salt": "tenant"})
    other = hooked(Method(PrecisionPolicy.of("mixquant-fp8")), "salted too")
    await outputs(other, "c")
    assert client.salts == [POLICY.fingerprint, f"{POLICY.fingerprint}:tenant"]
    assert other.salts[0] not in client.salts
    assert PROMPT == {"prompt_token_ids": [1, 2]}


async def test_other_methods_and_own_engine_pass_untouched(hooked: type[Client]) -> None:
    exact = hooked(None, "exact")
    await outputs(exact, "a")
    own = hooked(Method(POLICY), "own")
    own.mixquant_owner = "engine"
    await outputs(own, "b", {**PROMPT, "cache_salt": "of its owner's"})
    assert (exact.salts, exact.asked) == ([None], [])
    assert (own.salts, own.asked) == (["of its owner's"], []), "also where its policy was switched since"


async def test_engine_that_ends_is_let_go(hooked: type[Client]) -> None:
    client = hooked(Method(POLICY), "gone")
    await outputs(client, "a")
    before = len(server_hooks._rows_of)
    del client
    await asyncio.sleep(0)
    gc.collect(1)  # what is new: all there is takes seconds
    assert len(server_hooks._rows_of) < before


def test_metrics_of_an_answer_hold_its_rows() -> None:
    from vllm.entrypoints.generate.base.serving import build_per_request_timing_metrics
    from vllm.v1.metrics.stats import RequestStateStats

    build = server_hooks._build_metrics(build_per_request_timing_metrics)
    stats = RequestStateStats(scheduled_ts=1.0, first_token_ts=2.0)
    assert "mixquant_quantized_rows" not in build(stats, 1).model_dump()
    stats.mixquant_rows = {"quantized": 5, "exact": 1, "recomputed": 0}
    told = build(stats, 1).model_dump(exclude_unset=True)
    assert (told["mixquant_quantized_rows"], told["mixquant_exact_rows"]) == (5, 1)
    assert told["time_to_first_token_ms"] == 1000


def test_process_that_is_no_server_is_not_hooked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_hooks, "_SERVERS", ("no.such.module",))
    monkeypatch.setattr(server_hooks, "wrap", lambda *_: pytest.fail("hooked"))
    hook_server(Method)


async def test_clients_of_a_server_lend_nothing(hooked: type[Client]) -> None:
    """They would say which rows are exact, and under whose key their blocks are found."""
    client = hooked(Method(POLICY), "lent")
    params = SimpleNamespace(n=1, extra_args=StaticPrefix(16, exact_salt(None)).extra_args({"other": 1}))
    assert [output async for output in client.generate(PROMPT, params, "a")]
    assert client.extra_args == [{"other": 1}]
    assert EXTRA_ARG in params.extra_args
