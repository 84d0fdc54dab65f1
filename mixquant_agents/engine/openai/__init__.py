"""A chat completions server as an engine: ``engine`` (the connection), ``wire`` (body and chunks), ``errors``."""

from mixquant_agents.engine.openai.engine import OpenAIEngine

__all__ = ["OpenAIEngine"]
