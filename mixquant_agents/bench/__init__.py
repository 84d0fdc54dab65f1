"""Measurements behind ``mixquant bench`` and ``mixquant fidelity``.

- ``prefill``: what reading and writing cost under each policy, engines taking turns on a GPU; and the roofline model;
- ``overhead``: what the chat layer, recording and the store cost;
- ``fidelity``: how far a policy's answers move from the exact model's;
- ``gpu``: programs for a machine with a GPU: ``python -m mixquant_agents.bench.gpu.NAME``.
"""
