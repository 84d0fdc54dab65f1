"""``mixquant serve``: servers of vLLM with the plugin (``command``, ``process``), a router before them (``router``),
all of them together (``fleet``), and one view of their health (``health``)."""
