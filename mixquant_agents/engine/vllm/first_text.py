"""The first token's text from the end of the prompt, not from all of it.

To know what text a token adds, vLLM decodes the prompt with and without it, on the thread that hands on the tokens of
every turn: 0.4 to 1.5 microseconds a token of the prompt, at each turn (vllm#51281, open). What a token adds depends on
the few before it alone: pieces of a character, and whether a space is written. vLLM's own detokenizer for slow
tokenizers decodes the last seven.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

__all__ = ["PROMPT_END", "decode_ends_alone"]

PROMPT_END = 64
"""Tokens of a prompt's end."""


def decode_ends_alone(output_processor: Any) -> None:
    """Let the requests of this ``AsyncLLM.output_processor`` decode the end of their prompt only. A detokenizer of
    another kind keeps its way, and so does a prompt whose end is no text: special tokens, or half a character."""
    add: Callable[..., None] = output_processor.add_request

    def add_request(request: Any, *args: Any, **options: Any) -> None:
        add(request, *args, **options)
        ids = request.prompt_token_ids
        state = output_processor.request_states.get(request.request_id)
        detokenizer: Any = getattr(state, "detokenizer", None)
        stream = getattr(detokenizer, "stream", None)
        if stream is None or ids is None or len(ids) <= PROMPT_END or detokenizer.num_output_tokens():
            return
        end = [*ids[-PROMPT_END:]]
        text = detokenizer.tokenizer.decode(end, skip_special_tokens=detokenizer.skip_special_tokens)
        if text and not text.endswith("\N{REPLACEMENT CHARACTER}"):
            detokenizer.stream = type(stream)(ids=end, skip_special_tokens=detokenizer.skip_special_tokens)

    output_processor.add_request = add_request
