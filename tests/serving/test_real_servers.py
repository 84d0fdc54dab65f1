"""Two real servers on the CPU: one reads in INT8, one is exact, and vLLM's ExampleConnector stands between them (files
on disk: nothing but vLLM is needed for it; over NIXL ``bench.pair`` was run).

``OpenAIEngine`` on one, ``PairEngine`` on both, and both behind the router; the last test kills one of them. ``make
test-serving`` runs this: two engine starts. ``VllmEngine`` passes the same suites in ``make test``.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import urllib.request
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import agents_help
import pytest
import pytest_asyncio
from langchain_core.messages import AIMessage, HumanMessage
from real_suite import RealSuite

from mixquant_agents import EngineConfig, MixQuantChatModel, OpenAIEngine, PairEngine, PrecisionPolicy, TurnStore
from mixquant_agents.engine.base import Engine
from mixquant_agents.engine.vllm.args import free_port
from mixquant_agents.serving.fleet import Fleet
from mixquant_agents.serving.health import figures, server_health
from mixquant_agents.serving.process import OwnedProcess
from mixquant_agents.serving.start import server_commands
from mixquant_agents.telemetry import StoreRecorder
from mixquant_tools.calculator import calculator_tool
from mixquant_workflows.graphs.tool import tool_agent

pytestmark = [
    pytest.mark.engine,
    pytest.mark.serving,
    pytest.mark.timeout(1200),  # the first test waits for both starts
    pytest.mark.asyncio(loop_scope="session"),
]

BLOCK = 32
EXACT = 2 * BLOCK + 1
POLICY = PrecisionPolicy(prefill_format="int8", exact_last_token=True, exact_last_tokens=EXACT)
"""The connector moves whole blocks, and not the one that holds the last token: the decode side runs up to 33 tokens of
the prompt itself, exact. One engine alone that reads its last 65 exact runs the same rows in the same precision."""
LONG = "Count from one to twenty in words, slowly and politely, and say thank you when you have come to the end. " * 6


@dataclass
class Servers:
    """The two servers, and what speaks to them."""

    reader: OwnedProcess
    writer: OwnedProcess
    single: OpenAIEngine
    pair: PairEngine
    storage: Path

    def forget(self) -> None:
        """Forget the KV of all prompts so far: the connector knows them by their tokens, whatever their salt."""
        for folder in self.storage.iterdir():
            shutil.rmtree(folder)


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def servers(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Servers]:
    logs = tmp_path_factory.mktemp("servers")
    storage = tmp_path_factory.mktemp("storage")
    place = {"shared_storage_path": str(storage)}
    connector = {"kv_connector": "ExampleConnector", "kv_role": "kv_both", "kv_connector_extra_config": place}
    started = []
    for name, policy in (("reader", POLICY), ("writer", PrecisionPolicy.of("exact"))):
        config = EngineConfig(
            model="embedded",
            policy=policy,
            max_model_len=2048,
            max_num_seqs=16,
            kv_cache_bytes=160 * 2**20,
            enable_prefix_caching=False,  # the connector does not expect that some of a prompt is known already
            vllm_args={"kv_transfer_config": connector, "block_size": BLOCK},
        )
        (made,) = server_commands(config, ("hermes", None), host="127.0.0.1", ports=[free_port()])
        # One thread each, on any core: threads of two servers on the same cores wait for each other at every barrier.
        env = {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1"}
        started.append(OwnedProcess(name, made.arguments, url=made.url, log=logs / name, env={**made.env, **env}))
    try:
        for server in started:
            await server.start()
        for server in started:
            while (await server_health(server.name, server.url))["state"] != "ready":
                if server.exit_code is not None:
                    raise server.failure()
                await asyncio.sleep(1)
        reader, writer = started
        single = OpenAIEngine("embedded", base_url=f"{reader.url}/v1", policy=POLICY)
        pair = PairEngine.of_servers(
            "embedded", prefill_url=f"{reader.url}/v1", decode_url=f"{writer.url}/v1", policy=POLICY, lease_seconds=300
        )
        yield Servers(reader, writer, single, pair, storage)
        await single.aclose()
        await pair.aclose()
    finally:
        await asyncio.gather(*(server.end() for server in started))


@pytest.fixture(params=["openai", "pair"])
def engine(request: pytest.FixtureRequest, servers: Servers) -> Engine:
    return servers.single if request.param == "openai" else servers.pair


async def rows(server: OwnedProcess) -> float:
    """Prompt rows that the server's own metrics have counted."""
    return float((await server_health(server.name, server.url)).get("prompt_rows", 0.0))


async def test_turn_is_counted_and_timed_by_its_server(servers: Servers, tmp_path: Path) -> None:
    before = await rows(servers.reader)
    recorder = StoreRecorder(tmp_path / "turns.sqlite")
    model = MixQuantChatModel(engine=servers.single, max_tokens=8, temperature=0, recorders=[recorder])
    turns = [
        (await model.ainvoke(LONG, config={"configurable": {"thread_id": "t"}})).response_metadata["turn"]
        for _ in range(2)
    ]
    recorder.close()
    first, second = turns
    assert first["timing_source"] == "engine"
    assert first["ttft_seconds"] >= first["queue_seconds"] + first["prefill_seconds"] > 0
    assert (first["exact_tokens"], first["cached_tokens"]) == (EXACT, 0), "the last prompt tokens"
    assert first["quantized_tokens"] == first["prompt_tokens"] - EXACT
    assert second["cached_tokens"] > 0
    assert second["quantized_tokens"] + second["exact_tokens"] == second["prefill_tokens"]
    assert await rows(servers.reader) - before == sum(turn["prefill_tokens"] for turn in turns)
    store = TurnStore(tmp_path / "turns.sqlite")
    assert [turn.quantized_tokens for turn in store.thread("t")] == [turn["quantized_tokens"] for turn in turns]
    store.close()


async def test_pair_answers_as_one_engine_does(servers: Servers) -> None:
    """The same rows run in the same precision: one engine with an exact last token, or two with KV between them."""
    answers: dict[str, tuple[str, list[float], dict[str, Any]]] = {}
    for name, engine in (("pair", servers.pair), ("single", servers.single)):
        servers.forget()
        model = MixQuantChatModel(engine=engine, max_tokens=16, temperature=0, logprobs=True)
        message = await model.ainvoke("Name the days of the week. " + LONG)
        scores = [token["logprob"] for token in message.response_metadata["logprobs"]["content"]]
        answers[name] = str(message.content), scores, message.response_metadata["turn"]
    (text, scores, pair), (alone, lone_scores, single) = answers["pair"], answers["single"]
    assert text == alone
    assert scores == pytest.approx(lone_scores, abs=2e-3)
    for field in ("prompt_tokens", "cached_tokens", "prefill_tokens", "quantized_tokens", "exact_tokens"):
        assert pair[field] == single[field], field
    assert pair["engine"] == "pair"
    assert 1 <= pair["recomputed_rows"] <= BLOCK + 1, "what decode runs again: the last token, and up to a block"
    assert pair["transfer_seconds"] > 0
    assert single["transfer_seconds"] is None


async def test_cancelled_turn_is_given_up_by_its_server(servers: Servers, engine: Engine) -> None:
    model = MixQuantChatModel(engine=engine, max_tokens=1500, ignore_eos=True)
    stream = model.astream("Tell me a very long story.")
    await anext(stream)
    await stream.aclose()
    for server in (servers.reader, servers.writer):
        for _ in range(100):
            if (await server_health(server.name, server.url))["running"] == 0:
                break
            await asyncio.sleep(0.1)
        else:
            pytest.fail(f"{server.name} goes on")


async def test_bundled_agent_runs(engine: Engine) -> None:
    model = MixQuantChatModel(engine=engine, max_tokens=64, temperature=0)
    agent = tool_agent(model, [calculator_tool()])
    state = await agent.ainvoke({"messages": [HumanMessage("What is 37 * 43? Use the calculator.")]})
    turns = [message.response_metadata["turn"] for message in state["messages"] if isinstance(message, AIMessage)]
    assert turns
    assert {turn["engine"] for turn in turns} == {engine.info.engine}


async def test_grammar_of_vllm_goes_by_the_extra_body(engine: Engine) -> None:
    options = {"sampling_extra": {"structured_outputs": {"choice": ["yes", "no"]}}}
    answer = await MixQuantChatModel(engine=engine, max_tokens=8, **options).ainvoke("Is three odd?")
    assert answer.content in ("yes", "no")


async def test_figures_of_a_real_server_are_found(servers: Servers) -> None:
    with await asyncio.to_thread(urllib.request.urlopen, f"{servers.reader.url}/metrics") as answer:
        seen = figures(answer.read().decode())
    assert {"running", "waiting", "kv_cache_usage", "prompt_tokens", "prompt_rows", "prefix_cache_hits"} <= {*seen}


class _ServedSuite(RealSuite):
    """A penalty on tokens of the prompt is one on copying from it: with 1.1 this small model does not write the Chinese
    name that it is asked to, not even on an exact server; with 1.05 it does in each precision that was tried."""

    max_tokens = 96

    @pytest.fixture(autouse=True)
    def _penalty_leaves_copying_possible(self, request: pytest.FixtureRequest) -> None:
        if "unicode_tool_call" in request.node.name:
            self.repetition_penalty = None


class TestIntegrationOfServer(_ServedSuite):
    @pytest.fixture(autouse=True)
    def _on_the_server(self, servers: Servers) -> None:
        self.engine = servers.single


class TestIntegrationOfPair(_ServedSuite):
    @pytest.fixture(autouse=True)
    def _on_the_pair(self, servers: Servers) -> None:
        self.engine = servers.pair


async def test_agents_go_on_where_a_server_is_killed(servers: Servers, tmp_path: Path) -> None:
    """The last test: 32 threads on both servers behind the router, of which one is killed with SIGKILL."""
    hosts = [servers.reader.url, servers.writer.url]
    killed = _killer(servers.writer)
    async with Fleet([], hosts=hosts, port=free_port(), routing="consistent_hash", logs=tmp_path) as fleet:
        store = tmp_path / "turns.sqlite"
        outcome = await agents_help.run_agents(
            fleet.url, "embedded", store, threads=32, turns=3, answered=killed, max_tokens=6, ignore_eos=True
        )
        view = await fleet.health()
    agents_help.check(outcome, threads=32, turns=3, failures=False)
    assert [server["state"] for server in view["servers"]] == ["ready", "unreachable"]
    assert servers.writer.exit_code == -signal.SIGKILL


def _killer(server: OwnedProcess) -> Callable[[int], None]:
    def kill(answers: int) -> None:
        if answers == 20:
            os.kill(server.pid or 0, signal.SIGKILL)

    return kill
