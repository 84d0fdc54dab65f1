"""A pair of engines beside one: the same prompts read by a quantized engine and answered by an exact one, with vLLM's
connector between them, and on each engine alone.

::

    python -m mixquant_agents.bench.pair --policy mixquant-int8 --lengths 256,1024 --output pair.json

Three columns: ``pair``, ``policy`` (the reading engine alone) and ``exact`` (the writing engine alone). Each engine has
a process of its own, and both start at once. On GPUs the reading engine has device 0, the writing one device 1; on a
CPU each has one thread, for threads of two engines on the same cores wait for each other.

The policy's last prompt tokens run exact, as many as the pair's writing engine runs of a prompt itself: so the pair and
``policy`` run the same rows in the same precision, and write the same up to the order in which products are summed.

Reading order: ``turn`` (one measured turn), ``columns`` (what is measured), ``engines`` (the two engines), ``run``.
"""

from mixquant_agents.bench.pair.columns import PairBench
from mixquant_agents.bench.pair.run import main, measure
from mixquant_agents.bench.pair.turn import kl_divergence

__all__ = ["PairBench", "kl_divergence", "main", "measure"]
