"""The former place of :mod:`mixquant_agents.engine.base`, kept for one release."""

from mixquant_agents.engine.base import (
    Engine,
    EngineInfo,
    EngineRequest,
    FinishReason,
    JsonObject,
    Message,
    NamedTool,
    OutputDelta,
    OutputParser,
    Sampling,
    TokenDelta,
    TokenLogprob,
    ToolCallDelta,
    ToolChoice,
)

Capabilities = EngineInfo

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
