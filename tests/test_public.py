"""The public surface: what it lists, that all of it loads, and that importing it stays cheap."""

import importlib
import inspect
import subprocess
import sys
from types import ModuleType

import pytest

import mixquant_agents
import mixquant_workflows

PUBLIC = [
    "EngineConfig",
    "MixQuantChatModel",
    "MixQuantError",
    "OpenAIEngine",
    "PairEngine",
    "PrecisionPolicy",
    "ScriptedEngine",
    "TurnRecord",
    "TurnStore",
    "VllmEngine",
    "register_provider",
]


WORKFLOWS = [
    "InvalidToolCallsMiddleware",
    "PrefetchMiddleware",
    "SqliteCheckpoints",
    "growing_result",
    "memory_agent",
    "retrieval_agent",
    "tool_agent",
]

PACKAGES = [(mixquant_agents, PUBLIC), (mixquant_workflows, WORKFLOWS)]


@pytest.mark.parametrize(("package", "public"), PACKAGES)
def test_all_is_sorted_and_listed(package: ModuleType, public: list[str]) -> None:
    assert package.__all__ == sorted(public)
    assert set(public) <= set(dir(package))


@pytest.mark.parametrize(("package", "public"), PACKAGES)
def test_completion_offers_no_helpers(package: ModuleType, public: list[str]) -> None:
    names = [name for name in dir(package) if not name.startswith("_")]
    modules = [name for name in names if inspect.ismodule(getattr(package, name))]
    assert sorted({*names} - {*modules}) == sorted(public)
    assert "importlib" not in modules


@pytest.mark.parametrize(
    ("package", "name"), [(package, name) for package, public in PACKAGES for name in public], ids=str
)
def test_each_name_loads_from_its_home(package: ModuleType, name: str) -> None:
    home = importlib.import_module(package._HOMES[name])
    assert getattr(package, name) is getattr(home, name)
    assert name in home.__all__


@pytest.mark.parametrize("package", [mixquant_agents, mixquant_workflows])
def test_unknown_name_is_an_attribute_error(package: ModuleType) -> None:
    with pytest.raises(AttributeError, match="no attribute 'Engin'"):
        _ = package.Engin


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)  # noqa: S603
    return done.stdout.strip()


HEAVY = ("torch", "vllm", "langchain_core", "langgraph", "openai", "pydantic", "numpy")


@pytest.mark.parametrize(
    ("code", "seconds"),
    [
        pytest.param("import mixquant_agents", 0.1, id="library"),  # vLLM imports it in each of its processes
        pytest.param("import mixquant_workflows", 0.1, id="workflows"),
        pytest.param("from mixquant_agents.cli.app import build; build()", 0.5, id="all commands"),
    ],
)
def test_importing_is_cheap_and_loads_nothing_heavy(code: str, seconds: float) -> None:
    """In seconds of the processor, the best of three: other programs may disturb its caches."""
    code = (
        f"import sys, time; start = time.process_time(); {code}; "
        f"print(time.process_time() - start, *(m for m in {HEAVY} if m in sys.modules))"
    )
    outputs = [run(code).split() for _ in range(3)]
    assert [output[1:] for output in outputs] == [[]] * 3
    assert min(float(output[0]) for output in outputs) < seconds


@pytest.mark.slow
def test_chat_model_needs_neither_torch_nor_vllm() -> None:
    code = (
        "import sys; from mixquant_agents import MixQuantChatModel, ScriptedEngine; "
        "print(MixQuantChatModel(engine=ScriptedEngine(['ok'])).invoke('hi').content, "
        "*(m for m in ('torch', 'vllm', 'transformers') if m in sys.modules))"
    )
    assert run(code) == "ok"
