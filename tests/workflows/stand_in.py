"""An engine that stands in for the real one."""

from __future__ import annotations

import dataclasses
from typing import Any

from mixquant_agents import PrecisionPolicy, ScriptedEngine
from mixquant_agents.config import EngineConfig
from mixquant_agents.engine.base import EngineInfo, EngineRequest
from mixquant_agents.engine.scripted import ScriptedTurn

ENGINES: list[StandIn] = []


class StandIn(ScriptedEngine):
    """A scripted engine made as the real one is. It calls the calculator right, unless it reads quantized."""

    device = "cpu"

    def __init__(self, config: EngineConfig) -> None:
        super().__init__(self._say, policy=config.policy)
        self.config = config
        self.switched: list[str] = []
        self.closed = False
        ENGINES.append(self)

    def _say(self, request: EngineRequest) -> Any:
        if request.messages and request.messages[-1]["role"] == "user" and request.tools:
            wrong = self.policy.uniform
            call = {"name": request.tools[0]["function"]["name"], "args": {"expression": "1+1" if wrong else "37*43"}}
            return ScriptedTurn(tool_calls=[call])
        return f"It is {request.messages[-1]['content']}." if request.messages else "a b c d e f g h i j k l"

    @property
    def info(self) -> EngineInfo:
        """Who this engine is, on :attr:`device`."""
        return dataclasses.replace(super().info, device=self.device)

    async def set_policy(self, policy: PrecisionPolicy | str) -> dict[str, Any]:
        switched = await super().set_policy(policy)
        self.switched.append(self.policy.prefill_format.value)
        return switched

    async def aclose(self) -> None:
        self.closed = True
        await super().aclose()
