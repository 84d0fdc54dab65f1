"""From an engine's settings to the commands of its servers."""

from __future__ import annotations

from collections.abc import Sequence

from mixquant_agents.config import EngineConfig
from mixquant_agents.engine.vllm.checkpoint import model_path
from mixquant_agents.serving.command import ServerCommand, server_command

__all__ = ["parsers_of", "server_commands"]


def parsers_of(config: EngineConfig) -> tuple[str | None, str | None]:
    """Names of the model's tool parser and reasoning parser, as the engine in this process would find them."""
    if config.tool_parser != "auto" and config.reasoning_parser != "auto":
        return config.tool_parser, config.reasoning_parser
    from mixquant_agents.engine.vllm.parsers import parser_names
    from mixquant_agents.engine.vllm.render import Renderer

    path, _ = model_path(config)
    return parser_names(config, Renderer(path, config))


def server_commands(
    config: EngineConfig,
    parsers: tuple[str | None, str | None],
    *,
    host: str,
    ports: Sequence[int],
    extra: Sequence[str] = (),
) -> list[ServerCommand]:
    """One command for each port, each with its share of the machine."""
    path, _ = model_path(config)
    return [
        server_command(
            config,
            path,
            name=config.model,
            host=host,
            port=port,
            parsers=parsers,
            extra=extra,
            replica=number,
            replicas=len(ports),
        )
        for number, port in enumerate(ports)
    ]
