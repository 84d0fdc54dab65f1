"""Answers whose calls are JSON between markers, read as they arrive: Hermes, and what differs in its markers alone."""

from mixquant_agents.engine.hermes.parser import (
    CALL_CLOSE,
    CALL_OPEN,
    THINK_CLOSE,
    THINK_OPEN,
    HermesParser,
)

__all__ = ["CALL_CLOSE", "CALL_OPEN", "THINK_CLOSE", "THINK_OPEN", "HermesParser"]
