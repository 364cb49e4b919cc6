"""Merged and fused models keep the hooks, or a warning names those that are lost."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import assert_equal
from torch import Tensor, nn
from torch.nn.utils import prune

import splitgrow
from splitgrow.layers import plain_copy as plain_module

X = torch.randn(3, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


class Box(nn.Module):
    """A container inside a model, and a module that is an identity."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU()
        )
        self.tap, self.last = nn.Identity(), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.tap(self.body(x)))


def stir(model: nn.Module) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))


def grown(insert: str = "", module: nn.Module | None = None) -> Any:
    """The model with a wider layer, and with something inserted behind it or in its place."""
    model: Any = splitgrow.growable(Box().double().eval(), X)
    model.expand_layer("body.3", 2)
    if insert:
        model.insert_layer("body.3", insert, module=module)
    stir(model)
    return model


def twice(_: nn.Module, __: Any, output: Tensor) -> Tensor:
    return 2 * output


def twice_before(_: nn.Module, inputs: Any) -> Any:
    return (2 * inputs[0], *inputs[1:])


def twice_by_name(_: nn.Module, __: Any, ___: Any, output: Tensor) -> Tensor:
    return 2 * output


REGISTER: dict[str, Callable[[nn.Module], Any]] = {
    "forward": lambda m: m.register_forward_hook(twice),
    "before": lambda m: m.register_forward_pre_hook(twice_before),
    "by name": lambda m: m.register_forward_hook(twice_by_name, with_kwargs=True),
    "always": lambda m: m.register_forward_hook(twice, always_call=True),
}
PLACES = ("", "body", "body.0", "body.1", "body.2", "body.3", "body.4", "tap", "last")


@pytest.mark.parametrize("path", PLACES)
@pytest.mark.parametrize(
    ("insert", "how"),
    [*(("", how) for how in REGISTER)]
    + [(insert, how) for insert in ("residual", "gate") for how in ("by name", "before")],
)
def test_a_hook_anywhere_comes_along(insert: str, path: str, how: str) -> None:
    model = grown(insert)
    without = model(X)
    REGISTER[how](model.get_submodule(path))
    expected = model(X)
    assert not torch.allclose(expected, without)
    merged = splitgrow.merge(model, check=False)
    assert_equal(merged(X), expected)
    if not isinstance(merged.get_submodule(path), torch.fx.GraphModule):  # torch drops its hooks
        assert_equal(copy.deepcopy(merged)(X), expected)
    assert_equal(splitgrow.fuse(model, check=False)(X), expected)
    assert splitgrow.handle(model).layers  # untouched


def test_a_merge_that_drops_hooks_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = grown()
    model.body[3].register_forward_hook(twice)
    monkeypatch.setattr(plain_module, "carry_hooks_", lambda *_: None)
    with pytest.raises(splitgrow.MergeError, match="differs from the model by"):
        splitgrow.merge(model)


def test_hooks_that_watch_see_the_same_in_a_merged_and_a_fused_model() -> None:
    model, seen = grown(), list[Any]()
    for path in PLACES:
        note = lambda _, __, y, path=path: seen.append((path, y.detach().clone()))  # noqa: E731
        model.get_submodule(path).register_forward_hook(note)
    results = []
    for network in (model, splitgrow.merge(model), splitgrow.fuse(model)):
        seen.clear()
        network(X)
        results.append(list(seen))
    for other in results[1:]:
        assert [path for path, _ in other] == [path for path, _ in results[0]]
        for (_, ours), (_, theirs) in zip(other, results[0], strict=True):
            assert_equal(ours, theirs)


def test_a_backward_hook_on_a_grown_layer_comes_along() -> None:
    model, seen = grown(), list[Tensor]()
    model.body[3].register_full_backward_hook(lambda _, __, g: seen.append(g[0].clone()))
    model.body[3].register_full_backward_pre_hook(lambda _, g: (2 * g[0],))
    x = X.clone().requires_grad_(True)
    model(x).sum().backward()
    merged = splitgrow.merge(model)
    again = X.clone().requires_grad_(True)
    merged(again).sum().backward()
    assert_equal(seen[1], seen[0])
    assert_equal(again.grad, x.grad)


class Scaling(nn.Module):
    """A model whose own method, with its own parameter, is a hook of its layers."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 3)
        self.scale = nn.Parameter(torch.tensor(2.0))

    def scaled(self, _: nn.Module, __: Any, output: Tensor) -> Tensor:
        return output * self.scale

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x).relu())


def test_a_method_of_the_model_as_a_hook_belongs_to_the_merged_model() -> None:
    model: Any = splitgrow.growable(Scaling().double().eval(), X)
    model.expand_layer("a", 2)
    model.a.register_forward_hook(model.scaled)
    merged: Any = splitgrow.merge(model)
    (hook,) = merged.a._forward_hooks.values()
    assert hook.__self__ is merged
    assert type(merged) is Scaling


def test_hooks_of_a_single_block_are_refused_by_name() -> None:
    model = grown()
    model.body[3][0].register_forward_hook(twice)
    for make in (splitgrow.merge, splitgrow.fuse):
        with pytest.raises(splitgrow.UnsupportedModelError, match=r"`body.3.0` has hooks"):
            make(model)


def test_hooks_of_what_was_replaced_are_told_of_by_name() -> None:
    model = grown("replacement", nn.Linear(8, 10).double())
    model.body[3].wrapped.register_forward_hook(lambda *_: None)
    for fade in model.modules():
        if isinstance(fade, splitgrow.FadeIn):
            fade.alpha = 1.0
    with pytest.warns(UserWarning, match=r"run the hooks of `body.3`"):
        merged = splitgrow.merge(model)
    assert_equal(merged(X), model(X))


def test_hooks_of_a_state_dict_are_told_of_by_name() -> None:
    model = grown()
    module = model.body[3]  # torch 2.4 has no public name for this hook
    register = getattr(module, "register_state_dict_post_hook", module._register_state_dict_hook)
    register(lambda *_: None)
    with pytest.warns(UserWarning, match=r"run the hooks of `body.3`"):
        splitgrow.merge(model)


def test_what_cannot_be_copied_is_refused_in_words() -> None:
    model = grown()
    model.lock = threading.Lock()
    with pytest.raises(splitgrow.UnsupportedModelError, match=r"copy\.deepcopy cannot copy"):
        splitgrow.merge(model)


COMPUTED: dict[str, Callable[[nn.Module], Any]] = {
    "weight norm": nn.utils.weight_norm,
    "spectral norm": nn.utils.spectral_norm,
    "pruning": lambda m: prune.l1_unstructured(m, "weight", amount=0.5),
    "weight norm by parametrization": nn.utils.parametrizations.weight_norm,
    "spectral norm by parametrization": nn.utils.parametrizations.spectral_norm,
}


@pytest.mark.filterwarnings("ignore:.*is deprecated:FutureWarning")
@pytest.mark.filterwarnings("ignore:what hooks of torch.nn.utils compute")
@pytest.mark.parametrize("how", COMPUTED)
@pytest.mark.parametrize("path", ["body.0", "body.3.0", "body.3.1"])
def test_a_computed_weight_is_that_of_the_next_call(path: str, how: str) -> None:
    if "parametrization" in how and path != "body.0":
        pytest.skip("a block of another class is no block any more")
    model = grown()
    COMPUTED[how](model.get_submodule(path))
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    model(X).square().sum().backward()
    optimizer.step()  # what was computed before it is out of date now
    merged = splitgrow.merge(model, check=False)
    expected = model(X)
    assert_equal(merged(X), expected)
    assert_equal(splitgrow.fuse(model, check=False)(X), expected)


# --- what else the user has put on a layer --------------------------------------------------------


class Reads(nn.Module):
    """A forward that reads what somebody has put on its layer."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.one(x) * getattr(self.one, "factor", 1.0) * getattr(self.one, "_secret", 1.0)
        h = h * getattr(self.one, "scale", 1.0) + getattr(self.one, "shift", 0.0)
        return self.two(h)


def put_numbers_on(layer: Any) -> None:
    layer.factor, layer._secret, layer.seen = 3.0, 5.0, [layer]


def put_tensors_on(layer: Any) -> None:
    layer.register_buffer("scale", torch.tensor(2.0, dtype=torch.float64))
    layer.register_parameter("shift", nn.Parameter(torch.ones(1, dtype=torch.float64)))


@pytest.mark.parametrize("way", [splitgrow.merge, splitgrow.fuse, copy.deepcopy])
@pytest.mark.parametrize(
    ("put", "before"), [(put_numbers_on, True), (put_numbers_on, False), (put_tensors_on, False)]
)
def test_what_the_user_has_put_on_a_grown_layer_comes_along(way, put, before):
    torch.manual_seed(0)
    model: Any = Reads().double().eval()
    if before:
        put(model.one)
        expected = model(X)
    model = splitgrow.growable(model, X)
    model.expand_layer("one", 2)
    if not before:
        plain = model(X)
        put(model.one)
        expected = model(X)
        assert not torch.allclose(plain, expected)
    assert_equal(model(X), expected)
    stir(model)
    made = way(model)
    assert_equal(made(X), model(X))
    if put is put_numbers_on and way is not splitgrow.fuse:
        assert made.one.seen[0] is made.one
        assert made.one._secret == 5.0


def test_nothing_of_ours_is_put_on_the_stock_layer():
    layer = splitgrow.merge(grown()).body[3]
    assert vars(layer).keys() == vars(nn.Linear(2, 2)).keys()


def test_a_handle_that_the_model_keeps_removes_the_hook_of_the_merged_layer() -> None:
    """As transformers keep one of the embedding, for gradient checkpointing."""
    net: Any = Box().double().eval()
    net.kept = [net.body[3].register_forward_hook(twice, always_call=True)]
    model: Any = splitgrow.growable(net, X)
    model.expand_layer("body.3", 2)
    stir(model)
    merged: Any = splitgrow.merge(model)
    assert_equal(merged(X), model(X))
    copied = copy.deepcopy(merged)
    copied.kept[0].remove()
    assert not copied.body[3]._forward_hooks
    assert (copied(X) - merged(X)).abs().max() > 1e-3
    assert_equal(merged(X), model(X))
