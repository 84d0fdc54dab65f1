"""LangChain's own integration suite on the real engine and the embedded model, on the CPU."""

from __future__ import annotations

from typing import Any

import pytest
from langchain_tests.integration_tests import ChatModelIntegrationTests

from mixquant_agents import MixQuantChatModel, VllmEngine


@pytest.mark.engine
class TestIntegration(ChatModelIntegrationTests):
    @pytest.fixture(autouse=True)
    def _on_the_shared_engine(self, engine: VllmEngine) -> None:
        self.engine = engine

    @property
    def chat_model_class(self) -> type[MixQuantChatModel]:
        return MixQuantChatModel

    @property
    def chat_model_params(self) -> dict[str, Any]:
        """Greedy, but for a penalty without which this small model repeats itself until ``max_tokens``."""
        return {"engine": self.engine, "temperature": 0, "repetition_penalty": 1.1, "max_tokens": 128, "timeout": 300}

    @property
    def supports_json_mode(self) -> bool:
        return True

    @property
    def supports_model_override(self) -> bool:
        return False
