"""What was inserted goes again, and so do blocks that add nothing; all else is refused."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch
from cases import CASES, Case
from helpers import assert_equal, assert_identical, largest_difference, outputs_of, randomise
from snapshots import unchanged
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

import splitgrow
from splitgrow.errors import (
    CheckpointError,
    GenerationError,
    InexactError,
    InsertionError,
    SplitGrowWarning,
    UnsupportedLayerError,
)
from splitgrow.growth.edits import Edit
from splitgrow.pruning.removing import removing

X = torch.randn(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


# -- every kind of insertion, in models of all kinds -----------------------------------------------

NAMES = ("plain", "residual", "mlp", "conv to linear", "vision transformer", "tokens", "tagger")
case = pytest.mark.parametrize("case", [c for c in CASES if c.name in NAMES], ids=lambda c: c.name)


def form(model: Any) -> dict[str, Any]:
    """The types of all modules, the shapes in the state_dict, and the layers, as the user sees."""
    layers = [(x.name, x.width, x.growable, x.group, x.reason) for x in model.layers]
    state = {n: t.shape for n, t in nn.Module.state_dict(model).items() if "extra" not in n}
    return {
        "types": {name: type(module) for name, module in model.named_modules()},
        "state": state,
        "layers": layers,
    }


@torch.no_grad()
def stir(model: Any, edit: Any) -> None:
    for parameter in model.parameters_of(edit):
        parameter.add_(0.3 * torch.randn_like(parameter))


@case
def test_the_model_is_as_before_an_insertion_that_goes_again(case: Case) -> None:
    model = randomise(case.model()).double().eval()
    inputs = tuple(x.double() if x.is_floating_point() else x for x in case.inputs())
    model = splitgrow.growable(model, inputs)
    before, seen, done = outputs_of(model, *inputs), form(model), 0
    for layer in [layer.name for layer in model.layers][:4]:
        for kind, stirred in (("residual", False), ("residual", True), ("gate", True)):
            try:
                name = model.insert_layer(layer, kind, freeze=False).inserted[0].name
            except InsertionError:
                continue
            if stirred:
                stir(model, splitgrow.handle(model).edits[-1])
                assert largest_difference(outputs_of(model, *inputs), before) > 1e-6  # the control
            edit = model.remove_layer(name)
            assert (edit.moved is None) != stirred, layer
            assert_identical(outputs_of(model, *inputs), before)
            assert form(model) == seen
            assert Edit.from_json(edit.to_json()) == edit
            done += 1
    assert done >= 3


# -- one network -----------------------------------------------------------------------------------


class Config:
    def __init__(self) -> None:
        self.num_layers, self.windows = 4, [1, 2, 3, 4]


class Block(nn.Module):
    def __init__(self, place: int) -> None:
        super().__init__()
        self.layer_idx, self.one, self.two = place, nn.Linear(4, 6), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.two(self.one(x).tanh())


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.config = Config()
        self.blocks, self.head = nn.ModuleList(map(Block, range(4))), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def net() -> Any:
    torch.manual_seed(0)
    return splitgrow.growable(randomise(Net()).double().eval(), X)


@torch.no_grad()
def silence_(model: Any, place: int) -> None:
    for parameter in model.blocks[place].two.parameters():
        parameter.zero_()


@pytest.mark.filterwarnings("ignore::splitgrow.SplitGrowWarning")
@pytest.mark.parametrize("kind", ["block", "stack", "interpolate", "fade", "replacement", "given"])
def test_further_kinds_go_in_any_order_with_all_that_has_grown_in_them(kind: str) -> None:
    model = net()
    before, seen = model(X), form(model)
    options: dict[str, Any] = {}
    if kind in {"fade", "replacement", "given"}:
        options["module"] = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4)).double()
    kind = "residual" if kind == "given" else kind
    edit = model.insert_layer("blocks.1", kind, freeze=False, **options)
    name = edit.inserted[0].name
    stir(model, edit)
    inner = next(layer.name for layer in model.layers if layer.name.startswith(name))
    model.insert_layer(inner, "residual", freeze=False)
    if kind not in {"fade", "replacement"}:
        model.expand_layer(inner, 2, freeze=False)
    other = model.insert_layer("blocks.2", "gate", freeze=False)
    model.insert_layer(name, "residual", freeze=False)
    model.remove_layer(name)
    model.remove_layer(other.inserted[0].name)
    assert_identical(model(X), before)
    assert form(model) == seen
    assert vars(model.config) == vars(Config())


@pytest.mark.filterwarnings("ignore::splitgrow.SplitGrowWarning")
def test_copies_that_stay_move_up_in_caches_and_configurations() -> None:
    model = net()
    names = []
    for place in ("blocks.2", "blocks.0", "blocks.2"):
        names.append(model.insert_layer(place, "stack", freeze=False).inserted[0].name)
    assert (model.config.num_layers, model.config.windows) == (7, [1, 2, 3, 4, 3, 1, 3])
    model.remove_layer(names[1])
    assert (model.config.num_layers, model.config.windows) == (6, [1, 2, 3, 4, 3, 3])
    own = [model.get_submodule(name).layer_idx for name in (names[0], names[2])]
    assert own == [4, 5]
    merged = splitgrow.merge(model)
    assert [block.layer_idx for block in merged.blocks] == list(range(6))
    assert_equal(merged(X), model(X))


def test_a_block_that_adds_nothing_becomes_an_identity() -> None:
    model = net()
    silence_(model, 1)
    before = model(X)
    edit = model.remove_layer("blocks.1")
    assert type(model.blocks[1]) is nn.Identity
    assert str(edit) == (
        "Edit 1 (generation 0): takes out blocks.1 (an Identity is there now): Block, 58 parameters"
    )
    assert edit.moved is None
    assert_equal(model(X), before)
    model.expand_layer("blocks.0.one", 2, freeze=False)
    copied = model.insert_layer("blocks.2", "block", freeze=False).inserted[0].name
    assert model.get_submodule(copied).layer_idx == 4
    model.insert_layer("blocks.1", "residual", freeze=False)
    assert_equal(model(X), before)
    assert_equal(splitgrow.merge(model)(X), before)
    assert_equal(splitgrow.fuse(model)(X), before)


def test_insertions_beside_a_block_stay_when_that_goes() -> None:
    model = net()
    silence_(model, 1)
    added = model.insert_layer("blocks.1", "residual", freeze=False)
    stir(model, added)
    before = model(X)
    model.remove_layer("blocks.1")
    assert_equal(model(X), before)
    model.remove_layer(added.inserted[0].name)
    assert type(model.blocks[1]) is nn.Identity


class Odd(nn.Module):
    """Modules that look idle on the example inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.act, self.again = nn.Linear(4, 4), nn.ReLU(), nn.ReLU()
        self.drop, self.pair, self.norm = nn.Dropout(), Pair(), nn.LayerNorm(4)
        self.unused, self.told = nn.Linear(4, 4), nn.Identity()
        self.hidden = (nn.Tanh(), nn.Hardtanh(-1e9, 1e9))
        self.wide, self.last = nn.Hardtanh(-1e9, 1e9), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.again(self.act(self.first(x)))
        x, _ = self.pair(self.drop(x), x)
        return self.last(self.wide(self.told(x)) * self.norm(x))


class Pair(nn.Module):
    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return x, y


REFUSED = {
    "": "the model itself",
    "act": "it changes its input",
    "drop": "in training mode",
    "pair": "more than one tensor",
    "unused": "forward does not call it",
    "told": "is an Identity",
    "last": r"it makes \(3, 2\) of \(3, 4\)",
    "norm": "it changes its input",
}


@pytest.mark.parametrize("name", REFUSED)
def test_modules_that_do_more_are_refused_with_the_reason(name: str) -> None:
    torch.manual_seed(0)
    model: Any = splitgrow.growable(Odd().double(), X)
    with unchanged(model), pytest.raises(UnsupportedLayerError, match=REFUSED[name]):
        model.remove_layer(name)


def test_functions_of_which_the_input_is_known_may_go() -> None:
    torch.manual_seed(0)
    model: Any = splitgrow.growable(Odd().double().eval(), X)
    before = outputs_of(model, X)
    model.remove_layer("again")
    model.remove_layer("wide")
    assert_identical(outputs_of(model, X), before)


@pytest.mark.parametrize(
    ("name", "error", "words"),
    [
        ("block.1", ValueError, "did you mean 'blocks.1'"),
        (3, TypeError, "named by its path"),
        ("blocks.1", UnsupportedLayerError, "it changes its input"),
        ("head", UnsupportedLayerError, "it makes"),
        ("blocks.0.one.0", UnsupportedLayerError, "a block of the grown layer `blocks.0.one`"),
    ],
)
def test_names_that_cannot_go_are_refused(name: Any, error: Any, words: str) -> None:
    model = net()
    model.expand_layer("blocks.0.one", 2)
    with unchanged(model), pytest.raises(error, match=words):
        model.remove_layer(name)


def test_a_layer_that_went_is_named_in_the_error() -> None:
    model = net()
    name = model.insert_layer("blocks.0", "residual").inserted[0].name
    model.remove_layer(name)
    with pytest.raises(ValueError, match="edit 2 has taken it out"):
        model.remove_layer(name)


def test_experts_stay() -> None:
    torch.manual_seed(0)
    mixture = splitgrow.MixtureOfExperts(nn.Linear(4, 4), features=4, experts=2, top_k=1)
    model = splitgrow.growable(nn.Sequential(mixture, nn.Linear(4, 2)).double(), X)
    edit = model.expand_experts(2)
    with unchanged(model), pytest.raises(UnsupportedLayerError, match="has experts"):
        model.remove_layer(edit.inserted[0].name)


def test_an_identity_whose_sides_have_grown_apart_is_refused() -> None:
    model = splitgrow.growable(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2)).double(), X)
    name = model.insert_layer("0", "identity", activation=nn.Identity()).inserted[0].name
    model.expand_layer("0", 2)
    with unchanged(model), pytest.raises(InexactError, match="have grown apart"):
        model.remove_layer(name)
    model.shrink_layer("0", [4, 5])
    model.remove_layer(name)


# -- generations, files, averages, optimizers, failures --------------------------------------------


def test_closed_generations_keep_their_layers() -> None:
    model = net()
    silence_(model, 1)
    first = model(X)
    one = model.insert_layer("blocks.0", "residual")
    stir(model, one)
    model.next_generation()
    second = model(X)
    two = model.insert_layer("blocks.0", "residual")
    stir(model, two)
    model.remove_layer(two.inserted[0].name)
    for generation, output in enumerate((first, second)):
        with model.at(generation):
            assert_identical(model(X), output)
    for name in (one.inserted[0].name, "blocks.1"):
        with unchanged(model), pytest.raises(GenerationError, match="give_up=True"):
            model.remove_layer(name)
    edit = model.remove_layer(one.inserted[0].name, give_up=True)
    assert edit.gives_up == (1,)
    assert "generation 1 can no longer be recovered" in str(edit)
    with model.at(0):
        assert_identical(model(X), first)
    with pytest.raises(GenerationError), model.at(1):
        pass
    assert_identical(splitgrow.merge(model, 0)(X), first)
    assert model.remove_layer("blocks.1", give_up=True).gives_up == (0,)


def test_it_goes_on_in_files_and_averages(tmp_path: Any) -> None:
    model = net()
    average = splitgrow.follow(AveragedModel(model), model)
    late = AveragedModel(model)
    given = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4)).double()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SplitGrowWarning)  # of the late average
        names = [
            model.insert_layer("blocks.0", "residual", module=given).inserted[0].name,
            model.insert_layer("blocks.2", "block").inserted[0].name,
        ]
        model.expand_layer(f"{names[1]}.one", 3)
        silence_(model, 3)
        average.update_parameters(model)
        for name in (names[0], "blocks.3"):
            model.remove_layer(name, give_up=True)
    splitgrow.follow(late, model)
    for each in (average, late):
        assert form(each.module) == form(model)
        each.update_parameters(model)
    splitgrow.save(model, tmp_path / "run.sg")
    for load in (
        lambda fresh: splitgrow.load(fresh, tmp_path / "run.sg"),
        lambda fresh: fresh.load_state_dict(model.state_dict()),
    ):
        fresh = net()
        load(fresh)
        assert_identical(fresh(X), model(X))
        assert form(fresh) == form(model)
        assert splitgrow.handle(fresh).edits == splitgrow.handle(model).edits
        assert vars(fresh.config) == vars(model.config)
        fresh.insert_layer(names[1], "gate")
    assert_identical(copy.deepcopy(model)(X), model(X))


def test_a_state_dict_from_before_a_removal_is_refused() -> None:
    model = net()
    name = model.insert_layer("blocks.0", "residual").inserted[0].name
    state = model.state_dict()
    model.remove_layer(name)
    with unchanged(model), pytest.raises(CheckpointError, match=r"took `blocks\.0"):
        model.load_state_dict(state)


@pytest.mark.parametrize(
    ("name", "edit"), [("blocks.9", 0), ("blocks.0.inserted7", 7), ("", 0), ("head", 3)]
)
def test_a_journal_that_takes_out_what_is_not_there_is_refused(name: str, edit: int) -> None:
    model = net()
    silence_(model, 1)
    model.remove_layer("blocks.1")
    state = model.state_dict()
    text = bytes(state["_extra_state"].tolist()).decode()
    text = text.replace('"blocks.1"', f'"{name}"').replace('"edit": 0', f'"edit": {edit}')
    state["_extra_state"] = torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)
    fresh = net()
    with unchanged(fresh), pytest.raises(CheckpointError):
        fresh.load_state_dict(state)


def test_parameters_leave_their_optimizer_and_training_goes_on() -> None:
    model = net()
    silence_(model, 1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    edit = model.insert_layer("blocks.0", "residual", optimizer=optimizer, freeze=False)
    model(X).square().mean().backward()
    optimizer.step()
    silence_(model, 1)
    for name in (edit.inserted[0].name, "blocks.1"):
        model.remove_layer(name, optimizer=optimizer)
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for p in model.parameters()}
    assert {id(p) for p in optimizer.state} <= held
    optimizer.zero_grad()
    model(X).square().mean().backward()
    optimizer.step()


def test_a_failure_takes_everything_back(monkeypatch: pytest.MonkeyPatch) -> None:
    model = net()
    silence_(model, 1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    name = model.insert_layer("blocks.2", "block", optimizer=optimizer).inserted[0].name

    def fail(*_: Any) -> None:
        raise InexactError("no")

    monkeypatch.setattr(removing, "_measured", fail)
    for each in (name, "blocks.1"):
        with unchanged(model, optimizer), pytest.raises(InexactError):
            model.remove_layer(each, give_up=True, optimizer=optimizer)


def test_hooks_stay_on_the_module_there() -> None:
    model = net()
    silence_(model, 1)
    calls: list[str] = []
    name = model.insert_layer("blocks.0", "residual").inserted[0].name
    handles = [
        model.blocks[place].register_forward_hook(lambda *_, place=place: calls.append(place))
        for place in (0, 1)
    ]
    model.remove_layer(name)
    model.remove_layer("blocks.1", give_up=True)
    calls.clear()
    model(X)
    assert calls == [0, 1]
    for handle in handles:
        handle.remove()
    model(X)
    assert calls == [0, 1]
