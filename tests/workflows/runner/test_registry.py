"""Suites by name."""

from __future__ import annotations

import pytest

from mixquant_agents.errors import ConfigError
from mixquant_workflows.runner.registry import suite


def test_unknown_suite_is_refused() -> None:
    with pytest.raises(ConfigError, match="choose one of bundled"):
        suite("nonsense")
