"""LangChain's own integration suite, for an engine that runs the embedded model."""

from __future__ import annotations

from typing import Any, ClassVar

from langchain_tests.integration_tests import ChatModelIntegrationTests

from mixquant_agents import MixQuantChatModel
from mixquant_agents.engine.base import Engine


class RealSuite(ChatModelIntegrationTests):
    """A fixture of the test class gives ``engine``."""

    engine: Engine
    max_tokens: ClassVar[int]
    repetition_penalty: float | None = 1.1

    @property
    def chat_model_class(self) -> type[MixQuantChatModel]:
        return MixQuantChatModel

    @property
    def chat_model_params(self) -> dict[str, Any]:
        """Greedy, but for a penalty without which this small model repeats itself until ``max_tokens``."""
        settings = {"temperature": 0, "max_tokens": self.max_tokens, "timeout": 300}
        return {"engine": self.engine, "repetition_penalty": self.repetition_penalty, **settings}

    @property
    def supports_json_mode(self) -> bool:
        return True

    @property
    def supports_model_override(self) -> bool:
        return False
