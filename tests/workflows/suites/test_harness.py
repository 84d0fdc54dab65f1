"""harness-bench-fast: its solutions pass its own verifiers, by itself and through a deep agent's file tools."""

from __future__ import annotations

from importlib.util import find_spec

import pytest

from mixquant_agents import MixQuantChatModel, ScriptedEngine
from mixquant_agents.errors import ConfigError
from mixquant_workflows.suites.base import Case
from mixquant_workflows.suites.harness import HarnessBench

pytestmark = pytest.mark.skipif(
    find_spec("harness_bench") is None or find_spec("openpyxl") is None,
    reason="harness-bench-fast is not in the lock: it asks for Python 3.12",
)


def written(chosen: HarnessBench, count: int) -> list[Case]:
    """Cases whose solution is a set of files."""
    found = []
    for case in chosen.cases():
        try:
            chosen.oracle(case)
        except ConfigError:
            continue
        found.append(case)
    return found[:: max(1, len(found) // count)][:count]


async def test_solutions_pass_through_the_agents_file_tools() -> None:
    chosen = HarnessBench()
    for case in written(chosen, 4):
        verdict = await chosen.run(case, MixQuantChatModel(engine=ScriptedEngine(chosen.oracle(case))))
        assert (verdict.score, verdict.why) == (1.0, verdict.why), case.id


async def test_solutions_pass_their_verifiers_and_nothing_done_fails() -> None:
    chosen = HarnessBench()
    cases = chosen.cases()
    assert len(cases) >= 298
    for case in cases[::60]:
        assert (await chosen.verify_gold(case)).score == 1.0, case.id
    verdict = await chosen.run(written(chosen, 1)[0], MixQuantChatModel(engine=ScriptedEngine(["Done."])))
    assert verdict.score == 0.0
