"""Two engines as one: ``engine`` (a turn, side after side), ``merge`` (both sides' counts and times as one record)."""

from mixquant_agents.engine.pair.engine import PairEngine

__all__ = ["PairEngine"]
