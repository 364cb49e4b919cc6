"""An averaged copy grows with its model, and each parameter is averaged with itself."""

from __future__ import annotations

import copy
import pickle
import random
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from equal_widths import Net
from helpers import assert_equal, assert_identical
from snapshots import unchanged
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import splitgrow
from benchmarks.vision import torchvision
from splitgrow.errors import CheckpointError, SplitGrowError, SplitGrowWarning
from splitgrow.growth import averages

X = torch.randn(4, 6, generator=torch.Generator().manual_seed(0)).double()
DECAY = 0.75


class Own(nn.Module):
    """A module that no checkpoint can describe."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(6, 3), nn.Tanh(), nn.Linear(3, 6))

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)


def plain(seed: int = 0) -> Any:
    torch.manual_seed(seed)
    return Net().double()


def network() -> Any:
    return splitgrow.growable(plain(), X)


class ByHand(nn.Module):
    """An average as people write it: a deep copy, moved by ``.data``."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.shadow = copy.deepcopy(model).requires_grad_(False)

    def update(self, model: nn.Module) -> None:
        for own, other in zip(self.shadow.parameters(), model.parameters(), strict=True):
            own.data.mul_(DECAY).add_(other.data, alpha=1 - DECAY)
        for own, other in zip(self.shadow.buffers(), model.buffers(), strict=True):
            own.data.copy_(other)

    def forward(self, x: Tensor) -> Tensor:
        return self.shadow(x)


def _timm(name: str, **options: Any) -> Callable[[nn.Module], Any]:
    def make(model: nn.Module) -> Any:
        torchvision()  # timm imports it
        utils = pytest.importorskip("timm.utils.model_ema")
        return getattr(utils, name)(model, decay=DECAY, **options)

    return make


def _ema_pytorch(model: nn.Module) -> Any:
    package = pytest.importorskip("ema_pytorch")
    made = package.EMA(model, beta=DECAY, update_after_step=0, update_every=1)
    made.update()
    return made


AVERAGES: dict[str, Callable[[nn.Module], Any]] = {
    "AveragedModel, EMA": lambda m: AveragedModel(
        m, multi_avg_fn=get_ema_multi_avg_fn(DECAY), use_buffers=True
    ),
    "AveragedModel, SWA": AveragedModel,
    "AveragedModel by a function": lambda m: AveragedModel(
        m, avg_fn=lambda average, new, _: DECAY * average + (1 - DECAY) * new
    ),
    "by hand": ByHand,
    "timm V1": _timm("ModelEma"),
    "timm V2": _timm("ModelEmaV2"),
    "timm V3": _timm("ModelEmaV3", foreach=False),
    "timm V3 foreach": _timm("ModelEmaV3", foreach=True),
    "ema_pytorch": _ema_pytorch,
}
every_average = pytest.mark.parametrize("make", AVERAGES.values(), ids=AVERAGES.keys())


def update(average: Any, model: nn.Module) -> None:
    if isinstance(average, AveragedModel):
        average.update_parameters(model)
    elif type(average).__name__ == "EMA":
        average.update()
    else:
        average.update(model)


def copy_of(average: Any) -> Any:
    for name in ("module", "ema", "ema_model", "shadow"):
        if hasattr(average, name):
            return getattr(average, name)
    return average


def train(model: nn.Module, optimizer: Any, average: Any, steps: int, seed: int = 0) -> None:
    generator = torch.Generator().manual_seed(seed)
    model.train()
    for _ in range(steps):
        optimizer.zero_grad()
        loss = model(torch.randn(8, 6, generator=generator, dtype=torch.float64)).square().mean()
        if loss.requires_grad:  # right after a generation was closed, nothing trains
            loss.backward()
        optimizer.step()
        update(average, model)


def grow(model: Any, optimizer: Any, kind: str, *, freeze: bool) -> None:
    options: dict[str, Any] = {"optimizer": optimizer}
    if kind == "consolidate":
        model.consolidate(**options)
    elif kind == "next_generation":
        model.next_generation()
    elif kind in {"residual", "gate"}:
        model.insert_layer("stem", kind, freeze=freeze, **options)
    elif kind == "block":
        model.insert_layer("block", "block", freeze=freeze, **options)
    elif kind == "fade":
        module = nn.Sequential(nn.Linear(6, 6), nn.Tanh()).double()
        model.insert_layer("head", "fade", module=module, freeze=freeze, **options)
    elif kind == "replacement":
        module = nn.Linear(6, 6).double()
        model.insert_layer("block", "replacement", module=module, freeze=freeze, **options)
    elif kind == "of the user":
        model.insert_layer("block", "residual", module=Own().double(), freeze=freeze, **options)
    else:
        model.expand_layer(kind, 6 if kind == "stem" else 2, freeze=freeze, **options)


KINDS = ("stem", "block.first", "residual", "gate", "block", "fade", "replacement", "of the user")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("freeze", [True, False])
def test_the_average_of_each_parameter_is_that_of_its_own_values(kind, freeze):
    """Against averages that are computed here, by the parameters' identities."""
    model = network()
    average = splitgrow.follow(ByHand(model), model)
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    expected = {id(p): p.detach().clone() for p in model.parameters()}

    def observe() -> None:
        for parameter in model.parameters():
            value = parameter.detach().clone()
            old = expected[id(parameter)]
            expected[id(parameter)] = old.mul(DECAY).add(value, alpha=1 - DECAY)

    def run(steps: int) -> None:
        for _ in range(steps):
            train(model, optimizer, average, 1)
            observe()

    run(3)
    grow(model, optimizer, kind, freeze=freeze)
    for parameter in model.parameters():
        expected.setdefault(id(parameter), parameter.detach().clone())
    run(3)
    for (name, own), (other, parameter) in zip(
        average.shadow.named_parameters(), model.named_parameters(), strict=True
    ):
        assert name == other
        assert_identical(own.detach(), expected[id(parameter)])


@every_average
@pytest.mark.parametrize("kind", ["stem", "block", "fade"])
def test_growth_leaves_the_averages_outputs_alone(make, kind):
    model = network()
    average = make(model)
    assert splitgrow.follow(average, model) is average
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    train(model, optimizer, average, 3)
    own = copy_of(average).eval()
    before, old = own(X).detach(), list(own.parameters())
    values = [p.detach().clone() for p in old]
    grow(model, optimizer, kind, freeze=True)
    assert copy_of(average) is own
    assert {id(p) for p in old} <= {id(p) for p in own.parameters()}
    assert_identical([p.detach() for p in old], values)
    assert_equal(own(X).detach(), before)
    train(model, optimizer, average, 3)
    for name, parameter in own.named_parameters():
        assert dict(model.named_parameters())[name].shape == parameter.shape


@every_average
@pytest.mark.parametrize("told", ["before", "after", "before it was growable"])
def test_of_what_does_not_change_the_average_is_that_itself(make, told):
    """Whenever the average is told: pairs that were mixed up would show."""
    model = plain()
    if told == "before it was growable":
        average, model = make(model), splitgrow.growable(model, X)
    else:
        model = splitgrow.growable(model, X)
        average = make(model)
    if told == "before":
        splitgrow.follow(average, model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SplitGrowWarning)
        model.expand_layer("stem", 6)
        model.insert_layer("block", "block")
        for parameter in model.parameters():
            parameter.data.add_(0.1 * torch.randn_like(parameter))
        if told != "before":
            splitgrow.follow(average, model)
    model.eval()
    for _ in range(150):
        update(average, model)
    assert_equal(copy_of(average).eval()(X).detach(), model(X).detach())


@pytest.mark.parametrize("seed", range(6))
def test_random_growths_are_followed(seed):
    draw = random.Random(seed)
    model = network()
    early = splitgrow.follow(AVERAGES["AveragedModel, EMA"](model), model)
    late = AVERAGES["AveragedModel, EMA"](model)
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    for round_ in range(5):
        before = early.module.eval()(X).detach()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SplitGrowWarning)  # of the late one
            grow(
                model,
                optimizer,
                draw.choice((*KINDS, "consolidate", "next_generation")),
                freeze=draw.random() < 0.5,
            )
        assert_equal(early.module.eval()(X).detach(), before)
        train(model, optimizer, early, 2, seed=round_)
    splitgrow.follow(late, model)
    names = [name for name, _ in model.named_parameters()]
    for average in (early, late):
        assert [name for name, _ in average.module.named_parameters()] == names
        assert [n for n, _ in average.module.named_buffers()] == [
            n for n, _ in model.named_buffers()
        ]
        assert [p.shape for p in average.module.parameters()] == [
            p.shape for p in model.parameters()
        ]


def test_the_copy_can_be_saved_merged_and_grown_into_a_plain_network(tmp_path):
    model = network()
    average = splitgrow.follow(AveragedModel(model), model)
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    train(model, optimizer, average, 2)
    grow(model, optimizer, "stem", freeze=True)
    train(model, optimizer, average, 2)
    own = average.module.eval()
    assert_equal(splitgrow.merge(own)(X).detach(), own(X).detach())
    splitgrow.save(own, tmp_path / "average.safetensors")
    fresh = plain(1)
    splitgrow.load(fresh, tmp_path / "average.safetensors")
    assert_identical(fresh.eval()(X), own(X))
    restored = AveragedModel(network())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SplitGrowWarning)
        restored.load_state_dict(average.state_dict())
    assert_identical(restored.eval()(X), average.eval()(X))


def test_at_shows_the_averages_of_a_closed_generations_parameters():
    model = network()
    average = splitgrow.follow(AVERAGES["AveragedModel, EMA"](model), model)
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    train(model, optimizer, average, 3)
    buffers = {name: b.clone() for name, b in average.module.named_buffers()}
    grow(model, optimizer, "block", freeze=True)
    grow(model, optimizer, "stem", freeze=True)
    train(model, optimizer, average, 3)
    own, old = average.module.eval(), plain(1).eval()
    named = {**dict(own.named_parameters()), **buffers}
    with torch.no_grad():
        for name, tensor in (*old.named_parameters(), *old.named_buffers()):
            path, _, last = name.rpartition(".")
            tensor.copy_(named[f"{path}.0.{last}" if f"{path}.0.{last}" in named else name])
    with own.at(0):
        assert_equal(own(X), old(X).detach())


def test_an_average_in_another_dtype_stays_in_it():
    model = network()
    average = splitgrow.follow(ByHand(model).float(), model)
    model.expand_layer("stem", 6)
    assert {p.dtype for p in average.parameters()} == {torch.float32}


def test_a_model_inside_of_another_is_found_in_the_others_average():
    outer = nn.Sequential(nn.Linear(6, 6).double(), network())
    average = splitgrow.follow(AveragedModel(outer.eval()), outer)
    before = average(X).detach()
    outer[1].expand_layer("stem", 6)
    for _ in range(5):
        average.update_parameters(outer)
    assert_equal(average(X).detach(), before)


def test_the_state_of_a_follower_is_laid_out_as_the_models():
    """Averages that pair the two states' values, as timm's do, need the same journal in both."""
    model = network()
    average = splitgrow.follow(ByHand(model), model)
    model.expand_layer("stem", 6)
    model.block.last.requires_grad_(False)  # the journal has it, the average has it not
    one, other = model.state_dict(), average.shadow.state_dict()
    assert list(one) == list(other)
    assert [value.shape for value in one.values()] == [value.shape for value in other.values()]
    assert torch.equal(one["_extra_state"], other["_extra_state"])


def test_the_averages_parameters_train_as_they_did():
    model = network()
    free, fixed = AveragedModel(model), ByHand(model)
    splitgrow.follow(free, model)
    splitgrow.follow(fixed, model)
    model.expand_layer("stem", 6, freeze=True)
    assert all(p.requires_grad for p in free.module.parameters())
    assert not any(p.requires_grad for p in fixed.shadow.parameters())


def test_a_growth_that_an_average_cannot_follow_is_taken_back():
    model = network()
    average = splitgrow.follow(AveragedModel(model), model)
    average.module.expand_layer("head", 1)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with (
        unchanged(model, optimizer),
        unchanged(average.module),
        pytest.raises(CheckpointError, match=r"is not that of the checkpoint|has grown by itself"),
    ):
        model.expand_layer("stem", 6, optimizer=optimizer)


def test_a_growth_that_fails_is_taken_back_in_the_average_too(monkeypatch):
    model = network()
    average = splitgrow.follow(AveragedModel(model), model)

    def fail(*_: Any) -> None:
        raise MemoryError

    for place in ("begin_averages_", "_rename_"):
        monkeypatch.setattr(averages, place, fail)
        with unchanged(model), unchanged(average.module), pytest.raises(MemoryError):
            model.expand_layer("stem", 6)
        monkeypatch.undo()


def test_what_cannot_follow_is_refused():
    model = network()
    with pytest.raises(SplitGrowError, match=r"holds no copy.*lists of tensors"):
        splitgrow.follow([p.clone() for p in model.parameters()], model)
    with pytest.raises(TypeError, match="model must be"):
        splitgrow.follow(model, None)  # type: ignore[arg-type]
    with pytest.raises(SplitGrowError, match="not growable yet"):
        splitgrow.follow(AveragedModel(plain()), plain())
    with pytest.raises(SplitGrowError, match="holds no copy"):
        splitgrow.follow(AveragedModel(nn.Linear(2, 2)), model)
    with pytest.raises(SplitGrowError, match="holds no copy"):
        splitgrow.follow(model, model)
    both = nn.ModuleList([copy.deepcopy(model), copy.deepcopy(model)])
    with pytest.raises(SplitGrowError, match="holds 2 copies"):
        splitgrow.follow(both, model)


def test_copies_and_pickles_of_a_followed_model_have_no_followers():
    model = network()
    average = splitgrow.follow(AveragedModel(model), model)
    width = average.module.stem.out_features
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        other.expand_layer("stem", 6)
    assert average.module.stem.out_features == width


def told_by(change: Callable[[], Any]) -> list[str]:
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        change()
    return [str(one.message) for one in told if "follow" in str(one.message)]


@every_average
@pytest.mark.parametrize("updates", [0, 3])
def test_growth_that_leaves_an_average_behind_warns(make, updates):
    if make is ByHand and not updates:
        pytest.skip("nothing tells it from a snapshot yet")
    model = network()
    average = make(model)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    train(model, optimizer, average, updates)
    assert len(told_by(lambda: model.expand_layer("stem", 6, optimizer=optimizer))) == 1
    del average


def test_a_copy_that_nobody_changes_is_left_behind_without_a_word():
    model = network()
    teacher, best = copy.deepcopy(model).eval(), copy.deepcopy(model)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for _ in range(2):
        model(X).sum().backward()
        optimizer.step()
    best.load_state_dict(model.state_dict())
    assert told_by(lambda: model.expand_layer("stem", 6, optimizer=optimizer)) == []
    del teacher


def test_a_copy_that_is_trained_is_a_network_of_its_own():
    model = network()
    twin = copy.deepcopy(model)
    optimizer = torch.optim.SGD(twin.parameters(), 0.1)
    twin(X).sum().backward()
    optimizer.step()
    assert told_by(lambda: model.expand_layer("stem", 6)) == []


def test_a_growth_that_reaches_the_average_by_its_state_is_no_matter():
    model = network()
    average = AveragedModel(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SplitGrowWarning)
        model.expand_layer("stem", 6)
    average.module.load_state_dict(model.state_dict())
    splitgrow.follow(average, model)
    assert told_by(lambda: model.expand_layer("head", 1)) == []


@pytest.mark.parametrize("told", ["before", "between", "after"])
def test_joined_blocks_keep_their_averages(told):
    """A joint has averages where the copy had them, and the model's values elsewhere."""
    model = network()
    model.expand_layer("stem", 2)
    average = AVERAGES["AveragedModel, EMA"](model)
    if told == "before":
        splitgrow.follow(average, model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SplitGrowWarning)
        first = [p.detach() + 1 for p in average.module.stem[1].parameters()]
        for own, value in zip(average.module.stem[1].parameters(), first, strict=True):
            own.data.copy_(value)
        model.expand_layer("stem", 2)
        if told == "between":
            splitgrow.follow(average, model)
        second = [p.detach().clone() for p in model.stem[2].parameters()]
        for parameter in model.stem[2].parameters():
            parameter.data.add_(2)
        model.consolidate()
        splitgrow.follow(average, model)
    moved = 2 if told == "after" else 0  # it begins with the values of the time when it is told
    for own, one, other in zip(average.module.stem[1].parameters(), first, second, strict=True):
        assert_identical(own.detach(), torch.cat([one, other + moved]))


def test_a_state_dict_of_joined_blocks_loads_into_the_first_of_their_edits():
    model, other = network(), network()
    for one in (model, other):
        torch.manual_seed(3)
        one.expand_layer("stem", 2)
    model.expand_layer("stem", 2)
    model.consolidate()
    other.load_state_dict(model.state_dict())
    assert_identical(other.eval()(X), model.eval()(X))
