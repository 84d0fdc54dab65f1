"""OpenTelemetry by the GenAI conventions: :mod:`spans`, named by :mod:`attributes`, and :mod:`metrics`.

Nothing is imported here: each needs the SDK.
"""
