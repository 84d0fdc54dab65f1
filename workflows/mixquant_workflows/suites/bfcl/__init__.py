"""The suites that need ``bfcl-eval``: single turns, several turns, memory."""
