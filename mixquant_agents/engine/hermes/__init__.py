"""Answers whose calls are JSON between markers, read as they arrive: Hermes, and what differs in its markers alone."""

from mixquant_agents.engine.hermes.markers import (
    CALL_CLOSE,
    CALL_OPEN,
    HERMES,
    JSON_CALLS,
    THINK_CLOSE,
    THINK_OPEN,
    Markers,
)
from mixquant_agents.engine.hermes.parser import HermesParser

__all__ = [
    "CALL_CLOSE",
    "CALL_OPEN",
    "HERMES",
    "JSON_CALLS",
    "THINK_CLOSE",
    "THINK_OPEN",
    "HermesParser",
    "Markers",
]
