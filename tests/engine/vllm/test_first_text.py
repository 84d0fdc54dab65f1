"""The first token's text is made from the prompt's end, and is what it was from all of the prompt."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixquant_agents.engine.vllm.first_text import PROMPT_END, decode_ends_alone
from tests.engine.vllm.byte_tokenizer import byte_tokenizer

pytest.importorskip("vllm")

BYTES = byte_tokenizer(special=["<|end|>"])


def detokenizer(tokenizer: Any, prompt: list[int], *, ends_alone: bool, special: bool = False) -> Any:
    """The one that vLLM makes for this prompt."""
    from vllm.sampling_params import SamplingParams
    from vllm.v1.engine import EngineCoreRequest
    from vllm.v1.engine.output_processor import OutputProcessor

    processor = OutputProcessor(tokenizer, log_stats=False)
    if ends_alone:
        decode_ends_alone(processor)
    request = EngineCoreRequest(
        request_id="r", external_req_id="r", prompt_token_ids=prompt, mm_features=None,
        sampling_params=SamplingParams(skip_special_tokens=not special), pooling_params=None, arrival_time=0.0,
        lora_request=None, cache_salt=None, data_parallel_rank=None,
    )  # fmt: skip
    processor.add_request(request, None)
    return processor.request_states["r"].detokenizer


def sentencepiece_tokenizer() -> Any:
    """Each word begins with a space, but for the first of a text: what a token adds depends on those before."""
    from tokenizers import Tokenizer, decoders, models
    from transformers import PreTrainedTokenizerFast

    words = ["<unk>", "▁a", "b", "▁c", "<0xC3>", "<0xA9>"]
    plain = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))  # noqa: S106
    plain.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=plain, unk_token="<unk>")  # noqa: S106


TOKENIZERS = {"bytes": BYTES, "words": sentencepiece_tokenizer()}


@pytest.mark.parametrize("name", TOKENIZERS)
@given(data=st.data())
def test_texts_are_those_of_the_whole_prompt(name: str, data: st.DataObject) -> None:
    tokenizer = TOKENIZERS[name]
    tokens = st.integers(0, len(tokenizer) - 1)
    if name == "words":
        prompt = data.draw(st.lists(tokens, min_size=PROMPT_END, max_size=2 * PROMPT_END))
    else:
        text = data.draw(st.text("a é€😀", min_size=PROMPT_END // 4, max_size=PROMPT_END))
        prompt = tokenizer.encode(f"{text}<|end|>{data.draw(st.text('a é€😀'))}", add_special_tokens=False)
        prompt = prompt[: data.draw(st.integers(len(prompt) - 3, len(prompt)))]  # in the middle of a character, too
    answer, special = data.draw(st.lists(tokens, min_size=1, max_size=8)), data.draw(st.booleans())
    whole, end = (
        detokenizer(tokenizer, prompt, ends_alone=ends_alone, special=special) for ends_alone in (False, True)
    )
    for token in answer:
        assert end.decode_next(token) == whole.decode_next(token)


def test_no_more_than_the_end_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    import tokenizers.decoders

    primed: list[int] = []
    original = tokenizers.decoders.DecodeStream

    class Counting:
        def __init__(self, ids: list[int], **options: Any) -> None:
            primed.append(len(ids))
            self.stream = original(ids=ids, **options)

    monkeypatch.setattr(tokenizers.decoders, "DecodeStream", Counting)
    detokenizer(BYTES, [65] * 10_000, ends_alone=True)
    assert primed[-1] == PROMPT_END


def test_engine_without_a_tokenizer_is_left_alone() -> None:
    assert detokenizer(None, [65] * 100, ends_alone=True).get_next_output_text(finished=True, delta=True) == ""
