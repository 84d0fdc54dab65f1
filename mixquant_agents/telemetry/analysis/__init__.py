"""What a store says: :mod:`collect` gathers turns or their roll-ups, :mod:`overview` makes figures and comparisons of
them, :mod:`policies` tells policies apart, :mod:`speedup` compares them between turns of like size, :mod:`prompt_diff`
shows where two prompts part.
"""
