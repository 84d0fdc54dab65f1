"""``mixquant serve``: servers with the plugin, and a router before them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from mixquant_agents.config import EngineConfig

__all__ = ["command"]


def command(
    vllm_flags: Annotated[
        list[str] | None, typer.Argument(metavar="-- FLAG", help="Further flags for vllm serve.")
    ] = None,
    model: Annotated[str, typer.Option(metavar="NAME", help="Folder, hub id or 'embedded'.")] = "embedded",
    policy: Annotated[str, typer.Option(metavar="NAME", help="Precision policy.")] = "mixquant",
    replicas: Annotated[int, typer.Option(min=0, metavar="N", help="Servers on this machine.")] = 1,
    hosts: Annotated[str, typer.Option(metavar="URL,…", help="Running servers to route to as well.")] = "",
    host: Annotated[str, typer.Option(metavar="NAME", help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, metavar="N", help="Port to listen on.")] = 8000,
    view_port: Annotated[
        int | None, typer.Option(min=1, max=65535, metavar="N", help="Port of the health view. Default: --port plus 1.")
    ] = None,
    routing: Annotated[
        str, typer.Option(metavar="NAME", help="How the router chooses: cache_aware, consistent_hash, power_of_two, …")
    ] = "cache_aware",
    gpus: Annotated[int, typer.Option(min=1, metavar="N", help="GPUs of one server, tensor-parallel.")] = 1,
    max_model_len: Annotated[int | None, typer.Option(min=16, metavar="N", help="Context window in tokens.")] = None,
    kv_gib: Annotated[float | None, typer.Option(min=0.01, metavar="GIB", help="KV cache of each server.")] = None,
    tools: Annotated[bool, typer.Option(help="Find the model's tool and reasoning parsers.")] = True,
    logs: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Folder for the servers' logs. Default: a temporary one.")
    ] = None,
) -> None:
    """Serve a model over HTTP, in the chat completions format.

    It reads in low precision and writes exactly. Replicas share the load behind vllm-router, which keeps a conversation
    where its prefix is cached. Ctrl-C ends all.

    \b
    Example: mixquant serve --model Qwen/Qwen3-8B --replicas 2
    """
    import asyncio
    import tempfile

    from mixquant_agents.config import EngineConfig, PrecisionPolicy
    from mixquant_agents.errors import EngineError

    addresses = _addresses(hosts, replicas, routing)
    config = EngineConfig(
        model=model,
        policy=PrecisionPolicy.of(policy),
        tensor_parallel_size=gpus,
        max_model_len=max_model_len,
        kv_cache_bytes=None if kv_gib is None else int(kv_gib * 2**30),
        tool_parser="auto" if tools else None,
        reasoning_parser="auto" if tools else None,
    )
    if logs is not None:
        logs.mkdir(parents=True, exist_ok=True)
    code = asyncio.run(
        _serve(
            config,
            replicas=replicas,
            hosts=addresses,
            host=host,
            port=port,
            view_port=view_port or port + 1,
            routing=routing,
            vllm_flags=vllm_flags or (),
            logs=logs or Path(tempfile.mkdtemp(prefix="mixquant-serve-")),
        )
    )
    raise EngineError(f"the servers ended (code {code})")


def _addresses(hosts: str, replicas: int, routing: str) -> list[str]:
    """The running servers of ``--hosts``.

    Raises:
        ConfigError: they, or the router's rule, are none; or there is nothing to serve.
    """
    from mixquant_agents.cli.arguments import comma_list
    from mixquant_agents.errors import ConfigError
    from mixquant_agents.serving.router import POLICIES

    if routing not in POLICIES:
        raise ConfigError(f"--routing {routing!r}: choose one of {', '.join(POLICIES)}")
    addresses = comma_list(hosts)
    for address in addresses:
        if not address.startswith(("http://", "https://")):
            raise ConfigError(f"--hosts {address!r}: give addresses such as http://10.0.0.2:8000, with commas")
    if replicas + len(addresses) == 0:
        raise ConfigError("--replicas 0 needs --hosts: there is nothing to serve")
    return addresses


async def _serve(
    config: EngineConfig,
    *,
    replicas: int,
    hosts: Sequence[str],
    host: str,
    port: int,
    view_port: int,
    routing: str,
    vllm_flags: Sequence[str],
    logs: Path,
) -> int:
    """Serve until a server ends; its exit code. One server listens on ``port`` itself, several behind a router."""
    from mixquant_agents.cli.output import progress_console
    from mixquant_agents.engine.vllm.args import free_port
    from mixquant_agents.serving.fleet import Fleet
    from mixquant_agents.serving.start import parsers_of, server_commands

    say = progress_console().print
    routed = replicas + len(hosts) > 1
    commands = []
    if replicas:
        say(f"looking at {config.model}")
        commands = server_commands(
            config,
            parsers_of(config),
            host="127.0.0.1" if routed else host,
            ports=[free_port() for _ in range(replicas)] if routed else [port],
            extra=vllm_flags,
        )
    fleet = Fleet(commands, hosts=hosts, host=host, port=port, view_port=view_port, routing=routing, logs=logs, say=say)
    async with fleet:
        say(f"health: http://{host}:{view_port}/   logs: {logs}")
        return await fleet.run()
