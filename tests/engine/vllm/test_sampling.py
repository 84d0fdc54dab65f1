"""``Sampling`` → vLLM's parameters."""

from __future__ import annotations

from typing import Any

import pytest

from mixquant_agents.engine.base import Sampling
from mixquant_agents.engine.vllm.sampling import sampling_parameters
from mixquant_agents.errors import InvalidSamplingError


def test_values_the_models_defaults_and_room() -> None:
    from vllm.sampling_params import RequestOutputKind

    made = sampling_parameters(Sampling(top_p=0.5, stop=("x",), seed=3), {"temperature": 0.6, "top_p": 0.9}, 77)
    assert (made.temperature, made.top_p, made.max_tokens, made.seed) == (0.6, 0.5, 77, 3)
    assert made.stop == ["x"]
    assert made.output_kind is RequestOutputKind.DELTA
    assert not made.ignore_eos


def test_the_models_own_limit_yields_to_the_context() -> None:
    assert sampling_parameters(Sampling(), {"max_tokens": 50}, 10).max_tokens == 10
    assert sampling_parameters(Sampling(), {"max_tokens": 5}, 10).max_tokens == 5


def test_extra_values_and_ours() -> None:
    made = sampling_parameters(Sampling(extra={"bad_words": ["x"]}, ignore_eos=True), {}, 5, skip_special_tokens=False)
    assert made.bad_words == ["x"]
    assert made.ignore_eos
    assert not made.skip_special_tokens
    with pytest.raises(InvalidSamplingError, match="leave it out"):
        sampling_parameters(Sampling(extra={"skip_special_tokens": True}), {}, 5, skip_special_tokens=False)


@pytest.mark.parametrize(
    ("sampling", "said"),
    [
        (Sampling(temperature=-1.0), "temperature"),
        (Sampling(top_p=0.0), "top_p"),
        (Sampling(top_k=-7), "top_k"),
        (Sampling(min_p=2.0), "min_p"),
        (Sampling(max_tokens=0), "max_tokens"),
        (Sampling(max_tokens=3, min_tokens=4), "min_tokens"),
        (Sampling(presence_penalty=9.0), "presence_penalty"),
        (Sampling(repetition_penalty=-1.0), "repetition_penalty"),
        (Sampling(stop=("",)), "stop"),
        (Sampling(logprobs=-3), "logprobs"),
        (Sampling(temperature="hot"), "hot|str|not supported"),  # type: ignore[arg-type]
        (Sampling(extra={"foo": 1}), "'foo'"),
        (Sampling(extra={"_eos_token_id": 1}), "_eos_token_id"),
        (Sampling(extra={"skip_clone": True}), "skip_clone"),
        (Sampling(extra={"n": 2}), "several turns"),
        (Sampling(extra={"output_kind": 0}), "always streamed"),
        (Sampling(extra={"temperature": 1.0}), "Sampling.temperature"),
        (Sampling(extra={"structured_outputs": {}}), "schema"),
        (Sampling(extra={"logit_bias": {"many": 5}}), "logit_bias"),
        (Sampling(extra={"logit_bias": [1]}), "logit_bias"),
        (Sampling(extra={"allowed_token_ids": ["a"]}), "allowed_token_ids"),
        (Sampling(extra={"bad_words": ["\ud800"]}), "bad_words"),
        (Sampling(extra={"extra_args": {"x": object()}}), "extra_args"),
        (Sampling(stop=("\ud800",)), "surrogate"),
        (Sampling(seed=2**70), "seed"),
        (Sampling(seed=-(2**63) - 1), "seed"),
        (Sampling(max_tokens=2**63), "max_tokens"),
    ],
)
def test_what_cannot_be_honoured_is_refused(sampling: Any, said: str) -> None:
    with pytest.raises(InvalidSamplingError, match=said):
        sampling_parameters(sampling, {}, 100)


def test_bias_keys_may_be_text_as_json_has_them() -> None:
    for bias in ({"42": 5}, {42: 5.0}):
        assert sampling_parameters(Sampling(extra={"logit_bias": bias}), {}, 5).logit_bias == {42: 5.0}
