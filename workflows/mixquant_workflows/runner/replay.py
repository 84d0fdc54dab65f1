"""Ground truths through the whole tool path: scripted answers → Hermes text → parser → graph → tools → official
checker.

What passes here can be passed by a model; what does not is an error of the path, or of the ground truth itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mixquant_agents import MixQuantChatModel, ScriptedEngine
from mixquant_agents.errors import ConfigError
from mixquant_workflows.suites.base import Suite

__all__ = ["replay"]


async def replay(
    suite: Suite, *, limit: int | None = None, progress: Callable[[int, int], None] = lambda done, total: None
) -> dict[str, Any]:
    """Replay every case.

    Returns:
        ``suite``, ``passed``, ``total``, ``documented_misses`` (id → reason upstream), ``undocumented_misses`` (id →
        what the checker said), ``unexpected_passes`` (documented, but passed), ``left_out`` (id → why its ground truth
        is no calls); ``total`` is without these.

    Raises:
        MixQuantError: the suite's data is missing, or it has no ground truth of calls.
    """
    cases = suite.cases()[:limit]
    missed: dict[str, str] = {}
    left_out: dict[str, str] = {}
    for number, case in enumerate(cases, start=1):
        progress(number, len(cases))
        try:
            answers = suite.oracle(case)
        except ConfigError as error:
            left_out[case.id] = str(error)
            if len(left_out) == len(cases):
                raise
            continue
        verdict = await suite.run(case, MixQuantChatModel(engine=ScriptedEngine(answers), model="scripted"))
        if verdict.score < 1:
            missed[case.id] = verdict.why
    total = len(cases) - len(left_out)
    documented = {case.id: suite.documented_misses[case.id] for case in cases if case.id in suite.documented_misses}
    return {
        "suite": suite.name,
        "passed": total - len(missed),
        "total": total,
        "documented_misses": {name: reason for name, reason in documented.items() if name in missed},
        "undocumented_misses": {name: why for name, why in missed.items() if name not in documented},
        "unexpected_passes": [name for name in documented if name not in missed and name not in left_out],
        "left_out": left_out,
    }
