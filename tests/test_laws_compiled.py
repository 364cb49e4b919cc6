"""The laws of growth in code that torch's compiler makes, over the table of models.

Making code takes seconds, so one case of twelve is tried; `SPLITGROW_MANY=12` tries all.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from cases import CASES, Case
from helpers import MANY, assert_equal, leading, randomise, tensors_of
from torch import Tensor, nn

import splitgrow
from splitgrow.layers import partial_product

# Torch's compiler asks for it when it starts anew in the middle of a function.
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")

_SPACING = max(1, round(12 / MANY))
chosen = pytest.mark.parametrize("case", CASES[::_SPACING], ids=lambda case: case.name)


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def growable_case(case: Case) -> tuple[Any, tuple[Tensor, ...]]:
    inputs = case.inputs()
    return splitgrow.growable(randomise(case.model()), inputs), inputs


def grow(model: Any) -> None:
    """Every layer that can; layers that are tied once."""
    request: dict[str, int] = {}
    for layer in model.layers:
        if layer.growable and not set(layer.group) & set(request):
            request[layer.name] = layer.step
    model.expand(request)


@torch.no_grad()
def randomise_what_trains(model: nn.Module) -> None:
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.add_(0.3 * torch.randn_like(parameter))


def gradients(run: Any, model: nn.Module, inputs: tuple[Tensor, ...]) -> list[Tensor | None]:
    """Those of all inputs that are no numbers of things, and of all that trains."""
    own = [x.clone().requires_grad_(x.is_floating_point()) for x in inputs]
    wanted = [x for x in own if x.requires_grad]
    wanted += [parameter for parameter in model.parameters() if parameter.requires_grad]
    loss = sum((y * y.detach().cos()).sum() for y in tensors_of(run(*own)))
    return list(torch.autograd.grad(loss, wanted, allow_unused=True))


def assert_same_gradients(ours: list[Tensor | None], theirs: list[Tensor | None]) -> None:
    scale = max(each.abs().max().item() for each in theirs if each is not None)
    for one, other in zip(ours, theirs, strict=True):
        # A gradient that is zero whatever the values are may be left out.
        one, other = (torch.zeros(()) if each is None else each for each in (one, other))
        assert (one - other).abs().max().item() <= 1e-12 * scale


@pytest.mark.slow
@chosen
def test_all_laws_hold_in_compiled_code(case: Case) -> None:
    """One compiled function lives through the model's growths; eager code is the oracle."""
    model, inputs = growable_case(case)
    compiled = torch.compile(model, backend="aot_eager")
    shown = [compiled(*inputs)]
    for _ in range(2):
        grow(model)
        assert_equal(leading(compiled(*inputs), shown[-1]), list(tensors_of(shown[-1])))
        randomise_what_trains(model)
        shown.append(compiled(*inputs))
        assert_equal(shown[-1], model(*inputs))
        with splitgrow.execution("blockwise"):
            wanted = gradients(model, model, inputs)
        assert_same_gradients(gradients(compiled, model, inputs), wanted)
        model.next_generation()
    for generation, before in enumerate(shown):
        with model.at(generation), torch.no_grad():
            assert_equal(compiled(*inputs), before)
    with torch.no_grad():
        assert_equal(splitgrow.merge(model)(*inputs), shown[-1])


def test_control_a_wrong_gradient_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    right = partial_product.shares_of
    monkeypatch.setattr(
        partial_product, "shares_of", lambda *_: [each * (1 + 1e-9) for each in right(*_)]
    )
    model, inputs = growable_case(CASES[2])
    grow(model)
    randomise_what_trains(model)
    with splitgrow.execution("blockwise"):
        wanted = gradients(model, model, inputs)
    compiled = torch.compile(model, backend="aot_eager")
    with pytest.raises(AssertionError):
        assert_same_gradients(gradients(compiled, model, inputs), wanted)
