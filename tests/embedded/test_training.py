"""The data generator, its encoding and its suites; and that the shipped adapter is what the card says."""

from __future__ import annotations

import json
import pathlib
import random
import re

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from mixquant_agents import embedded
from mixquant_agents.embedded.adapter import adapter_folder, merge
from training import model as plain
from training.adapter import Adapter, resized, save
from training.adapter import load as read
from training.generate import compose
from training.generate.attributes import listed, opposites, shuffled
from training.generate.catalog import load
from training.generate.encode import encode, prompt_text, spans
from training.generate.mix import MIXTURE, example
from training.generate.scenes import Toolbox, overlaps
from training.generate.values import parse
from training.generate.words import vocabulary, words
from training.mean import mean
from training.suites import SUITES, calls_in, judge, refuses, tasks
from training.train import rate_at


@pytest.fixture(scope="module")
def folder() -> pathlib.Path:
    return embedded.prepare()


@pytest.mark.slow
def test_encoding_is_what_the_chat_template_renders(folder: pathlib.Path) -> None:
    reference = AutoTokenizer.from_pretrained(folder)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    rng = random.Random(3)  # noqa: S311 - a fixed sample
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


@pytest.mark.slow
@pytest.mark.parametrize("maker", [maker for maker, _ in MIXTURE], ids=lambda maker: maker.__name__)
def test_every_call_fits_its_schema(maker: object) -> None:
    rng = random.Random(4)  # noqa: S311 - a fixed sample
    seen = 0
    for _ in range(120):
        scene = maker(Toolbox(rng))  # type: ignore[operator]
        schemas = {schema["name"]: schema["parameters"] for schema in scene.schemas}
        assert len(schemas) == len(scene.schemas)
        for message in scene.messages:
            assert message["role"] == "tool" or "{" not in message["content"], message
            for call in message.get("tool_calls") or []:
                schema = schemas[call["name"]]
                assert set(schema.get("required", [])) <= set(call["arguments"]) <= set(schema["properties"])
                seen += 1
    assert seen or maker.__name__ in {"no_fit", "small_talk"}  # type: ignore[attr-defined]


def test_nothing_held_out_is_trained_on() -> None:
    assert not {a.key for a in load(held=True)} & {a.key for a in load(held=False)}
    assert not {d.lower() for a in load(held=True) for d in a.questions} & {
        d.lower() for a in load(held=False) for d in a.questions
    }
    free = {*vocabulary(capital=False), *(word.lower() for word in vocabulary(capital=True))}
    things = {*compose._HEADS[True], *compose._MODIFIERS[True], *compose._HELD_VERBS}
    assert len(free) > 10_000
    assert not free & {part for thing in things for part in re.findall("[a-z]+", thing)}
    for category in ("city", "first", "product", "topic"):
        assert not {word.lower() for word in words(category, held=True)} & free
        assert not set(words(category, held=True)) & set(words(category, held=False))


def _runs(held: bool, length: int) -> dict[tuple[str, ...], str]:
    """Runs of so many words of the questions, a value counting as one; at least four are words."""
    found = {}
    for archetype in load(held=held):
        for text in (*archetype.questions, *(ask for _, ask in archetype.asks)):
            said = re.findall(r"[a-z]+|#", re.sub(r"\{[^}]*\}", " # ", text.lower()))
            for start in range(len(said) - length + 1):
                run = tuple(said[start : start + length])
                if length - run.count("#") >= 4:
                    found[run] = text
    return found


@pytest.mark.parametrize("length", [4, 6])
def test_no_wording_of_the_held_out_requests_is_trained_on(length: int) -> None:
    held, ours = _runs(True, length), _runs(False, length)
    assert len(held) > 80
    assert not [(held[run], ours[run]) for run in held.keys() & ours.keys()]


def test_no_held_out_yes_or_no_is_said_in_training() -> None:
    def said(kinds: list[str]) -> set[str]:
        found = [parse(kind).args for kind in kinds if kind.startswith("bool(")]
        return {phrase.strip() for one in found for part in one.split("|") for phrase in part.split("/")}

    held = [f"bool({p.kind.args})" for a in load(held=True) for p in a.params if p.kind.name == "bool"]
    ours = [f"bool({p.kind.args})" for a in load(held=False) for p in a.params if p.kind.name == "bool"]
    ours += [kind for _, kind, _, _ in (*listed(), *opposites(), *compose._ATTRIBUTES)]
    theirs = said([*held, *(kind for _, kind, _, _ in compose._HELD_ATTRIBUTES)])
    assert len(theirs) > 10
    assert not theirs & said(ours)


def test_contraries_come_from_both_sides() -> None:
    pairs = {name: kind for name, kind, _, _ in opposites()}
    yes, no = pairs["wet"].removeprefix("bool(").removesuffix(")").split("|")
    assert pairs["dry"] == f"bool({no}|{yes})"
    assert len(pairs) > 100


def test_the_order_of_parameters_tells_nothing() -> None:
    rng = random.Random(2)  # noqa: S311 - a fixed sample
    archetype = next(one for one in load(held=False) if len(one.params) > 3)
    orders = {tuple(param.names[0] for param in shuffled(archetype, rng).params) for _ in range(40)}
    assert len(orders) > 5
    assert len({frozenset(order) for order in orders}) == 1


def test_a_value_goes_without_its_name_only_where_its_unit_tells() -> None:
    mass, length, height, rate = (one for one in compose._INPUTS if one[0] in {"mass", "length", "height", "rate"})
    assert compose._told_by_unit([mass, length, rate]) == {"mass", "length", "rate"}
    assert compose._told_by_unit([mass, length, height]) == {"mass"}
    for number in range(60):
        rng = random.Random(number)  # noqa: S311 - a fixed sample
        archetype = compose.quantity(rng, held=False)
        missing, text = archetype.asks[0]
        assert "{" + missing + "}" not in text


def test_groups_that_serve_alike_name_functions_that_exist() -> None:
    keys = {archetype.key: archetype for archetype in load(held=False)}
    groups = [line.split() for line in (compose.CATALOG / "overlaps.txt").read_text().splitlines()]
    assert {key for group in groups for key in group} <= keys.keys()
    assert overlaps(keys["tune_piano"], keys["piano_tuner"])
    assert not overlaps(keys["tune_piano"], keys["get_weather"])


def test_other_ranks_keep_the_update_and_its_scale(tmp_path: pathlib.Path) -> None:
    adapter = Adapter(4, 2.0)
    for up in adapter.up.values():
        up.data.normal_()
        up.data[..., 2:] = 0  # of rank two at most
    other = resized(adapter, 4, {"k_proj": 2, "down_proj": 6}, "bfloat16")
    save(other, tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["rank_pattern"] == {"k_proj": 2, "down_proj": 6}
    assert config["alpha_pattern"] == {"k_proj": 4, "down_proj": 12}
    again = read(tmp_path)
    for name in ("self_attn.k_proj", "self_attn.q_proj", "mlp.down_proj"):
        wanted = adapter.delta(name)
        assert (
            other.delta(name) - wanted
        ).abs().max() < 2e-2 * wanted.abs().max()  # both are rounded as their files are
        assert (again.delta(name) - wanted).abs().max() < 2e-2 * wanted.abs().max()
    with pytest.raises(ValueError, match="no such targets"):
        resized(adapter, 4, {"lm_head": 3}, "bfloat16")


def test_a_float8_file_gives_back_what_training_saw_and_the_gradient_passes(tmp_path: pathlib.Path) -> None:
    adapter = Adapter(6, 2.0, stored="float8")
    for up in adapter.up.values():
        up.data.normal_(std=0.05)
    adapter.up["mlp-up_proj"].data[0, 0, 0] = 9.0  # beyond the format's range: saturated, not infinite
    size = save(adapter, tmp_path)
    assert size < 1.1 * sum(part.numel() for part in adapter.parameters()) + 60_000  # one byte a value
    again = read(tmp_path)
    assert (again.rank, again.scale) == (6, 2.0)
    for name in ("self_attn.k_proj", "mlp.up_proj"):
        assert torch.equal(again.delta(name), adapter.delta(name))
        exact = 2.0 * torch.bmm(adapter.up[name.replace(".", "-")], adapter.down[name.replace(".", "-")])
        if name != "mlp.up_proj":
            assert 0.001 < (adapter.delta(name) - exact).norm() / exact.norm() < 0.05
    adapter.delta("mlp.up_proj").sum().backward()
    gradient = adapter.down["mlp-up_proj"].grad
    assert gradient is not None
    assert gradient.isfinite().all()
    assert gradient.abs().sum() > 0
    linear = torch.nn.Linear(576, 1536, bias=False)
    before = linear.weight.detach().clone()
    layer = torch.nn.ModuleDict({"mlp": torch.nn.ModuleDict({"up_proj": linear})})
    model = torch.nn.ModuleDict({"model": torch.nn.ModuleDict({"layers": torch.nn.ModuleList([layer])})})
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    kept = {key: value for key, value in tensors.items() if ".layers.0.mlp.up_proj." in key}
    save_file(kept, tmp_path / "adapter_model.safetensors")
    assert merge(model, tmp_path) == 1
    assert torch.allclose(linear.weight.detach() - before, again.delta("mlp.up_proj")[0], atol=1e-5)


def test_the_mean_of_neighbours_lies_between_them() -> None:
    one = Adapter(4, 2.0, stored="float8")
    for up in one.up.values():
        up.data.normal_(std=0.05)
    other = resized(one, 4, {}, "float8")
    for part in other.parameters():
        part.data += 0.01 * torch.randn_like(part)
    middle = mean([one, other])
    assert (middle.rank, middle.scale, middle.stored) == (4, 2.0, "float8")
    both = (one.delta("mlp.up_proj") + other.delta("mlp.up_proj")) / 2
    assert (middle.delta("mlp.up_proj") - both).norm() < 0.1 * both.norm()
    near = mean([one, other], [3, 1])
    apart = (one.delta("mlp.up_proj") - other.delta("mlp.up_proj")).norm()
    assert (near.delta("mlp.up_proj") - one.delta("mlp.up_proj")).norm() < 0.4 * apart
    with pytest.raises(ValueError, match="one positive number for each"):
        mean([one, other], [1, 0])
    with pytest.raises(ValueError, match=r"ranks \[4, 6\]"):
        mean([one, Adapter(6, 2.0)])
    with pytest.raises(ValueError, match="give two or more"):
        mean([one])


def test_a_schedule_in_two_runs_is_the_schedule_of_one() -> None:
    whole = [rate_at(share, 0.0, 1.0, 1e-3) for share in (0.1, 0.4, 0.6, 0.9, 1.0)]
    first = [rate_at(share, 0.0, 0.5, 1e-3) for share in (0.2, 0.8)]
    second = [rate_at(share, 0.5, 1.0, 1e-3) for share in (0.2, 0.8, 1.0)]
    assert [*first, *second] == pytest.approx(whole)
    assert rate_at(0.0, 0.5, 1.0, 1e-3) == 0.0  # the optimizer begins anew, so each run warms up
    assert rate_at(1.0, 0.0, 1.0, 1e-3) == pytest.approx(1e-5)


@pytest.mark.parametrize("suite", [*SUITES, "chat", "chat_with_tools"])
def test_suites_are_fixed_and_their_own_answers_are_right(suite: str) -> None:
    first, second = tasks(suite, 20), tasks(suite, 20)
    assert [task.prompt for task in first] == [task.prompt for task in second]
    for task in first:
        body = "\n".join(f"<tool_call>\n{json.dumps(call)}\n</tool_call>" for call in task.wanted)
        assert judge(task, body or "Which one do you mean?") == (True, "")
        assert not judge(task, '<tool_call>\n{"name": "no_such", "arguments": {}}\n</tool_call>')[0]
        if task.wanted:
            assert not judge(task, "All right.")[0]
            assert not judge(task, body + "\n" + body)[0]


def test_reading_answers() -> None:
    text = 'Sure.\n<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>\n<tool_call>\n{"name": "g", '
    assert calls_in(text) == ([{"name": "f", "arguments": {"a": 1}}], False)
    assert refuses("I'm sorry, I don't have a function that can do that.")
    assert refuses("")
    assert not refuses("Paris is the capital. I can't say more.")


def test_the_shipped_adapter_is_small_and_whole() -> None:
    folder = adapter_folder()
    assert folder is not None
    config = json.loads((folder / "adapter_config.json").read_text())
    assert (folder / "adapter_model.safetensors").stat().st_size <= 12_000_000
    assert config["r"] == 38
    assert read(folder).scale == 2.0  # what lora_alpha says once the file's gains are taken out
    assert (folder / "README.md").read_text().startswith("---\nlicense: apache-2.0")


@pytest.mark.engine
def test_the_prepared_model_calls_a_tool_and_chats(folder: pathlib.Path) -> None:
    weights = plain.load_safetensors(folder)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tool = {
        "name": "calculator",
        "description": "Work out an arithmetic expression.",
        "parameters": {"type": "object", "properties": {"expression": {"type": "string"}}, "required": ["expression"]},
    }
    texts = [
        prompt_text([{"role": "user", "content": "What is 37*43?"}], [tool]),
        prompt_text([{"role": "user", "content": "What is the capital of France?"}], []),
    ]
    prompts = [tokenizer.encode(text, add_special_tokens=False).ids for text in texts]
    called, chatted = (tokenizer.decode(ids) for ids in plain.generate(weights, prompts, 40))
    assert calls_in(called) == ([{"name": "calculator", "arguments": {"expression": "37*43"}}], True)
    assert "Paris" in chatted
