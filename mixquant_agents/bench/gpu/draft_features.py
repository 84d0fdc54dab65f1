"""What else is asked of an engine that drafts: ``python -m mixquant_agents.bench.gpu.draft_features MODEL OUT.json``.

``MODEL`` is a folder with weights and a tokenizer that knows the model's end of text. Engines, all at once on one GPU:
``exact``; ``twin``, whose twin drafts three tokens in every cycle, whether that pays or not, with n-gram drafts first;
``window``, the same without n-grams and with drafts that read the last 64 tokens and the first 32 of a context;
``phase``, phase-aware FP8 without drafts, and ``eagle3``, the same with a random EAGLE-3 head; ``mtp-phase`` and
``mtp``, a small random model without and with its random MTP layer.

Each answers a dozen prompts under every feature in :data:`FEATURES`: greedy answers, why they ended and the log
probabilities of their tokens must be those of the engine without drafts (:data:`PAIRS`), ties aside. Then: several
answers to a prompt, a seed asked for twice, a prompt that repeats itself, for which lookups must have drafted, and
requests aborted in the middle of cycles, beside which the others' answers stay the same and after which every block of
the KV cache is free. Drafts that were verified are counted for each feature: one that nobody drafted for shows nothing,
and fails.

What is compared must have been read alike. ``twin`` and ``window`` are compared with ``exact``, so they read every
prompt exact, however many are read in one step. ``phase``, ``eagle3`` and the other two read all prompts quantized, and
without a prefix cache: a trained head gives up the cache's last block, which would then be read in a smaller step, and
exact.
"""

# ruff: noqa: T201 - a program
from __future__ import annotations

import json
import re
import statistics
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from mixquant_agents.bench.gpu.check_engines import TIE, prompts_for
from mixquant_agents.bench.gpu.random_heads import MTP, write_eagle3, write_mtp_model
from mixquant_agents.bench.prefill.engines import EngineProcess, column_arguments
from mixquant_agents.bench.prefill.measure import own_name
from mixquant_agents.bench.prefill.worker import Session
from mixquant_agents.bench.prefill.worker import main as serve
from mixquant_agents.config import NumberFormat, PrecisionPolicy
from mixquant_agents.engine.vllm.args import policy_arguments
from mixquant_agents.files import write_whole

ANSWER = 40
PROMPTS = 12
LENGTHS = (12, 30, 60, 150, 280)
WINDOW = 64
DRAFTS = 3
EXACT_READING = 4096
"""Row threshold of engines that are compared with ``exact``: all prompts of a step together have fewer rows."""
QUANTIZED_READING = 256
"""Of the others: all prompts together have more, and a step that verifies drafts has fewer."""
QUANTIZED_TIE = 0.5
"""A tie of answers by grammar where prompts are read quantized: a request waits until its grammar is made, so prompts
come into steps in another order each time, and quantizing amplifies how such steps round (0.03 to 0.1 in log
probability, where all prompts of one step come out bit for bit)."""
SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 12}, "size": {"type": "integer"}},
    "required": ["name", "size"],
    "additionalProperties": False,
}
PATTERN = r"(yes|no), because [a-z ]{5,40}\."
FEATURES: dict[str, dict[str, Any]] = {
    "greedy": {},
    "stop": {"stop": ["(", ":\n"], "include_stop_str_in_output": True},
    "stop token": {"stop_token_ids": [28, 42, 198], "min_tokens": 4},
    "logprobs": {"logprobs": 5},
    "penalties": {"repetition_penalty": 1.2, "frequency_penalty": 0.4, "presence_penalty": 0.3},
    "bias": {"logit_bias": {"28": -100.0, "198": 2.0}},
    "min_p": {"min_p": 1.0, "temperature": 1.0},
    "json": {"structured": {"json": SCHEMA}, "max_tokens": 60},
    "regex": {"structured": {"regex": PATTERN}, "max_tokens": 60},
}
"""By name what is asked of sampling."""
SEVERAL = {"n": 2, "top_k": 1, "temperature": 1.0}
"""Several answers to a prompt, which no greedy request may ask for."""
AS_GREEDY = ("min_p", "n")
"""Sampled, and yet the likeliest token alone is left to be drawn: the answers must be the greedy ones."""
WITHOUT_TEXT = ("greedy", "logprobs", "penalties")
"""What the random model is asked for: its vocabulary is small and has no text."""
REFUSED_BY_HEADS = ("bias", "min_p")
"""vLLM refuses these beside drafters of its own; the twin's drafts take them."""
FORCED = ("twin", "window")
"""Engines that draft in every cycle; on a model this small drafts do not pay, and none would come."""
PAIRS = {"twin": "exact", "window": "exact", "eagle3": "phase", "mtp": "mtp-phase"}
"""Which engine writes without the drafts of which."""
SERVE = (sys.executable, "-m", "mixquant_agents.bench.gpu.draft_features", "--serve")
Answer = dict[str, Any]


class FeatureSession(Session):
    """Answers under any parameters of sampling, all prompts at once; counts drafts, whoever makes them."""

    def __init__(self, arguments: dict[str, Any]) -> None:
        super().__init__(arguments)
        self._drafted = self._accepted = 0
        scheduler = self.engine.engine_core.engine_core.scheduler
        count = scheduler.make_spec_decoding_stats

        def make_spec_decoding_stats(*args: Any, **kwargs: Any) -> Any:
            invalid = (kwargs["num_invalid_spec_tokens"] or {}).get(kwargs["request_id"], 0)
            self._drafted += kwargs["num_draft_tokens"] - invalid
            self._accepted += kwargs["num_accepted_tokens"]
            return count(*args, **kwargs)

        scheduler.make_spec_decoding_stats = make_spec_decoding_stats

    def answers(self, prompts: list[list[int]], settings: dict[str, Any], abort_after: int = 0) -> dict[str, Any]:
        """For each prompt and each of its answers: tokens, their log probabilities, how clear each choice was, why it
        ended.

        Args:
            prompts: token ids.
            settings: of vLLM's ``SamplingParams``, and ``structured``.
            abort_after: every second prompt's request is aborted after so many steps, and has no answers.
        """
        drafted, accepted = self._drafted, self._accepted
        names = []
        for prompt in prompts:
            self._count += 1
            names.append(f"feature-{self._count}")
            self.engine.add_request(names[-1], {"prompt_token_ids": prompt}, _params(settings))
        done: dict[str, list[Answer]] = {name: [] for name in names}
        steps = 0
        while self.engine.has_unfinished_requests():
            for output in self.engine.step():
                name = own_name(output.request_id, done)
                if output.finished and name in done:
                    done[name] = [_answer(each) for each in output.outputs]
            steps += 1
            if steps == abort_after:
                self.engine.abort_request(names[1::2])
                for name in names[1::2]:
                    del done[name]
        return {
            "answers": list(done.values()),
            "drafted": self._drafted - drafted,
            "accepted": self._accepted - accepted,
        }

    def free_blocks(self) -> dict[str, int]:
        """Blocks of the KV cache that nobody holds, and all there are, once the prefix cache is empty."""
        self.engine.reset_prefix_cache()
        pool = self.engine.engine_core.engine_core.scheduler.kv_cache_manager.block_pool
        return {"free": pool.get_num_free_blocks(), "all": pool.num_gpu_blocks}


def _params(settings: dict[str, Any]) -> Any:
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams

    values = {
        "temperature": 0.0, "max_tokens": ANSWER, "logprobs": 2, "output_kind": RequestOutputKind.FINAL_ONLY, **settings
    }  # fmt: skip
    if structured := values.pop("structured", None):
        values["structured_outputs"] = StructuredOutputsParams(**structured)
    if bias := values.pop("logit_bias", None):
        values["logit_bias"] = {int(token): by for token, by in bias.items()}
    return SamplingParams(**values)


def _answer(completion: Any) -> Answer:
    ids = list(completion.token_ids)
    places = completion.logprobs or []
    ranked = [sorted((value.logprob for value in candidates.values()), reverse=True) for candidates in places]
    return {
        "ids": ids,
        "text": completion.text,
        "logprobs": [candidates[token].logprob for token, candidates in zip(ids, places, strict=True)],
        "margins": [best[0] - best[1] for best in ranked],
        "finish": completion.finish_reason,
        "stop": completion.stop_reason,
    }


def difference(answer: Answer, base: Answer) -> dict[str, Any]:
    """How an answer differs from the one without drafts: ``same`` leading tokens, the ``margin`` of the other's choice
    where they part (``None``: they do not; infinite where one of them ends there), root mean square ``rms`` of the log
    probabilities before that, and whether they ended for unlike reasons (``None`` where they part)."""
    if _same_stop_string(answer, base):
        common = min(len(answer["ids"]), len(base["ids"]))
        answer, base = ({**each, "ids": each["ids"][:common]} for each in (answer, base))
    pairs = list(zip(answer["ids"], base["ids"], strict=False))
    same = next((index for index, (x, y) in enumerate(pairs) if x != y), len(pairs))
    parts = same < max(len(answer["ids"]), len(base["ids"]))
    apart = [(x - y) ** 2 for x, y in zip(answer["logprobs"][:same], base["logprobs"][:same], strict=True)]
    margin = None
    if parts:
        margin = base["margins"][same] if same < len(pairs) else float("inf")
    ends = None if parts else (answer["finish"], answer["stop"]) != (base["finish"], base["stop"])
    return {
        "same": same,
        "margin": margin,
        "rms": statistics.fmean(apart) ** 0.5 if apart else 0.0,
        "ends_otherwise": ends,
    }


def _same_stop_string(answer: Answer, base: Answer) -> bool:
    """Both end at one stop string with one text. A cycle's tokens behind it are no part of the text; vLLM 0.26 hands
    them out all the same, 0.32 does not."""
    at_stop = isinstance(answer["stop"], str) and answer["stop"] == base["stop"]
    return at_stop and answer["text"] == base["text"]


def verdict(feature: str, measured: dict[str, Any], base: dict[str, Any], tie: float = TIE) -> list[str]:
    """What is wrong with one feature's answers; empty where nothing is. Choices within ``tie`` may part."""
    wrong = []
    pairs = [
        (x, y) for xs, ys in zip(measured["answers"], base["answers"], strict=True) for x, y in zip(xs, ys, strict=True)
    ]
    for number, (x, y) in enumerate(pairs):
        gap = difference(x, y)
        if gap["margin"] is not None and gap["margin"] > tie:
            wrong.append(
                f"{feature}: answer {number} parts at token {gap['same']}, which was no tie: {gap['margin']:.2f}"
            )
        if gap["rms"] > TIE and feature not in AS_GREEDY:  # there all are 0
            wrong.append(f"{feature}: log probabilities of answer {number} differ by {gap['rms']:.2f}")
        if "error" in (x["finish"], y["finish"]):
            wrong.append(f"{feature}: answer {number} was ended by the engine: {x['text']!r}, {y['text']!r}")
        if gap["ends_otherwise"]:
            wrong.append(
                f"{feature}: answer {number} ends by {x['finish']} {x['stop']!r}, not {y['finish']} {y['stop']!r}"
            )
        if feature == "json" and x["finish"] == "stop" and set(json.loads(x["text"])) != {"name", "size"}:
            wrong.append(f"json: {x['text']!r}")
        if feature == "regex" and x["finish"] == "stop" and not re.fullmatch(PATTERN, x["text"]):
            wrong.append(f"regex: {x['text']!r}")
    if not measured["drafted"]:
        wrong.append(f"{feature}: nothing was drafted")
    return wrong


def examine(engine: EngineProcess, prompts: list[list[int]], features: list[str]) -> dict[str, Any]:
    """Everything that one engine is asked for; what it refuses is noted as ``error``."""
    seen: dict[str, Any] = {"ready": engine.wait_for("ready")["start_seconds"]}
    if engine.name in FORCED:
        engine.ask(do="drafts", count=DRAFTS)
    for feature in features:
        seen[feature] = asked(engine, prompts, FEATURES[feature])
    seen["n"] = asked(engine, prompts, SEVERAL)
    sampled = {"temperature": 0.8, "seed": 7, "n": 2}
    alone = prompts[:1]
    asked(engine, alone, sampled)  # its prompt is in the prefix cache from now on
    seen["seeds"] = [
        asked(engine, alone, sampled),
        asked(engine, alone, sampled),
        asked(engine, alone, {**sampled, "seed": 8}),
    ]
    seen["copies"] = asked(engine, [(prompts[1] * 3)[: 3 * len(prompts[1]) - 4]], {"max_tokens": 2 * ANSWER})
    before = engine.ask(do="free_blocks")
    seen["aborted"] = engine.ask(do="answers", prompts=prompts, settings={}, abort_after=9)
    seen["blocks"] = [before, engine.ask(do="free_blocks")]
    seen["plugin"] = engine.ask(do="status", plugin=engine.name != "exact").get("plugin")
    return seen


def features_of(engine: str) -> list[str]:
    """What an engine is asked for, by its name."""
    if engine.startswith("mtp"):
        return list(WITHOUT_TEXT)
    return [feature for feature in FEATURES if engine != "eagle3" or feature not in REFUSED_BY_HEADS]


def asked(engine: EngineProcess, prompts: list[list[int]], settings: dict[str, Any]) -> dict[str, Any]:
    try:
        return engine.ask(do="answers", prompts=prompts, settings=settings)
    except Exception as error:
        return {"error": str(error)}


def judged(
    seen: dict[str, Any], base: dict[str, Any], features: list[str], lookups: bool = False, quantized: bool = False
) -> list[str]:
    """What is wrong with an engine that drafts, beside the one that does not; with ``lookups``, some must have drafted
    in the twin's place; ``quantized``: both read prompts quantized."""
    wrong = []
    greedy = base["greedy"].get("answers", [])
    same = {"n": {"answers": [[each[0], each[0]] for each in greedy]}, "min_p": {"answers": greedy}}
    for feature in [*features, "n", "copies"]:
        other_answers = same[feature] if feature in same else base[feature]
        errors = [each["error"] for each in (seen[feature], other_answers) if "error" in each]
        tie = QUANTIZED_TIE if quantized and "structured" in FEATURES.get(feature, {}) else TIE
        wrong += [f"{feature}: {error}" for error in errors] or verdict(feature, seen[feature], other_answers, tie)
    wrong += verdict("aborted", seen["aborted"], {"answers": greedy[::2]})
    if lookups and not seen["plugin"]["draft"]["lookup_cycles"]:
        wrong.append("copies: no lookup drafted")
    first, again, _ = _by_seed(seen)
    if not first or first != again:
        wrong.append("seeds: the same seed wrote another answer")
    if _seeds_differ(base) and not _seeds_differ(seen):
        wrong.append("seeds: other seeds wrote the same answer")
    free = [each["free"] for each in seen["blocks"]]
    if free[0] != free[1]:
        wrong.append(f"aborted: {free[0] - free[1]} blocks are still held")
    return wrong


def _by_seed(seen: dict[str, Any]) -> list[list[list[list[int]]]]:
    """The tokens of each answer by prompt: for a seed, for the same again, for another."""
    return [[[answer["ids"] for answer in each] for each in run.get("answers", [])] for run in seen["seeds"]]


def _seeds_differ(seen: dict[str, Any]) -> bool:
    """Whether seeds change an engine's answers at all: random weights can be so sure that none does."""
    first, _, other = _by_seed(seen)
    return bool(first) and first != other and first[0][0] != first[0][1]


def policy(row_threshold: int, **fields: Any) -> dict[str, Any]:
    """vLLM's arguments for phase-aware FP8."""
    values = {"prefill_format": NumberFormat.FP8, "row_threshold": row_threshold, "storage": "separate", **fields}
    return policy_arguments(PrecisionPolicy(**values))


def engines(model: Path, scratch: Path) -> dict[str, dict[str, Any]]:
    """vLLM's arguments by engine."""
    mtp = write_mtp_model(scratch)
    eagle = {"method": "eagle3", "model": str(write_eagle3(model, scratch)), "num_speculative_tokens": 3}
    quantized = {**policy(QUANTIZED_READING), "enable_prefix_caching": False}
    own = {
        "exact": {},
        "twin": policy(EXACT_READING, draft="twin", draft_tokens=DRAFTS, draft_ngram=True),
        "window": policy(EXACT_READING, draft="twin", draft_tokens=DRAFTS, draft_window=WINDOW),
        "phase": quantized,
        "eagle3": {**quantized, "speculative_config": eagle},
        "mtp-phase": quantized,
        "mtp": {**quantized, "speculative_config": {"method": "mtp", "num_speculative_tokens": 1}},
    }
    common = {
        "max_model_len": 2048, "max_num_batched_tokens": 4096, "max_num_seqs": 32,
        "logprobs_mode": "processed_logprobs",
        "compilation_config": {"cudagraph_capture_sizes": [1, 2, 4, 8, 16, 32, 64, 128, 256, 1024]},
    }  # fmt: skip
    arguments = {}
    for name, change in own.items():
        path = mtp if name.startswith("mtp") else model
        values = column_arguments("exact", path, 1.0, dummy=False) | common | change
        arguments[name] = values | {"skip_tokenizer_init": path == mtp}
    return arguments


def main(model: str, out: str, *names: str) -> int:
    """Start the engines (all, or those of ``names``), ask them all, compare; 1 where something is wrong."""
    path, scratch = Path(model), Path(tempfile.mkdtemp())
    text = list(prompts_for(path).values())[-1]
    prompts = [text[17 * n : 17 * n + LENGTHS[n % len(LENGTHS)]] for n in range(PROMPTS)]
    small = [[3 + token % (MTP["vocab_size"] - 3) for token in prompt] for prompt in prompts]
    log = Path(out).parent
    running = {
        name: EngineProcess(name, values, log / f"features-{name}.log", SERVE)
        for name, values in engines(path, scratch).items()
        if not names or name in names
    }

    def run(name: str) -> dict[str, Any]:
        engine = running[name]
        try:
            engine.go()
            return examine(engine, small if name.startswith("mtp") else prompts, features_of(name))
        except Exception as error:
            return {"failed": str(error)}
        finally:
            engine.close()

    with ThreadPoolExecutor(len(running)) as pool:
        seen = dict(zip(running, pool.map(run, running), strict=True))
    wrong: dict[str, list[str]] = {name: [each["failed"]] for name, each in seen.items() if "failed" in each}
    for name, base in PAIRS.items():
        if name in seen and base in seen and not {name, base} & set(wrong):
            features = features_of(name)
            wrong[name] = judged(seen[name], seen[base], features, lookups=name == "twin", quantized=name not in FORCED)
            asked_of = [*features, "n", "copies"]
            counts = {each: (seen[name][each].get("drafted"), seen[name][each].get("accepted")) for each in asked_of}
            print(name, "as", base, "drafted, accepted:", counts)
    write_whole(Path(out), json.dumps({"wrong": wrong, "seen": seen}))
    for name, each in wrong.items():
        print(name, "wrong:" if each else "all as without drafts", *each, sep="\n  " if each else " ")
    return int(any(wrong.values()) or not wrong)


if __name__ == "__main__":
    if sys.argv[1] == "--serve":
        serve(FeatureSession)
    else:
        sys.exit(main(*sys.argv[1:]))
