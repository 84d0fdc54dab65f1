"""``mixquant bench …``: one command a module."""
