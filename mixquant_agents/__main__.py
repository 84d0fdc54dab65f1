"""``python -m mixquant_agents`` is the ``mixquant`` command."""

from mixquant_agents.cli import main

if __name__ == "__main__":
    main()
