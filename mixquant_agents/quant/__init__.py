"""The vLLM plugin: quantization method ``"mixquant"``, phase-aware Linear layers inside vLLM's worker."""


def register() -> None:
    """Entry point ``vllm.general_plugins``: called by vLLM in each of its processes. Idempotent."""
