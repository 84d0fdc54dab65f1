"""What the telemetry tests share."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Of a store that does not exist yet, nor its folder."""
    return tmp_path / "folder" / "turns.sqlite"
