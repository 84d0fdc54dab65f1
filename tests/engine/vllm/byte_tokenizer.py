"""A real transformers tokenizer of 256 bytes, with whatever chat template and special tokens a test needs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def byte_tokenizer(template: Any = None, special: Sequence[str] = ()) -> Any:
    """One token per byte, and one per special token; ``<s>`` and ``</s>`` begin and end."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    plain = Tokenizer(models.BPE(vocab={char: index for index, char in enumerate(alphabet)}, merges=[]))
    plain.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    plain.decoder = decoders.ByteLevel()
    made = PreTrainedTokenizerFast(tokenizer_object=plain, bos_token="<s>", eos_token="</s>")  # noqa: S106 - tokens of text
    made.add_special_tokens({"additional_special_tokens": list(special)})
    made.chat_template = template
    return made
