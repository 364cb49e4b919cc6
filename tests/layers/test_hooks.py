"""Hooks on a grown layer see the same as on the plain one: its whole input and output."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import assert_equal, assert_identical, randomise, randomise_new_blocks
from torch import Tensor, nn

import splitgrow
from splitgrow.layers.insertion_wrapper import InsertionWrapper
from splitgrow.layers.split_layer import SplitLayer


def network() -> nn.Module:
    torch.manual_seed(0)
    return randomise(
        nn.Sequential(
            nn.Conv2d(3, 4, 3, padding=1),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.Conv2d(4, 6, 1),
            nn.Flatten(),
            nn.Linear(6 * 16, 5),
            nn.Tanh(),
            nn.Linear(5, 2),
        ).double()
    ).eval()


def inputs() -> Tensor:
    return torch.randn(2, 3, 4, 4, generator=torch.manual_seed(1)).double()


LAYERS = ("0", "1", "3", "5")


class Seen:
    """Takes down the shapes of what a hook is given, and changes what it may."""

    def __init__(self) -> None:
        self.calls: list[Any] = []

    def forward(self, module: nn.Module, args: Any, output: Any) -> Tensor:
        self.calls.append((tuple(args[0].shape), tuple(output.shape), float(output.detach().sum())))
        return output * 1.5

    def forward_kw(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        self.calls.append((tuple(args[0].shape), sorted(kwargs), float(output.detach().sum())))

    def pre(self, module: nn.Module, args: Any) -> Any:
        self.calls.append(("pre", tuple(args[0].shape), float(args[0].detach().sum())))
        return (args[0] * 0.5,)

    def pre_kw(self, module: nn.Module, args: Any, kwargs: Any) -> Any:
        self.calls.append(("pre", tuple(args[0].shape), sorted(kwargs)))
        return (args[0] + 0.25,), kwargs

    def backward(self, module: nn.Module, of_input: Any, of_output: Any) -> Any:
        shapes = [tuple(g.shape) for g in (*of_input, *of_output) if g is not None]
        self.calls.append((shapes, float(of_output[0].sum())))
        return tuple(None if g is None else 2 * g for g in of_input)

    def backward_pre(self, module: nn.Module, of_output: Any) -> Any:
        self.calls.append((tuple(of_output[0].shape), float(of_output[0].sum())))
        return tuple(3 * g for g in of_output)


WAYS: dict[str, Callable[[nn.Module, Seen], Any]] = {
    "forward": lambda m, s: m.register_forward_hook(s.forward),
    "forward, in front": lambda m, s: m.register_forward_hook(s.forward, prepend=True),
    "forward, with kwargs": lambda m, s: m.register_forward_hook(s.forward_kw, with_kwargs=True),
    "forward, always": lambda m, s: m.register_forward_hook(s.forward, always_call=True),
    "pre": lambda m, s: m.register_forward_pre_hook(s.pre),
    "pre, in front": lambda m, s: m.register_forward_pre_hook(s.pre, prepend=True),
    "pre, with kwargs": lambda m, s: m.register_forward_pre_hook(s.pre_kw, with_kwargs=True),
    "backward": lambda m, s: m.register_full_backward_hook(s.backward),
    "backward, in front": lambda m, s: m.register_full_backward_hook(s.backward, prepend=True),
    "backward pre": lambda m, s: m.register_full_backward_pre_hook(s.backward_pre),
}


def run(model: nn.Module, x: Tensor) -> list[Tensor]:
    """The outputs, and the gradient of the input."""
    x = x.clone().requires_grad_()
    y = model(x)
    return [y, *torch.autograd.grad(y.sin().sum(), x)]


def grow(model: Any, *, freeze: bool = False) -> None:
    """Every layer that has hooks gains inputs and outputs."""
    for name in ("0", "3", "5"):
        model.expand_layer(name, 2, freeze=freeze)
    randomise_new_blocks(model)


def close(one: Any, other: Any) -> None:
    """Equal but for the rounding of numbers."""
    assert type(one) is type(other)
    if isinstance(one, (list, tuple)):
        assert len(one) == len(other)
        for ours, theirs in zip(one, other, strict=True):
            close(ours, theirs)
    elif isinstance(one, float):
        assert one == pytest.approx(other, abs=1e-9)
    else:
        assert one == other


every_way = pytest.mark.parametrize("way", WAYS)
MODES: tuple[Any, ...] = ("merged", "blockwise", "auto")
every_mode = pytest.mark.parametrize("mode", MODES)


@every_way
@pytest.mark.parametrize("when", ["before growth", "between", "after growth"])
def test_a_hook_sees_what_it_sees_on_the_plain_layer(when: str, way: str) -> None:
    x, ours, theirs = inputs(), Seen(), Seen()
    model: Any = splitgrow.growable(network(), x)
    if when == "before growth":
        handles = [WAYS[way](model[int(name)], ours) for name in LAYERS]
    grow(model)
    if when == "between":
        handles = [WAYS[way](model.get_submodule(name), ours) for name in LAYERS]
    grow(model)
    if when == "after growth":
        handles = [WAYS[way](model.get_submodule(name), ours) for name in LAYERS]
    bare = {name: model.get_submodule(name).plain() for name in LAYERS}
    plain = nn.Sequential(*(bare.get(str(i), module) for i, module in enumerate(model)))
    for name in LAYERS:
        WAYS[way](plain.get_submodule(name), theirs)
    plain[7] = model[7].plain()
    ours.calls.clear()  # growth runs the model, too, to check itself
    for mode in MODES:
        with splitgrow.execution(mode):
            assert_equal(run(model, x), run(plain, x))
        assert ours.calls
        close(ours.calls, theirs.calls)
    for handle in handles:
        handle.remove()
    count = len(ours.calls)
    run(model, x)
    assert len(ours.calls) == count


@every_way
def test_a_hook_on_one_block_sees_that_block(way: str) -> None:
    """Whoever wants that registers it there: a control for what sees the whole."""
    x, seen = inputs(), Seen()
    model: Any = splitgrow.growable(network(), x)
    grow(model)
    WAYS[way](model[0][0], seen)
    run(model, x)
    assert len(seen.calls) == 1
    assert "(2, 6, 4, 4)" not in str(seen.calls)


@every_way
def test_a_hook_runs_while_an_earlier_generation_is_shown(way: str) -> None:
    x, seen = inputs(), Seen()
    model: Any = splitgrow.growable(network(), x)
    for name in LAYERS:
        WAYS[way](model.get_submodule(name), seen)
    before, calls = run(model, x), [*seen.calls]
    grow(model, freeze=True)
    seen.calls.clear()
    with model.at(0):
        torch.set_grad_enabled(True)
        shown = run(model, x)
    assert_identical(shown, before)
    assert seen.calls == calls


@every_way
def test_a_growth_that_fails_gives_the_hooks_back(
    way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, seen = inputs(), Seen()
    model: Any = splitgrow.growable(network(), x)
    layers = [model.get_submodule(name) for name in LAYERS]
    handles = [WAYS[way](layer, seen) for layer in layers]
    before = run(model, x)
    stores = [dict(vars(layer)) for layer in layers]

    def fail(*_: Any) -> None:
        raise MemoryError

    monkeypatch.setattr("splitgrow.growth.apply.join_", fail)
    with pytest.raises(MemoryError):
        model.expand_layer("0", 2)
    assert all(model.get_submodule(n) is m for n, m in zip(LAYERS, layers, strict=True))
    for layer, store in zip(layers, stores, strict=True):
        assert all(vars(layer)[key] is value for key, value in store.items())
    assert_identical(run(model, x), before)
    count = len(seen.calls)
    for handle in handles:
        handle.remove()
    run(model, x)
    assert len(seen.calls) == count


def test_held_statistics_stay_held_where_a_norm_has_hooks() -> None:
    x, seen = inputs(), Seen()
    model: Any = splitgrow.growable(network(), x)
    model[1].register_forward_pre_hook(seen.pre)
    grow(model, freeze=True)
    held = model[1][0].running_mean.clone()
    seen.calls.clear()
    model.train()(x)
    assert torch.equal(model[1][0].running_mean, held)
    assert [shape for _, shape, _ in seen.calls] == [(2, 6, 4, 4)]
    model.unfreeze()
    model.train()(x)
    assert not torch.equal(model[1][0].running_mean, held)


def double(module: nn.Module, args: Any, output: Tensor) -> Tensor:
    """A hook that can be pickled."""
    assert isinstance(module, (SplitLayer, nn.Conv2d))
    return 2 * output


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_a_copy_has_hooks_of_its_own(copied: Callable[[nn.Module], Any]) -> None:
    x = inputs()
    model: Any = splitgrow.growable(network(), x)
    handle = model[0].register_forward_hook(double)
    grow(model)
    with_hook = model(x)
    twin = copied(model)
    assert_identical(twin(x), with_hook)
    handle.remove()
    assert_identical(twin(x), with_hook)
    assert not torch.equal(model(x), with_hook)
    grow(twin)
    assert_equal(twin(x), twin(x))


def test_hooks_on_the_state_dict_see_all_blocks() -> None:
    x = inputs()
    model: Any = splitgrow.growable(network(), x)
    saved: list[Any] = []
    modules: list[Any] = []
    layer = model[0]
    layer.register_state_dict_pre_hook(lambda m, prefix, keep: modules.append(m))
    post = getattr(layer, "register_state_dict_post_hook", layer._register_state_dict_hook)
    post(  # torch 2.4 has no public name for it
        lambda m, state, prefix, meta: saved.extend(k for k in state if k.startswith(prefix))
    )
    layer.register_load_state_dict_pre_hook(lambda m, *rest: modules.append(m))
    layer.register_load_state_dict_post_hook(lambda m, keys: modules.append(m))
    grow(model)
    state = model.state_dict()
    assert sorted(saved) == sorted(k for k in state if k.startswith("0."))
    assert len(saved) > 2
    model.load_state_dict(state)
    assert len(modules) >= 3
    assert {*modules} == {model[0]}


def test_a_hook_is_told_a_layer_that_answers_for_its_attributes() -> None:
    x = inputs()
    model: Any = splitgrow.growable(network(), x)
    told: list[Any] = []
    model[0].register_forward_hook(
        lambda m, args, y: told.append((m.out_channels, m.weight.shape[0], y.shape[1]))
    )
    grow(model)
    told.clear()
    model(x)
    assert told == [(6, 6, 6)]


def test_a_hook_of_a_module_something_is_inserted_behind_sees_that_modules_own_call() -> None:
    x, seen = torch.randn(3, 4, generator=torch.manual_seed(2)).double(), Seen()
    model: Any = nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 2)).double()
    model = splitgrow.growable(model, x)
    handle = model[0].register_forward_hook(seen.forward_kw, with_kwargs=True)
    model(x)
    before = [*seen.calls]
    model.insert_layer("0")
    wrapper = model[0]
    assert isinstance(wrapper, InsertionWrapper)
    for parameter in wrapper.inserted1.parameters():
        nn.init.constant_(parameter, 3.0)
    seen.calls.clear()
    model(x)
    assert seen.calls == before
    model.expand_layer("0", 2)
    shapes: list[Any] = []
    wrapper.wrapped.register_forward_hook(lambda m, args, y: shapes.append(y.shape[-1]))
    seen.calls.clear()
    model(x)
    assert shapes == [7]
    assert len(seen.calls) == 1
    handle.remove()
    model(x)
    assert len(seen.calls) == 1


def test_a_layer_with_a_forward_of_its_own_does_not_grow() -> None:
    """It would be called with today's tensors, whatever the layer becomes."""
    net = network()
    forward = net[0].forward
    net[0].forward = lambda x: 2 * forward(x)
    model: Any = splitgrow.growable(net, inputs())
    with pytest.raises(splitgrow.FixedWidthError, match="forward of its own"):
        model.expand_layer("0", 2)
    model.expand_layer("3", 2)
