"""The same agents on our engine and on others: one machine, one model, exact in all.

Overhead is wall time of a turn minus the engine's own prefill and decode time, by the engine's clock.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AnyMessage
from pydantic import SecretStr
from rich.console import Console

from mixquant_agents import EngineConfig, MixQuantChatModel, PrecisionPolicy, VllmEngine
from mixquant_agents.errors import MissingDependencyError, MixQuantError
from mixquant_workflows.runner.peers.llama import llama_cpp
from mixquant_workflows.runner.peers.measure import PeersPlan, Side, features, measure, ratios
from mixquant_workflows.runner.peers.server import Server, serve
from mixquant_workflows.runner.registry import model_folder
from mixquant_workflows.runner.report import merge, session_note

__all__ = ["PEERS", "PeersPlan", "compare_peers"]


class _Served(Side):
    """A server's clock counts all its requests; a turn is the difference."""

    def __init__(self, name: str, model: BaseChatModel, server: Server) -> None:
        super().__init__(name, model)
        self._server = server

    async def mark(self) -> float:
        return await self._server.engine_seconds()

    async def engine_seconds(self, answer: AnyMessage, mark: float) -> float:
        for _ in range(40):  # a server counts a request a moment after its answer
            spent = await self._server.engine_seconds() - mark
            if spent > 0:
                return spent
            await asyncio.sleep(0.05)
        return 0.0


async def _with_server(plan: PeersPlan, own_side: Side, console: Console) -> tuple[dict[str, Any], dict[str, Any]]:
    """Our figures; ``ChatOpenAI`` on ``vllm serve``: figures, features, and what must be said beside them."""
    async with serve(Path(model_folder(plan.model)), _arguments(plan)) as server:
        side = _Served(SERVED, _openai(server, plan, fixed_length=True), server)
        own_figures, server_figures = await measure([own_side, side], plan, console)
        served_features = await features(_openai(server, plan, fixed_length=False))
    return own_figures, {"figures": server_figures, "features": served_features, "remark": side.remark}


SERVED = "chat_openai_vllm_serve"
PEERS = {"chat_llama_cpp": llama_cpp}
"""Peers that are measured on their own."""


async def compare_peers(plan: PeersPlan, console: Console) -> dict[str, Any]:
    """Run all and compare. ``vllm serve`` stands beside our engine, so that they can take turns; the others run alone.

    Returns:
        ``{"model", "ours": figures, "peers": {name: {"overhead_ratio_1", "wall_ratio_1", "tokens_ratio_16", …}},
        "features": {feature: {side: bool}}, "not_run": {name: reason}}``. Ratios are ours over the peer's; intervals
        are 95 % by bootstrap.

    Raises:
        EngineError: our own engine did not start.
    """
    comparison = _Comparison(plan, console)
    await comparison.beside_ours()
    await comparison.alone()
    return comparison.result()


class _Comparison:
    """Figures of our side and of each peer, as they come."""

    def __init__(self, plan: PeersPlan, console: Console) -> None:
        self._plan, self._console = plan, console
        self._own_figures: dict[str, Any] = {}
        self._peers: dict[str, dict[str, Any]] = {}
        self._not_run: dict[str, str] = {}
        self._features: dict[str, dict[str, bool]] = {}
        self._device: str | None = None

    async def beside_ours(self) -> None:
        """Our engine and ``vllm serve``, taking turns; our engine alone where that cannot be started."""
        plan, console = self._plan, self._console
        console.print("starting our engine", style="dim")
        config = EngineConfig(
            model=plan.model,
            policy=PrecisionPolicy.of("exact"),
            max_model_len=plan.max_model_len,
            max_num_seqs=plan.agents,
        )
        engine = VllmEngine(config)
        try:
            await engine.start()
            model = MixQuantChatModel(engine=engine, temperature=0, max_tokens=plan.answer_tokens, ignore_eos=True)
            probe = MixQuantChatModel(engine=engine, temperature=0, max_tokens=48)
            self._features = {name: {"ours": value} for name, value in (await features(probe)).items()}
            self._device = engine.info.device
            console.print(f"starting {SERVED}", style="dim")
            try:
                self._own_figures, self._peers[SERVED] = await _with_server(plan, Side("ours", model), console)
            except MixQuantError as error:
                self._not_run[SERVED] = str(error)
                (self._own_figures,) = await measure([Side("ours", model)], plan, console)
        finally:
            await engine.aclose()

    async def alone(self) -> None:
        """The peers that are measured on their own."""
        for name, peer in PEERS.items():
            self._console.print(f"starting {name}", style="dim")
            try:
                self._peers[name] = await peer(self._plan)
            except MixQuantError as error:
                self._not_run[name] = str(error)

    def result(self) -> dict[str, Any]:
        """What :func:`compare_peers` returns, put into the report file, too."""
        plan, peers = self._plan, {}
        for name, measured in self._peers.items():
            for feature, value in measured["features"].items():
                self._features[feature][name] = value
            figures = measured["figures"]
            peers[name] = {**figures, **ratios(self._own_figures, figures), "remark": measured["remark"]}
        if plan.out:
            figures_only = {
                name: {key: value for key, value in row.items() if not isinstance(value, list)}
                for name, row in peers.items()
            }
            reasons = {name: {"not_run": reason} for name, reason in self._not_run.items()}
            note = session_note(
                plan.command, device=self._device, turns=plan.turns, agents=plan.agents, rounds=plan.rounds
            )
            merge(plan.out, "peers", {**figures_only, **reasons}, [note])
            merge(plan.out, "peer_features", self._features, [])
        return {
            "model": plan.model,
            "turns": plan.turns,
            "agents": plan.agents,
            "rounds": plan.rounds,
            "ours": self._own_figures,
            "peers": peers,
            "features": self._features,
            "not_run": self._not_run,
        }


def _arguments(plan: PeersPlan) -> list[str]:
    """What makes the server run as our engine does: float32, eager, the same window and batch (and threads, see
    :mod:`~mixquant_workflows.runner.peers.server`). Both take the template from the model's folder."""
    return [
        *("--served-model-name", "model", "--dtype", "float32", "--enforce-eager"),
        *("--max-model-len", str(plan.max_model_len), "--max-num-seqs", str(plan.agents)),
        *("--enable-auto-tool-choice", "--tool-call-parser", "hermes"),
        *("--generation-config", "vllm", "--kv-cache-memory-bytes", str(2**30)),
    ]


def _openai(server: Server, plan: PeersPlan, *, fixed_length: bool) -> BaseChatModel:
    try:
        from langchain_openai import ChatOpenAI
    except ImportError as error:
        raise MissingDependencyError(
            f"the peer needs langchain-openai ({error}): pip install langchain-openai"
        ) from error
    return ChatOpenAI(
        base_url=server.url,
        api_key=SecretStr("none"),
        model="model",
        temperature=0,
        max_completion_tokens=plan.answer_tokens if fixed_length else 48,
        extra_body={"ignore_eos": True} if fixed_length else {},
    )
