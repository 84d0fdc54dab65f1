"""τ²-bench: a domain's tools, a policy to keep, and a user who is a script or a model."""
