"""A Llama of two layers, 64 wide, with random weights, and a tokenizer of whole words."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast


def tiny_llama(vocabulary: int, end: int | None = None) -> LlamaForCausalLM:
    """The same weights every time; ``end`` is the token that ends an answer."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        eos_token_id=end,
        bos_token_id=None,
        initializer_range=0.2,
    )
    return LlamaForCausalLM(config)


def word_tokenizer(words: Sequence[str]) -> PreTrainedTokenizerFast:
    """Numbers ``words`` in their order; the first stands for all others."""
    unknown = words[0]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token=unknown))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token=unknown)
