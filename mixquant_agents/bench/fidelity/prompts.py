"""What the fidelity measurement asks by default: an agent's kind of prompts, written for it."""

from __future__ import annotations

__all__ = ["PROMPTS"]

_NOTE = (
    "Result of search_notes: 'The workshop opens at eight. The key hangs behind the blue door. Deliveries come on "
    "Tuesdays and Fridays; the driver needs a signature. The kiln takes four hours to reach 1,100 degrees and must not "
    "be opened before it is below 200. Glazes are on the second shelf, clay in the cellar.'"
)
_TABLE = (
    "Result of run_sql: [{'city': 'Lisbon', 'orders': 412, 'late': 31}, {'city': 'Porto', 'orders': 288, 'late': 9}, "
    "{'city': 'Braga', 'orders': 97, 'late': 14}, {'city': 'Faro', 'orders': 130, 'late': 5}]"
)

PROMPTS: tuple[str, ...] = (
    "Explain in a few sentences why the sky is blue.",
    "Write a short story about a lighthouse keeper who finds a letter in a bottle.",
    "List the steps to make a cup of tea, and say why each one matters.",
    f"{_NOTE}\n\nUsing the note, tell a new colleague what to do on a Tuesday morning.",
    f"{_NOTE}\n\nWhen may the kiln be opened, and where are the glazes?",
    f"{_TABLE}\n\nWhich city has the highest share of late orders? Explain how you worked it out.",
    f"{_TABLE}\n\nWrite a short summary of these results for a manager.",
    "Write a Python function that returns the n-th Fibonacci number, and explain how it works.",
    "What is the difference between weather and climate? Give an example of each.",
    "Translate into French, then explain the grammar: 'The children were playing in the garden when it began to rain.'",
)
