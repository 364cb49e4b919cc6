"""Grown layers in code that torch's compiler makes: values, gradients, and how often it is made."""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from cases import CASES
from helpers import assert_equal, randomise, randomise_new_blocks, tensors_of
from product_shapes import ProductShapes
from torch import Tensor, nn
from torch.func import functional_call

import splitgrow
from splitgrow.layers import merging_costs, split_layer
from splitgrow.layers.compiled_code import COMPILES

pytestmark = pytest.mark.skipif(not COMPILES, reason="this torch runs grown layers as eager code")

WAYS = {
    "residual": ("as one",),
    "u-net": ("as one",),
    "bottleneck": ("apart",),
    "mlp": ("as one", "apart"),
}
CHOSEN = [
    pytest.param(case, way, id=f"{case.name}, {way}")
    for case in CASES
    for way in WAYS.get(case.name, ())
]


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def _expand(model: Any, *, freeze: bool = True) -> None:
    wanted: dict[str, int] = {}
    for layer in model.layers:
        if layer.growable and not set(layer.group) & wanted.keys():
            wanted[layer.name] = layer.step
    model.expand(wanted, freeze=freeze)
    randomise_new_blocks(model)


def grown(make: Callable[[], nn.Module], *x: Tensor, freeze: bool = True) -> Any:
    """A network after two growths of every layer, in two generations if the past is frozen."""
    torch.manual_seed(0)
    model: Any = splitgrow.growable(randomise(make().double()), x)
    _expand(model, freeze=freeze)
    if freeze:
        model.next_generation()
    _expand(model, freeze=freeze)
    return model.train()


def gradients(run: Any, model: nn.Module, *x: Tensor) -> list[Tensor]:
    loss = sum(leaf.square().sum() for leaf in tensors_of(run(*x)))
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return list(torch.autograd.grad(loss, [*parameters, *x], allow_unused=True))


def assert_same_gradients(model: Any, run: Any, *x: Tensor, tolerance: float = 1e-12) -> None:
    """Compares a network and its compiled form with a copy that runs block by block."""
    expected = copy.deepcopy(model)
    x = tuple(each.clone().requires_grad_() for each in x)
    actual = gradients(run, model, *x)
    with splitgrow.execution("blockwise"):
        wanted = gradients(expected, expected, *x)
    scale = max(each.abs().max().item() for each in wanted if each is not None)
    for one, other in zip(actual, wanted, strict=True):
        assert (one is None) == (other is None)
        if one is not None and other is not None:
            assert (one - other).abs().max().item() <= tolerance * scale


def apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(merging_costs, "_PER_BLOCK", -1e9)


@pytest.mark.parametrize(("case", "way"), CHOSEN)
def test_outputs_and_gradients_are_those_of_eager_code(
    case: Any, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if way == "apart":
        apart(monkeypatch)
    x = case.inputs()
    model = grown(case.build, *x)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    assert_same_gradients(model, compiled, *x)
    model.eval()
    with torch.no_grad():
        assert_equal(compiled(*x), model(*x))


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3))


def conv() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3))


X = torch.randn(5, 6, dtype=torch.float64, generator=torch.manual_seed(1))
IMAGES = torch.randn(2, 3, 6, 6, dtype=torch.float64, generator=torch.manual_seed(1))


@pytest.mark.parametrize("freeze", [True, False], ids=["frozen past", "nothing frozen"])
def test_only_a_part_of_a_weights_gradient_is_computed(freeze: bool) -> None:
    model = grown(conv, IMAGES, freeze=freeze)
    whole = tuple(splitgrow.merge(model)[2].weight.shape)
    loss = torch.compile(model, backend="aot_eager")(IMAGES).square().sum()
    with ProductShapes() as shapes:
        loss.backward()
    assert (whole in shapes.seen) == (not freeze)


@pytest.mark.parametrize("case", ["mlp", "conv"])
def test_shapes_may_be_dynamic(case: str) -> None:
    make, x = (mlp, X) if case == "mlp" else (conv, IMAGES)
    model = grown(make, x)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True, dynamic=True)
    assert_same_gradients(model, compiled, x)
    before = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    assert_same_gradients(model, compiled, torch.cat([x, x]))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == before


def test_an_input_without_a_batch() -> None:
    model = grown(conv, IMAGES)
    assert_same_gradients(model, torch.compile(model, backend="aot_eager"), IMAGES[0])


def test_autocast_gives_gradients_in_the_dtype_of_the_parameters() -> None:
    model = grown(conv, IMAGES).float()
    compiled, x = torch.compile(model, backend="aot_eager", fullgraph=True), IMAGES.float()
    with torch.autocast("cpu", torch.bfloat16):
        assert compiled(x).dtype == torch.bfloat16
        loss = compiled(x).float().square().sum()
    loss.backward()
    found = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    assert {each.dtype for each in found} == {torch.float32}
    model.zero_grad()
    model(x).square().sum().backward()
    exact = [p.grad for p in model.parameters() if p.grad is not None]
    scale = max(each.abs().max() for each in exact)
    for one, other in zip(found, exact, strict=True):
        assert (one - other).abs().max() <= 0.1 * scale


def test_parameters_of_the_caller_get_their_gradients() -> None:
    model = grown(mlp, X)
    own = {n: p.detach().clone().requires_grad_() for n, p in model.named_parameters()}

    def loss(parameters: dict[str, Tensor]) -> Tensor:
        return functional_call(model, parameters, (X,)).square().sum()

    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
    actual = torch.autograd.grad(compiled(own), list(own.values()))
    assert_equal(list(actual), list(torch.autograd.grad(loss(own), list(own.values()))))


def test_parameters_that_train_again_get_gradients() -> None:
    model = grown(mlp, X)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    assert_same_gradients(model, compiled, X)
    model.unfreeze()
    assert_same_gradients(model, compiled, X)


def as_it_is(graph: Any, inputs: Any) -> Any:
    return graph.forward


@pytest.mark.parametrize("backend", ["eager", as_it_is], ids=["eager", "one of the user's"])
@pytest.mark.parametrize("make", [mlp, conv])
def test_second_derivatives_reach_the_weights_where_a_backend_has_any(
    backend: Any, make: Callable[[], nn.Module]
) -> None:
    x = X if make is mlp else IMAGES
    model = grown(make, x)
    wanted = second_derivatives(model, model, x)
    compiled = torch.compile(model, backend=backend, fullgraph=True)
    assert_equal(second_derivatives(compiled, model, x), wanted)
    assert any(each.any() for each in wanted[1:])


def test_second_derivatives_are_refused_where_torch_refuses_them() -> None:
    model = grown(mlp, X)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    with pytest.raises(RuntimeError, match="does not currently support double backward"):
        second_derivatives(compiled, model, X)


def second_derivatives(run: Any, model: nn.Module, x: Tensor) -> list[Tensor]:
    """Those of the squared norm of the input's gradient."""
    x = x.clone().requires_grad_()
    wanted = [x, *(p for p in model.parameters() if p.requires_grad and p.dim() > 1)]
    (first,) = torch.autograd.grad(run(x).square().sum(), x, create_graph=True)
    return list(torch.autograd.grad(first.square().sum(), wanted))


# --- how often code is made ------------------------------------------------------------------


class Made:
    """A backend that counts the graphs."""

    def __init__(self) -> None:
        self.count = self.symbols = 0

    def __call__(self, graph: Any, inputs: Any) -> Any:
        self.count += 1
        self.symbols += sum(isinstance(each, torch.SymInt) for each in inputs)
        return graph.forward


class Net(nn.Module):
    """The compiler follows forward of the user's classes, but of torch's own not by themselves."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.ModuleList([Part(6), Part(8), Part(8)])

    def forward(self, x: Tensor) -> Tensor:
        for part in self.parts:
            x = part(x)
        return x


class Part(nn.Module):
    def __init__(self, ins: int) -> None:
        super().__init__()
        self.fc = nn.Linear(ins, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x).tanh()


def _compiled(model: nn.Module, way: str, made: Made) -> Any:
    if way == "torch.compile":
        return torch.compile(model, backend=made, fullgraph=True)
    if way == "a function":
        return torch.compile(lambda x: model(x) + 1, backend=made, fullgraph=True)
    model.compile(backend=made, fullgraph=True)
    return model


def _grow_often(run: Any, model: Any, made: Made, times: int) -> list[int]:
    """The graphs made after each growth: different layers, several generations, both modes."""
    found = []
    for turn in range(times):
        if turn % 3 == 2:
            model.next_generation()
        model.expand_layer(f"parts.{turn % 2}.fc", 1)
        before = made.count
        for _ in range(2):
            run(X).square().sum().backward()
            with torch.no_grad():
                run(X)
        found.append(made.count - before)
    return found


@pytest.mark.parametrize("way", ["torch.compile", "model.compile", "a function"])
def test_each_growth_makes_code_once_however_many_there_are(way: str) -> None:
    model, made = splitgrow.growable(Net().double(), X), Made()
    run = _compiled(model, way, made)
    run(X)
    assert _grow_often(run, model, made, 6) == [2] * 6  # with gradients, and without
    assert made.symbols == 0


@pytest.mark.parametrize("way", ["torch.compile", "model.compile"])
def test_twenty_growths_make_one_graph_each_at_any_batch_size(way: str) -> None:
    model, made = splitgrow.growable(Net().double(), X), Made()
    run = _compiled(model, way, made)
    found = []
    for turn in range(20):
        if turn % 3 == 2:
            model.next_generation()
        model.expand_layer(f"parts.{turn % 2}.fc", 1)
        before = made.count
        for rows in (5, 7, 9):
            x = torch.randn(rows, 6, dtype=torch.float64)
            torch._dynamo.mark_dynamic(x, 0)
            run(x).sum().backward()
        found.append(made.count - before)
    assert found == [1] * 20


class Blocks(nn.Module):
    """More blocks of one class than the compiler keeps versions of a function."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.ModuleList([Part(6), *(Part(8) for _ in range(11))])

    def forward(self, x: Tensor) -> Tensor:
        for part in self.parts:
            x = part(x)
        return x


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_blocks_that_are_compiled_each_by_itself_do_not_share_the_limit() -> None:
    model, made = splitgrow.growable(Blocks().double(), X), Made()
    for part in model.parts:
        part.compile(backend=made, fullgraph=True)  # so the limit would be an error
    model.expand({f"parts.{index}.fc": 1 for index in range(11)})
    model(X).sum().backward()
    assert made.count == 12
    found = []
    for turn in range(8):
        before = made.count
        model.expand_layer(f"parts.{turn}.fc", 1)
        model(X).sum().backward()
        found.append(made.count - before)
    assert max(found[1:]) <= 4  # the layer, its reader, and what they were next to


def test_code_of_models_that_are_gone_neither_stops_a_growth_nor_counts_for_another() -> None:
    made = Made()
    run = torch.compile(lambda model, x: model(x), backend=made, fullgraph=True)
    for _ in range(20):  # more than the compiler's limit, which would be an error
        model = splitgrow.growable(Net().double(), X)
        model.expand_layer("parts.0.fc", 1)
        run(model, X)
        before = made.count
        model.expand_layer("parts.1.fc", 1)
        assert_equal(run(model, X), model(X))
        assert made.count - before == 1
        del model
        gc.collect()


def test_a_compiler_without_these_parts_forgets_all_code(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(code: object) -> None:
        raise AttributeError("no such part")

    monkeypatch.setattr(torch._dynamo.eval_frame, "_debug_get_cache_entry_list", missing)
    model, made = splitgrow.growable(Net().double(), X), Made()
    run = _compiled(model, "torch.compile", made)
    run(X)
    assert _grow_often(run, model, made, 6) == [2] * 6
    assert_equal(run(X), model(X))


def test_a_generation_that_is_shown_again_needs_no_new_code() -> None:
    model, made = splitgrow.growable(Net().double(), X), Made()
    run = _compiled(model, "torch.compile", made)
    shown = [run(X)]
    for _ in range(2):
        model.expand({f"parts.{index}.fc": 1 for index in range(2)})
        model.next_generation()
        shown.append(run(X))
    found = []
    for _ in range(3):
        before = made.count
        for generation, wanted in enumerate(shown):
            with model.at(generation), torch.no_grad():
                assert_equal(run(X), wanted)
        found.append(made.count - before)
    assert found == [3, 0, 0]


def test_without_dropping_old_code_the_compiler_gives_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(split_layer, "drop_old_code_", lambda: None)
    model, made = splitgrow.growable(Net().double(), X), Made()
    run = _compiled(model, "torch.compile", made)
    with pytest.raises(Exception, match="fullgraph=True"):
        _grow_often(run, model, made, 6)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_a_part_that_did_not_grow_keeps_its_code() -> None:
    model, made = splitgrow.growable(Net().double(), X), [Made(), Made(), Made()]
    for part, own in zip(model.parts, made, strict=True):
        part.compile(backend=own, fullgraph=True)
    model.expand_layer("parts.0.fc", 1)  # closes the first generation: all train no longer
    model(X).sum().backward()
    before = [own.count for own in made]
    model.expand_layer("parts.0.fc", 1)
    model(X).sum().backward()
    assert [own.count - old for own, old in zip(made, before, strict=True)] == [1, 1, 0]
