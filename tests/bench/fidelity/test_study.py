"""The study of recipes, on a small random model: batches change nothing, costs are counted, rows are whole."""

from __future__ import annotations

import json
import math
import pathlib

import pytest
import torch
from tiny_llama import tiny_llama, word_tokenizer

from mixquant_agents.bench.fidelity.answers import Prompt, compare, reference
from mixquant_agents.bench.fidelity.cost import LENGTHS, added_time, flops_by_format, within_budget
from mixquant_agents.bench.fidelity.plots import save
from mixquant_agents.bench.fidelity.recipes import BASELINE, BUDGET, EMULATION, recipes
from mixquant_agents.bench.fidelity.report import rounded, table
from mixquant_agents.bench.fidelity.study import Settings, run
from mixquant_agents.errors import ConfigError
from mixquant_agents.precision.formats import NumberFormat
from mixquant_agents.precision.policy import PrecisionPolicy
from mixquant_agents.precision.resolve import resolve
from mixquant_agents.quant.calibration.distill import Training
from mixquant_agents.quant.calibration.network import FUSED, groups, load, routed

pytestmark = pytest.mark.slow

TEMPLATE = (
    "{% for tool in tools or [] %}{{ tool.function.name }} {% endfor %}"
    "{% for message in messages %}<{{ message.role }}> {{ message.content }} </s> {% endfor %}"
    "{% if add_generation_prompt %}<assistant> {% endif %}"
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder with a Llama of two layers, 64 wide, a word tokenizer and a chat template."""
    folder = tmp_path_factory.mktemp("tiny")
    words = ["<unk>", "</s>", *(f"w{i}" for i in range(300))]
    made = word_tokenizer(words)
    made.chat_template = TEMPLATE
    made.save_pretrained(folder)
    tiny_llama(302, end=1).save_pretrained(folder)
    return str(folder)


def prompts() -> list[Prompt]:
    generator = torch.Generator().manual_seed(1)

    def drawn(count: int) -> tuple[int, ...]:
        return tuple(torch.randint(2, 300, (count,), generator=generator).tolist())

    return [Prompt("question", drawn(length), 5, drawn(answer)) for length, answer in ((9, 4), (31, 2), (17, 6))]


@pytest.mark.parametrize("name", [BASELINE, "plain", "kv-fp8", "fp8"])
def test_padding_and_company_change_nothing(model: str, name: str) -> None:
    network, _ = load(model)
    resolved = resolve(recipes()[name].policy, EMULATION)

    def spans(prompt: Prompt) -> list[tuple[int, int]]:
        first, stop = resolved.rule().interval(len(prompt.ids))
        return [(first, min(stop, len(prompt.whole)))]

    found = []
    for rows in (10_000, 1):  # all in one batch, and each alone
        exact = reference(network, prompts(), rows)
        assert len(exact.made) == (1 if rows > 1 else 3)
        with routed(network, resolved) as plan:
            found.append(compare(network, exact, plan, spans).kl)
    for number, prompt in enumerate(prompts()):
        assert found[0][number].shape == (len(prompt.answer),)
        torch.testing.assert_close(found[0][number], found[1][number], rtol=2e-2, atol=1e-5)


def test_exact_rows_are_exact(model: str) -> None:
    network, _ = load(model)
    exact = reference(network, prompts())
    with routed(network, resolve(recipes()["kv-fp8"].policy, EMULATION)) as plan:
        nothing = compare(network, exact, plan, lambda prompt: [])
        first_only = compare(network, exact, plan, lambda prompt: [(len(prompt.ids), len(prompt.whole))])
    assert max(float(kl.max()) for kl in nothing.kl.values()) < 1e-9
    assert all(float(kl[0]) < 1e-9 and float(kl[1:].max()) > 1e-6 for kl in first_only.kl.values())


def test_shares_of_arithmetic_are_those_of_the_projections(model: str) -> None:
    members = groups(load(model)[0])
    total = sum(sum(group.widths) * group.layers[0].weight.shape[1] for group in members)
    kv = 2 * 2 * 32 * 64
    shares = flops_by_format(members, resolve(recipes()["kv-fp8"].policy, EMULATION), rows=0.5)
    assert shares["fp8"] == pytest.approx(0.5 * kv / total)
    assert shares["nvfp4"] == pytest.approx(0.5 * (1 - kv / total))
    assert sum(shares.values()) == pytest.approx(1)


def test_added_time_grows_with_what_is_not_in_nvfp4(model: str) -> None:
    members = groups(load(model)[0])

    def added(name: str) -> dict[str, float]:
        return added_time(members, resolve(recipes()[name].policy, EMULATION))

    assert set(added("plain").values()) == {0.0}
    assert list(added("plain")) == [str(length) for length in LENGTHS]
    for small, large in (("o-fp8", "attention-fp8"), ("kv-fp8", "kv-exact"), ("kv-fp8", "kv-fp8+down-fp8")):
        assert all(0 < a < b for a, b in zip(added(small).values(), added(large).values(), strict=True))


@pytest.mark.parametrize("budget", [0.0, 0.03, 0.2, 10.0])
def test_layers_within_a_budget_cost_no_more(model: str, budget: float) -> None:
    members = groups(load(model)[0])
    loss = {group.name: 1.0 + number for number, group in enumerate(members)}
    chosen = within_budget(members, loss, budget)
    policy = PrecisionPolicy(prefill_format="nvfp4", formats=tuple((name, NumberFormat.FP8) for name in chosen))
    assert max(added_time(members, resolve(policy, EMULATION)).values()) <= budget + 1e-9
    assert len(chosen) == {0.0: 0, 10.0: len(members)}.get(budget, len(chosen))
    if budget == 0.2:
        assert 0 < len(chosen) < len(members)


def test_whole_study_names_every_figure(model: str, tmp_path: pathlib.Path) -> None:
    network, tokenizer = load(model)
    names = (
        "plain",
        "kv-fp8",
        "qkv-fp8+gptq",
        "kv-fp8+static-exact",
        "budget+gptq-sweep",
        "budget+distilled+ends-exact",
    )
    training = Training(steps=2, rows=512)
    settings = Settings(prompts=4, plain=1, tokens=4, calibration=3, lessons=3, training=training, turns=1, only=names)
    lines: list[tuple[str, float]] = []
    report = rounded(run(network, tokenizer, settings, lambda what, share: lines.append((what, share))).json())
    assert {BASELINE, *names, "worst-1-fp8"} <= set(report["recipes"])
    for row in report["recipes"].values():
        low, high = row["kl_ci95"]
        assert 0 <= low <= row["kl"] <= high
        assert 0 <= row["top1"] <= 1
        assert math.isfinite(row["first_removed"])
        assert 0 < row["rows_quantized"] <= 1
    assert report["recipes"]["kv-fp8+static-exact"]["rows_quantized"] < report["recipes"]["kv-fp8"]["rows_quantized"]
    for ranking in ("layers", "units"):
        assert list(report[ranking].values()) == sorted(report[ranking].values(), reverse=True)
    assert len(report["units"]) == 2 * 4
    budget = report["recipes"]["budget+gptq-sweep"]
    assert max(budget["predicted_added_time"]["b200"].values()) <= BUDGET
    assert len(report["distillation_kl"]) == 1
    assert set(report["turns"]["plain, answers kept"]) == {"1", "2", "5", "20"}
    assert "kv-fp8+static-exact" in table(report)
    # What is told is what runs: a recipe's name follows its calibration, which leaves the share done where it was.
    for number, (what, share) in enumerate(lines):
        if what.startswith("calibrating"):
            named = next(line for line in lines[number:] if not line[0].startswith(("calibrating", "training")))
            assert share == named[1] or named[0].startswith("turn ")
    assert any("calibrating: gptq: activations" in what for what, _ in lines)
    assert any(what.startswith("qkv-fp8+gptq") for what, _ in lines)


def test_layers_of_any_model_are_grouped_as_vllm_runs_them(model: str) -> None:
    made = groups(load(model)[0])
    assert [group.name.rpartition(".")[2] for group in made[:4]] == ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"]
    assert made[0].widths == (64, 32, 32)
    assert made[0].weight().shape == (128, 64)
    policy = PrecisionPolicy(prefill_format="nvfp4", formats={"k_proj": "fp8"})
    assert resolve(policy, EMULATION).layer_format(made[0].name, FUSED) is not None


def test_unknown_recipes_are_refused(model: str) -> None:
    with pytest.raises(ConfigError, match="no recipe 'kv-fp9'"):
        run(*load(model), Settings(only=("kv-fp9",)))


def test_published_result_draws_a_picture(tmp_path: pathlib.Path) -> None:
    report = json.loads((pathlib.Path(__file__).parents[3] / "docs/results/fidelity.json").read_text())
    assert report["prompts"] >= 100
    save(report, tmp_path / "fidelity.svg")
    drawn = (tmp_path / "fidelity.svg").read_text()
    assert "<svg" in drawn
    assert len(drawn) > 10_000
