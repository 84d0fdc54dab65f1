"""The domain: which rows of a forward pass run in which number format. Pure: no torch, no vllm.

Reading order: ``formats`` (the number formats and what each needs of a device), ``policy`` (what a user asks for),
``support`` (how a device runs a format), ``resolve`` (a policy on a device), ``plan`` (the row rule, and the routing of
one step by it), ``layer_filter`` (which Linear layers take part).

The vLLM plugin, the scripted engine, ``mixquant doctor`` and ``mixquant bench fidelity`` all follow the rule that is
written here, and nowhere else.
"""
