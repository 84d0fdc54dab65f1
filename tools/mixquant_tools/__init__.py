"""Tools for agents: typed, documented for the model, safe against hostile input."""
