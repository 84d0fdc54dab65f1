"""Layers of experts as vLLM sees them: the routed method, vLLM's kernels for twins, and what is refused."""
