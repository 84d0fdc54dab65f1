"""Are sampled answers distributed as the exact model's? ``python -m mixquant_agents.bench.gpu.draft_distribution OUT``

A model of a tiny vocabulary and random weights samples many short answers at temperature 1 while its twin drafts. Each
token after the first is held against the exact model's probabilities behind the tokens before it, by Pearson's
chi-square over all contexts that came often.

``DRAFT_NOISE_OFFSET`` in the environment replaces the offset of the draft's noise: with -1 a draft is drawn by the
noise by which the target draws at the same position, as in vLLM 0.26. That is wrong, and must be seen to be: the noise
only matters where a draft is rejected, so the twin is made a bad one. A few channels of each layer's input are
two hundred times larger than the rest, which per-row INT8 cannot hold, and the exact weights undo it.
"""

# ruff: noqa: T201 - a program
from __future__ import annotations

import json
import math
import os
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mixquant_agents.bench.gpu.check_weights import random_model
from mixquant_agents.bench.shapes import SHAPES
from mixquant_agents.config import NumberFormat, PrecisionPolicy
from mixquant_agents.engine.vllm.args import policy_arguments
from mixquant_agents.files import write_whole

VOCABULARY = 16
TOKENS = 4
ANSWERS = {0: 8_000, 3: 40_000}
"""By the number of drafts; shared noise shifts few tokens, so it takes many answers to be seen."""
OUTLIERS, LARGER = 4, 200.0
"""Channels of each layer's input that are so many times larger."""
PROMPT = (3, 1, 4, 1, 5, 9, 2, 6)
READERS = {
    "input_layernorm": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "post_attention_layernorm": ("mlp.gate_proj", "mlp.up_proj"),
}
SEEN = 200
"""Contexts that came less often are left out."""


def chi_square(
    counts: Mapping[tuple[int, ...], Counter[int]], expected: Mapping[tuple[int, ...], Any]
) -> tuple[float, int]:
    """The statistic and its degrees of freedom, over all contexts; tokens with fewer than five expected are one cell.

    Args:
        counts: how often each token came behind each context.
        expected: its probability there, ``[vocabulary]``.
    """
    statistic, freedom = 0.0, 0
    for context, seen in counts.items():
        total = sum(seen.values())
        mean = total * np.asarray(expected[context])
        observed = np.array([seen[token] for token in range(len(mean))], dtype=float)
        rare = mean < 5
        cells = [*zip(observed[~rare], mean[~rare], strict=True)]
        if rare.any():
            cells.append((observed[rare].sum(), mean[rare].sum()))
        cells = [(count, mean_count) for count, mean_count in cells if mean_count > 0]
        statistic += sum((count - mean_count) ** 2 / mean_count for count, mean_count in cells)
        freedom += len(cells) - 1
    return float(statistic), freedom


def p_value(statistic: float, freedom: int) -> float:
    """Chance of so large a chi-square, by Wilson and Hilferty's cube root; good for the tens of degrees used here."""
    cube = (statistic / freedom) ** (1 / 3)
    z = (cube - (1 - 2 / (9 * freedom))) / math.sqrt(2 / (9 * freedom))
    return 0.5 * math.erfc(z / math.sqrt(2))


def by_context(answers: list[list[int]]) -> dict[tuple[int, ...], Counter[int]]:
    """Tokens after the first, by the answer's tokens before them, of contexts that came often."""
    counts: dict[tuple[int, ...], Counter[int]] = defaultdict(Counter)
    for answer in answers:
        for index in range(1, len(answer)):
            counts[tuple(answer[:index])][answer[index]] += 1
    return {context: seen for context, seen in counts.items() if sum(seen.values()) >= SEEN}


def tiny_model(folder: Path) -> Path:
    """Qwen3's tiny shape with a vocabulary of :data:`VOCABULARY`; its logits scatter by about 1."""
    shape = {**SHAPES["qwen3-tiny"], "vocab_size": VOCABULARY, "bos_token_id": 0, "eos_token_id": 0}
    SHAPES["qwen3-few-words"] = shape
    path = random_model("qwen3-few-words", folder)
    from safetensors.torch import load_file, save_file

    weights = load_file(path / "model.safetensors")
    weights["model.embed_tokens.weight"] = weights["model.embed_tokens.weight"] / 2
    for name in [name for name in weights if name.endswith("layernorm.weight")]:
        layer, _, norm = name.removesuffix(".weight").rpartition(".")
        weights[name][:OUTLIERS] *= LARGER
        for reader in READERS[norm]:
            weights[f"{layer}.{reader}.weight"][:, :OUTLIERS] /= LARGER
    save_file(weights, path / "model.safetensors")
    return path


def sampled(engine: Any, count: int, drafts: int) -> list[list[int]]:
    """Answers of :data:`TOKENS` tokens each, as many at once as the engine takes."""
    from vllm import SamplingParams

    scheduler = engine.engine_core.engine_core.scheduler
    scheduler.dynamic_sd_lookup.fixed = drafts
    answers: list[list[int]] = []
    for number in range(count):
        params = SamplingParams(temperature=1.0, max_tokens=TOKENS, ignore_eos=True, detokenize=False, seed=number)
        engine.add_request(f"s{drafts}-{number}", {"prompt_token_ids": list(PROMPT)}, params)
        if number % 512 == 511 or number == count - 1:
            while engine.has_unfinished_requests():
                answers += [list(each.outputs[0].token_ids) for each in engine.step() if each.finished]
    return answers


def probabilities(engine: Any, contexts: list[tuple[int, ...]]) -> dict[tuple[int, ...], Any]:
    """The exact model's, behind the prompt and each context."""
    from vllm import SamplingParams

    engine.engine_core.engine_core.scheduler.dynamic_sd_lookup.fixed = 0
    result = {}
    for number, context in enumerate(contexts):
        params = SamplingParams(temperature=0.0, max_tokens=1, logprobs=VOCABULARY, detokenize=False, ignore_eos=True)
        engine.add_request(f"p{number}", {"prompt_token_ids": [*PROMPT, *context]}, params)
        while engine.has_unfinished_requests():
            for each in engine.step():
                if each.finished:
                    logprobs = each.outputs[0].logprobs[0]
                    result[context] = [math.exp(logprobs[token].logprob) for token in range(VOCABULARY)]
    return result


def main(out: str) -> int:
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    from vllm.engine.arg_utils import EngineArgs
    from vllm.v1.engine.llm_engine import LLMEngine

    from mixquant_agents.quant.vllm.draft import speculator

    path = tiny_model(Path(tempfile.mkdtemp()))
    result: dict[str, Any] = {
        "command": "python -m mixquant_agents.bench.gpu.draft_distribution",
        "answers": ANSWERS[3],
    }
    policy = PrecisionPolicy(prefill_format=NumberFormat.INT8, draft="twin", draft_tokens=3)
    speculator.NOISE_OFFSET = int(os.environ.get("DRAFT_NOISE_OFFSET", speculator.NOISE_OFFSET))
    result["noise_offset"] = speculator.NOISE_OFFSET
    engine = LLMEngine.from_engine_args(
        EngineArgs(
            model=str(path), skip_tokenizer_init=True, max_model_len=64, max_num_seqs=32, seed=0,
            kv_cache_memory_bytes=2**28, gpu_memory_utilization=0.05, disable_log_stats=True,
            max_logprobs=VOCABULARY, enable_prefix_caching=False,
            compilation_config={"cudagraph_capture_sizes": [1, 2, 4, 8, 16, 32, 64, 128]}, **policy_arguments(policy),
        )
    )  # fmt: skip
    for drafts, answers in ANSWERS.items():
        counts = by_context(sampled(engine, answers, drafts))
        statistic, freedom = chi_square(counts, probabilities(engine, list(counts)))
        result[f"drafts_{drafts}"] = {
            "contexts": len(counts), "chi_square": round(statistic, 1), "degrees": freedom,
            "p": p_value(statistic, freedom),
        }  # fmt: skip
        print(drafts, result[f"drafts_{drafts}"], flush=True)
    total = engine.engine_core.engine_core.scheduler.dynamic_sd_lookup.total
    result["accepted"] = round(total.accepted / max(total.drafted, 1), 4)
    print(json.dumps(result), flush=True)
    write_whole(Path(out), json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
