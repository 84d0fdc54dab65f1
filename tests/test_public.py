"""The public surface: what it lists, that all of it loads, and that importing it stays cheap."""

import importlib
import inspect
import subprocess
import sys

import pytest

import mixquant_agents

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


def test_all_is_sorted_and_listed() -> None:
    assert mixquant_agents.__all__ == sorted(PUBLIC)
    assert set(PUBLIC) <= set(dir(mixquant_agents))


def test_completion_offers_no_helpers() -> None:
    names = [name for name in dir(mixquant_agents) if not name.startswith("_")]
    modules = [name for name in names if inspect.ismodule(getattr(mixquant_agents, name))]
    assert sorted({*names} - {*modules}) == sorted(PUBLIC)
    assert "importlib" not in modules


@pytest.mark.parametrize("name", PUBLIC)
def test_each_name_loads_from_its_home(name: str) -> None:
    home = importlib.import_module(mixquant_agents._HOMES[name])
    assert getattr(mixquant_agents, name) is getattr(home, name)
    assert name in home.__all__


def test_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Engin'"):
        _ = mixquant_agents.Engin


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)  # noqa: S603
    return done.stdout.strip()


def test_importing_is_cheap_and_loads_nothing_heavy() -> None:
    """vLLM imports the package in each of its processes. In seconds of the processor, the best of three: other programs
    may disturb its caches."""
    code = (
        "import sys, time; start = time.process_time(); import mixquant_agents; "
        "print(time.process_time() - start, *(m for m in ('torch', 'vllm', 'langchain_core', 'langgraph', 'openai') "
        "if m in sys.modules))"
    )
    outputs = [run(code).split() for _ in range(3)]
    assert [output[1:] for output in outputs] == [[]] * 3
    assert min(float(output[0]) for output in outputs) < 0.1


@pytest.mark.slow
def test_chat_model_needs_neither_torch_nor_vllm() -> None:
    code = (
        "import sys; from mixquant_agents import MixQuantChatModel, ScriptedEngine; "
        "print(MixQuantChatModel(engine=ScriptedEngine(['ok'])).invoke('hi').content, "
        "*(m for m in ('torch', 'vllm', 'transformers') if m in sys.modules))"
    )
    assert run(code) == "ok"
