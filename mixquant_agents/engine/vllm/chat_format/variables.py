"""Which variables of a chat template a caller may set."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache

from mixquant_agents.engine.base import JsonObject
from mixquant_agents.errors import RequestError

__all__ = ["check_variables", "template_variables"]

_ENGINES = frozenset(
    {
        "add_generation_prompt", "chat_template", "continue_final_message", "conversation", "conversations",
        "max_length", "messages", "padding", "processor_kwargs", "return_assistant_tokens_mask", "return_dict",
        "return_tensors", "template_kwargs", "tokenize", "tokenizer_kwargs", "tools", "truncation",
    }
)  # fmt: skip
"""What the engine itself hands to the template, or what changes the form of the prompt."""
_FUNCTIONS = frozenset({"cycler", "dict", "joiner", "lipsum", "namespace", "raise_exception", "range", "strftime_now"})
_TRACKED = re.compile(r"\{%-?\s*(?:end)?generation\s*-?%\}")
"""A tag of transformers' own, which plain Jinja cannot parse."""


def check_variables(variables: JsonObject, known: frozenset[str] | None) -> None:
    """Refuse what would change the prompt's form, and what no template of the model would look at.

    Args:
        variables: name → value, from the caller.
        known: variables of the model's templates; ``None`` where that cannot be said.

    Raises:
        RequestError: a variable is the engine's own, or none of the template's.
    """
    for name in variables:
        if name in _ENGINES:
            hint = "; give chat_template in the model's settings instead" if name == "chat_template" else ""
            raise RequestError(f"chat_template_kwargs holds {name!r}, which the engine sets itself; leave it out{hint}")
        if known is not None and name not in known:
            names = ", ".join(sorted(known)) or "none"
            raise RequestError(
                f"chat_template_kwargs holds {name!r}, which this model's chat template does not know and would "
                f"ignore; its variables are: {names}"
            )


@lru_cache(maxsize=32)
def template_variables(source: str) -> frozenset[str] | None:
    """Variables that the Jinja source reads and does not set; ``None`` where it cannot be parsed."""
    import jinja2
    import jinja2.meta

    environment = jinja2.Environment(extensions=["jinja2.ext.loopcontrols"])  # noqa: S701 - parsed only, never rendered
    try:
        names: Iterable[str] = jinja2.meta.find_undeclared_variables(environment.parse(_TRACKED.sub("", source)))
    except jinja2.TemplateError:
        return None
    return frozenset(names) - _ENGINES - _FUNCTIONS
