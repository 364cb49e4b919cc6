"""Kernels that round by shapes, so that every machine finds code that relies on equal bits."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import kernels
import pytest
import torch
from helpers import assert_equal, largest_difference

ROOT = Path(__file__).parent.parent
PROGRAM = """
import sys
sys.path[:0] = ["tests"]
import kernels, torch
import torch.nn.functional as F
torch.set_num_threads(1)
kernels.choose()
torch.manual_seed(0)
x, weight, more = torch.randn(7, 40), torch.randn(30, 40), torch.randn(3, 40)
images, kernel = torch.randn(2, 8, 6, 6), torch.randn(5, 8, 3, 3)
found = {
    "product": F.linear(x, weight),
    "again": F.linear(x, weight),
    "wider": F.linear(x, torch.cat([weight, more]))[:, :30],
    "strided": F.linear(x, torch.cat([weight, weight], 1)[:, :40]),
    "convolution": F.conv2d(images, kernel),
    "one by one": F.conv2d(images[:1], kernel),
    "identity": F.linear(x, torch.eye(40)) - x,
    "zeros": F.conv2d(images, torch.zeros_like(kernel)),
    "whole": F.linear(torch.ones(7, 40), torch.ones(30, 40)),
}
torch.save(found, sys.argv[1])
"""


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], dict[str, torch.Tensor]]:
    """What the program finds on the kernels of a name, in a process of its own."""

    @cache
    def run(name: str) -> dict[str, torch.Tensor]:
        path = tmp_path_factory.mktemp("kernels") / "found.pt"
        environment = {**os.environ, kernels.VARIABLE: name}
        command = [sys.executable, "-W", "error", "-c", PROGRAM, str(path)]
        subprocess.run(command, cwd=ROOT, env=environment, check=True)
        return torch.load(path)

    return run


def test_reordered_kernels_give_the_same_bits_for_the_same_shapes_alone(found) -> None:
    ours, plain = found("reordered"), found("")
    assert torch.equal(ours["product"], ours["again"])
    assert not torch.equal(ours["product"], ours["wider"])
    assert not torch.equal(ours["product"], ours["strided"])
    assert not torch.equal(ours["convolution"][:1], ours["one by one"])
    assert not torch.equal(ours["product"], plain["product"])
    assert all(largest_difference(ours[name] + 1, plain[name] + 1) < 1e-5 for name in ours)


def test_what_is_exact_on_any_processor_is_exact_on_reordered_kernels(found) -> None:
    ours = found("reordered")
    assert not ours["identity"].any()
    assert not ours["zeros"].any()
    assert (ours["whole"] == 40).all()


def test_torchs_own_kernels_can_be_asked_for(found) -> None:
    assert_equal(found("native")["convolution"], found("")["convolution"])


def test_kernels_that_there_are_not_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(kernels.VARIABLE, "faster")
    with pytest.raises(ValueError, match=r"'reordered'.* got 'faster'"):
        kernels.choose()
