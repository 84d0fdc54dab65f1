"""What a store says: :mod:`collect` gathers turns or their roll-ups, :mod:`overview` makes figures and comparisons of
them, :mod:`speedup` compares policies between turns of like size, :mod:`prompt_diff` shows where two prompts part.
"""
