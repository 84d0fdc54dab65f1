"""Figures that README and docs quote are those of the committed result files: each line here is made from a file and
has to stand in its page, word for word."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from decimal import ROUND_HALF_UP, Decimal
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from mixquant_agents.config import BACKGROUND_ROWS
from mixquant_agents.engine.vllm.kept import Pieces
from mixquant_agents.precision.policy import PrecisionPolicy

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "docs" / "results"
Line = tuple[str, str]
"""A page and what it has to say."""


class Values:
    """A result file; called with a path of keys it gives what stands there."""

    def __init__(self, name: str) -> None:
        self.content: dict[str, Any] = json.loads((RESULTS / name).read_text())

    def __call__(self, *path: Any) -> Any:
        value: Any = self.content
        for part in path:
            value = value[part] if isinstance(value, list) else value[str(part)]
        return value


values = cache(Values)


@cache
def words_of(page: str) -> str:
    """A page on one line: no emphasis, one blank wherever there is white space."""
    return " ".join((ROOT / page).read_text().replace("**", "").split())


def fixed(value: float, digits: int) -> str:
    """Rounded half up, as the pages do."""
    return str(Decimal(repr(value)).quantize(Decimal(1).scaleb(-digits), ROUND_HALF_UP))


def row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def cells(content: dict[str, Any], names: Sequence[str], digits: int) -> str:
    return " | ".join(fixed(content[name], digits) for name in names)


def times(ratio: dict[str, Any], digits: int = 2, lower: int | None = None) -> str:
    """A ratio's median and the lower end of its interval, in so many digits."""
    return f"{fixed(ratio['median'], digits)}x ({fixed(ratio['low95'], digits if lower is None else lower)})"


def both_ends(ratio: dict[str, Any], digits: int = 3) -> str:
    """Lower ends: Student's, then the median's own."""
    return f"({fixed(ratio['low95'], digits)}; {fixed(ratio['median_low95'], digits)})"


def signed(value: float, digits: int = 2) -> str:
    text = f"{fixed(abs(value), digits)}"
    if float(text) == 0:
        return text
    return ("−" if value < 0 else "+") + text


def share(value: float) -> str:
    return f"{fixed(100 * value, 0)}"


H100 = (
    ("cold prompt of 1,024 tokens", "cold_1024"),
    ("2,048", "cold_2048"),
    ("4,096", "cold_4096"),
    ("8,192", "cold_8192"),
    ("16,384", "cold_16384"),
    ("32,000", "cold_32000"),
    ("8,192 cached + 256 new", "warm_8192_256"),
    ("8,192 cached + 512 new", "warm_8192_512"),
    ("8,192 cached + 1,024 new", "warm_8192_1024"),
    ("8,192 cached + 2,048 new", "warm_8192_2048"),
)


def prefill_h100() -> Iterator[Line]:
    file, page = values("prefill-h100.json"), "docs/results.md"
    for label, case in H100:
        ms = " | ".join(f"{fixed(file('ms', case, name), 1)}" for name in ("exact", "uniform-fp8", "mixquant-fp8"))
        yield page, row(label, ms, times(file("speedup", case)))
    for batch in (1, 8, 32):
        ms = " | ".join(f"{fixed(file('ms', f'tpot_{batch}', n), 2)}" for n in ("exact", "uniform-fp8", "mixquant-fp8"))
        yield page, f"| {batch} | {ms} | {fixed(file('tpot_ratio', batch), 3)} |"
    cold, warm = (fixed(file("speedup", case, "median"), 2) for case in ("cold_8192", "warm_8192_1024"))
    ours, exact, theirs = (fixed(file("ms", "cold_8192", n), 0) for n in ("mixquant-fp8", "exact", "uniform-fp8"))
    yield (
        "README.md",
        f"8,192 tokens in {ours} ms instead of {exact}: {cold}x; 1,024 new tokens behind 8,192 cached: {warm}x",
    )
    yield "README.md", f"({theirs} ms above)"
    token = [fixed(file("ms", "tpot_1", name), 1) for name in ("uniform-fp8", "exact")]
    yield "README.md", f"({token[0]} against {token[1]} ms a token)"
    yield "README.md", f"weights take {fixed(file('weights_ratio'), 2)}x"


GPU_NOTES = (
    *(("cold 128", "cold_128"), ("cold 256", "cold_256"), ("cold 512", "cold_512"), ("cold 1024", "cold_1024")),
    *(("cold 2048", "cold_2048"), ("cold 4096", "cold_4096"), ("cold 8192", "cold_8192")),
    *(("cold 16384", "cold_16384"), ("cold 32000", "cold_32000"), ("8192 cached + 64", "warm_8192_64")),
    *(
        ("+ 256", "warm_8192_256"),
        ("+ 512", "warm_8192_512"),
        ("+ 1024", "warm_8192_1024"),
        ("+ 2048", "warm_8192_2048"),
    ),
)


def prefill_h100_notes() -> Iterator[Line]:
    file, page = values("prefill-h100.json"), "docs/gpu-notes.md"
    columns = ("exact_default", "exact", "uniform-fp8", "mixquant-fp8")
    for label, case in GPU_NOTES:
        ratio, last = file("speedup", case), file("ms", case, "mixquant-fp8-exact-last")
        digits = 3 if min(ratio["low95"], ratio["median_low95"]) < 1.03 else 2
        over = f"{fixed(ratio['median'], 2)}x {both_ends(ratio, digits)}"
        ms = cells(file("ms", case), columns, 1)
        exact_last = f"{fixed(ratio['exact_last']['median'], 2)}x"
        yield page, row(label, ms, over, str(ratio["pairs"]), fixed(last, 1), exact_last)


def mixed_h100() -> Iterator[Line]:
    file = values("prefill-h100-mixed.json")
    agents = file("agents32")
    tokens, ttft, itl = (agents[name] for name in ("tokens_per_s_ratio", "ttft_p95_ratio", "itl_p95_ratio"))
    page = "docs/results.md"
    yield page, f"closed loop | {fixed(tokens, 2)}x ({fixed(agents['tokens_per_s_ratio_95'][0], 2)}) |"
    yield page, f"load | {fixed(ttft, 2)} of the time (at most {fixed(agents['ttft_p95_ratio_95'][1], 2)}) |"
    yield page, f"same load | {fixed(itl, 2)} of the time (at most {fixed(agents['itl_p95_ratio_95'][1], 2)}) |"
    page = "docs/gpu-notes.md"
    yield page, f"p95 over all turns of TTFT {fixed(ttft, 3)} of exact's, of ITL {fixed(itl, 3)}"
    bounds = [" to ".join(fixed(end, 3) for end in agents[f"{name}_p95_ratio_95"]) for name in ("ttft", "itl")]
    yield page, f"TTFT {bounds[0]}, ITL {bounds[1]}"
    for label, case in (("8 writing, + 256", "mix_8_256"), ("8 writing, + 768", "mix_8_768")):
        ratio, ms = file("speedup", case), file("ms", case)
        over = f"{fixed(ratio['median'], 3)}x {both_ends(ratio)}"
        yield page, row(label, cells(ms, ("exact", "mixquant-fp8"), 2), over, str(ratio["pairs"]))


def two_gpus() -> Iterator[Line]:
    file, page = values("prefill-2xh200.json"), "docs/gpu-notes.md"
    rows = [("cold 2048", "cold_2048", 1), ("cold 8192", "cold_8192", 1), ("cold 32000", "cold_32000", 0)]
    rows += [("8192 cached + 512", "warm_8192_512", 1), ("+ 2048", "warm_8192_2048", 1)]
    for label, case, digits in rows:
        ratio, ms = file("speedup", case), file("ms", case)
        over = f"{fixed(ratio['median'], 2)}x {both_ends(ratio)}"
        yield page, row(label, cells(ms, ("exact", "mixquant-fp8"), digits), over, str(ratio["pairs"]))
    cold = [f"{fixed(file('speedup', f'cold_{size}', 'median'), 2)}" for size in (2048, 8192, 32000)]
    yield "docs/results.md", f"are read {cold[0]}, {cold[1]} and {cold[2]} times as fast"
    ms = cells(file("ms", "tpot_8"), ("exact", "mixquant-fp8"), 2)
    yield page, row("TPOT, batch 8", ms, f"{fixed(file('tpot_ratio', 8), 3)} of its time", "")[:-4]


def rebuilt() -> Iterator[Line]:
    files = [values(f"prefill-h200{name}.json") for name in ("", "-rebuilt", "-again")]
    rows = [("cold 512", "cold_512"), ("cold 2048", "cold_2048"), ("cold 8192", "cold_8192")]
    rows += [("8192 cached + 128", "warm_8192_128"), ("+ 512", "warm_8192_512"), ("+ 2048", "warm_8192_2048")]
    for label, case in (*rows, ("8 writing, + 768", "mix_8_768")):
        columns = [
            f"{fixed(f('speedup', case, 'median'), 2)}x ({fixed(f('speedup', case, 'low95'), 2)})" for f in files
        ]
        yield "docs/gpu-notes.md", row(label, *columns)
    tpot = [
        " / ".join(fixed(1 / file("speedup", f"tpot_{batch}", "median"), 3) for batch in (1, 8, 32)) for file in files
    ]
    yield "docs/gpu-notes.md", f"| TPOT, batch 1 / 8 / 32 | {tpot[0]} of the time | {tpot[1]} | {tpot[2]} |"
    alone = files[2]("mix_8_768_alone")
    ms = " and ".join(fixed(alone["ms"][name], 2) for name in ("exact", "mixquant-fp8"))
    yield "docs/gpu-notes.md", f"{ms} ms, {times(alone['speedup'], 3)}"
    gpu = [fixed(alone["gpu_ms"][name]["median"], 1) for name in ("mixquant-fp8", "exact")]
    yield "docs/gpu-notes.md", f"The mixed step takes {gpu[0]} ms on the GPU, exact {gpu[1]}"
    again = values("engines-2xh200-rebuilt.json")("again", "long_prompts_rms", "exact")
    ranks, stages = (fixed(again[name], 3) for name in ("mixquant-tp2", "mixquant-pp2"))
    yield "docs/gpu-notes.md", f"{ranks} from exact as ranks, {stages} as stages"


def products() -> Iterator[Line]:
    file = values("gpu-micro-h100.json")
    for rows in (64, 256, 512, 768, 1024, 2048, 4096, 8192):
        exact, fp8 = file("gemm_us", rows, "bf16"), file("gemm_us", rows, "fp8")
        yield "docs/gpu-notes.md", f"| {rows} | {fixed(exact, 0)} | {fixed(fp8, 0)} | {fixed(exact / fp8, 2)}x |"


def moe_share() -> Iterator[Line]:
    for rows, digits in ((512, 3), (2048, 2), (8192, 2)):
        us = values("moe-share-h100.json")("microseconds", rows)
        names = ("linear_fp8", "attention", "router", "experts")
        first = fixed(us["linear_bf16"], 0) + (" µs" if rows == 512 else "")
        gain = f"{fixed(us['speedup_of_the_rest'], digits)}x"
        yield "docs/gpu-notes.md", row(str(rows), first, cells(us, names, 0), f"{share(us['experts_share'])} %", gain)


def mixture() -> Iterator[Line]:
    file, page = values("prefill-moe.json"), "docs/experts.md"
    ours, off, theirs = "mixquant-fp8", "mixquant-fp8-off", "uniform-fp8"
    wanted = {"cold_2048": "1.25", "cold_8192": "1.25", "cold_32000": "1.15", "warm_8192_2048": "1.15"}
    labels = ("cold 2048", "cold 8192", "cold 32000", "8192 cached + 2048")
    for label, (case, goal) in zip(labels, wanted.items(), strict=True):
        ratio, ms = file("speedup", case), file("ms", case)
        against = ratio[f"against_{theirs}"]
        digits = 0 if case == "cold_32000" else 1
        first = fixed(ms[theirs], digits) + (" ms" if case == "cold_2048" else "")
        rest = (times(ratio, 3), str(ratio["pairs"]), goal, times(against, 3))
        yield page, row(label, first, cells(ms, (off, ours), digits), *rest)
    short = [file("speedup", f"cold_{size}", "median") for size in (2048, 8192, 32000)]
    ahead = [file("speedup", case, f"against_{theirs}", "median") for case in ("cold_32000", "cold_8192")]
    yield (
        "README.md",
        f"{fixed(short[0], 2)}x at 2,048 tokens, {fixed(short[1], 2)}x at 8,192, {fixed(short[2], 2)}x at 32,000; "
        f"{fixed(ahead[0], 2)}x to {fixed(ahead[1], 2)}x faster than vLLM's own FP8 there",
    )
    closer = file("closer_look")
    for label, case, digits in (("cold 32000", "cold_32000", 0), ("8192 cached + 2048", "warm_8192_2048", 1)):
        ratio, ms = closer["speedup"][case], closer["ms"][case]
        first = fixed(ms[off], digits) + (" ms" if case == "cold_32000" else "")
        own = fixed(ratio["median_low95"], 3)
        yield page, row(label, first, fixed(ms[ours], digits), times(ratio, 3), own, str(ratio["pairs"]), wanted[case])
    small = values("prefill-moe-80gb.json")
    ratio, ms = small("speedup", "cold_2048"), small("ms", "cold_2048")
    taken = f"cold 2048 takes {fixed(ms[ours], 1)} ms and {fixed(ms[off], 1)}"
    yield page, f"{taken} with every step exact, {times(ratio, 2, 3)}"
    yield page, f"TPOT at batch 8 {fixed(small('tpot_ratio', 8), 3)} of the time"


def expert_layers() -> Iterator[Line]:
    for rows in (512, 2048, 8192):
        us = values("experts-h200.json")("microseconds", rows)
        best = min(value for name, value in us.items() if name.startswith("tiles"))
        named = cells(us, ("exact", "triton", "cutlass"), 0)
        yield "docs/experts.md", row(str(rows), named, fixed(best, 0), f"{fixed(us['exact'] / best, 2)}x")


def two_gpus_of_experts() -> Iterator[Line]:
    check, page = values("experts-h200.json")("check_engines_parallel"), "docs/experts.md"
    assert check["failed"] == {}
    for kind in ("tp2", "ep2"):
        for suffix in ("", " beside others"):
            same = check["same_tokens"][f"mixquant-{kind}{suffix}, as exact-{kind}"]
            assert set(same.values()) == {check["of_tokens"]}
    rms = check["long_prompts_rms"]["exact"]
    quantized = " and ".join(fixed(rms[f"mixquant-{kind}"], 3) for kind in ("tp2", "ep2"))
    yield (
        page,
        f"Long prompts are {quantized} from exact on one GPU, where FP8 on one GPU is {fixed(rms['mixquant'], 3)}",
    )
    yield page, "exact ranks are " + " and ".join(fixed(rms[f"exact-{kind}"], 3) for kind in ("tp2", "ep2"))


def nested_on_two_gpus() -> Iterator[Line]:
    check, page = values("nested.json")("engine", "check_engines_parallel"), "docs/nested-weights.md"
    assert check["failed"] == {}
    for suffix in ("", " beside others"):
        assert set(check["same_tokens"][f"nested-tp2{suffix}, as exact-tp2"].values()) == {check["of_tokens"]}
    embedding = 151936 * 1024 * 2 // 2  # half of it on each rank
    own, exact = (check["engines"][name]["weight_bytes"] - embedding for name in ("nested-tp2", "exact-tp2"))
    taken = f"{fixed(own / 1e6, 1)} MB where exact's take {fixed(exact / 1e6, 1)} ({fixed(own / exact, 2)}x)"
    yield page, f"a rank's weights take {taken}"
    rms = check["long_prompts_rms"]
    yield page, f"Long prompts: {fixed(rms['exact-tp2']['nested-tp2'], 3)} from exact ranks"
    yield page, f"on one GPU {fixed(rms['exact']['nested'], 3)} from exact"
    yield page, f"exact ranks are {fixed(rms['exact']['exact-tp2'], 3)} from one exact GPU"


def nested_at_64_rows() -> Iterator[Line]:
    file, page = values("nested.json"), "docs/nested-weights.md"
    cut = file("ablation", "gate_up: wgs 2, cn 1, ck 1, kc 64, stages 5, minb 2")
    parts = ("all", "no_tokens", "no_weights", "no_loads", "no_unpacking", "no_wgmma", "no_unpacking_no_wgmma")
    yield page, row(*(fixed(cut[part], 1) for part in parts))
    boxes = file("ablation", "gate_up: wgs 2, cn 1, ck 2, kc 128, stages 2, minb 2")
    yield page, f"({fixed(boxes['boxes_of_128_bytes'], 1)} and {fixed(boxes['all'], 1)})"
    step = file("engine", "step_microseconds")
    own, separate = (fixed(step[name]["exact"]["64"], 0) for name in ("nested", "separate"))
    yield page, f"64 exact rows take {own} µs a layer nested, {separate} with BF16 weights"
    unpacked = file("engine", "larger_steps_microseconds", "24576x4096", "microseconds", 96)[1]
    yield page, f"Unpacking first and cuBLAS then takes {fixed(unpacked, 0)} µs (96 rows)"
    staged = file("ablation", "staged, gate_up: bn 96, tpw 2, groups 2, cs 5, ts 3, us 3, tokens from shared memory")
    parts = ("all", "no_tokens", "no_loads", "no_arithmetic", "no_unpacking", "no_wgmma", "no_unpacking_no_wgmma")
    yield page, row(*(fixed(staged[part], 1) for part in parts))
    for shape, label in (("qkv", "qkv"), ("o", "o"), ("gate_up", "gate and up"), ("down", "down")):
        product = file("products", 64, shape)
        yield page, f"{label} {fixed(product['nested_us'], 1)} ({fixed(product['cublas_us'], 1)})"
    tried = file("tries", -2, "kernel_over_cublas", 64)
    yield page, f"It reached {fixed(tried, 2)}x and is in no release"


def nested() -> Iterator[Line]:
    file, page = values("nested.json"), "docs/nested-weights.md"
    time = [f"{fixed(file('tpot_ratio', batch), 2)}" for batch in (1, 8, 32)]
    yield page, f"written in {time[0]}, {time[1]} and {time[2]} of an exact engine's time"
    yield "README.md", f"packs both into {fixed(file('weights_ratio'), 2)}x and writes a token in {' / '.join(time)}"
    own, exact, separate = (fixed(file("engine", "model_loading_gib", n), 2) for n in ("nested", "exact", "separate"))
    yield page, f"took {own} GiB, where exact took {exact} and separate twins {separate}"
    over = file("kernel_over_cublas")
    wide = file("tries", -3, "kernel_over_cublas")
    yield page, f"`wide.cu` from 33 rows on | {cells(wide, ('1', '8', '16', '32', '64'), 2)} |"
    yield page, f"`staged.cu` for 33 to 64 rows | {cells(over, ('1', '8', '16', '32', '64'), 2)} |"
    yield page, f"128 rows: {fixed(over['128'], 2)}; 256 rows: {fixed(over['256'], 2)}."
    rows = [("cold 512", "cold_512"), ("cold 2048", "cold_2048"), ("cold 8192", "cold_8192")]
    rows += [("cold 32000", "cold_32000"), ("8192 cached + 512", "warm_8192_512"), ("+ 2048", "warm_8192_2048")]
    for label, case in rows:
        ratio, ms = file("speedup", case), file("ms", case)
        over_exact = f"{fixed(ratio['ratio'], 2)}x ({fixed(ratio['low95'], 3)})"
        digits = 0 if case in ("cold_8192", "cold_32000") else 1
        columns = cells(ms, ("exact", "mixquant-fp8", "mixquant-fp8-nested"), digits)
        yield page, f"| {label} | {columns} |"
        yield page, row(over_exact, times(file("against_separate", case), 2, 3))


def band(ratio: dict[str, float], digits: int = 3) -> str:
    return f"{fixed(ratio['median'], digits)} ({fixed(ratio['low95'], digits)} to {fixed(ratio['high95'], digits)})"


def writing() -> Iterator[Line]:
    file, page = values("writing.json"), "docs/writing.md"
    ratios = [band(file("cases", case, 3, "ratio")) for case in ("1", "8", "32", "64k")]
    yield page, f"{ratios[0]} at one request, {ratios[1]} at 8, {ratios[2]} at 32, {ratios[3]} with 64k tokens"
    again = file("again")
    for name in ("", "nested_"):
        line = ", ".join(band(again[f"{name}tpot"][case]) for case in ("1", "8", "32", "64k"))
        yield page, f"{line}; the turn {band(again[f'{name}turn'])}"
    for label, case in (("batch 1", "1"), ("8", "8"), ("32", "32")):
        yield "docs/nested-weights.md", f"| {label} | {band(again['tpot'][case])} |"
        yield "docs/nested-weights.md", f"| {band(again['nested_tpot'][case])} |"
    small = file("small_steps_of")
    for case, ms in small["ms"].items():
        totals = [fixed(ms[name][3], 1) for name in ("exact", "exact-full", "mixquant-fp8-pieces", "mixquant-fp8")]
        over = [
            f"{fixed(small['over'][case][name]['median'], 2)} ({fixed(small['over'][case][name]['low95'], 2)})"
            for name in ("exact", "exact-full", "mixquant-fp8-pieces")
        ]
        yield page, row(case.replace("_", " "), *totals, *over)
        worst = min(small["over"][case][name]["low95"] for name in ("exact", "exact-full"))
        assert file("small_steps", case, "low95") == worst > 1
    warm = [file("small_steps", f"warm_8192_{rows}") for rows in (32, 64, 128, 256)]
    cold = file("small_steps", "cold_64")
    of_warm = ", ".join(fixed(each["ratio"], 2) for each in warm)
    yield page, f"{fixed(cold['ratio'], 2)} ({fixed(cold['low95'], 3)}) cold, and {of_warm} (from"
    yield page, f"(from {fixed(min(each['low95'] for each in warm), 3)} on) behind 8,192 cached tokens"
    for case, columns in file("auto", "cases").items():
        requests, known = case.split("x")
        bands = [band(columns[name]["over_exact"]) for name in ("auto", "poor")]
        yield page, row(f"{requests} with {int(known):,}", f"{fixed(columns['exact']['ms'], 2)} ms", *bands)
    assert file("auto", "slower_than_0.99_by_the_lower_end") == []
    drafted = [columns["auto"] for columns in file("auto", "cases").values() if columns["auto"]["tokens_per_step"] > 1]
    gains = sorted(each["over_exact"]["median"] for each in drafted)
    yield page, f"Good drafts write {fixed(gains[0], 2)} to {fixed(gains[-1], 2)} times faster up to 32 requests"
    engines = file("features", "engines")
    assert not any(each["wrong"] for each in engines.values())
    twin, eagle3, mtp = (engines[name]["features"]["greedy"] for name in ("twin", "eagle3", "mtp"))
    yield page, f"(greedy: {twin['accepted']} of {twin['drafted']} drafts right)"
    copies, cycles = engines["twin"]["features"]["copies"], engines["twin"]["lookup_cycles"]
    yield page, f"{cycles} cycles drafted by lookup, {copies['accepted']} of {copies['drafted']} right"
    yield page, f"{eagle3['drafted']:,} EAGLE-3 drafts"
    yield page, f"verified in greedy answers (none right) and {mtp['drafted']} MTP drafts ({mtp['accepted']} right)"
    one, eight = (fixed(1 / file("cases", batch, 3, "ratio", "median"), 2) for batch in (1, 8))
    assert one == eight
    both = [fixed(1 / again["nested_tpot"][batch]["median"], 2) for batch in ("1", "8")]
    yield "README.md", f"{one}x at one request and at eight, {both[0]}x and {both[1]}x with [nested weights]"
    for batch in ("1", "8", "32"):
        earlier = file("earlier", "drafts", batch)
        fewer = " | ".join(fixed(earlier[count]["median"], 3) for count in ("0", "1", "2"))
        yield page, f"ms | {fewer} | {band(earlier['3'])} | {fixed(earlier['4']['median'], 3)}"


def bfcl() -> Iterator[Line]:
    labels = {
        "bfcl_simple": "one function",
        "bfcl_multiple": "one of several functions",
        "bfcl_parallel": "several calls at once",
        "bfcl_irrelevance": "no function fits: says so",
    }
    for name, policies in (
        ("agents-cpu.json", ("uniform-nvfp4", "mixquant-nvfp4")),
        ("fp8-answers.json", ("uniform-fp8", "mixquant-fp8")),
    ):
        suites = values(name)("suites")
        for suite, label in labels.items():
            scores = [fixed(suites[suite]["exact"]["score"], 2)]
            for policy in policies:
                run = suites[suite][policy]
                low, high = run["delta_ci95"]
                scores.append(f"{fixed(run['score'], 2)} ({signed(low)} to {signed(high)})")
            yield "docs/results.md", row(label, *scores)
    suites = values("fp8-answers.json")("suites")
    right = {
        policy: round(sum(suites[suite][policy]["score"] * suites[suite][policy]["n"] for suite in labels))
        for policy in ("exact", "uniform-fp8", "mixquant-fp8")
    }
    tasks = sum(suites[suite]["exact"]["n"] for suite in labels)
    yield (
        "README.md",
        f"{right['mixquant-fp8']} of {tasks} function-calling tasks (BFCL) right; "
        f"exact {right['exact']}, plain FP8 {right['uniform-fp8']}",
    )
    cpu = values("agents-cpu.json")("suites")
    lost = {
        policy: [round(100 * (cpu[suite]["exact"]["score"] - cpu[suite][policy]["score"])) for suite in labels]
        for policy in ("uniform-nvfp4", "mixquant-nvfp4")
    }
    both, reads = (f"{min(of)} to {max(of)}" for of in lost.values())
    yield "README.md", f"loses {both} of 100 function calls; NVFP4 that only reads loses {reads}"


def divergence() -> Iterator[Line]:
    page = "docs/results.md"
    quick = {row["policy"]: row for row in values("fp8-answers.json")("fidelity", "policies")}
    for policy, label in (
        ("uniform-fp8", "`uniform-fp8`: reads and writes in FP8"),
        ("mixquant-fp8", "`mixquant-fp8`: reads in FP8"),
        ("uniform-nvfp4", "`uniform-nvfp4`, beside it"),
    ):
        of = quick[policy]
        yield page, row(label, cells(of, ("kl_mean", "kl_first"), 4), fixed(of["top1_agreement"], 3))
    ours, theirs = (fixed(quick[policy]["kl_mean"], 3) for policy in ("mixquant-fp8", "uniform-fp8"))
    yield "README.md", f"{ours} nats per token, plain FP8 {theirs} (emulated)"
    study = values("fidelity.json")
    for recipe, label in (
        ("uniform-nvfp4", "`uniform-nvfp4`"),
        ("plain", "`mixquant-nvfp4-plain`"),
        (study("default").removesuffix("+static-exact"), "`mixquant-nvfp4`, static part quantized"),
        (study("default"), "`mixquant-nvfp4`"),
    ):
        yield page, row(label, cells(study("recipes", recipe), ("kl", "kl_first", "top1"), 3))


RECIPES = {
    "plain (`mixquant-nvfp4-plain`)": "plain",
    'first 16 and last 48 ("ends") exact': "ends-exact",
    "static part exact, from the cache": "static-exact",
    "ends and static part exact": "ends-exact+static-exact",
    "GPTQ": "gptq",
    "GPTQ, blocks by falling energy": "gptq-ordered",
    "GPTQ, block scales swept": "gptq-sweep",
    "GPTQ, ends exact": "gptq+ends-exact",
    "GPTQ, ends and static part exact": "gptq+ends-exact+static-exact",
    'first 16 and last 112 ("wide ends") exact': "wide-ends-exact",
    "GPTQ, wide ends exact": "gptq+wide-ends-exact",
    "GPTQ, wide ends and static part exact": "gptq+wide-ends-exact+static-exact",
    "GPTQ by tokens behind the first 16, ends exact": "gptq-behind+ends-exact",
    "GPTQ by tokens behind the first 16, wide ends exact": "gptq-behind+wide-ends-exact",
    "GPTQ with 4/6, wide ends exact": "gptq+w46+wide-ends-exact",
    "GPTQ with 4/6, wide ends and static part exact": "gptq+w46+wide-ends-exact+static-exact",
    "GPTQ with 4/6, channels balanced": "balanced+w46",
    "GPTQ, channels balanced, wide ends exact": "balanced+wide-ends-exact",
    "GPTQ, channels balanced, wide ends and static part exact": "balanced+wide-ends-exact+static-exact",
    "GPTQ with 4/6, channels balanced, wide ends exact": "balanced+w46+wide-ends-exact",
    "GPTQ with 4/6, channels balanced, wide ends and static part exact": "balanced+w46+wide-ends-exact+static-exact",
    "first 4 and last 124 exact, GPTQ with 4/6, channels balanced": "balanced+w46+late-ends-exact",
    "the same, static part exact: the default": "balanced+w46+late-ends-exact+static-exact",
    "first 4 and last 124 exact, GPTQ without 4/6, channels balanced": "balanced+late-ends-exact",
    "that without 4/6, static part exact": "balanced+late-ends-exact+static-exact",
    "GPTQ with 4/6, channels balanced, 4/6 on activations": "balanced+w46+a46",
    "GPTQ with 4/6, channels balanced, `k_proj` and `v_proj` in FP8": "kv-fp8+balanced+w46",
    "GPTQ with 4/6, channels balanced, `qkv_proj` in FP8": "qkv-fp8+balanced+w46",
    "GPTQ with 4/6, channels balanced, FP8 in 18 layers": "budget+balanced+w46",
    "`qkv_proj` in FP8, GPTQ, wide ends exact": "qkv-fp8+gptq+wide-ends-exact",
    "`qkv_proj` in FP8": "qkv-fp8",
    "FP8 in the 18 layers that a budget of 3 % by the roofline allows": "budget",
    "all Linear in FP8 (`mixquant-fp8`)": "fp8",
    "all Linear in FP8, last token exact": "fp8-last-exact",
    "all Linear in FP8, first 16 tokens exact": "fp8-first-16-exact",
    "all Linear in FP8, static part exact": "fp8+static-exact",
    "all Linear in FP8, ends exact": "fp8-ends-exact",
    "all Linear in FP8 but `k_proj` and `v_proj`, which are exact": "fp8-kv-exact",
    "all Linear in FP8 but `qkv_proj`, which is exact": "fp8-qkv-exact",
    "all Linear in FP8, last token and static part exact": "fp8-last-exact+static-exact",
}


def recipes() -> Iterator[Line]:
    """A row's KL, its interval where the page has one, and what is won back; the page has to say each of them."""
    page = "docs/nvfp4-fidelity.md"
    for label, name in RECIPES.items():
        recipe = values("fidelity.json")("recipes", name)
        text = words_of(page)
        start = text.index(f"| {label} |")
        there = text[start:].split("|")[2].strip()
        digits = len(there.split()[0].partition(".")[2])
        kl = fixed(recipe["kl"], digits)
        if "(" in there:
            low, high = (fixed(end, digits) for end in recipe["kl_ci95"])
            kl += f" ({low}–{high})"
        removed = [f"{share(recipe[name])} %" for name in ("kl_removed", "first_removed")]
        yield page, row(label, kl, *removed, fixed(recipe["rows_quantized"], 2))
    pooled = values("fidelity.json")("pooled_loss_won_back")
    won = []
    for policy in ("mixquant-nvfp4-plain", "nvfp4-static-quantized", "mixquant-nvfp4"):
        low, high = pooled[policy]["ci95"]
        won.append(f"{share(pooled[policy]['share'])} % ({share(low)} to {share(high)} %), n = {pooled[policy]['n']}")
    yield page, f"| loss won back, pooled | | 0 | {' | '.join(won)} |"


def goals() -> Iterator[Line]:
    """What the default reaches, and its cost by the tables: the largest of all lengths."""
    file, page = values("fidelity.json"), "docs/nvfp4-fidelity.md"
    default = file("default")
    shared, alone = file("recipes", default), file("recipes", default.removesuffix("+static-exact"))
    yield page, f"It loses {fixed(shared['kl'], 3)}: {share(shared['kl_removed'])} % less"
    yield "README.md", f"removes {share(shared['kl_removed'])} % of the KL divergence that NVFP4 in both phases has"
    exact_ends = "KL removed, few rows at both ends exact: 90 %"
    yield (
        page,
        f"| {exact_ends} | {share(alone['kl_removed'])} %, {share(alone['rows_quantized'])} % of the rows quantized |",
    )
    yield page, f"| KL removed, static part exact: 94 % (97) | {share(shared['kl_removed'])} % |"
    first = [f"{share(recipe['first_removed'])} %" for recipe in (alone, shared)]
    yield page, f"| first-token KL removed: 85 % (92) | {first[0]}, static part exact {first[1]} |"
    rounding = share(file("recipes", "balanced+w46", "kl_removed"))
    yield page, f"every row but the last quantized: 90 % (95) | missed: {rounding} % with its rounding alone"
    added = {gpu: max(by.values()) for gpu, by in shared["predicted_added_time_by_tables"].items()}
    b200, rtx = (fixed(100 * added[gpu], 1) for gpu in ("b200", "rtx-pro-6000"))
    yield page, f"| added time: at most 3 % (2) | {b200} % B200, {rtx} % RTX PRO 6000"
    yield page, f"mean KL at most 0.006 (0.003) | missed: {fixed(file('recipes', 'fp8', 'kl'), 4)} |"
    kept = file("turns", f"{default.removesuffix('+static-exact')}, answers kept")
    yield page, f"| KL at turn 20 over turn 1: at most 1.5 (1.0) | {fixed(kept['20'] / kept['1'], 2)} |"


TURNS = {
    "plain": "plain",
    "`qkv_proj` in FP8, GPTQ": "qkv-fp8+gptq",
    "GPTQ, ends exact (static part quantized)": "gptq+ends-exact",
    "GPTQ behind, wide ends exact (static part quantized)": "gptq-behind+wide-ends-exact",
    "GPTQ, wide ends exact (static part quantized)": "gptq+wide-ends-exact",
    "the default (static part quantized)": "balanced+w46+late-ends-exact",
}


def turns() -> Iterator[Line]:
    by_turn = values("fidelity.json")("turns")
    for label, name in TURNS.items():
        ways = (by_turn[f"{name}, answers {way}"] for way in ("kept", "reread"))
        yield "docs/nvfp4-fidelity.md", row(label, *(" / ".join(fixed(kl, 3) for kl in of.values()) for of in ways))


LAYER_ERRORS = {
    "weights: nearest / 4/6 / GPTQ / GPTQ with 4/6": (
        *("weights, nearest", "weights, 4/6", "weights, GPTQ", "weights, GPTQ with 4/6"),
    ),
    "GPTQ with 4/6, then coordinate descent over codes and block scales": (
        "weights, GPTQ with 4/6, coordinate descent",
    ),
    "activations: plain / 4/6 / best of four tops": (
        *("activations", "activations, 4/6", "activations, best of four tops"),
    ),
    "activations rotated by Hadamard 16 / 32 / 64": tuple(f"activations, Hadamard {width}" for width in (16, 32, 64)),
    "the same, with 4/6": tuple(f"activations, Hadamard {width}, 4/6" for width in (16, 32, 64)),
    "both, GPTQ": ("both, GPTQ",),
    "both, Hadamard 16 and GPTQ": ("both, GPTQ, Hadamard 16",),
    "both, GPTQ, channels scaled by input^−0.25 / −0.5 / −0.75": tuple(
        f"both, GPTQ, channels scaled by input^-{power}" for power in (0.25, 0.5, 0.75)
    ),
    "the same, powers of two, −0.25 / −0.5": tuple(
        f"both, GPTQ, channels scaled by input^-{power}, powers of two" for power in (0.25, 0.5)
    ),
    "both, weights moved to suit rounded inputs of their own layer": (
        "both, GPTQ, weights moved to suit rounded inputs",
    ),
}


def layer_errors() -> Iterator[Line]:
    errors = values("fidelity-explored.json")("layer_errors", "rows")
    for label, names in LAYER_ERRORS.items():
        columns = [
            " / ".join(fixed(errors[name][leaf], 0 if errors[name][leaf] >= 10 else 1) for name in names)
            for leaf in ("qkv_proj", "o_proj", "gate_up_proj", "down_proj")
        ]
        yield "docs/nvfp4-fidelity.md", row(label, *columns)


EXPLORED = {
    "GPTQ": "gptq (again)",
    "4/6 on weights": "gptq, 4/6 weights",
    "channels scaled by input^−0.5": "channels scaled by input^-0.5",
    "by (weight / input)^0.5": "channels scaled by (weight/input)^0.5",
    "searched by layer": "channels scaled, searched by layer",
    "searched, 4/6 on weights": "channels scaled, searched, 4/6 weights",
    "the same, powers of two": "channels scaled by powers of two, searched, 4/6 weights",
    "the same (not powers), `qkv_proj` and `gate_up_proj` alone": (
        "channels scaled of qkv and gate_up alone, searched, 4/6 weights"
    ),
    "searched, 4/6 on both": "channels scaled, searched, 4/6 both",
    "searched, 4/6 on weights, coordinate descent": "channels scaled, searched, 4/6 weights, coordinate descent",
    "that and 4/6 on activations": "channels scaled, searched, 4/6 both, coordinate descent",
    "searched, 4/6 on weights, GPTQ behind the first 16": "gptq behind, channels scaled, searched, 4/6 weights",
}


def explored() -> Iterator[Line]:
    file, page = values("fidelity-explored.json"), "docs/nvfp4-fidelity.md"
    for label, name in EXPLORED.items():
        both = []
        for rows in ("16+112", "16+112 static"):
            of = file("recipes", f"{name} | {rows}")
            removed = (f"{share(of[key])} %" for key in ("kl_removed", "first_removed"))
            both += [fixed(of["kl"], 4), *removed]
        yield page, row(label, *both)
    names = ("fp8", "fp8-kv-exact", "fp8-qkv-exact", "fp8-last-exact")
    fp8, kv, qkv, last = (fixed(file("fp8", "recipes", name, "kl"), 3) for name in names)
    parts = f"with K and V exact {kv}, with all of `qkv_proj` {qkv}, with the last token {last}"
    yield page, f"FP8 loses {fp8}, {parts}."
    percent = file("exact_rows", "percent")
    b200, rtx = (
        {rows: fixed(max(by.values()), 1) for rows, by in percent[gpu].items()} for gpu in ("b200", "rtx-pro-6000")
    )
    yield page, f"128 exact rows cost {b200['128']} % (B200) and {rtx['128']} % (RTX PRO 6000)"
    more = ", ".join(f"{rows} rows {b200[rows]} and {rtx[rows]} %" for rows in ("144", "192"))
    yield page, f"One row more is a tile more: {more}."


def history() -> Iterator[Line]:
    template, written = values("history-cpu.json")("by_template"), values("history-cpu.json")("as_written")
    page = "docs/agents-and-the-engine.md"
    yield (
        page,
        f"{fixed(100 * template['last_cached_share'], 1)} % was found by the template and "
        f"{fixed(100 * written['last_cached_share'], 1)} % as written, its first token came after "
        f"{fixed(template['last_ttft_seconds'], 2)} s and {fixed(written['last_ttft_seconds'], 2)} s",
    )
    yield (
        page,
        f"read {template['prefill_tokens']:,} and {written['prefill_tokens']} tokens in "
        f"{fixed(template['prefill_seconds'], 1)} s and {fixed(written['prefill_seconds'], 1)} s",
    )


def peers() -> Iterator[Line]:
    ours, llama = (values("agents-cpu.json")("peers", n) for n in ("chat_openai_vllm_serve", "chat_llama_cpp"))
    ratio, theirs = ours["overhead_ratio_1"], ours["overhead_p50_ms"]
    low, high = (fixed(end, 2) for end in ours["overhead_ratio_ci95"])
    overhead = f"{fixed(ratio, 2)}x: {fixed(ratio * theirs, 1)} against {fixed(theirs, 1)} ms ({low} to {high})"
    yield "docs/results.md", f"{overhead} | {fixed(llama['overhead_ratio_1'], 2)}x |"
    yield "docs/results.md", f"{fixed(llama['wall_ratio_1'], 2)}x: llama.cpp"
    yield "docs/results.md", f"{fixed(llama['tokens_ratio_16'], 1)}x: llama.cpp"


def recording() -> Iterator[Line]:
    file, page = values("store-cpu.json"), "docs/results.md"
    turn, slow = fixed(file("write_us_per_turn"), 1), fixed(file("write_us_p99"), 1)
    share_of_turn, seconds = fixed(file("overhead_percent_engine"), 2), fixed(file("turn_seconds_engine"), 2)
    yield page, f"takes the turn's own thread {turn} µs (p99: {slow})"
    yield page, f"{share_of_turn} % of a turn of {seconds} s"
    yield page, f"writes up to {file('turns_per_s'):,} turns a second"
    yield page, f"lost none of {file('offered_turns'):,} that came at {file('offered_per_s'):,} a second"
    yield page, f"{fixed(file('overview_p95_ms'), 0)} ms at p95"


def plan() -> Iterator[Line]:
    page = "docs/serving.md"
    long = values("plan-40s.json")("policies", "exact", "runs")
    errors = [abs(error) for run in long for error in run["error"].values()]
    within, beyond = (sum(error <= limit for error in errors) for limit in (0.15, 0.08))
    yield page, f"{within} of the {len(errors)} are within 15 %, {beyond} within 8 %"
    ttft = [fixed(run["measured"]["ttft_p50_ms"], 0) for run in long]
    yield page, f"its TTFT p50 is {ttft[0]}, {ttft[1]} and {ttft[2]} ms"
    predicted, measured = (fixed(100 * long[-1][name]["cached_share"], 1) for name in ("predicted", "measured"))
    yield page, f"({predicted} % of the prompts' tokens were predicted to be cached, and {measured} were)"
    for run in (*values("plan.json")("gpu", "policies", "exact", "runs"), *long):
        predicted, measured, error = run["predicted"], run["measured"], run["error"]
        columns = []
        for name, digits in (
            ("ttft_p50_ms", 0), ("ttft_p95_ms", 0), ("itl_p50_ms", 1), ("itl_p95_ms", 1), ("tokens_per_s", 0),
        ):  # fmt: skip
            digits = 0 if name == "itl_p95_ms" and predicted[name] > 10 else digits
            unit = " ms," if run["agents"] == 8 and name == "ttft_p50_ms" else ""
            text = f"{fixed(predicted[name], digits)} ({fixed(measured[name], digits)}){unit}"
            columns.append(f"{text} {signed(100 * error[name], 0)} %")
        label = "8, predicted (measured)" if run["agents"] == 8 else run["agents"]
        yield page, f"| {label} | {' | '.join(columns)} |"
    for prompts in values("plan.json")("gpu", "beside", "prompts"):
        if prompts["new_tokens"] == 16:
            yield page, f"wrote a step in {fixed(prompts['step_ms'], 1)} ms where eight"


def pair_on_gpus() -> Iterator[Line]:
    page, file = "docs/serving.md", values("pair-2xh200.json")
    for reading in file("reading"):
        columns = reading["columns"]
        ttft = [fixed(columns[name]["ttft_p50_ms"], 1) for name in ("pair", "policy", "exact")]
        tpot = [fixed(columns[name]["tpot_ms"], 2) for name in ("pair", "policy", "exact")]
        if reading["prompt_tokens"] == 32000:
            spread = (fixed(columns["pair"][f"ttft_{end}_ms"], 1) for end in ("least", "most"))
            ttft[0] += f" ({' to '.join(spread)})"
        yield page, row(f"{reading['prompt_tokens']:,}", f"{reading['bytes_moved'] / 1e6:,.0f}", *ttft, *tpot)
        assert reading["answers_and_counts_as_policy"] == reading["repeats"] == 5
        assert reading["counts"]["recomputed_rows"] == 1
    mixed = [file("mixed", "columns", name) for name in ("pair", "policy", "exact")]
    gaps = (f"{fixed(column['itl_p50_ms'], 1)} / {fixed(column['itl_p95_ms'], 1)}" for column in mixed)
    yield page, row("ITL p50 / p95, ms", *gaps)
    yield page, row("TPOT, ms", *(fixed(column["tpot_ms"], 2) for column in mixed))
    yield page, row("TTFT p50 of the prompts, ms", *(fixed(column["prompt_ttft_p50_ms"], 1) for column in mixed))
    exact, policy, pair = (
        fixed(file("threads", "columns", name, "later_ttft_p50_ms"), 1) for name in ("exact", "policy", "pair")
    )
    yield page, f"{exact} ms on the exact engine, {policy} on the reader, {pair} on the pair"
    columns = file("with_kv_back", "threads", "columns")
    back, again = columns["pair, KV back"], columns["pair"]
    came = f"in {back['later_turns_with_answers_kv']} of {back['later_turns']} later turns"
    yield page, f"{came}, and the reading side read {back['later_prefill_tokens']:,} tokens"
    yield page, f"of each instead of {again['later_prefill_tokens']:,}. The first token came after"
    times = [fixed(columns[name]["later_ttft_p50_ms"], 1) for name in ("pair, KV back", "pair", "policy")]
    yield page, f"after {times[0]} ms; without KV back after {times[1]}, on the reader alone after {times[2]}"


def fleet() -> Iterator[Line]:
    """The plan for 100 and 10,000 agents; a million take what ten thousand do."""
    policies = {"h200_sxm": ("exact", "mixquant-fp8"), "b200_sxm": ("exact", "mixquant-nvfp4")}
    for gpu, names in policies.items():
        rows = {(plan["policy"], plan["agents"]): plan for plan in values("plan-fleet.json")(gpu, "plans")}
        for name in names:
            for agents in (100, 10_000):
                made = rows[name, agents]
                expected = made["expected"]
                ttft, itl = (
                    f"{fixed(expected[f'{what}_p50_ms'], 0)} / {fixed(expected[f'{what}_p95_ms'], 0)}"
                    for what in ("ttft", "itl")
                )
                numbers = (f"{made['engines']:,}", str(made["agents_per_engine"]), f"{made['kv_gib']:,.0f}")
                yield "docs/serving.md", f"| `{name}` | {' | '.join(numbers)} | {ttft} | {itl} |"
        million = " / ".join(f"{rows[name, 1_000_000]['engines']:,}" for name in names)
        yield "docs/serving.md", f"| {million} |"


def read_ahead() -> Iterator[Line]:
    file, page = values("agents-h200.json"), "docs/agents-and-the-engine.md"
    warm = file("warm")
    plain, ahead = (fixed(1000 * warm["ttft_s"][way], 0) for way in ("plain", "read ahead"))
    ratio, part = fixed(warm["ttft_ratio"]["read ahead"], 2), share(warm["cached_share"]["read ahead"])
    yield page, f"{plain} ms, read ahead in eight pieces {ahead} ms ({ratio}x; {part} % of the prompt found)"
    others = fixed(warm["itl_p95_ratio"]["read ahead"], 2)
    yield page, f"one for each state of the result | {ratio}x | {others}x |"
    runs = {run: file(run, "warm") for run in ("third_run", "fourth_run", "fifth_run")}
    for label, run, way in (
        ("2,048 tokens and a quarter, one step each", "third_run", "read ahead"),
        ("3,600 tokens, in steps of 3,840", "third_run", "read ahead, pieces of 3600"),
        ("2,048 tokens and a half, one step each", "third_run", "read ahead, pieces of a half"),
        ("the same, beside 4,288", "fourth_run", "read ahead, pieces of a half"),
        ("the same, beside the default", "fifth_run", "read ahead, pieces of a half"),
    ):
        warm = runs[run]
        yield page, row(label, *(f"{fixed(warm[name][way], digits)}x" for name, digits in AHEAD), longer(warm, way))
    for label, run, way in (
        ("3,600 tokens, in steps of 4,288", "fourth_run", "read ahead, pieces of 3600, steps of 4288"),
        (f"3,600 tokens, in steps of {BACKGROUND_ROWS:,} rows (the default)", "fifth_run", "read ahead"),
    ):
        warm = runs[run]
        ttft, itl = (f"{fixed(warm[name][way], digits)}x" for name, digits in AHEAD)
        plain, ahead = (fixed(1000 * warm["ttft_s"][each], 0) for each in ("plain", way))
        gap, gap_ahead = (fixed(1000 * warm["itl_s"][each]["p95"], 2) for each in ("plain", way))
        both = f"{itl} ({gap} and {gap_ahead} ms)"
        yield page, row(label, f"{ttft} ({plain} and {ahead} ms)", both, longer(warm, way))
    pieces = (
        f"of {BACKGROUND_ROWS:,} rows at most. While turns run, a growing prompt is read on when {Pieces().tokens:,}"
    )
    yield page, f"{pieces} tokens have come"


AHEAD = (("ttft_ratio", 2), ("itl_p95_ratio", 3))


def longer(warm: Any, way: str) -> str:
    """How many steps more of some 510 were half as long again as the median."""
    slow = [warm["itl_s"][each]["slow_share"] for each in (way, "plain")]
    return fixed(510 * (slow[0] - slow[1]), 0)


def beyond_the_model() -> Iterator[Line]:
    page, file = "docs/results.md", values("agents-suites-h200.json")
    policies = ("exact", "uniform-nvfp4", "mixquant")

    def solved(name: str) -> Iterator[str]:
        for policy in policies:
            run = file("suites", name, policy)
            text = f"{round(run['score'] * run['n'])} of {run['n']}"
            low, high = run.get("delta_ci95") or (0, 0)
            yield text if low == high == 0 else f"{text} ({signed(low)} to {signed(high)})"

    for label, name in (
        ("AgentDojo banking", "agentdojo_banking"),
        ("AgentDojo Slack", "agentdojo_slack"),
        ("banking, attacked: solved", "agentdojo_banking_attacked"),
        ("Slack, attacked: solved", "agentdojo_slack_attacked"),
        ("Reasoning Gym, copying", "reasoning_gym_copying"),
        ("Reasoning Gym, arithmetic", "reasoning_gym_arithmetic"),
    ):
        yield page, row(label, *solved(name))
    for label, name in (("banking", "agentdojo_banking_attacked"), ("Slack", "agentdojo_slack_attacked")):
        attacks = []
        for policy in policies:
            run = file("suites", name, policy)
            judged = run["n"] - run["errors"]
            attacks.append(f"{round(run['measures']['attack_success'] * judged)} of {judged}")
        yield page, row(f"{label}, attacked: attack succeeded", *attacks)
    noisy = [f"reasoning_gym_{name}_noisy" for name in ("copying", "arithmetic")]
    assert {each["score"] for name in noisy for each in file("suites", name).values()} == {0.0}
    harness = file("suites", "harness_bench")
    yield page, " and ".join(f"0 of {run['n']} under `{policy}`" for policy, run in harness.items() if not run["score"])
    earlier = file("earlier_run", "suites")
    banking, slack = (
        round(earlier[name]["mixquant"]["measures"]["attack_success"] * earlier[name]["mixquant"]["n"])
        for name in ("agentdojo_banking_attacked", "agentdojo_slack_attacked")
    )
    yield page, f"{banking} attacks of 48 and {slack} of 42 for `mixquant`"


def kv_back() -> Iterator[Line]:
    for label, name, digits in (
        ("exact engine alone", "exact", 0),
        ("`mixquant-int8` alone", "policy", 4),
        ("pair, answers read again", "pair", 4),
        ("pair, KV back", "pair, KV back", 4),
    ):
        column = values("pair.json")("cpu, threads", "threads", "columns", name)
        kl = sum(column["kl_by_turn"][1:]) / 4
        ttft = column["later_ttft_p50_ms"]
        yield (
            "docs/serving.md",
            f"| {label} | {fixed(column['later_prefill_tokens'], 0)} | {fixed(kl, digits)} | {fixed(ttft, 0)} |",
        )


SOURCES: tuple[Callable[[], Iterator[Line]], ...] = (
    prefill_h100,
    prefill_h100_notes,
    mixed_h100,
    two_gpus,
    rebuilt,
    products,
    moe_share,
    mixture,
    expert_layers,
    two_gpus_of_experts,
    nested,
    nested_on_two_gpus,
    nested_at_64_rows,
    writing,
    bfcl,
    divergence,
    recipes,
    goals,
    turns,
    layer_errors,
    explored,
    history,
    peers,
    recording,
    plan,
    pair_on_gpus,
    fleet,
    read_ahead,
    beyond_the_model,
    kv_back,
)


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.__name__)
def test_figures_are_those_of_the_result_files(source: Callable[[], Iterator[Line]]) -> None:
    lines = list(source())
    assert lines
    missing = [(page, text) for page, text in lines if text not in words_of(page)]
    assert missing == []


def named(content: Any, *names: str) -> bool:
    """Whether a text stands under one of these names, at any depth."""
    if isinstance(content, list):
        return any(named(part, *names) for part in content)
    if not isinstance(content, dict):
        return False
    here = any(isinstance(content.get(name), str) and content[name] for name in names)
    return here or any(named(part, *names) for part in content.values())


@pytest.mark.parametrize("path", sorted(RESULTS.glob("*.json")), ids=lambda path: path.name)
def test_result_file_names_command_and_machine(path: Path) -> None:
    content = json.loads(path.read_text())
    assert named(content, "device", "machine")
    assert named(content, "command") or "by a program of its own" in content["what"]


def test_default_that_the_study_measured_is_the_product_s() -> None:
    study = values("fidelity.json")
    measured = study("recipes", study("default"))
    policy = PrecisionPolicy.of(study("default_policy"))
    assert measured["static_exact"] == policy.exact_static_prefix
    rest = policy.model_copy(update={"exact_static_prefix": False})
    assert measured["policy"] == rest.model_dump(mode="json", exclude_defaults=True)


def test_every_recipe_s_run_is_named() -> None:
    study = values("fidelity.json")
    runs = [run for run in study("runs").values() if isinstance(run, dict)]
    named = [recipe for run in runs for recipe in run["recipes"]]
    assert sorted(named) == sorted(study("recipes"))
    for run in runs:
        for recipe in run["recipes"]:
            assert (
                recipe == study("baseline") or f"--only {recipe}" in run["command"] or "--train-rate" in run["command"]
            )
