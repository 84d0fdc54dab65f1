"""What vLLM sees of the plugin, and all that the plugin imports or patches of vLLM; ``contract`` names every symbol.

Reading order: ``plugin`` (what loading it does), ``method`` (the quantization method), ``linear`` (a routed Linear),
``runner_hooks`` (where a step is planned), ``context`` (where an operation finds it), ``graph_hooks`` (captured and
compiled graphs), ``config_hooks`` (engine-wide settings), ``worker_rpc`` (what the front end may ask).

Here our own objects have types; what is annotated ``Any`` is vLLM's.
"""
