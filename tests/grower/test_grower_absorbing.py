"""Policies that make grown layers plain again, and those that freeze."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from grown_policies import convolutional, images, policy, sgd, train_step, widths
from helpers import assert_equal, outputs_of, split_layers

from splitgrow import Every


def trained(until: int, **changes: Any) -> tuple[Any, Any, list[int]]:
    """A run, and the number of split layers after each step."""
    model = convolutional()
    optimizer = sgd(model)
    grower = policy(model, optimizer, when=Every(3), absorb=True, **changes)
    split = []
    for step in range(1, until + 1):
        train_step(model, optimizer, step)
        before = outputs_of(model.eval(), images(5))
        grower.step()
        assert_equal(outputs_of(model, images(5)), before)
        model.train()
        split.append(len([*split_layers(model)]))
    return model, grower, split


def test_grown_layers_become_plain_at_once() -> None:
    model, grower, split = trained(7)
    assert split == [0] * 7
    assert widths(model) == grower.plan().growths[1].widths
    assert grower.macs == grower.plan().growths[1].macs


def test_with_a_warm_up_they_become_plain_when_it_ends() -> None:
    _, _, split = trained(7, warmup=2)
    assert [bool(count) for count in split] == [False, False, True, True, False, True, True]


def test_a_growth_within_a_warm_up_begins_it_anew() -> None:
    _, _, split = trained(9, warmup=4, steps=2)
    assert [bool(count) for count in split] == [False, False] + [True] * 7
    _, _, split = trained(10, warmup=4, steps=2)
    assert not split[-1]


def test_rates_of_their_own_keep_blocks() -> None:
    _, _, split = trained(4, lr_scale=0.5)
    assert split[-1]


def test_freezing_keeps_the_closed_generation() -> None:
    model = convolutional()
    before = outputs_of(model.eval(), images(5))
    optimizer = sgd(model)
    grower = policy(model, optimizer, when=Every(1), freeze=True)
    grower.step()
    train_step(model, optimizer, 1)
    with model.at(0):
        assert_equal(outputs_of(model.eval(), images(5)), before)
    assert not torch.equal(outputs_of(model, images(5)), before)


def test_closed_generations_are_not_given_up_unasked() -> None:
    model = convolutional()
    model.expand_layer("0", 2)
    with pytest.raises(ValueError, match="closed generations"):
        policy(model, absorb=True)
    policy(model)
