"""Tools that count, quantize or serve a grown model, and the page that lists them."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import assert_equal
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torch.utils.flop_counter import FlopCounterMode

import splitgrow

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "integrations.md").read_text()
X = torch.randn(4, 3, 6, 6, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.first, self.last = nn.Linear(8, 16), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x)).relu().mean((2, 3))
        return self.last(self.first(x).relu())


def grown(*, freeze: bool = False) -> Any:
    torch.manual_seed(0)
    model = splitgrow.growable(Net().eval(), X[:1])
    model.expand({"conv": 4, "first": 6}, freeze=freeze)
    return model


@pytest.mark.parametrize("freeze", [True, False])
def test_torchs_flop_counter_counts_a_grown_model_as_the_merged_one(freeze: bool) -> None:
    counted = []
    for model in (grown(freeze=freeze), splitgrow.merge(grown()), Net().eval()):
        with FlopCounterMode(display=False) as counter:
            model(X)
        counted.append(counter.get_total_flops())
    assert counted[0] == counted[1] > counted[2]


def test_a_profiler_that_gives_every_module_buffers_and_hooks_leaves_growth_possible() -> None:
    """As thop does."""
    model = grown()
    seen: list[nn.Module] = []
    for module in model.modules():
        if not list(module.children()):
            module.register_buffer("total_ops", torch.zeros(1))
    hooks = [m.register_forward_hook(lambda m, *_: seen.append(m)) for m in model.modules()]
    before = model(X)
    for hook in hooks:
        hook.remove()
    for module in model.modules():
        module._buffers.pop("total_ops", None)
    assert model.last in seen
    model.expand_layer("first", 2)
    assert_equal(model(X), before)


@pytest.mark.filterwarnings("ignore")
def test_a_grown_model_is_not_quantized_without_a_word_and_a_merged_one_is() -> None:
    from torch.ao.quantization import (  # noqa: PLC0415
        get_default_qconfig_mapping,
        quantize_dynamic,
    )
    from torch.ao.quantization.quantize_fx import prepare_fx  # noqa: PLC0415

    with pytest.raises(splitgrow.SplitGrowError, match=r"splitgrow\.merge"):
        quantize_dynamic(grown(), {nn.Linear}, torch.qint8)(X)
    mapping = get_default_qconfig_mapping("x86")
    with pytest.raises(splitgrow.SplitGrowError, match=r"splitgrow\.merge"):
        prepare_fx(grown(), mapping, (X,))
    plain = splitgrow.merge(grown())
    quantized = quantize_dynamic(copy.deepcopy(plain), {nn.Linear}, torch.qint8)
    assert type(quantized.last) is not nn.Linear
    assert (quantized(X) - plain(X)).abs().max() < 0.05
    assert prepare_fx(plain, mapping, (X,))(X).shape == (4, 4)


class Outputs(Dataset[Tensor]):
    """Data that a grown model makes."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def __len__(self) -> int:
        return 4

    @torch.no_grad()
    def __getitem__(self, index: int) -> Tensor:
        return self.model(X[index : index + 1])[0]


@pytest.mark.slow
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_of_a_loader_run_a_grown_model(method: str) -> None:
    model = grown()
    loader = DataLoader(Outputs(model), 4, num_workers=1, multiprocessing_context=method)
    assert_equal(next(iter(loader)), model(X).detach())


def test_every_row_of_the_page_of_tools_is_held_by_tests_that_there_are() -> None:
    table = PAGE.partition("| tool | outcome | tests |")[2]
    rows = re.findall(r"^\| (.*) \|$", table, re.MULTILINE)
    assert len(rows) > 20
    sources = [path.read_text() for path in (ROOT / "tests").rglob("test_*.py")]
    there = {name for source in sources for name in re.findall(r"^def (test_\w+)", source, re.M)}
    for row in rows:
        named = re.findall(r"`(test_\w+)`", row.split(" | ")[-1])
        assert named, row
        assert not set(named) - there, row
