"""A strange model works exactly, or an error explains the refusal: nothing internal escapes."""

from __future__ import annotations

import copy
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import largest_difference, tensors_of
from strange_models import STRANGE, Two, X
from torch import Tensor, nn

import splitgrow
from splitgrow.utils.output_tensors import OpaqueError, tensors_in

PACKAGE = str(Path(splitgrow.__file__).parent)


@contextmanager
def refused_in_words_at_most() -> Iterator[None]:
    """Lets errors pass that splitgrow raises on purpose, and says something with."""
    try:
        yield
    except (splitgrow.SplitGrowError, ValueError, TypeError) as error:
        refusal = error
    else:
        return
    last = traceback.extract_tb(refusal.__traceback__)[-1]
    on_purpose = last.filename.startswith(PACKAGE) and (last.line or "").startswith("raise")
    assert on_purpose, f"an internal {refusal!r} at {last.filename}:{last.lineno}"
    assert len(str(refusal)) > 30, refusal
    assert "object has no attribute" not in str(refusal), refusal


def outputs(model: nn.Module, inputs: tuple[Any, ...]) -> list[Tensor] | None:
    """What the model computes, as plain tensors; None if that cannot be compared."""
    with torch.no_grad():
        try:
            made = tensors_in(model(*inputs))
        except OpaqueError:
            return None
        except Exception:  # noqa: BLE001 - the model is strange
            return None
    return [t for t in made if not t.is_meta and t.numel()] or None


def check_same(model: nn.Module, inputs: tuple[Any, ...], before: list[Tensor] | None) -> None:
    """Makes sure that the model still computes what it did, or its old outputs lead."""
    after = outputs(model, inputs)
    assert (after is None) == (before is None)
    if after is None or before is None:
        return
    kept = [
        new[tuple(map(slice, old.shape))].to_dense() if new.layout is torch.strided else new
        for new, old in zip(after, before, strict=True)
    ]
    assert largest_difference(kept, before) <= 1e-5 if tensors_of(kept) else True


def operations(model: Any, directory: Path) -> Iterator[tuple[str, Callable[[], Any]]]:
    """What there is to do with a growable model: each that can grow grows, and all the rest."""
    handle = splitgrow.handle(model)
    for layer in list(handle.layers):
        if layer.growable:
            yield (
                f"grow {layer.name}",
                lambda layer=layer: handle.expand_layer(layer.name, layer.step),
            )
        else:
            assert layer.reason
    for layer in list(handle.layers)[:3]:
        for kind in ("identity", "residual"):
            yield (
                f"insert {kind} at {layer.name}",
                lambda layer=layer, kind=kind: handle.insert_layer(layer.name, kind),
            )
    yield "consolidate", handle.consolidate
    yield "next generation", handle.next_generation
    yield "absorb", handle.absorb
    yield "merge", lambda: splitgrow.merge(model)
    yield "save", lambda: splitgrow.save(model, directory / "model.safetensors")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", STRANGE)
def test_a_strange_model_works_exactly_or_is_refused_in_words(name: str, tmp_path: Path) -> None:
    model, inputs = STRANGE[name]()
    model.eval()
    if name == "a_lazy_child":
        model(*inputs)
    before = outputs(model, inputs)
    grown: Any = None
    with refused_in_words_at_most():
        grown = splitgrow.growable(model, inputs)
    check_same(model, inputs, before)
    if grown is None:
        return
    for what, operation in operations(grown, tmp_path):
        with refused_in_words_at_most():
            operation()
        check_same(grown, inputs, before)
        del what


WORKS = """
    a_compiled_child a_child_compiled_in_place a_child_in_data_parallel a_lazy_child
    an_input_of_a_subclass a_batch_of_none a_batch_of_no_images a_scalar_parameter
    an_empty_parameter everything_on_meta returns_an_object returns_itself calls_itself
    any_arguments a_default_by_keyword_only an_argument_by_position_only no_arguments
    a_function_as_input an_object_as_input its_layer_replaced no_gradients_inside
    a_checkpoint_inside a_reversible_step forward_as_an_attribute forward_of_another_object
    forward_as_a_partial children_called_like_numbers odd_keys a_property_that_raises
    attributes_without_an_end set_before_init init_twice a_child_that_is_none an_own_call slots
    a_metaclass
"""


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", WORKS.split())
def test_these_strange_models_grow(name: str) -> None:
    model, inputs = STRANGE[name]()
    model.eval()
    if name == "a_lazy_child":
        model(*inputs)
    handle = splitgrow.handle(splitgrow.growable(model, inputs))
    assert any(layer.growable for layer in handle.layers)


REFUSED = {
    "a_scripted_child": "`c` is a ScriptModule",
    "a_scripted_layer": "`c` is a ScriptModule",
    "a_traced_child": "`c` is a ScriptModule",
    "a_lazy_child_that_is_not_called": "unused is not initialised yet",
    "a_nested_input": "nested tensor",
    "a_quantized_input": "quantized tensor",
    "an_argument_by_keyword_only": "missing a required argument: 'scale'",
    "never_ends": "RecursionError",
    "without_forward": 'missing the required "forward"',
    "a_module_list_as_model": 'missing the required "forward"',
    "a_final_class": "cannot be subclassed",
    "a_class_with_arguments": "cannot be subclassed",
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", REFUSED)
def test_these_strange_models_are_refused_by_name(name: str) -> None:
    model, inputs = STRANGE[name]()
    with pytest.raises((splitgrow.SplitGrowError, ValueError, TypeError)) as caught:
        splitgrow.growable(model.eval(), inputs)
    assert REFUSED[name] in str(caught.value)


def test_a_layer_without_units_is_fixed_with_that_reason() -> None:
    model, inputs = STRANGE["a_width_of_none"]()
    layers = splitgrow.handle(splitgrow.growable(model, inputs)).layers
    assert "`0`: it has no units" in layers[0].reason
    assert "it has no inputs" in layers[1].reason


def test_the_check_sees_an_internal_error() -> None:
    with pytest.raises(AssertionError, match="internal"), refused_in_words_at_most():
        int("no number")
    with pytest.raises(KeyError), refused_in_words_at_most():
        raise KeyError("inside")


def test_gradients_of_a_reversible_network_stay() -> None:
    model, _ = STRANGE["a_reversible_step"]()
    model.eval()

    def gradients() -> list[Tensor]:
        x = X.clone().requires_grad_()
        return [torch.autograd.grad(model(x).square().sum(), x)[0]]

    before = gradients()
    grown: Any = splitgrow.growable(model, X)
    for layer in list(grown.layers):
        if layer.name != "b":
            grown.expand_layer(layer.name, layer.step, freeze=False)
            assert largest_difference(gradients(), before) <= 1e-10


META = [("identity", {}), ("residual", {}), ("gate", {}), ("block", {}), ("fade", {"module": 1})]


@pytest.mark.parametrize(("kind", "options"), META)
def test_insertion_on_the_meta_device_is_done_or_refused_in_words(kind: str, options: Any) -> None:
    model: Any = Two().to("meta")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = splitgrow.growable(model, X.to("meta"))
    if options:
        options = {"module": nn.Linear(8, 8, device="meta", dtype=torch.float64)}
    with refused_in_words_at_most():
        model.insert_layer("a", kind, **options)
    assert model(X.to("meta")).shape == (5, 2)
    model.expand_layer("a", 2)
    model.expand_input(1)
    model.consolidate()
    model.absorb()
    model.expand_layer("a", 1)
    copy.deepcopy(model)
    assert splitgrow.merge(model)(torch.randn(5, 4, device="meta").double()).shape == (5, 2)


@pytest.mark.parametrize("where", ["layer", "block"])
def test_a_compiled_layer_is_fixed_and_a_compiled_block_is_not(where: str) -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.f = nn.Linear(8, 8).double()

        def forward(self, x: Tensor) -> Tensor:
            return x + self.f(x)

    inner = Block() if where == "block" else nn.Linear(8, 8).double()
    model: Any = Two(lambda m, h: m.c(h), c=torch.compile(inner, backend="eager"))
    model = splitgrow.growable(model.eval(), X)
    reasons = {layer.name: layer.reason for layer in model.layers}
    if where == "layer":
        assert "torch.compile" in reasons["c._orig_mod"]
    else:
        assert not reasons["c._orig_mod.f"]
    with torch.no_grad():
        before = model(X)
        for layer in list(model.layers):
            if layer.growable and layer.name != "b":
                model.expand_layer(layer.name, layer.step)
                assert largest_difference(model(X), before) <= 1e-12
