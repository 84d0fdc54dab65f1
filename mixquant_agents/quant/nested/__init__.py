"""BF16 weights in twelve bits that hold their FP8 twin: less memory than BF16, and products of few rows faster.

Reading order: ``layout`` (the format, and its plain reverse), ``tiling`` (how a product is cut up), ``kernel.cu`` and
``product`` (the product). What was tried and measured: ``docs/nested-weights.md``.

A library of its own: it needs torch, and on a GPU ``cuda.bindings``. The plugin does not use it yet.
"""
