"""Rows of many conversations: who sees whom, and that the model says what it says of one conversation alone."""

from __future__ import annotations

import pathlib
import random

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

from mixquant_agents import embedded
from mixquant_training import model as plain
from mixquant_training.data import batch, tree
from mixquant_training.generate.encode import encode
from mixquant_training.generate.fan import fan
from mixquant_training.generate.several import repeated
from mixquant_training.generate.toolbox import Toolbox
from mixquant_training.generate.wording import freeform
from mixquant_training.keep import Kept, kept_rows
from mixquant_training.rows import TILE, Seen, tiles, until


def test_tree_keeps_every_conversation_whole() -> None:
    conversations = [
        ([5, 6, 7, 8, 9], [False, False, False, True, True]),
        ([5, 6, 1, 2], [False, False, False, True]),
        ([5, 6, 7, 3], [False, False, True, True]),
    ]
    ids, learnt, branch, position = tree(conversations)
    assert ids[:2] == [5, 6]
    assert branch[:2] == [0, 0]
    assert branch[2] == 1
    for number, (own, flags) in enumerate(conversations, 1):
        mine = [i for i, one in enumerate(branch) if one in {0, number}]
        assert [ids[i] for i in mine] == own
        assert [learnt[i] for i in mine] == flags
        assert [position[i] for i in mine] == list(range(len(own)))
    assert tree(conversations[:1])[2] == [1] * 5


def test_tiles_hold_all_that_is_seen() -> None:
    rng = np.random.default_rng(2)
    lengths = rng.integers(3, 400, 12)
    document = np.repeat(np.arange(12), lengths)
    document = np.append(document, np.full(-len(document) % TILE, 12)).astype(np.int32)
    branch = rng.integers(0, 3, len(document)).astype(np.int32)
    for number in range(13):
        branch[document == number] = np.sort(branch[document == number])
    seen = Seen(len(document), "cpu")
    parts = tiles(document)
    seen.fill(torch.from_numpy(until(document, branch)), tuple(map(torch.from_numpy, parts)))
    span = np.arange(len(document))
    own = (branch[None] == 0) | (branch[None] == branch[:, None])
    wanted = (span[:, None] >= span[None]) & (document[:, None] == document[None]) & own
    assert isinstance(seen.mask, torch.Tensor)
    assert (seen.mask.numpy() == wanted).all()
    reads, read, answers, answered = parts
    count = len(document) // TILE
    touched = wanted.reshape(count, TILE, count, TILE).any((1, 3))
    pairs = {(query, int(key)) for query in range(count) for key in read[query, : reads[query]]}
    assert {(int(query), int(key)) for query, key in zip(*np.nonzero(touched), strict=True)} <= pairs
    assert pairs == {(int(query), key) for key in range(count) for query in answered[key, : answers[key]]}


def test_kept_texts_fill_rows_of_one_size() -> None:
    rng = random.Random(1)
    kept = []
    for number in range(30):
        ids = [number * 100 + i for i in range(rng.randint(10, 60))]
        kept.append(Kept(ids, ids, 5, torch.full((5, 2), float(number))))
    rows = kept_rows(kept, 256, 20, rng)
    for _ in range(10):
        row = next(rows)
        assert len(row.ids) == 256
        assert 0 < len(row.at) == len(row.states) <= 20
        assert (row.ids[row.at] // 100 == row.states[:, 0].numpy()).all()
        assert row.begins[0]
        assert row.begins.sum() * 5 == len(row.at)
        assert (np.diff(row.document) >= 0).all()


def test_fan_shares_tools_and_fits_their_schemas() -> None:
    rng = random.Random(6)
    kinds = set()
    for _ in range(40):
        scenes = fan(Toolbox(rng))
        assert 4 <= len(scenes) <= 7
        schemas = {schema["name"]: schema["parameters"] for schema in scenes[0].schemas}
        for scene in scenes:
            assert scene.tools == scenes[0].tools
            for message in scene.messages:
                assert message["role"] == "tool" or "{" not in message["content"], message
                calls = message.get("tool_calls") or []
                kinds.add(min(2, len(calls)) if message["role"] == "assistant" else -1)
                for call in calls:
                    schema = schemas[call["name"]]
                    assert set(schema.get("required", [])) <= set(call["arguments"]) <= set(schema["properties"])
    assert kinds == {-1, 0, 1, 2}


def test_repeated_parts_name_every_value() -> None:
    rng = random.Random(3)
    found = 0
    for _ in range(200):
        box = Toolbox(rng)
        archetype = box.archetype()
        several = repeated(box, archetype, 3)
        if several:
            question, calls = several
            assert len(calls) == 3
            assert "{" not in question
            found += 1
        text = freeform(archetype, rng, 0.5)
        if text:
            required = {param.names[0] for param in archetype.params if param.required}
            assert all("{" + name in text for name in required)
            found += 1
    assert found > 100


@pytest.mark.slow
def test_row_gives_what_each_conversation_gives_alone() -> None:
    folder: pathlib.Path = embedded.prepare()
    weights = plain.load_safetensors(folder)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    rng = random.Random(5)
    scenes = fan(Toolbox(rng))[:2]
    encoded = [encode(tokenizer, scene.messages, scene.schemas) for scene in scenes]
    ids, _, branch, position = tree(encoded)
    count = -(-len(ids) // TILE) * TILE
    row, where, document, branches = (np.zeros(count, np.int32) for _ in range(4))
    row[: len(ids)], where[: len(ids)], branches[: len(ids)] = ids, position, branch
    document[len(ids) :] = 1
    seen = Seen(count, "cpu")
    seen.fill(torch.from_numpy(until(document, branches)), ())
    cos, sin = plain.rope(2048, "cpu", torch.float32)
    places = torch.from_numpy(where)
    with torch.no_grad():
        found = plain.row_hidden(weights, torch.from_numpy(row), cos[places], sin[places], seen.mask)
        for number, (own, _) in enumerate(encoded, 1):
            alone = plain.hidden(weights, torch.tensor([own]), cos, sin)[0]
            mine = torch.tensor([i for i, one in enumerate(branch) if one in {0, number}])
            assert torch.allclose(found[mine], alone, atol=2e-3)


@pytest.mark.slow
def test_batch_is_full_and_repeatable_by_seed() -> None:
    tokenizer = Tokenizer.from_file(str(embedded.prepare() / "tokenizer.json"))
    one, same = (batch(tokenizer, 4096, 2000, random.Random(8)) for _ in range(2))
    assert (one.ids == same.ids).all()
    assert len(one.ids) == 4096
    assert 2000 < one.used <= 4096
    assert one.read >= one.used
    assert 0 < len(one.at) <= 2000
    assert one.begins.sum() > 1
    assert (one.ids[one.at + 1] != 0).all()
