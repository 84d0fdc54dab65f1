"""LangChain's own integration suite on the real engine and the embedded model, on the CPU."""

from __future__ import annotations

import pytest
from real_suite import RealSuite

from mixquant_agents import VllmEngine


@pytest.mark.engine
class TestIntegration(RealSuite):
    max_tokens = 128

    @pytest.fixture(autouse=True)
    def _on_the_shared_engine(self, engine: VllmEngine) -> None:
        self.engine = engine
