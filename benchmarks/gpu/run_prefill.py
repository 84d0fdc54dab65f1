"""``mixquant bench prefill`` on a machine where the package lies on PYTHONPATH and is not installed."""

import typer

from mixquant_agents.cli.bench_prefill import command

if __name__ == "__main__":
    typer.run(command)
