"""JSON schemas as a grammar can hold them, and the check of a finished answer against the whole schema.

A grammar compiler (xgrammar) follows only part of JSON Schema, and ignores the rest without an error: ``not``,
``if``, ``uniqueItems``, a look-ahead in a pattern, keywords beside ``$ref`` or ``anyOf``. So a schema is rewritten
before it gets there:

* what can be said in other words is: ``allOf`` and keywords beside ``$ref`` and ``anyOf`` are merged, lengths move into
  a pattern, a ``const`` or ``enum`` is filtered by the keywords beside it, references get plain names;
* what cannot is left out of the grammar and named in :attr:`GrammarSchema.unenforced`: the caller checks the answer
  with :func:`violation`, or refuses the request;
* what no answer can satisfy, and what nobody here can look up (a reference to another document), is refused.

A grammar may be narrower than its schema, never wider: an object has no properties beside the listed ones unless
``additionalProperties`` says so, and a schema that only has keywords of one type means that type.

Formats that the compiler does not know are comments, as JSON Schema says. Pure: imports neither vllm nor xgrammar.
"""

from __future__ import annotations

from mixquant_agents.engine.json_schema.drafts import modern
from mixquant_agents.engine.json_schema.keywords import FORMATS
from mixquant_agents.engine.json_schema.rewriter import GrammarSchema, grammar_schema
from mixquant_agents.engine.json_schema.validation import MAX_DEPTH, check_schema, violation

__all__ = ["FORMATS", "MAX_DEPTH", "GrammarSchema", "check_schema", "grammar_schema", "modern", "violation"]
