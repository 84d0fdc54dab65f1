"""Programs for a machine with a GPU, run as ``python -m mixquant_agents.bench.gpu.NAME``; each names its arguments."""
