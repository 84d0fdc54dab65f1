"""Each number format has its module, its emulation, and a native twin where a device is said to have one."""

from __future__ import annotations

import pytest
import torch

from mixquant_agents.errors import FormatRefusedError
from mixquant_agents.precision.formats import FORMATS, NumberFormat
from mixquant_agents.precision.policy import POLICY_PRESETS
from mixquant_agents.precision.resolve import LayerFormat
from mixquant_agents.quant.formats.registry import emulated_twin, format_of, twin_of
from mixquant_agents.quant.ops.sources import PlainRows


def test_table_names_every_format_that_quantizes() -> None:
    assert set(FORMATS) == set(NumberFormat) - {NumberFormat.AUTO, NumberFormat.EXACT}


@pytest.mark.parametrize("name", FORMATS)
def test_formats_are_found_by_the_module_of_their_name(name: NumberFormat) -> None:
    assert format_of(name).name is name
    assert {f"mixquant-{name}", f"uniform-{name}"} <= set(POLICY_PRESETS)
    emulated = emulated_twin(LayerFormat(name, emulated=True))
    assert not emulated.captured
    assert emulated.name == f"{name}-emulated"
    assert emulated is twin_of(LayerFormat(name, emulated=True))


@pytest.mark.parametrize("name", FORMATS)
def test_native_twins_are_where_the_table_says(name: NumberFormat) -> None:
    native = LayerFormat(name, emulated=False)
    if FORMATS[name].native_from is None:
        with pytest.raises(FormatRefusedError, match=f"{name} has no native product here"):
            twin_of(native)
    else:
        assert twin_of(native).captured
        assert twin_of(native).name == native.name


@pytest.mark.parametrize("name", [NumberFormat.FP8, NumberFormat.INT8])
def test_emulation_multiplies_what_the_kernels_multiply(name: NumberFormat) -> None:
    """Fidelity is measured on the emulation: both round every value alike, and differ by the order of sums alone."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(48, 64, generator=generator)
    x = torch.randn(33, 64, generator=generator) * torch.logspace(-6, 4, 33).unsqueeze(1)
    native, emulated = (twin_of(LayerFormat(name, emulated=kind)) for kind in (False, True))
    codes, grid = native.build(weight), emulated.build(weight)
    assert torch.equal(codes.codes.float(), grid.grid)
    assert torch.equal(codes.scales.flatten(), grid.scale)
    bound = (x.abs() @ weight.abs().T) * 2.0**-18
    difference = native.product(PlainRows(x), codes) - emulated.product(PlainRows(x), grid)
    assert (difference.abs() <= bound).all()
