"""BF16 weights in twelve bits that hold their FP8 twin: less memory than BF16, and products of few rows faster.

Reading order: ``layout`` (the format, and its plain reverse), ``tiling`` (how a product is cut up), ``kernel.cu`` (few
rows), ``staged.cu`` (33 to 64) and ``wide.cu`` (more), ``unpack.cu`` (the BF16 weight), ``kernels`` (compiled and bound
to a weight), ``product`` (which of them runs). What was tried and measured: ``docs/nested-weights.md``.

A library of its own: it needs torch, and on a GPU ``cuda.bindings``. The plugin's twin that uses it is
:mod:`mixquant_agents.quant.twins.nested`.
"""
