"""The boundary: each vLLM error, and each way a start fails, becomes one of ours."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from pathlib import Path

import pytest

from mixquant_agents import errors as tree
from mixquant_agents.config import EngineConfig
from mixquant_agents.engine.vllm.child_process import GUARD_MARK
from mixquant_agents.engine.vllm.errors import TURN_ERRORS, start_error, start_error_from_text, turn_error

CONFIG = EngineConfig(model="some/model", revision="abc", policy="mixquant-fp8")


def vllm_exceptions() -> dict[str, type[Exception]]:
    """Exception classes that the installed vLLM defines where a turn passes: its exceptions modules and its engine."""
    import vllm.exceptions
    import vllm.v1.engine

    names = ["vllm.exceptions", "vllm.v1.engine.async_llm", "vllm.v1.engine.core_client"]
    names += [f"vllm.v1.engine.{module.name}" for module in pkgutil.iter_modules(vllm.v1.engine.__path__)
              if "exception" in module.name]  # fmt: skip
    found = {}
    for name in names:
        module = importlib.import_module(name)
        for _, value in inspect.getmembers(module, inspect.isclass):
            if issubclass(value, Exception) and value.__module__.startswith("vllm."):
                found[value.__name__] = value
    return found


def test_every_exception_class_of_vllm_is_mapped() -> None:
    found = vllm_exceptions()
    assert {"EngineDeadError", "EngineGenerateError", "VLLMValidationError"} <= set(found)
    assert set(found) <= set(TURN_ERRORS), f"unmapped: {sorted(set(found) - set(TURN_ERRORS))}"


def test_each_class_becomes_the_error_of_the_table() -> None:
    for name, cls in vllm_exceptions().items():
        parameters = list(inspect.signature(cls.__init__).parameters.values())[1:]
        needed = [p for p in parameters if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD]
        error = cls(*[RuntimeError("boom")] * len(needed))
        assert isinstance(turn_error(error), TURN_ERRORS[name]), name


def test_a_subclass_of_a_known_class_is_mapped_like_it() -> None:
    from vllm.exceptions import VLLMValidationError

    class NewerError(VLLMValidationError):
        pass

    assert type(turn_error(NewerError("prompt is odd"))) is tree.RequestError


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("top_p must be in (0, 1], got 3.", tree.InvalidSamplingError),
        ("temperature must be non-negative, got -1", tree.InvalidSamplingError),
        ("Requested sample logprobs of 500, which is greater than max allowed: 20", tree.InvalidSamplingError),
        ("Token id 999999 is out of vocabulary", tree.RequestError),
    ],
)
def test_values_are_told_apart_from_requests(text: str, kind: type[Exception]) -> None:
    error = turn_error(ValueError(text))
    assert type(error) is kind
    assert text.split(",")[0] in str(error)


def test_an_unknown_exception_is_still_ours() -> None:
    error = turn_error(KeyError("x"))
    assert type(error) is tree.EngineError
    assert "KeyError" in str(error)


def test_the_cause_of_a_wrapped_error_is_told() -> None:
    from vllm.v1.engine.exceptions import EngineGenerateError

    try:
        try:
            raise OverflowError("too far")
        except OverflowError as cause:
            raise EngineGenerateError from cause
    except EngineGenerateError as wrapped:
        error = turn_error(wrapped)
    assert "OverflowError: too far" in str(error)


def test_our_own_errors_pass_unchanged() -> None:
    mine = tree.GrammarError("x")
    assert turn_error(mine) is mine
    assert start_error(mine, CONFIG, "/nowhere") is mine


LOGS = [
    ("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.", tree.OutOfMemoryError),
    ("ValueError: No available memory for the cache blocks. Try increasing it", tree.OutOfMemoryError),
    ("ValueError: To serve at least one request with max seq len (40960), (5.6 GiB KV cache is needed, which "
     "is larger than the available KV cache memory (1.0 GiB).", tree.OutOfMemoryError),
    ("ValueError: Free memory on device cuda:0 (3.2/80.0 GiB) on startup is less than desired", tree.OutOfMemoryError),
    ("ValueError: Available memory on node 0 (1/24 GiB) on kv cache allocation is less than requested memory for kv",
     tree.OutOfMemoryError),
    ("RuntimeError: [enforce fail] DefaultCPUAllocator: can't allocate memory", tree.OutOfMemoryError),
    ("safetensors_rust.SafetensorError: deserializing header: incomplete metadata", tree.DamagedWeightsError),
    ("RuntimeError: PytorchStreamReader failed reading zip archive", tree.DamagedWeightsError),
    ("ValueError: Following weights were not initialized from checkpoint: {'a'}", tree.DamagedWeightsError),
    ("RuntimeError: Cannot find any model weights with `/m`", tree.DamagedWeightsError),
    ("ValueError: Couldn't instantiate the backend tokenizer from one of: (1) a serialization file",
     tree.DamagedWeightsError),
    ("huggingface_hub.errors.RepositoryNotFoundError: 404 Client Error.", tree.ModelNotFoundError),
    ("huggingface_hub.errors.RevisionNotFoundError: 404", tree.ModelNotFoundError),
    ("OSError: We couldn't connect to 'https://huggingface.co' to load the files", tree.ModelNotFoundError),
    ("OSError: x is not a local folder and is not a valid model identifier", tree.ModelNotFoundError),
    ("mixquant_agents.errors.FormatRefusedError: prefill_format='fp8' is refused: no", tree.FormatRefusedError),
    ("ValueError: Unknown quantization method: mixquant.", tree.FormatRefusedError),
    ("pydantic_core._pydantic_core.ValidationError: 1 validation error for ModelConfig", tree.ConfigError),
    ("ValueError: User-specified max_model_len (99999) is greater than the derived max_model_len", tree.ConfigError),
    ("ValueError: Total number of attention heads (9) must be divisible by tensor parallel size", tree.ConfigError),
    ("RuntimeError: Failed to infer device type, please set the environment variable", tree.ConfigError),
    ("RuntimeError: No CUDA GPUs are available", tree.ConfigError),
    ("ValueError: World size (2) is larger than the number of available GPUs (1) in this node.", tree.ConfigError),
    ("ValueError: No valid attention backend found for cuda with AttentionSelectorConfig(head_size=40). Reasons: "
     "{FLASH_ATTN (head_size not supported)}.", tree.ConfigError),
    ("transformers.x.AmbiguousGlobalPerLayerAttributeError: 'head_dim' is a per-layer attribute and may vary across "
     "layers. Access it via the individual layer configs instead", tree.ConfigError),
    ("mixquant_agents.errors.OutOfMemoryError: the quantized twins need more than 7.0 GiB beside the exact weights",
     tree.OutOfMemoryError),
    ("mixquant_agents.errors.ConfigError: 'layers.0.mlp.experts' is a mixture-of-experts layer", tree.ConfigError),
    ("SystemError: the moon is in the way", tree.EngineStartError),
]  # fmt: skip


@pytest.mark.parametrize(("line", "kind"), LOGS)
def test_a_failed_start_is_named_by_its_log(line: str, kind: type[Exception]) -> None:
    log = (
        f"(Worker pid=7) ERROR 11-23 20:37:01 [core.py:1510] Traceback …\n(Worker pid=7) ERROR [core.py:1510] {line}\n"
    )
    own = "RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}"
    error = start_error_from_text(own, log, CONFIG, "/tmp/x.log")
    assert type(error) is kind
    assert "\n" not in str(error)
    assert line.split(":")[-1].strip(" .")[:20] in str(error)
    assert CONFIG.model in str(error) or CONFIG.policy.name in str(error)


@pytest.mark.parametrize(
    ("line", "remedy"),
    [
        ("RuntimeError: Failed to infer device type, please", "nvidia-smi"),
        ("ValueError: World size (2) is larger than the number of available GPUs (1)", "tensor_parallel_size"),
        ("ValueError: No valid attention backend found for cuda with head_size=40", "64, 96, 128 or 256"),
        ("transformers.integrations.heterogeneity.configuration_utils.AmbiguousGlobalPerLayerAttributeError: "
         "'head_dim' is a per-layer attribute and may vary across layers.",
         "vLLM to 0.28"),
        ("mixquant_agents.errors.OutOfMemoryError: the quantized twins need more than 7.0 GiB; use policy 'exact'",
         "policy 'exact'"),
        ("mixquant_agents.errors.ConfigError: 'x.experts' has no twin; add 're:.*experts' to ignored_layers",
         "ignored_layers"),
    ],
)  # fmt: skip
def test_a_refused_start_says_what_would_work(line: str, remedy: str) -> None:
    assert remedy in str(start_error_from_text("RuntimeError: failed", line, CONFIG, "/tmp/x.log"))


def test_what_a_worker_reported_is_told_without_its_wrapping() -> None:
    """The line that vLLM 0.32 wrote when a KV cache of 22.83 GiB was asked of this much memory."""
    line = (
        "RuntimeError: Worker failed with error 'Available memory on node 0 (11.54/13.09 GiB) on kv cache allocation "
        "is less than requested memory for kv (22.83 GiB). Decrease --kv-cache-memory-bytes, VLLM_CPU_KVCACHE_SPACE, "
        "or reduce CPU memory used by other processes.', please check the stack trace above for the root cause"
    )
    assert str(start_error_from_text("RuntimeError: failed", line, CONFIG, "/tmp/x.log")) == (
        "weights or KV cache of 'some/model' do not fit (Available memory on node 0 (11.54/13.09 GiB) on kv cache "
        "allocation is less than requested memory for kv (22.83 GiB)); lower kv_cache_bytes, max_model_len or "
        "max_num_seqs, or take a smaller model"
    )


def test_memory_that_other_programs_hold_is_told_apart() -> None:
    line = (
        "ValueError: Free memory on device cuda:0 (66.76/139.8 GiB) on startup is less than desired GPU memory "
        "utilization (0.9, 125.82 GiB). Decrease GPU memory utilization or reduce GPU memory used by other processes."
    )
    error = start_error_from_text("RuntimeError: failed", line, CONFIG, "/tmp/x.log")
    assert type(error) is tree.OutOfMemoryError
    assert str(error) == (
        "'some/model' cannot have the share of memory that it asks for, because other programs hold too much "
        "(ValueError: Free memory on device cuda:0 (66.76/139.8 GiB) on startup is less than desired GPU memory "
        "utilization (0.9, 125.82 GiB)); end them, lower gpu_memory_utilization, or give kv_cache_bytes without it: "
        "the engine then takes what it needs"
    )


def test_the_root_cause_wins_over_what_follows_from_it(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text(
        "torch.OutOfMemoryError: CUDA out of memory\n"
        "Exception: WorkerProc initialization failed due to an exception in a background process.\n"
    )
    error = start_error(RuntimeError("Engine core initialization failed."), CONFIG, str(log))
    assert type(error) is tree.OutOfMemoryError


def test_a_missing_guard_is_one_readable_line() -> None:
    error = start_error_from_text("RuntimeError: Engine core initialization failed", GUARD_MARK, CONFIG, "/tmp/x.log")
    assert type(error) is tree.MainGuardError
    assert '__name__ == "__main__"' in str(error)


@pytest.mark.parametrize(
    ("own", "log", "named"), [("", "", True), ("RuntimeError: x", "noise", True), ("RuntimeError: x", "", False)]
)
def test_the_log_is_named_where_there_is_one(own: str, log: str, named: bool) -> None:
    error = start_error_from_text(own, log, CONFIG, "/tmp/x.log")
    assert type(error) is tree.EngineStartError
    assert ("/tmp/x.log" in str(error)) is named
