"""What is said of an engine that drafts beside one that does not, on answers made by hand."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open

from mixquant_agents.bench.gpu import draft_features
from mixquant_agents.bench.gpu.draft_features import FEATURES, judged, verdict
from mixquant_agents.bench.gpu.random_heads import MTP, write_eagle3, write_mtp_model


def answer(*ids: int, finish: str = "length", text: str = "", margin: float = 2.0) -> dict[str, Any]:
    return {
        "ids": list(ids), "text": text, "logprobs": [-0.5] * len(ids), "margins": [margin] * len(ids),
        "finish": finish, "stop": None,
    }  # fmt: skip


def asked(*answers: dict[str, Any], drafted: int = 6) -> dict[str, Any]:
    return {"answers": [[each] for each in answers], "drafted": drafted, "accepted": 4}


def seen() -> dict[str, Any]:
    first, second = answer(1, 2, 3), answer(4, 5, 6)
    sampled = [{"answers": [[answer(seed, 1), answer(seed, 2)]], "drafted": 3} for seed in (7, 7, 8)]
    everything = {feature: asked(first, second) for feature in FEATURES}
    return everything | {
        "n": {"answers": [[first, first], [second, second]], "drafted": 6, "accepted": 4},
        "seeds": sampled,
        "copies": asked(first),
        "aborted": asked(first),
        "plugin": {"draft": {"lookup_cycles": 4}},
        "blocks": [{"free": 9, "all": 10}, {"free": 9, "all": 10}],
    }


def test_equal_engines_are_right() -> None:
    assert judged(seen(), seen(), list(FEATURES)) == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"stop": asked(answer(1, 9, 3), answer(4, 5, 6))}, "stop: answer 0 parts at token 1"),
        ({"stop": asked(answer(1, 2), answer(4, 5, 6))}, "stop: answer 0 parts at token 2"),
        ({"stop": asked(answer(1, 2, 3, finish="stop"), answer(4, 5, 6))}, "ends by stop None, not length"),
        ({"greedy": asked(answer(1, 2, 3), answer(4, 5, 6), drafted=0)}, "greedy: nothing was drafted"),
        ({"regex": {"error": "no grammar"}}, "regex: no grammar"),
        ({"min_p": asked(answer(1, 9, 3), answer(4, 5, 6))}, "min_p: answer 0 parts at token 1"),
        ({"copies": asked(answer(1, 2, 3), drafted=0)}, "copies: nothing was drafted"),
        ({"plugin": {"draft": {"lookup_cycles": 0}}}, "copies: no lookup drafted"),
        ({"n": {"answers": [[answer(1, 2, 3), answer(8)], [answer(4, 5, 6)] * 2], "drafted": 1}}, "n: answer 1"),
        ({"blocks": [{"free": 9}, {"free": 7}]}, "2 blocks are still held"),
        ({"aborted": asked(answer(3, 2, 3))}, "aborted: answer 0 parts at token 0"),
    ],
)
def test_whatever_is_wrong_is_said(change: dict[str, Any], words: str) -> None:
    wrong = judged(seen() | change, seen(), list(FEATURES), lookups=True)
    assert len(wrong) == 1
    assert words in wrong[0]


def test_seed_that_writes_something_else_is_wrong() -> None:
    moved = seen()
    moved["seeds"][1]["answers"][0][0]["ids"] = [7, 7]
    assert judged(moved, seen(), list(FEATURES)) == ["seeds: the same seed wrote another answer"]
    stuck = seen()
    stuck["seeds"][2] = copy.deepcopy(stuck["seeds"][0])
    assert judged(stuck, seen(), list(FEATURES)) == ["seeds: other seeds wrote the same answer"]
    assert judged(stuck, copy.deepcopy(stuck), list(FEATURES)) == [], "a model that is sure of its answer"


def test_tie_is_no_difference_and_log_probabilities_count() -> None:
    base = asked(answer(1, 2, 3, margin=0.05))
    assert verdict("greedy", asked(answer(1, 7, 8)), base) == []
    moved = asked(answer(1, 2, 3))
    moved["answers"][0][0]["logprobs"] = [-0.5, -0.9, -0.1]
    assert "log probabilities of answer 0 differ by 0.33" in verdict("greedy", moved, base)[0]


def test_tokens_behind_a_stop_string_are_no_part_of_the_answer() -> None:
    """A cycle hands out several tokens; those behind the stop are not in the text."""
    base = answer(1, 2, finish="stop", text="a(")
    longer = answer(1, 2, 9, 9, finish="stop", text="a(")
    base["stop"] = longer["stop"] = "("
    assert verdict("stop", asked(longer), asked(base)) == []
    other = {**longer, "text": "a(b"}
    assert "stop: answer 0 parts at token 2" in verdict("stop", asked(other), asked(base))[0]
    parted = {**answer(7, 2, 9, finish="stop", text="a("), "stop": "("}
    assert "stop: answer 0 parts at token 0" in verdict("stop", asked(parted), asked(base))[0]


def test_grammars_on_quantized_prompts_have_wider_ties() -> None:
    base, moved = seen(), seen()
    base["regex"] = asked(answer(1, 2, 3, margin=0.4))
    moved["regex"] = asked(answer(1, 7, 3, margin=0.4))
    assert judged(moved, base, list(FEATURES), quantized=True) == []
    assert len(judged(moved, base, list(FEATURES))) == 1


def test_sampled_answers_of_one_likely_token_are_the_greedy_ones() -> None:
    """Their log probabilities are all 0: of what was left to draw from."""
    drawn = seen()
    for feature in ("n", "min_p"):
        drawn[feature] = copy.deepcopy(drawn[feature])
        for answers in drawn[feature]["answers"]:
            for each in answers:
                each["logprobs"] = [0.0] * len(each["ids"])
    assert judged(drawn, seen() | {"min_p": {"answers": []}, "n": {"answers": []}}, list(FEATURES)) == []


def test_answers_that_the_engine_ended_show_nothing() -> None:
    """As where the tokenizer does not know the model's end of text, and the grammar ends on another token."""
    ended = asked(answer(1, 2, finish="error"))
    assert "regex: answer 0 was ended by the engine" in verdict("regex", ended, ended)[0]


def test_text_is_of_the_grammar() -> None:
    wrong = answer(1, 2, finish="stop", text='{"name": 3}')
    assert verdict("json", asked(wrong), asked(wrong)) == ["json: '{\"name\": 3}'"]
    right = answer(1, 2, finish="stop", text='{"name": "a", "size": 3}')
    assert verdict("json", asked(right), asked(right)) == []


def test_engines_differ_by_their_drafts_alone(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.mkdir()
    shape = {name: MTP[name] for name in MTP if name != "num_nextn_predict_layers"}
    (target / "config.json").write_text(json.dumps(shape))
    made = draft_features.engines(target, tmp_path)
    rows = sum(draft_features.LENGTHS[n % len(draft_features.LENGTHS)] for n in range(draft_features.PROMPTS))
    for name, values in made.items():
        policy = values.get("hf_overrides", {}).get("quantization_config", {}).get("policy", {})
        threshold = policy.get("row_threshold", rows)
        if name in ("exact", *draft_features.FORCED):
            assert threshold >= rows, "what is compared is read exact"
        else:
            assert threshold < rows
            assert values["enable_prefix_caching"] is False
    for name, base in draft_features.PAIRS.items():
        own, other = dict(made[name]), dict(made[base])
        own.pop("speculative_config", None)
        if name in ("twin", "window"):  # these differ by their policy
            own = {key: own[key] for key in other}
        assert own == other


def test_heads_have_the_weights_that_their_models_load(tmp_path: Path) -> None:
    model = write_mtp_model(tmp_path)
    head = write_eagle3(model, tmp_path)
    with safe_open(head / "model.safetensors", "pt") as weights:
        assert weights.get_slice("midlayer.self_attn.q_proj.weight").get_shape() == [512, 1024]
        assert weights.get_slice("fc.weight").get_shape() == [512, 1536]
    with safe_open(model / "model.safetensors", "pt") as weights:
        names = set(weights.keys())
    assert {"model.layers.3.self_attn.q_proj.bias", "model.mtp_layers.0.input_proj.weight"} <= names
