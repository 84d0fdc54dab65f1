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

Capabilities = EngineInfo
TokenDelta = Delta

__all__ = [
    "Capabilities",
    "Engine",
    "EngineRequest",
    "FinishReason",
    "JsonObject",
    "Message",
    "NamedTool",
    "Sampling",
    "TokenDelta",
    "TokenLogprob",
    "ToolCallDelta",
    "ToolChoice",
]
