"""The vLLM plugin: quantization method ``"mixquant"``, phase-aware Linear layers inside vLLM's worker.

A row of a forward pass is *prefill* iff its absolute position is below ``num_prompt_tokens - 1``; prefill rows run in
the policy's prefill format, the others exact. Reading order: :mod:`mixquant_agents.precision` (which rows), ``formats``
(the numbers), ``twins`` (a weight's quantized copy and how rows pass through it), ``step`` and ``router`` (how one step
runs), ``ops`` (the routed product and its kernels), ``runtime`` (a worker's state), ``autotune`` (from which size on
quantizing pays), ``kernel_check`` (products against references), ``calibration`` (what a model's activations tell),
``vllm`` (what vLLM sees, and what is hooked of it).

Importing this package loads neither torch nor vllm; :func:`register` loads what vLLM has loaded by then.
"""


def register() -> None:
    """Entry point ``vllm.general_plugins``: called by vLLM in each of its processes. Idempotent.

    Only names the method; runners and workers are hooked when a model with this method is built, so other engines in
    the same process stay untouched.
    """
    from mixquant_agents.quant.vllm.plugin import load

    load()
