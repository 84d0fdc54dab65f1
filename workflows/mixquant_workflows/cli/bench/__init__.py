"""``mixquant bench agents``, ``peers`` and ``replay``: one command a module."""
