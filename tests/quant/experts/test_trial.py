"""Every kind of trial in one check, as at start: Linear layers of each format, nested ones, experts."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from mixtures import LAYER, random_weights

from mixquant_agents.errors import FormatRefusedError
from mixquant_agents.precision.formats import NumberFormat
from mixquant_agents.precision.resolve import LayerFormat
from mixquant_agents.quant.experts.emulated import EmulatedExperts
from mixquant_agents.quant.experts.trial import ExpertsTrial
from mixquant_agents.quant.formats.registry import emulated_twin
from mixquant_agents.quant.kernel_check import ExactUnit, Unit, check, units_of
from mixquant_agents.quant.layer import KernelTrial
from mixquant_agents.quant.twins.base import Twin
from mixquant_agents.quant.twins.emulated import EmulatedTwin
from mixquant_agents.quant.twins.nested import NestedTwin
from mixquant_agents.quant.twins.rowwise import RowwiseTwin

NVFP4, FP8, INT8 = (LayerFormat(NumberFormat(name), emulated=False) for name in ("nvfp4", "fp8", "int8"))
NESTED = dataclasses.replace(FP8, nested=True)
WEIGHT = torch.randn(64, 64, generator=torch.Generator().manual_seed(1)).bfloat16()


def emulation(layer_format: LayerFormat) -> EmulatedTwin:
    return emulated_twin(dataclasses.replace(layer_format, emulated=True))


def trials(seed: int) -> list[KernelTrial]:
    """``seed`` 0: right ones; else their twins are those of other weights."""
    weight = WEIGHT if seed == 0 else -WEIGHT
    twins: dict[LayerFormat, Twin[Any]] = {
        NVFP4: emulation(NVFP4),
        FP8: RowwiseTwin(FP8.name, torch.float8_e4m3fn, "cutlass"),
        INT8: RowwiseTwin(INT8.name, torch.int8, "cutlass"),
        NESTED: NestedTwin(NESTED.name, "torch"),
    }
    made: list[KernelTrial] = []
    for layer_format, twin in twins.items():
        layer = SimpleNamespace(
            prefix="a.o_proj", layer_format=layer_format, twin=twin, weight=WEIGHT, state=twin.build(weight)
        )
        made += units_of(layer)
    weights = random_weights()
    for layer_format in (NVFP4, FP8, INT8):
        experts = EmulatedExperts(emulation(layer_format))
        state = experts.build(random_weights(seed=seed), LAYER)
        made.append(ExpertsTrial(LAYER, layer_format, experts, state, weights))
    return made


def test_right_products_pass_each_under_its_own_key() -> None:
    right = trials(0)
    assert {type(trial) for trial in right} == {Unit, ExactUnit, ExpertsTrial}
    errors = check(right).errors
    assert len(errors) == len(right) == 8
    assert max(errors.values()) < 0.006


@pytest.mark.parametrize("number", range(8))
def test_twin_of_other_weights_is_refused(number: int) -> None:
    trial = trials(7)[number]
    with pytest.raises(FormatRefusedError, match="wrong on this device"):
        check([trial])
