"""Suites by name."""

from __future__ import annotations

import difflib
import importlib
from typing import Any

from mixquant_agents.errors import ConfigError
from mixquant_workflows.suites.base import Suite
from mixquant_workflows.suites.heldout import SUITES as HELD_OUT_SUITES
from mixquant_workflows.suites.reasoning_gym import ARITHMETIC, COPYING

__all__ = ["AGENT_SUITES", "BASE_MODEL", "REPLAY_SUITES", "model_folder", "suite"]

BASE_MODEL = "embedded-base"
"""The embedded model without its tool adapter: only for comparison, so only benchmarks know it."""


_AST = "bfcl.ast:BfclAst"
_GYM = "reasoning_gym:ReasoningGym"
_DOJO = ("workspace", "travel", "banking", "slack")
_SUITES: dict[str, tuple[str, tuple[Any, ...]]] = {
    "bundled": ("bundled.suite:BundledTools", ()),
    "bfcl_simple": (_AST, ("bfcl_simple", ("simple_python",))),
    "bfcl_multiple": (_AST, ("bfcl_multiple", ("multiple",))),
    "bfcl_parallel": (_AST, ("bfcl_parallel", ("parallel",))),
    "bfcl_irrelevance": (_AST, ("bfcl_irrelevance", ("irrelevance",))),
    "bfcl_live_simple": (_AST, ("bfcl_live_simple", ("live_simple",))),
    "bfcl_live_multiple": (_AST, ("bfcl_live_multiple", ("live_multiple",))),
    "bfcl_ast": (_AST, ("bfcl_ast",)),
    "bfcl_multi_turn": ("bfcl.turns:BfclTurns", ("bfcl_multi_turn",)),
    "hotpotqa": ("hotpotqa:HotpotQa", ()),
    "math500": ("mathematics:Mathematics", ("math500", "MATH500")),
    "aime2024": ("mathematics:Mathematics", ("aime2024", "AIME2024")),
    "aime2025": ("mathematics:Mathematics", ("aime2025", "AIME2025")),
    "ruler": ("ruler:Ruler", ("ruler", (2048, 4096, 8192))),
    "ruler_2k": ("ruler:Ruler", ("ruler_2k", (2048,))),
    "ruler_4k": ("ruler:Ruler", ("ruler_4k", (4096,))),
    "ruler_8k": ("ruler:Ruler", ("ruler_8k", (8192,))),
    "aa_lcr": ("aa_lcr:AaLcr", ("aa_lcr", False)),
    "aa_lcr_search": ("aa_lcr:AaLcr", ("aa_lcr_search", True)),
    "banking_knowledge": ("banking:BankingKnowledge", ()),
    "bfcl_memory_kv": ("bfcl.memory:BfclMemory", ("kv",)),
    "bfcl_memory_rec_sum": ("bfcl.memory:BfclMemory", ("rec_sum",)),
    "tau2_mock": ("tau2.suite:Tau2", ("mock",)),
    "tau2_airline": ("tau2.suite:Tau2", ("airline",)),
    "tau2_retail": ("tau2.suite:Tau2", ("retail",)),
    "tau2_telecom_small": ("tau2.suite:Tau2", ("telecom_small",)),
    "tau2_mock_model_user": ("tau2.suite:Tau2", ("mock", "model")),
    "tau2_airline_model_user": ("tau2.suite:Tau2", ("airline", "model")),
    "tau2_retail_model_user": ("tau2.suite:Tau2", ("retail", "model")),
    "tau2_telecom_small_model_user": ("tau2.suite:Tau2", ("telecom_small", "model")),
    **{f"agentdojo_{name}": ("agentdojo:AgentDojo", (f"agentdojo_{name}", name)) for name in _DOJO},
    **{
        f"agentdojo_{name}_attacked": ("agentdojo:AgentDojo", (f"agentdojo_{name}_attacked", name, True))
        for name in _DOJO
    },
    "reasoning_gym_arithmetic": (_GYM, ("reasoning_gym_arithmetic", ARITHMETIC)),
    "reasoning_gym_copying": (_GYM, ("reasoning_gym_copying", COPYING)),
    "reasoning_gym_arithmetic_noisy": (_GYM, ("reasoning_gym_arithmetic_noisy", ARITHMETIC, 4_000)),
    "reasoning_gym_copying_noisy": (_GYM, ("reasoning_gym_copying_noisy", COPYING, 4_000)),
    "reasoning_gym_noisy_16k": (_GYM, ("reasoning_gym_noisy_16k", (*ARITHMETIC, *COPYING), 50_000)),
    "harness_bench": ("harness:HarnessBench", ()),
    **{name: ("heldout:HeldOut", (name,)) for name in HELD_OUT_SUITES},
}
AGENT_SUITES = tuple(name for name in _SUITES if name not in ("bfcl_ast",))
REPLAY_SUITES = tuple(name for name in _SUITES)


def suite(name: str) -> Suite:
    """The suite of that name.

    Raises:
        ConfigError: there is none.
    """
    if name not in _SUITES:
        near = difflib.get_close_matches(name, _SUITES, 1)
        meant = f" (did you mean {near[0]!r}?)" if near else ""
        raise ConfigError(f"no benchmark suite {name!r}{meant}; choose one of {', '.join(_SUITES)}")
    target, arguments = _SUITES[name]
    module, kind = target.split(":")
    benchmark: Suite = getattr(importlib.import_module(f"mixquant_workflows.suites.{module}"), kind)(*arguments)
    return benchmark


def model_folder(model: str) -> str:
    """A local folder of ``model`` where it is one that this library prepares; else the name itself."""
    if model not in ("embedded", BASE_MODEL):
        return model
    from mixquant_agents.embedded import prepare

    return str(prepare(adapter=model == "embedded"))
