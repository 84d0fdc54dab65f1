"""Placeholder."""

from __future__ import annotations

from typing import Any

from mixquant_agents.config import EngineConfig


def parser_names(config: EngineConfig, renderer: Any) -> tuple[str | None, str | None]:
    return None, None
