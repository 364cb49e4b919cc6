"""Laws: a grown network lies in memory as a plain one does, and computes in its dtype."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from cases import CASES, Case
from helpers import randomise, randomise_new_blocks
from test_laws import everything
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import splitgrow
from splitgrow.growth import prepared
from splitgrow.layers.kernels import convolution

FORMATS = {4: torch.channels_last, 5: torch.channels_last_3d}
MAPS = [c for c in CASES if len(c.shape) in FORMATS and c.name != "conv to linear"]
"""Those of maps in two or three dimensions; one flattens its maps by a view, which they forbid."""
ON_MAPS = pytest.mark.parametrize("case", MAPS, ids=lambda case: case.name)
ON_A_FEW = pytest.mark.parametrize(
    "case", [c for c in MAPS if c.name in {"residual", "squeeze and excite", "u-net"}]
)


def grown(case: Case, *, early: bool = True, freeze: bool = True) -> tuple[Any, Tensor]:
    """A network in channels last, which it was told before it grew or after, and its input."""
    form = FORMATS[len(case.shape)]
    model: Any = randomise(case.model()).float()
    (x,) = (each.float() for each in case.inputs())
    if early:
        model.to(memory_format=form)
    model = splitgrow.growable(model, x)
    model.expand(everything(model, steps=2), freeze=freeze)
    randomise_new_blocks(model)
    if not early:
        model.to(memory_format=form)
    return model, x.to(memory_format=form)


def lies(tensor: Tensor) -> set[str]:
    """The orders in which a tensor's values lie: both where a dimension has one position only."""
    found = {"first"} if tensor.is_contiguous() else set()
    last = tensor.is_contiguous(memory_format=FORMATS[tensor.dim()])
    return found | ({"last"} if last else set())


def maps_of(model: Any, x: Tensor, names: list[str]) -> dict[str, list[set[str]]]:
    """How all maps of one step lie: what each layer makes, its gradient, and that of the input."""
    found: dict[str, list[set[str]]] = {}

    def note(name: str, tensor: Any) -> None:
        if isinstance(tensor, Tensor) and tensor.dim() == x.dim():
            found.setdefault(name, []).append(lies(tensor))

    def hook(name: str) -> Any:
        def seen(_: nn.Module, __: Any, output: Any) -> None:
            note(name, output)
            if isinstance(output, Tensor) and output.requires_grad:
                output.register_hook(lambda gradient: note(f"gradient of {name}", gradient))

        return seen

    handles = [model.get_submodule(name).register_forward_hook(hook(name)) for name in names]
    x = x.clone().requires_grad_()
    outputs = pytree.tree_leaves(model(x))
    for index, output in enumerate(outputs):
        note(f"output {index}", output)
    sum(output.square().sum() for output in outputs).backward()
    note("gradient of the input", x.grad)
    for handle in handles:
        handle.remove()
    return found


def differences(model: Any, x: Tensor) -> list[str]:
    """The maps and tensors that lie in another order than in the plain network."""
    plain = splitgrow.merge(model)
    weights = {
        name: parameter
        for each in (model, plain)
        for name, parameter in each.named_parameters()
        if parameter.dim() == x.dim()
    }
    # Once it has run, what is frozen is a part of the whole weight, in the same order.
    found = [name for name, weight in weights.items() if "last" not in lies(weight)]
    names = [name for name, module in plain.named_modules() if name and not [*module.children()]]
    ours, theirs = maps_of(model, x, names), maps_of(plain, x, names)
    assert ours.keys() == theirs.keys()
    found += [
        name
        for name, orders in theirs.items()
        if any(a != b and not a & b for a, b in zip(ours[name], orders, strict=True))
    ]
    trained = {name: weight for name, weight in weights.items() if weight.grad is not None}
    found += [
        f"gradient of {name}"
        for name, weight in trained.items()
        if weight.grad is not None and not lies(weight.grad) & lies(weight)
    ]
    return found


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@ON_MAPS
def test_in_channels_last_no_map_and_no_weight_lies_in_another_order_than_in_a_plain_network(case):
    for early, freeze in ((True, True), (False, False)):
        assert differences(*grown(case, early=early, freeze=freeze)) == []


def test_the_law_of_orders_notices_blocks_and_gradients_in_another_one(monkeypatch) -> None:
    cases = {case.name: case for case in MAPS}
    with monkeypatch.context() as patch:
        patch.setattr(convolution, "_channels_last", lambda weight: weight)
        assert "gradient of norm" in differences(*grown(cases["squeeze and excite"]))
    with monkeypatch.context() as patch:
        patch.setattr(prepared, "_match_memory_format", lambda *_: None)
        assert "block1.conv1.1.weight" in differences(*grown(cases["residual"]))


@ON_A_FEW
def test_shrinking_keeps_channels_last(case: Case) -> None:
    model, x = grown(case)
    layers = {layer.name: layer.step for layer in model.layers if layer.growable}
    name, units = next(iter(layers.items()))
    model.shrink({name: units}, give_up=True)
    assert differences(model, x) == []


# -- bf16 ------------------------------------------------------------------------------------------


def step_of(model: Any, x: Tensor) -> dict[str, Tensor]:
    """The outputs and the input's gradient of one step in which products are of bf16."""
    x = x.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        outputs = pytree.tree_leaves(model(x))
    sum(output.float().square().mean() for output in outputs).backward()
    assert x.grad is not None
    return {"input": x.grad, **{str(i): output.detach() for i, output in enumerate(outputs)}}


def far(one: Tensor, other: Tensor) -> float:
    """The mean difference, relative to the mean of the values, in roundings of bf16."""
    one, other = one.double(), other.double()
    rounding = torch.finfo(torch.bfloat16).eps
    return ((one - other).abs().mean() / other.abs().mean() / rounding).item()


def autocast_differences(model: Any, x: Tensor) -> dict[str, float]:
    """How far one step is from the plain network's: outputs, and gradients of all that trains."""
    plain = splitgrow.merge(model)
    ours, theirs = step_of(model, x), step_of(plain, x)
    found = {}
    for name, value in theirs.items():
        assert ours[name].dtype == value.dtype
        found[name] = far(ours[name], value)
    # A gradient is put in a copy's values, which `merge` then joins as it joins the weights.
    for model_ in (model, plain):
        with torch.no_grad():
            for parameter in model_.parameters():
                gradient = parameter.grad
                parameter.copy_(torch.zeros_like(parameter) if gradient is None else gradient)
    joined = dict(splitgrow.merge(model).named_parameters())
    trained = {n for n, p in plain.named_parameters() if p.grad is not None}
    for name in trained & joined.keys():
        assert joined[name].dtype == torch.float32
        found[f"gradient of {name}"] = far(joined[name], dict(plain.named_parameters())[name])
    return found


@pytest.mark.parametrize("form", ["first", "last"])
@ON_A_FEW
def test_in_bf16_autocast_a_step_is_the_plain_network_s_up_to_rounding(case, form) -> None:
    model, x = grown(case, freeze=False, early=form == "last")
    if form == "first":
        model.to(memory_format=torch.contiguous_format)
        x = x.contiguous()
    found = autocast_differences(model, x)
    assert max(found.values()) < 4, found
    assert any(name.startswith("gradient") for name in found)


def test_the_law_of_autocast_notices_another_weight() -> None:
    case = next(case for case in MAPS if case.name == "residual")
    model, x = grown(case, freeze=False)
    merge = splitgrow.merge

    def slightly_off(model: Any) -> Any:
        plain: Any = merge(model)
        with torch.no_grad():
            plain.stem.weight.mul_(1.1)
        return plain

    assert max(_with_merge(slightly_off, model, x).values()) > 4


def _with_merge(merge: Any, model: Any, x: Tensor) -> dict[str, float]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(splitgrow, "merge", merge)
        return autocast_differences(model, x)
