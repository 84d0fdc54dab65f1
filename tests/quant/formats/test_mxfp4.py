"""MXFP4 against OCP MX v1.0: scales, rounding, packing; and what follows from the format's one file."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mixquant_agents.bench.fidelity.measure import FIDELITY_POLICIES
from mixquant_agents.errors import ConfigError, FormatRefusedError
from mixquant_agents.precision.formats import NumberFormat
from mixquant_agents.precision.policy import PrecisionPolicy
from mixquant_agents.precision.resolve import LayerFormat, resolve
from mixquant_agents.precision.support import DeviceInfo, format_support
from mixquant_agents.quant.formats.mxfp4 import BLOCK, FORMAT, dequantize, quantize
from mixquant_agents.quant.formats.registry import twin_of

E2M1 = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]
DEVICES = [
    DeviceInfo("cpu", "cpu"),
    DeviceInfo("cuda", "NVIDIA H100", (9, 0)),
    DeviceInfo("cuda", "NVIDIA B200", (10, 0)),
]


def by_hand(block: list[float]) -> list[float]:
    """§6.3, in Python's own doubles: the scale by a loop, each value by looking at all that E2M1 has."""
    largest = max(map(abs, block))
    exponent = -127
    while largest and exponent < 127 and 2.0 ** (exponent + 1) * 4 <= largest:
        exponent += 1
    rounded = []
    for value in block:
        scaled = abs(value) / 2.0**exponent
        # Of two that are equally near, the one whose code is even, as IEEE rounds.
        code = min(range(8), key=lambda code: (abs(E2M1[code] - scaled), code % 2))
        rounded.append((-1 if value < 0 else 1) * E2M1[code] * 2.0**exponent)
    return rounded


@given(st.lists(st.floats(-(2.0**100), 2.0**100, width=32), min_size=BLOCK, max_size=BLOCK))
def test_blocks_are_rounded_as_the_specification_says(block: list[float]) -> None:
    assert FORMAT.reference(torch.tensor([block]))[0].tolist() == by_hand(block)


@given(
    st.integers(-149, 127),
    st.lists(st.sampled_from([0.0, 0.25, 0.75, 1.25, 2.5, 5.0, 6.5, 7.9]), min_size=32, max_size=32),
)
def test_ties_and_saturation_at_every_scale(exponent: int, block: list[float]) -> None:
    scaled = [min(value * 2.0**exponent, 3e38) for value in block]
    row = torch.tensor([scaled])
    assert FORMAT.reference(row)[0].tolist() == by_hand(row[0].tolist())


def test_scale_codes_are_biased_exponents() -> None:
    rows = torch.zeros(6, BLOCK)
    rows[:, 3] = torch.tensor([0.0, 4.0, 7.99, 8.0, 1e-45, 3e38])
    assert quantize(rows).scales.flatten().tolist() == [0, 127, 127, 128, 0, 127 + 125]


def test_codes_are_packed_lower_column_first() -> None:
    row = torch.zeros(1, BLOCK)
    row[0, :3] = torch.tensor([0.5, -6.0, 4.0])
    q = quantize(row)
    assert q.packed.shape == (1, BLOCK // 2)
    assert q.packed[0, :2].tolist() == [0xF1, 0x06]
    assert torch.equal(dequantize(q), row)


@pytest.mark.parametrize("columns", [1, 31, 32, 33, 100])
def test_ragged_last_block_is_quantized_as_if_padded_with_zeros(columns: int) -> None:
    x = torch.randn(5, columns, generator=torch.Generator().manual_seed(0))
    padded = torch.nn.functional.pad(x, (0, -columns % BLOCK))
    assert FORMAT.reference(x).shape == x.shape
    assert torch.equal(FORMAT.reference(x), FORMAT.reference(padded)[:, :columns])


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_nan_and_infinity_poison_their_own_block(poison: float) -> None:
    x = torch.randn(3, 2 * BLOCK, generator=torch.Generator().manual_seed(0))
    clean = FORMAT.reference(x)
    x[1, 5] = poison
    rounded, (grid, _) = FORMAT.reference(x), FORMAT.split_rows(x)
    assert rounded[1, :BLOCK].isnan().all()
    assert grid[1, :BLOCK].isnan().all()
    rounded[1, :BLOCK] = clean[1, :BLOCK]
    assert torch.equal(rounded, clean)


@pytest.mark.parametrize("device", DEVICES, ids=lambda device: device.name)
def test_no_device_runs_it_natively_and_each_says_why(device: DeviceInfo) -> None:
    status = format_support(NumberFormat.MXFP4, device)
    assert status.status == "emulated"
    assert "MXFP4" in (status.reason or "")
    resolved = resolve(PrecisionPolicy.of("mixquant-mxfp4"), device)
    assert (resolved.emulated, resolved.exact_last_token, resolved.row_threshold) == (True, True, 0)


def test_native_twin_is_refused_with_the_reason() -> None:
    with pytest.raises(FormatRefusedError, match=r"mxfp4 has no native product here"):
        twin_of(LayerFormat(NumberFormat.MXFP4, emulated=False))


def test_checkpoints_are_refused() -> None:
    with pytest.raises(ConfigError, match="prefill_checkpoint='somewhere' needs prefill_format='nvfp4'"):
        PrecisionPolicy(prefill_format="mxfp4", prefill_checkpoint="somewhere")


def test_fidelity_compares_it() -> None:
    assert {"mixquant-mxfp4", "uniform-mxfp4"} <= set(FIDELITY_POLICIES)
