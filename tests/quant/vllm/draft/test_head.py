"""The output layer's twin: drafts alone go through it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from mixquant_agents.precision.formats import NumberFormat
from mixquant_agents.precision.recipe import Recipe
from mixquant_agents.precision.resolve import LayerFormat
from mixquant_agents.quant.step import DRAFT, DRAFT_FEW_ROWS, EXACT, QUANTIZED, forced
from mixquant_agents.quant.twins.rowwise import RowwiseTwin
from mixquant_agents.quant.vllm.draft import head as head_module
from mixquant_agents.quant.vllm.draft.head import DraftHead


class Model(torch.nn.Module):
    def __init__(self, dtype: torch.dtype = torch.bfloat16) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.lm_head = torch.nn.Linear(64, 96, bias=False, dtype=dtype)
        self.lm_head.requires_grad_(False)
        method = SimpleNamespace(apply=lambda layer, x, bias=None: torch.nn.functional.linear(x, layer.weight, bias))
        self.lm_head.quant_method = method  # type: ignore[assignment] # as vLLM's layers carry it


class Twin(RowwiseTwin):
    """On a CPU there is nothing to time."""

    def tune(self, layers: Any, most_rows: int | None = None) -> None:
        assert most_rows is not None

    def tune_few_rows(self, layers: Any) -> None:
        raise RuntimeError("no such instruction")


FP8 = LayerFormat(NumberFormat.FP8, emulated=False, nested=True)


@pytest.fixture
def twin(monkeypatch: pytest.MonkeyPatch) -> Twin:
    made = Twin("fp8", torch.float8_e4m3fn, "cutlass")
    monkeypatch.setattr(head_module, "twin_of", lambda layer_format: made)
    return made


def test_drafts_alone_are_quantized(twin: Twin) -> None:
    model = Model()
    head = DraftHead.of(model, FP8)
    assert head is not None
    x = torch.randn(3, 64, dtype=torch.bfloat16)
    exact = torch.nn.functional.linear(x, model.lm_head.weight)
    apply: Any = model.lm_head.quant_method
    assert torch.equal(apply.apply(model.lm_head, x), exact)
    for step in (EXACT, QUANTIZED):
        with forced(step):
            assert torch.equal(apply.apply(model.lm_head, x), exact)
    for step in (DRAFT, DRAFT_FEW_ROWS):
        with forced(step):
            draft = apply.apply(model.lm_head, x)
        assert not torch.equal(draft, exact)
        assert float((draft - exact).norm() / exact.norm()) < 0.08


def test_new_weights_are_followed_where_the_twin_lies(twin: Twin) -> None:
    model = Model()
    head = DraftHead.of(model, FP8)
    assert head is not None
    address = head.state.codes.data_ptr()
    model.lm_head.weight.data.copy_(torch.randn(96, 64))
    head.renew()
    assert head.state.codes.data_ptr() == address
    x = torch.randn(2, 64, dtype=torch.bfloat16)
    with forced(DRAFT):
        draft = head.apply(model.lm_head, x)
    exact = torch.nn.functional.linear(x, model.lm_head.weight)
    assert float((draft - exact).norm() / exact.norm()) < 0.08


def test_layers_that_the_twin_cannot_take_stay(twin: Twin) -> None:
    assert DraftHead.of(Model(torch.float32), FP8) is None
    assert DraftHead.of(torch.nn.Sequential(torch.nn.Linear(4, 4)), FP8) is None
    narrow = Model()
    narrow.lm_head.weight = torch.nn.Parameter(torch.zeros(90, 60, dtype=torch.bfloat16), requires_grad=False)
    assert DraftHead.of(narrow, FP8) is None


@pytest.mark.parametrize("method", ["build", "tune", "product"])
def test_twin_that_fails_leaves_the_layer_exact(twin: Twin, monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    def fails(*args: Any, **kwargs: Any) -> None:
        raise torch.OutOfMemoryError("no memory")

    monkeypatch.setattr(twin, method, fails)
    model = Model()
    own = model.lm_head.quant_method.apply
    assert DraftHead.of(model, FP8) is None
    assert model.lm_head.quant_method.apply is own


def test_twin_whose_product_is_wrong_leaves_the_layer_exact(twin: Twin, monkeypatch: pytest.MonkeyPatch) -> None:
    right = twin.product
    monkeypatch.setattr(twin, "product", lambda *args: right(*args) * 1.2)
    assert DraftHead.of(Model(), FP8) is None


@pytest.mark.parametrize("recipe", [Recipe(), Recipe("gptq")], ids=["plain", "gptq"])
def test_layer_has_no_twin_of_four_bits(recipe: Recipe) -> None:
    """Nor does the calibration that such a twin may ask for stop the start."""
    assert DraftHead.of(Model(), LayerFormat(NumberFormat.NVFP4, emulated=False, recipe=recipe)) is None
