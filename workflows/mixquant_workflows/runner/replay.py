"""Ground truths through the whole tool path: scripted answers → Hermes text → parser → graph → tools → official
checker.

What passes here can be passed by a model; what does not is an error of the path, or of the ground truth itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mixquant_agents import MixQuantChatModel, ScriptedEngine
from mixquant_workflows.suites.base import Suite

__all__ = ["replay"]


async def replay(
    suite: Suite, *, limit: int | None = None, progress: Callable[[int, int], None] = lambda done, total: None
) -> dict[str, Any]:
    """Replay every case.

    Returns:
        ``suite``, ``passed``, ``total``, ``documented_misses`` (id → reason upstream), ``undocumented_misses`` (id →
        what the checker said), ``unexpected_passes`` (documented, but passed).

    Raises:
        MixQuantError: the suite's data is missing, or it has no ground truth of calls.
    """
    cases = suite.cases()[:limit]
    missed: dict[str, str] = {}
    for number, case in enumerate(cases, start=1):
        model = MixQuantChatModel(engine=ScriptedEngine(suite.oracle(case)), model="scripted")
        verdict = await suite.run(case, model)
        if verdict.score < 1:
            missed[case.id] = verdict.why
        progress(number, len(cases))
    documented = {case.id: suite.documented_misses[case.id] for case in cases if case.id in suite.documented_misses}
    return {
        "suite": suite.name,
        "passed": len(cases) - len(missed),
        "total": len(cases),
        "documented_misses": {name: reason for name, reason in documented.items() if name in missed},
        "undocumented_misses": {name: why for name, why in missed.items() if name not in documented},
        "unexpected_passes": [name for name in documented if name not in missed],
    }
