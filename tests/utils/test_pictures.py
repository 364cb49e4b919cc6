"""Pictures need matplotlib when they are drawn, and not before."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from grown_policies import convolutional, policy
from torch import nn

import splitgrow


def plan(path: Path) -> Path:
    return policy(convolutional()).plan().draw(path)


def scores(path: Path) -> Path:
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    net = splitgrow.growable(net, torch.ones(1, 3))
    batch = torch.randn(8, 3)
    return splitgrow.scores.rank(net, lambda m, x: m(x).square().mean(), [batch]).draw(path)


DRAWN = [plan, scores]


@pytest.mark.parametrize("draw", DRAWN)
def test_a_picture_is_of_the_format_of_its_suffix(
    draw: Callable[[Path], Path], tmp_path: Path
) -> None:
    pytest.importorskip("matplotlib")
    assert draw(tmp_path / "picture.png").read_bytes()[:4] == b"\x89PNG"
    assert draw(tmp_path / "picture.svg").read_text().startswith("<?xml")


@pytest.mark.parametrize("draw", DRAWN)
def test_without_matplotlib_each_picture_says_how_to_get_it(
    draw: Callable[[Path], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "matplotlib"]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'splitgrow\[demo\]'"):
        draw(tmp_path / "picture.png")
    assert not list(tmp_path.iterdir())
