"""GPU side of the plugin: kernels, matrix products, graph variants, fused graphs, the start-up measurement.

Reading order: ``steps`` (a step's mode), ``kernels`` and ``gemm`` (the arithmetic; ``reference`` says what it must
compute), ``held`` (a weight's twin), ``ops`` (what compiled graphs hold), ``routing`` (which mode a step gets),
``measure`` (from which size on), ``fuse``, ``install`` and ``engine_config`` (how it meets vLLM). An engine on a CPU
imports none of it.
"""
