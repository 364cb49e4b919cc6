"""`absorb` makes every grown layer plain in place; the model computes and trains as before."""

from __future__ import annotations

import copy
import cProfile
import gc
import pickle
import warnings
from typing import Any

import mixture_models
import pytest
import torch
from cases import CASES, Case
from grown_layers import grown_case
from helpers import (
    assert_equal,
    largest_difference,
    outputs_of,
    randomise_new_blocks,
    split_layers,
    tensors_of,
    train_steps,
)
from snapshots import unchanged
from tied_models import Tied
from torch import Tensor, nn

import splitgrow
from splitgrow.growth import absorption
from splitgrow.growth.edits import Edit
from splitgrow.layers.types.parametrized_layers import computed_names

case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


def gradients(model: nn.Module, inputs: tuple[Tensor, ...]) -> dict[str, Tensor | None]:
    torch.manual_seed(0)  # for dropout
    model.zero_grad()
    sum(output.square().sum() for output in tensors_of(model(*inputs))).backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


@case
def test_the_function_and_its_gradients_stay_and_nothing_is_grown(case: Case) -> None:
    model, inputs = grown_case(case)
    if any(computed_names(split.original) for split in split_layers(model)):
        pytest.skip("its weights are computed at each call")
    merged, names = splitgrow.merge(model), set(case.model().state_dict())
    before = outputs_of(model, *inputs)
    edit = model.absorb()
    assert not list(split_layers(model))
    assert model.state_dict().keys() - {"_extra_state"} == names
    assert_equal(outputs_of(model, *inputs), before)
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert Edit.from_json(edit.to_json()) == edit
    for one in (model.train(), merged.train()):
        one.train()
    ours, theirs = gradients(model, inputs), gradients(merged, inputs)
    assert ours.keys() == theirs.keys()
    found = [(one, theirs[name]) for name, one in ours.items() if one is not None]
    scale = max(other.abs().max() for _, other in found)  # some are zero but for rounding
    assert all((one - other).abs().max() <= 1e-12 * scale for one, other in found)


def test_a_layer_in_training_is_as_the_unfrozen_one() -> None:
    model = net()
    free = copy.deepcopy(model)
    free.unfreeze()
    model.absorb()
    assert_equal(model.train()(x()), free.train()(x()))
    assert_equal(model.norm.running_mean, free.norm.running_mean)
    assert_equal(model.eval()(x()), free.eval()(x()))


class Net(nn.Module):
    """Convolutions, a norm and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.body = nn.Conv2d(4, 4, 3, padding=1, bias=False)
        self.head = nn.Linear(4 * 9, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(self.norm(self.stem(x)).relu()).flatten(1))


def fresh() -> Any:
    torch.manual_seed(0)
    return splitgrow.growable(Net().double(), torch.randn(2, 2, 3, 3, dtype=torch.float64))


def net(times: int = 3, **options: Any) -> Any:
    model = fresh()
    for _ in range(times):
        model.expand({"stem": 1, "body": 2}, **options)
    randomise_new_blocks(model)
    return model


def x(seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(5, 2, 3, 3, generator=generator, dtype=torch.float64)


# -- training goes on -----------------------------------------------------------------------------


def _trained(model: Any, optimizer: Any, steps: int = 3, *, absorb: bool) -> Tensor:
    train_steps(model, (x(),), optimizer, steps)
    if absorb:
        assert model.absorb(optimizer=optimizer)
    train_steps(model, (x(),), optimizer, steps)
    result: Tensor = outputs_of(model, x())
    return result


def _both(optimizer_of: Any, grow_late: bool = False) -> list[Tensor]:
    """What a grown model computes after training, without and with absorbing in the middle."""
    found = []
    for absorb in (False, True):
        model = net(2, freeze=False)
        optimizer = optimizer_of(model.parameters())
        if grow_late:
            train_steps(model, (x(),), optimizer)
            torch.manual_seed(5)
            model.expand({"stem": 2, "body": 1}, freeze=False, optimizer=optimizer)
        found.append(_trained(model, optimizer, absorb=absorb))
    return found


def _sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=1e-2, momentum=0.9, weight_decay=1e-2, nesterov=True)


def _adamw(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=1e-2, amsgrad=True)


def test_sgd_goes_on_as_it_would_have_whenever_blocks_were_born() -> None:
    apart, absorbed = _both(_sgd, grow_late=True)
    assert largest_difference(absorbed, apart) < 1e-10


def test_adamw_goes_on_as_it_would_have_where_all_blocks_have_as_many_steps() -> None:
    apart, absorbed = _both(_adamw)
    assert largest_difference(absorbed, apart) < 1e-10


def test_adamw_corrects_the_moments_of_younger_blocks_less() -> None:
    """The control of the law above: where counts of steps differ, so does the training."""
    apart, absorbed = _both(_adamw, grow_late=True)
    assert largest_difference(absorbed, apart) > 1e-6


def test_a_step_makes_the_same_calls_as_that_of_a_plain_network() -> None:
    """So it takes the same time, at any size of batch; in blocks it makes more."""
    gc.collect()  # models of other tests whose new parameters nobody trains: steps look at them
    found = []
    for absorb in (True, False):
        model = net(freeze=False)
        optimizer = _adamw(model.parameters())
        if absorb:
            train_steps(model, (x(),), optimizer)
            model.absorb(optimizer=optimizer)
        found.append(_calls_of_a_step(model, optimizer))
    plain = splitgrow.merge(model)
    expected = _calls_of_a_step(plain, _adamw(plain.parameters()))
    assert found[0] == expected
    assert found[1] > 2 * expected


def _calls_of_a_step(model: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    train_steps(model, (x(),), optimizer)
    profile = cProfile.Profile()
    model.train()
    optimizer.zero_grad()
    profile.enable()
    model(x()).square().mean().backward()
    optimizer.step()
    profile.disable()
    return sum(entry.callcount for entry in profile.getstats())


OPTIMIZERS: dict[str, Any] = {
    "Adam": torch.optim.Adam,
    "NAdam": torch.optim.NAdam,
    "RAdam": torch.optim.RAdam,
    "Adamax": torch.optim.Adamax,
    "Adadelta": torch.optim.Adadelta,
    "Adagrad": torch.optim.Adagrad,
    "RMSprop": lambda p: torch.optim.RMSprop(p, momentum=0.9, centered=True),
    "Rprop": torch.optim.Rprop,
    "ASGD": lambda p: torch.optim.ASGD(p, t0=0),
    "SGD": lambda p: torch.optim.SGD(p, lr=1e-2, momentum=0.9),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_state_lies_as_the_values_do(name: str) -> None:
    """Each entry is that of the plain layers of a model whose blocks have these for weights."""
    model = net(freeze=False)
    optimizer = OPTIMIZERS[name](model.parameters())
    train_steps(model, (x(),), optimizer)
    expected: dict[str, dict[str, Tensor]] = {}
    entries = [k for k, v in optimizer.state[model.body[0].weight].items() if _is_shaped(v)]
    assert entries
    for entry in entries:
        twin = pickle.loads(pickle.dumps(model))  # a deep copy would count as an average
        with torch.no_grad():
            for own, there in zip(model.parameters(), twin.parameters(), strict=True):
                there.copy_(optimizer.state[own][entry])
        expected[entry] = dict(splitgrow.merge(twin, check=False).named_parameters())
    named = [n for n, _ in splitgrow.merge(model).named_parameters()]
    model.absorb(optimizer=optimizer)
    (group,) = optimizer.param_groups
    now = dict(model.named_parameters())
    assert list(now) == named
    assert [id(p) for p in group["params"]] == [id(p) for p in model.parameters()]
    assert optimizer.state.keys() == {*model.parameters()}
    for entry, tensors in expected.items():
        for path, tensor in tensors.items():
            assert torch.equal(optimizer.state[now[path]][entry], tensor), (entry, path)
    train_steps(model, (x(),), optimizer)


def _is_shaped(value: object) -> bool:
    return isinstance(value, Tensor) and value.dim() > 0


class Normed(nn.Module):
    """A norm over all channels, whose weights are rescaled where new channels join by zeros."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.norm, self.down = nn.Linear(3, 4), nn.RMSNorm(4, 1e-6), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.norm(self.up(x)))


@pytest.mark.parametrize(
    ("kind", "powers"),
    [
        ("Adam", {"exp_avg": -1, "exp_avg_sq": -2}),
        ("SGD", {"momentum_buffer": -1}),
        ("RMSprop", {"square_avg": -2, "momentum_buffer": 0}),
    ],
)
def test_moments_of_rescaled_weights_are_those_of_rescaled_gradients(
    kind: str, powers: dict[str, int]
) -> None:
    torch.manual_seed(0)
    inputs = torch.randn(5, 3, dtype=torch.float64)
    model: Any = splitgrow.growable(Normed().double(), inputs)
    model.expand_layer("up", 5, freeze=False)
    optimizer = OPTIMIZERS[kind](model.parameters())
    train_steps(model, (inputs,), optimizer, 2)
    old = model.norm[0].weight
    state = {name: optimizer.state[old][name].clone() for name in powers}
    optimizer.zero_grad()
    model(inputs).square().sum().backward()
    before, value = old.grad.clone(), old.detach().clone()
    model.absorb(optimizer=optimizer)
    gain = (4 / 9) ** 0.5
    assert_equal(model.norm.weight[:4].detach(), value * gain)
    laid = model.norm.weight.grad[:4].clone()
    assert_equal(laid, before / gain)
    optimizer.zero_grad()
    model(inputs).square().sum().backward()
    assert_equal(model.norm.weight.grad[:4], laid)
    for name, power in powers.items():
        found = optimizer.state[model.norm.weight][name][:4]
        assert_equal(found, state[name] * gain**power)


def test_names_and_gradients_follow_and_schedulers_go_on() -> None:
    model = net(freeze=False)
    optimizer = torch.optim.AdamW(list(model.named_parameters()), lr=1e-2)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=20)
    model(x()).square().sum().backward()
    expected = gradients(splitgrow.merge(model).eval(), (x(),))
    model.eval().zero_grad()
    model(x()).square().sum().backward()
    model.absorb(optimizer=optimizer)
    for name, parameter in model.named_parameters():
        assert_equal(parameter.grad, expected[name])
    (group,) = optimizer.param_groups
    assert group["param_names"] == [name for name, _ in model.named_parameters()]
    optimizer.step()
    scheduler.step()


def test_groups_keep_their_order_and_parts_in_different_groups_are_refused() -> None:
    model = net(1, freeze=False)

    def groups() -> list[dict[str, Any]]:
        decay = [p for p in model.parameters() if p.dim() > 1]
        return [
            {"params": decay, "weight_decay": 0.1},
            {"params": [p for p in model.parameters() if p.dim() < 2]},
        ]

    optimizer = torch.optim.SGD(groups(), lr=1e-2)
    model.absorb(optimizer=optimizer)
    ours = [[id(p) for p in group["params"]] for group in optimizer.param_groups]
    assert ours == [[id(p) for p in group["params"]] for group in groups()]
    edit = model.expand({"stem": 1}, freeze=False)
    optimizer.add_param_group({"params": model.parameters_of(edit), "lr": 1.0})
    with (
        unchanged(model, optimizer),
        pytest.raises(splitgrow.OptimizerError, match=r"stem\.weight"),
    ):
        model.absorb(optimizer=optimizer)


def test_state_that_does_not_lie_as_the_parameter_is_refused() -> None:
    model = net(freeze=False)
    optimizer = torch.optim.Adafactor(model.parameters())
    model(x()).square().mean().backward()
    optimizer.step()
    with (
        unchanged(model, optimizer),
        pytest.raises(splitgrow.OptimizerError, match="has state of other shapes"),
    ):
        model.absorb(optimizer=optimizer)


def test_an_optimizer_that_was_not_told_trains_nothing_and_says_so() -> None:
    model = net(freeze=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model.absorb()
    model(x()).square().mean().backward()
    with pytest.warns(splitgrow.SplitGrowWarning, match=r"no optimizer trains stem\.weight"):
        optimizer.step()


# -- the record, generations, what comes after ----------------------------------------------------


def test_closed_generations_are_given_up_with_a_reason_and_numbers_stay() -> None:
    model = net()
    model.next_generation()
    edit = model.absorb()
    assert str(edit) == "Edit 4 (generation 2): makes 4 layers plain"
    assert model.generation == 2
    with pytest.raises(splitgrow.GenerationError, match=r"edit 4 \(`absorb`\)"), model.at(0):
        pass
    with pytest.raises(splitgrow.GenerationError, match="absorb"):
        splitgrow.merge(model, generation=1)
    assert model.parameters_of(edit) == list(model.parameters())
    assert model.generation_parameters() == list(model.parameters())
    with pytest.raises(ValueError, match=r"edit 2 added is a part of plain layers since edit 4"):
        model.parameters_of(2)
    model.next_generation()
    model.expand({"stem": 1})
    before = outputs_of(model, x())
    with model.at(2):
        assert_equal(outputs_of(model, x()), before)


def test_the_layers_are_the_users_own_modules_again() -> None:
    model = Net().double()
    stem, norm = model.stem, model.norm
    model = splitgrow.growable(model, x())
    calls: list[Any] = []
    model.expand({"stem": 3})
    model.stem.register_forward_hook(lambda module, *_: calls.append(module))
    model.stem.label = "mine"
    grown = model.stem
    model.absorb()
    calls.clear()
    assert model.stem is stem
    assert model.norm is norm
    assert stem.label == "mine"
    assert (stem.out_channels, norm.num_features) == (7, 7)
    result = model.eval()(x())
    assert calls == [stem]
    assert_equal(grown(x()), stem(x()))
    assert result.isfinite().all()


def test_growth_goes_on_and_absorbing_again_is_fine() -> None:
    model, blocks = net(), net()
    model.absorb()
    blocks.unfreeze()
    for one in (model, blocks):
        torch.manual_seed(3)
        one.expand({"stem": 3, "body": 1})
    assert_equal(outputs_of(model, x()), outputs_of(blocks, x()))
    assert [edit.index for edit in splitgrow.handle(model).edits] == [1, 2, 3, 4, 5]
    randomise_new_blocks(model)
    before = outputs_of(model, x())
    assert model.absorb().absorbed == ("stem", "norm", "body", "head")
    assert_equal(outputs_of(model, x()), before)
    with unchanged(model):
        assert model.absorb() is None


@pytest.mark.parametrize("regrown", [False, True])
def test_it_is_saved_loaded_copied_and_merged(tmp_path: Any, regrown: bool) -> None:
    model = net()
    model.absorb()
    if regrown:
        model.expand({"stem": 2})
        randomise_new_blocks(model)
        model.absorb()
        model.expand({"body": 2})
        randomise_new_blocks(model)
    model.eval()
    before = outputs_of(model, x())
    splitgrow.save(model, tmp_path / "model.splitgrow")
    loaded: Any = Net().double()
    splitgrow.load(loaded, tmp_path / "model.splitgrow")
    other = fresh()
    other.load_state_dict(model.state_dict())
    begun = fresh()
    begun.expand({"stem": 1, "body": 2})
    begun.load_state_dict(model.state_dict())
    copies = copy.deepcopy(model), pickle.loads(pickle.dumps(model))
    for one in (loaded, other, begun, *copies):
        assert splitgrow.handle(one).edits == splitgrow.handle(model).edits
        assert one.stem.out_channels == model.stem.out_channels
        assert_equal(outputs_of(one.eval(), x()), before)
        assert all(p.requires_grad for p in one.parameters())
        one.expand({"body": 1})
        assert_equal(outputs_of(one, x()), before)
    assert_equal(splitgrow.merge(model)(x()), before)
    assert_equal(splitgrow.fuse(model)(x()), before)


def test_a_file_of_another_dtype_is_refused(tmp_path: Any) -> None:
    model = net()
    model.absorb()
    splitgrow.save(model, tmp_path / "model.splitgrow")
    other = Net()
    with unchanged(other), pytest.raises(splitgrow.CheckpointError, match="convert the model"):
        splitgrow.load(other, tmp_path / "model.splitgrow")


def test_a_state_dict_from_before_does_not_load_into_plain_layers() -> None:
    model = net()
    state = copy.deepcopy(model.state_dict())
    model.absorb()
    with unchanged(model), pytest.raises(splitgrow.CheckpointError, match="made `stem` plain"):
        model.load_state_dict(state)


@pytest.mark.parametrize("names", [("stem", "stem"), ("gone",), ("norm", "norm.0")])
def test_a_journal_that_makes_other_layers_plain_is_refused(names: tuple[str, ...]) -> None:
    model = net()
    edit = Edit(4, 1, None, {}, {}, (), absorbed=names)
    splitgrow.handle(model)._history.edits.append(edit)
    state, other = model.state_dict(), fresh()
    with unchanged(other), pytest.raises(splitgrow.CheckpointError, match="edit 4"):
        other.load_state_dict(state)


# -- other grown parts ----------------------------------------------------------------------------


def test_layers_that_share_a_parameter_share_one_again() -> None:
    torch.manual_seed(0)
    tokens = torch.randint(11, (2, 5))
    model: Any = splitgrow.growable(Tied().double(), tokens)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2, momentum=0.9)
    for _ in range(2):
        model.expand_layer("embed", 6, freeze=False, optimizer=optimizer)
        train_steps(model, (tokens,), optimizer, 1)
    model.expand_vocabulary(3, "embed", freeze=False, optimizer=optimizer)
    before = outputs_of(model, tokens)
    model.absorb(optimizer=optimizer)
    assert model.head.weight is model.embed.weight
    assert [id(p) for p in optimizer.param_groups[0]["params"]] == list(map(id, model.parameters()))
    assert_equal(outputs_of(model, tokens), before)


class Scaled(nn.Module):
    """A module with a parameter and a buffer along its channels."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(3, 4)
        self.gamma = nn.Parameter(torch.rand(4))
        self.register_buffer("shift", torch.rand(4), persistent=False)
        self.down = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.up(x) * self.gamma + self.shift)


@pytest.mark.parametrize("inside", [False, True])
def test_grown_tensors_of_modules_are_plain_tensors_again(inside: bool) -> None:
    def made() -> Any:
        torch.manual_seed(0)
        own = nn.Sequential(Scaled()) if inside else Scaled()
        return splitgrow.growable(own.double(), torch.ones(2, 3, dtype=torch.float64))

    model, inputs = made(), torch.randn(5, 3, dtype=torch.float64)
    part = model[0] if inside else model
    path = "0.up" if inside else "up"
    before_class = type(part)
    optimizer = torch.optim.Adam(model.parameters())
    for _ in range(2):
        model.expand_layer(path, 2, optimizer=optimizer)
    randomise_new_blocks(model)
    before = outputs_of(model, inputs)
    names = model.absorb(optimizer=optimizer).absorbed
    assert {name.rpartition(".")[2] for name in names} == {"up", "gamma", "shift", "down"}
    assert type(part) is before_class
    assert isinstance(part.gamma, nn.Parameter)
    assert part.gamma.shape == part.shift.shape == (8,)
    assert [n for n, _ in model.named_parameters()] == [n for n, _ in made().named_parameters()]
    assert [id(p) for p in optimizer.param_groups[0]["params"]] == list(map(id, model.parameters()))
    assert_equal(outputs_of(model, inputs), before)
    other = made()
    other.load_state_dict(model.state_dict())
    assert other.state_dict().keys() == model.state_dict().keys()
    model.expand_layer(path, 1)
    assert_equal(outputs_of(model, inputs), before)


def test_inserted_layers_stay_and_input_channels_and_fades_too() -> None:
    model = net(1, freeze=False)
    model.insert_layer("body", "residual")
    model.insert_layer("stem", "fade", module=nn.Conv2d(5, 5, 1).double())
    model.expand_input(1)
    model.expand({"stem": 2, "body": 1})
    randomise_new_blocks(model)
    wide = torch.randn(5, 3, 3, 3, dtype=torch.float64)
    before = outputs_of(model.eval(), wide)
    edit = model.absorb()
    assert not list(split_layers(model))
    assert any(".inserted" in name for name in edit.absorbed)
    assert_equal(outputs_of(model, wide), before)
    assert_equal(splitgrow.merge(model)(wide), before)


@pytest.mark.parametrize("way", ["Mixture", "Stacked"])
def test_experts_stay_and_their_layers_and_tensors_become_plain(way: str) -> None:
    model = mixture_models.growable(way)
    model.expand_experts(4, freeze=False)
    units = [layer.name for layer in model.layers if layer.name.endswith("up")]
    model.expand_layer(units[0], 4, freeze=False)
    model.expand_layer("3", 2, freeze=False)
    randomise_new_blocks(model)
    before = outputs_of(model, mixture_models.X)
    assert model.absorb()
    assert not list(split_layers(model))
    assert_equal(outputs_of(model, mixture_models.X), before)
    other = mixture_models.growable(way)
    other.load_state_dict(model.state_dict())
    assert_equal(outputs_of(other, mixture_models.X), before)


# -- what stays, what is refused ------------------------------------------------------------------


def _computed() -> Any:
    model = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(3, 4)), nn.Linear(4, 2))
    grown: Any = splitgrow.growable(model.double(), torch.ones(2, 3, dtype=torch.float64))
    grown.expand_layer("0", 2)
    return grown


def test_layers_whose_weight_is_computed_keep_their_blocks_and_the_others_do_not() -> None:
    model, inputs = _computed(), torch.randn(4, 3, dtype=torch.float64)
    before = outputs_of(model, inputs)
    with pytest.warns(splitgrow.SplitGrowWarning, match="1 grown layer keeps its blocks .*`0`"):
        edit = model.absorb()
    assert edit.absorbed == ("1",)
    assert len(model[0]) == 2
    assert_equal(outputs_of(model, inputs), before)


def _hook_a_parameter(model: Any) -> None:
    model.body[1].weight.register_hook(lambda gradient: gradient)


def _convert_one(model: Any) -> None:
    model.body[1].float()


@pytest.mark.parametrize("treat", [_hook_a_parameter, _convert_one])
def test_a_layer_of_which_a_part_is_special_keeps_its_blocks(treat: Any) -> None:
    model = net(1)
    treat(model)
    blocks = list(model.body)
    with pytest.warns(splitgrow.SplitGrowWarning, match="`body`"):
        edit = model.absorb(check=False)
    assert edit.absorbed == ("stem", "norm", "head")
    assert list(model.body) == blocks


def test_parts_fixed_by_hand_are_refused_by_name_and_whole_layers_stay_fixed() -> None:
    model = net(1, freeze=False)
    model.body[1].weight.requires_grad_(False)
    with unchanged(model), pytest.raises(splitgrow.UnsupportedModelError, match=r"body\.weight"):
        model.absorb()
    model.body.requires_grad_(False)
    model.absorb()
    assert not model.body.weight.requires_grad
    assert model.stem.weight.requires_grad


def test_hooks_of_single_blocks_are_refused() -> None:
    model = net(1)
    model.body[1].register_forward_hook(lambda *_: None)
    with unchanged(model), pytest.raises(splitgrow.UnsupportedModelError, match=r"`body\.1`"):
        model.absorb()


def test_bad_input_is_refused_and_what_never_grew_is_left_alone() -> None:
    model = net()
    with unchanged(model), pytest.raises(TypeError, match=r"torch\.optim"):
        model.absorb(optimizer=3)
    with model.at(0), pytest.raises(splitgrow.SplitGrowError, match="cannot absorb inside"):
        model.absorb()
    plain = fresh()
    with unchanged(plain):
        assert plain.absorb() is None


def test_a_layer_that_would_compute_something_else_is_taken_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The check can fail: a wrong value is found."""
    model = net(freeze=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    train_steps(model, (x(),), optimizer)
    right = absorption.plain_values

    def wrong(*args: Any, **options: Any) -> nn.Module:
        plain = right(*args, **options)
        with torch.no_grad():
            plain.bias.add_(1e-3) if getattr(plain, "bias", None) is not None else None
        return plain

    monkeypatch.setattr(absorption, "plain_values", wrong)
    with unchanged(model, optimizer), pytest.raises(splitgrow.InexactError):
        model.absorb(optimizer=optimizer)


@pytest.mark.parametrize("error", [MemoryError, KeyboardInterrupt])
@pytest.mark.parametrize("step", ["put_plain_", "replace_", "structure"])
def test_an_interruption_leaves_all_as_it_was(
    monkeypatch: pytest.MonkeyPatch, step: str, error: type[BaseException]
) -> None:
    model = net()
    model.stem.register_forward_hook(lambda *_: None)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    train_steps(model, (x(),), optimizer)
    original = getattr(absorption, step)
    calls = []

    def failing(*args: Any) -> Any:
        result = original(*args)
        calls.append(step)
        if len(calls) == 2 or step == "replace_":
            raise error
        return result

    monkeypatch.setattr(absorption, step, failing)
    with unchanged(model, optimizer), pytest.raises(error):
        model.absorb(optimizer=optimizer)
    assert calls


# -- averages, compiled code ----------------------------------------------------------------------


@pytest.mark.parametrize("told", ["before", "between", "after"])
def test_averages_become_plain_along_and_keep_their_values(told: str) -> None:
    model = net(1, freeze=False)
    average = torch.optim.swa_utils.AveragedModel(model)
    if told == "before":
        splitgrow.follow(average, model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", splitgrow.SplitGrowWarning)
        with torch.no_grad():
            for parameter in average.parameters():
                parameter.add_(1)
        first = [b.weight.detach().clone() for b in average.module.body]
        model.expand({"body": 2})
        if told == "between":
            splitgrow.follow(average, model)
        started = model.body[-1].weight.detach().clone()
        with torch.no_grad():
            model.body[-1].weight.add_(2)
        model.absorb()
        splitgrow.follow(average, model)
    body = average.module.body.weight.detach()
    assert type(average.module.body) is nn.Conv2d
    assert torch.equal(body[:4, :4], first[0][:, :4])
    assert torch.equal(body[:4, 4:5], first[1]) or torch.equal(body[4:6], first[1])
    assert torch.equal(body[6:], started + (2 if told == "after" else 0))
    average.update_parameters(model)


def test_compiled_code_is_made_anew_once() -> None:
    model = net(1)
    compiled = torch.compile(model, backend="eager")
    assert_equal(compiled(x()), model(x()))
    before = outputs_of(model.eval(), x())
    model.absorb()
    assert_equal(compiled(x()), before)
    with torch._dynamo.config.patch(error_on_recompile=True):
        assert_equal(compiled(x(1)), model(x(1)))
