"""``python -m mixquant_agents.bench.pair``."""

from mixquant_agents.bench.pair.run import main

if __name__ == "__main__":
    main()
