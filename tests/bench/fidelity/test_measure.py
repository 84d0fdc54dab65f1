"""The fidelity measurement, on a small random model made here."""

from __future__ import annotations

import pathlib

import pytest
import torch
from tiny_llama import tiny_llama, word_tokenizer

from mixquant_agents.bench.fidelity import measure as fidelity
from mixquant_agents.config import PrecisionPolicy
from mixquant_agents.errors import ConfigError, ModelNotFoundError
from mixquant_agents.precision.resolve import resolve
from mixquant_agents.precision.support import DeviceInfo
from mixquant_agents.quant.calibration.network import load, routed
from mixquant_agents.quant.step import QUANTIZED

pytestmark = pytest.mark.slow

PROMPTS = ("one two three four five", "six seven eight")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder with a Llama of two layers, 64 wide, and a word tokenizer."""
    folder = tmp_path_factory.mktemp("tiny")
    words = ["<unk>", *" ".join(PROMPTS).split(), *(f"w{i}" for i in range(55))]
    word_tokenizer(words).save_pretrained(folder)
    tiny_llama(64).save_pretrained(folder)
    return str(folder)


def measured(model: str, **policies: PrecisionPolicy) -> dict[str, fidelity.PolicyFidelity]:
    report = fidelity.measure(model, policies, PROMPTS, tokens=8)
    assert (report.prompts, report.prompt_tokens, report.answer_tokens) == (2, 8, 16)
    return {row.policy: row for row in report.policies}


def test_divergence_grows_with_coarser_formats_and_more_rows(model: str) -> None:
    found = measured(
        model,
        everywhere=PrecisionPolicy.of("uniform-nvfp4"),
        reading=PrecisionPolicy.of("mixquant-nvfp4-plain"),
        fine=PrecisionPolicy.of("mixquant-fp8"),
    )
    assert found["everywhere"].kl_mean > found["reading"].kl_mean > found["fine"].kl_mean > 0
    assert found["fine"].top1_agreement >= found["everywhere"].top1_agreement
    for row in found.values():
        assert row.kl_prompt_low <= row.kl_mean <= row.kl_prompt_high


def test_ignored_layers_leave_the_model_exact(model: str) -> None:
    nothing = PrecisionPolicy(prefill_format="nvfp4", ignored_layers=("re:.*",))
    row = measured(model, nothing=nothing)["nothing"]
    assert row.kl_mean < 1e-9
    assert row.top1_agreement == 1


def test_model_is_exact_again_afterwards(model: str) -> None:
    network, _ = load(model)
    ids = torch.arange(10).unsqueeze(0)
    policy = resolve(PrecisionPolicy.of("uniform-nvfp4"), DeviceInfo("cpu", "emulation"))

    def logits() -> torch.Tensor:
        with torch.inference_mode():
            return network(ids, use_cache=False).logits

    before = logits()
    with routed(network, policy) as plan:
        plan(QUANTIZED)
        assert not torch.equal(logits(), before)
    assert torch.equal(logits(), before)


def test_first_token_feels_the_last_prompt_token_alone(model: str) -> None:
    """Uniform and phase-aware agree there when both quantize the last prompt token; later tokens differ."""
    found = measured(
        model,
        everywhere=PrecisionPolicy.of("uniform-nvfp4"),
        reading=PrecisionPolicy(prefill_format="nvfp4", exact_last_token=False),
    )
    assert found["everywhere"].kl_first == pytest.approx(found["reading"].kl_first, rel=1e-4)
    assert found["everywhere"].kl_mean != pytest.approx(found["reading"].kl_mean, rel=1e-2)


def test_progress_ends_near_one_and_never_goes_back(model: str) -> None:
    shares: list[float] = []
    fidelity.measure(
        model, {"a": PrecisionPolicy.of("mixquant-fp8")}, PROMPTS, 2, lambda what, share: shares.append(share)
    )
    assert shares == sorted(shares)
    assert shares[-1] == 0.5


def test_wrong_input_is_refused(model: str, tmp_path: pathlib.Path) -> None:
    with pytest.raises(ConfigError, match="mixquant-fp4"):
        fidelity.named_policies(["mixquant-fp4"])
    with pytest.raises(ConfigError, match="0 prompts"):
        fidelity.measure(model, {}, ())
    with pytest.raises(ConfigError, match="quantizes nothing"):
        fidelity.measure(model, {"exact": PrecisionPolicy.of("exact")}, PROMPTS, 2)
    with pytest.raises(ModelNotFoundError, match="nowhere"):
        fidelity.measure(str(tmp_path / "nowhere"), {}, PROMPTS)
