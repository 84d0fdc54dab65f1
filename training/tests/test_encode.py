"""What training encodes is what the chat template renders."""

from __future__ import annotations

import pathlib
import random

import pytest
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from mixquant_agents import embedded
from mixquant_training import model as plain
from mixquant_training.generate.encode import encode, spans
from mixquant_training.generate.mix import example


@pytest.fixture(scope="module")
def folder() -> pathlib.Path:
    return embedded.prepare()


@pytest.mark.slow
def test_encoding_is_what_the_chat_template_renders(folder: pathlib.Path) -> None:
    reference = AutoTokenizer.from_pretrained(folder)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    rng = random.Random(3)
    for _ in range(60):
        scene = example(rng)
        tools = [{"type": "function", "function": schema} for schema in scene.schemas]
        whole = reference.apply_chat_template(scene.messages, tools=tools, tokenize=False)
        text = "".join(piece for piece, _ in spans(scene.messages, scene.schemas))
        assert whole.startswith(text)
        ids, learnt = encode(tokenizer, scene.messages, scene.schemas)
        assert ids == tokenizer.encode(text, add_special_tokens=False).ids
        assert ids[-1] == plain.CONFIG.end
        assert learnt[-1]
        assert not learnt[0]
