"""The former place of :mod:`mixquant_agents.engine.base`, kept for one release."""

from mixquant_agents.engine.base import (
    Delta,
    Engine,
    EngineInfo,
    EngineRequest,
    FinishReason,
    JsonObject,
    Message,
    NamedTool,
    Sampling,
    TokenLogprob,
    ToolCallDelta,
    ToolChoice,
)
from mixquant_agents.engine.parsing import OutputParser, TokenDelta

Capabilities = EngineInfo
OutputDelta = Delta

__all__ = [
    "Capabilities",
    "Engine",
    "EngineRequest",
    "FinishReason",
    "JsonObject",
    "Message",
    "NamedTool",
    "OutputDelta",
    "OutputParser",
    "Sampling",
    "TokenDelta",
    "TokenLogprob",
    "ToolCallDelta",
    "ToolChoice",
]
