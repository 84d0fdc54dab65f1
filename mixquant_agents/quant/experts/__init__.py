"""Layers of many experts, of which a router chooses some for each row: their twins, and how their rows are routed.

Pure torch; vLLM's own layers and kernels are in :mod:`mixquant_agents.quant.vllm.experts`.
"""
