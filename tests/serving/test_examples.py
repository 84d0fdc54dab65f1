"""The compose file of ``examples/serving``: its commands are such that the router and vLLM's server take them."""

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from mixquant_agents.config import PrecisionPolicy
from mixquant_agents.serving.router import router_command

EXAMPLES = Path(__file__).parents[2] / "examples" / "serving"


@pytest.fixture
def services() -> dict[str, Any]:
    return dict(yaml.safe_load((EXAMPLES / "compose.yaml").read_text())["services"])


def test_servers_take_their_command(services: dict[str, Any]) -> None:
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    parser = make_arg_parser(FlexibleArgumentParser())
    for name in ("replica-0", "replica-1"):
        model, *flags = shlex.split(services[name]["command"])
        given = parser.parse_args(["--model", model, *flags])
        assert (given.quantization, given.scheduling_policy) == ("mixquant", "priority")
        overrides = given.hf_overrides
        settings = (json.loads(overrides) if isinstance(overrides, str) else overrides)["quantization_config"]
        assert PrecisionPolicy.of(settings["policy"]).quantizes


def test_router_takes_its_command_and_knows_the_servers(services: dict[str, Any]) -> None:
    from vllm_router.launch_router import parse_router_args

    _, _, script = shlex.split(services["router"]["command"])
    words = shlex.split(script)
    flags = words[words.index("vllm-router") + 1 :]
    given = parse_router_args(flags)
    assert given.policy == "cache_aware"
    assert given.disable_retries
    hosts = [url.removeprefix("http://").partition(":")[0] for url in flags if url.startswith("http://")]
    assert hosts == [name for name in services if name.startswith("replica-")]
    ours = router_command(["http://a"], host="h", port=1, prometheus_port=2)
    assert {flag for flag in flags if flag.startswith("--")} <= {flag for flag in ours if flag.startswith("--")}


def test_services_that_are_waited_for_have_a_health_check(services: dict[str, Any]) -> None:
    for service in services.values():
        for name, wait in service.get("depends_on", {}).items():
            assert wait["condition"] == "service_healthy"
            assert services[name]["healthcheck"]["test"]
