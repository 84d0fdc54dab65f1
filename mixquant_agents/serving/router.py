"""The command line of ``vllm-router`` before several servers."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence

from mixquant_agents.errors import ConfigError, MissingDependencyError

__all__ = ["POLICIES", "router_command"]

POLICIES = ("cache_aware", "consistent_hash", "power_of_two", "round_robin", "random")
"""Its ways to choose a server. ``cache_aware`` sends a prompt where most of its beginning is cached, unless that server
is much busier than the others; ``consistent_hash`` follows the session header alone."""


def router_command(
    servers: Sequence[str],
    *,
    host: str,
    port: int,
    prometheus_port: int,
    policy: str = "cache_aware",
) -> list[str]:
    """The router's command.

    It does not send a request again: a client knows whether it has seen some of the answer, a router does not. A server
    that fails is left out after two failures, and looked at again every few seconds.

    Raises:
        ConfigError: no such policy, or no servers.
        MissingDependencyError: ``vllm-router`` is not installed.
    """
    if policy not in POLICIES:
        raise ConfigError(f"--routing {policy!r}: choose one of {', '.join(POLICIES)}")
    if not servers:
        raise ConfigError("a router needs servers; give --replicas or --hosts")
    if importlib.util.find_spec("vllm_router") is None:
        raise MissingDependencyError("several replicas need vllm-router; install mixquant-agents[serve]")
    flags = {
        "--host": host,
        "--port": port,
        "--policy": policy,
        "--prometheus-host": "127.0.0.1",
        "--prometheus-port": prometheus_port,
        "--worker-startup-timeout-secs": 900,
        "--worker-startup-check-interval": 1,
        "--health-check-interval-secs": 2,
        "--health-check-timeout-secs": 2,
        "--health-failure-threshold": 2,
        "--health-success-threshold": 1,
        "--cb-failure-threshold": 2,
        "--cb-timeout-duration-secs": 5,
        "--request-timeout-secs": 3600,
        "--log-level": "warning",
    }
    words = [str(word) for pair in flags.items() for word in pair]
    return [
        sys.executable, "-m", "vllm_router.launch_router", "--worker-urls", *servers, *words, "--disable-retries",
    ]  # fmt: skip
