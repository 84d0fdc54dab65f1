"""Engines for a comparison of policies: one that is switched where it can be, else one after the other."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Mapping

from mixquant_agents import EngineConfig, PrecisionPolicy, VllmEngine

__all__ = ["EngineGroup", "engine_groups"]


class EngineGroup:
    """A started engine and the policies it serves.

    Attributes:
        engine: started.
        policies: the names of those that it runs under.
    """

    def __init__(self, engine: VllmEngine, policies: Mapping[str, PrecisionPolicy], *, switchable: bool) -> None:
        self.engine = engine
        self.policies = tuple(policies)
        self._by_name = dict(policies)
        self._switchable = switchable

    async def enter(self, policy: str) -> None:
        """Let the idle engine run under ``policy``, with nothing in its prefix cache: every policy begins cold."""
        if self._switchable:
            await self.engine.set_policy(self._by_name[policy])
        await self.engine.reset_prefix_cache()


async def engine_groups(
    policies: Mapping[str, PrecisionPolicy], config: Callable[[PrecisionPolicy], EngineConfig]
) -> AsyncGenerator[EngineGroup, None]:
    """Engines that together serve all ``policies``; each is closed before the next one starts.

    On a CPU one engine serves them all. A GPU's engine is compiled for the weights of its policy, so there each policy
    has its own.

    Args:
        policies: by name.
        config: the engine to start for a policy.

    Raises:
        EngineError: an engine did not start.
    """
    waiting = dict(policies)
    while waiting:
        # An engine that was started exact has no twins and cannot be switched.
        first = next((name for name, policy in waiting.items() if policy.quantizes), next(iter(waiting)))
        engine = VllmEngine(config(waiting[first]))
        try:
            await engine.start()
            switchable = engine.info.device == "cpu" and waiting[first].quantizes
            served = dict(waiting) if switchable else {first: waiting[first]}
            yield EngineGroup(engine, served, switchable=switchable)
        finally:
            await engine.aclose()
        waiting = {name: policy for name, policy in waiting.items() if name not in served}
