"""What an answer may look like, from the request to the finished call.

Reading order: ``structural_tag`` (tool choice and schema → one grammar), ``checker`` (whether it can be compiled, and
at what price) with ``helper_process``, ``checked_calls`` (calls whose schema no grammar holds altogether). What a
schema becomes for the compiler is in ``engine/json_schema``, which needs neither vLLM nor xgrammar.
"""

from __future__ import annotations

from mixquant_agents.engine.vllm.grammar.structural_tag import (
    Grammar,
    calls_in_hermes,
    checked_tools,
    grammar_of,
    hermes_tag,
    tools_active,
)

__all__ = ["Grammar", "calls_in_hermes", "checked_tools", "grammar_of", "hermes_tag", "tools_active"]
