"""Pruning is shrinking by the weakest channels, step by step, and it changes nothing else."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from helpers import (
    assert_equal,
    assert_identical,
    outputs_of,
    randomise,
    randomise_new_blocks,
    train_steps,
)
from scored_models import Tied, small
from scoring import loss_of, positions
from snapshots import unchanged
from torch import Tensor, nn

import splitgrow
from splitgrow.errors import FixedWidthError, GenerationError, SplitGrowError
from splitgrow.growth.edits import Edit
from splitgrow.pruning import CRITERIA, Criterion, UnitsInView


class Net(nn.Module):
    """Convolutions with norms, a residual stream, dropout and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.inner, self.outer = nn.Conv2d(8, 6, 1), nn.Conv2d(6, 8, 3, padding=1)
        self.drop = nn.Dropout(0.3)
        self.hidden, self.head = nn.Linear(8, 10), nn.Linear(10, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x)).relu()
        x = x + self.outer(self.inner(x).relu())
        return self.head(self.drop(self.hidden(x.mean((2, 3))).relu()))


def net() -> Any:
    torch.manual_seed(0)
    return splitgrow.growable(randomise(Net()).double().eval(), x()[:2])


def x(seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(5, 2, 4, 4, generator=generator, dtype=torch.float64)


DATA: Any = {"loss": loss_of, "batches": [(x(1),), (x(2),)]}


def widths(model: Any) -> dict[str, int]:
    return {layer.name: layer.width for layer in model.layers}


class ByNumber(Criterion):
    """Units count by their numbers, or as some numbers say."""

    name = "by number"

    def __init__(self, own: Mapping[str, Any] | None = None) -> None:
        self.own = own or {}

    def scores(self, view: UnitsInView) -> Mapping[int, Tensor]:
        if "fails" in self.own:
            view.model.norm.running_mean.add_(1)
            view.model.stem.weight.requires_grad_(True)
            raise self.own["fails"]
        found = view.units.by_group(torch.arange(view.units.count))
        return {g: self.own.get("scores", own) for g, own in found.items()}


# -- prune is shrink -------------------------------------------------------------------------------


@pytest.mark.parametrize("criterion", [name for name in CRITERIA if name != "reconstruction"])
@pytest.mark.parametrize("grown", [False, True])
def test_pruning_is_shrinking_by_the_channels_that_it_reports(criterion: str, grown: bool) -> None:
    model = net()
    if grown:
        model.expand({"stem": 3, "inner": 2, "hidden": 2}, freeze=False)
        randomise_new_blocks(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    train_steps(model, (x(),), optimizer)
    twin, its = copy.deepcopy((model, optimizer))
    edit = model.prune(0.4, criterion=criterion, optimizer=optimizer, **DATA)
    request = {
        item.name: positions(item.outs) for item in edit.removed if item.name in edit.request
    }
    other = twin.shrink(request, optimizer=its)
    assert (edit.criterion, other.criterion) == (criterion, "")
    assert (edit.growth, edit.removed, edit.moved) == (other.growth, other.removed, other.moved)
    assert edit.request == other.request
    for one, two in zip(model.parameters(), twin.parameters(), strict=True):
        assert_identical(one, two)
    for one, two in zip(optimizer.state.values(), its.state.values(), strict=True):
        assert_identical([one["exp_avg"], one["exp_avg_sq"]], [two["exp_avg"], two["exp_avg_sq"]])
    train_steps(model, (x(),), optimizer)
    assert Edit.from_json(edit.to_json()) == edit
    assert f"criterion {criterion!r} chose them" in str(edit)


def test_the_weakest_units_go_and_as_many_as_asked_for() -> None:
    model = net()
    total = 8 + 6 + 10
    before = model.hidden.weight.detach().clone()
    edit = model.prune(0.5, criterion=ByNumber())
    assert -sum(edit.growth.values()) == total // 2
    edit = net().prune(0.5, criterion=ByNumber(), scope="layer")
    assert sorted(edit.growth.values()) == [-5, -4, -3]
    model = net()
    model.prune(0.5, criterion=ByNumber(), scope="layer", layers=["hidden"])
    assert widths(model) == {**widths(net()), "hidden": 5}
    assert_identical(model.hidden.weight, before[5:])


def test_a_pruned_model_is_saved_loaded_followed_and_grows_again(tmp_path: Any) -> None:
    model = net()
    model.expand({"stem": 2, "hidden": 2}, freeze=False)
    randomise_new_blocks(model)
    average = copy.deepcopy(model)
    splitgrow.follow(average, model)
    model.prune(0.4, criterion="taylor", refit=True, **DATA)
    assert_equal(outputs_of(average, x()), outputs_of(model, x()))
    splitgrow.save(model, tmp_path / "run.sg")
    fresh = net()
    splitgrow.load(fresh, tmp_path / "run.sg")
    assert_equal(outputs_of(fresh, x()), outputs_of(model, x()))
    assert splitgrow.handle(fresh).edits == splitgrow.handle(model).edits
    again = net()
    again.load_state_dict(model.state_dict())
    assert_equal(outputs_of(again, x()), outputs_of(model, x()))
    assert_equal(outputs_of(splitgrow.merge(copy.deepcopy(model)), x()), outputs_of(model, x()))
    before = outputs_of(model, x())
    model.expand_layer("inner", 3)
    assert_equal(outputs_of(model, x()), before)


def test_units_of_layers_that_are_tied_go_together() -> None:
    model = small(Tied())
    edit = model.prune(0.5, keep=0)
    assert {item.name for item in edit.removed} == {"table", "inner", "head"}
    assert model.table.weight is model.head.weight
    assert model.table.weight.shape == (7, 2)
    model = net()
    model.prune(0.5, layers=["outer"])
    assert widths(model) == {**widths(net()), "stem": 4, "outer": 4}
    assert model.norm.num_features == 4


# -- steps -----------------------------------------------------------------------------------------


def test_steps_take_equal_parts_of_the_first_units_and_each_is_an_edit() -> None:
    model, seen = net(), list[Any]()

    def recover(edit: Edit) -> None:
        seen.append((edit, sum(widths(model)[name] for name in ("stem", "inner", "hidden"))))
        train_steps(model, (x(),), torch.optim.SGD(model.parameters(), lr=0.01))

    last = model.prune(0.5, steps=4, recover=recover, criterion="taylor", **DATA)
    edits = splitgrow.handle(model).edits
    assert [edit for edit, _ in seen] == [*edits]
    assert last is edits[-1]
    assert [left for _, left in seen] == [24 - 3, 24 - 6, 24 - 9, 24 - 12]
    assert [edit.macs[0] for edit in edits[1:]] == [edit.macs[1] for edit in edits[:-1]]


def test_steps_count_from_the_first_units_also_where_some_have_no_scores() -> None:
    model = net()
    model.prune(0.5, steps=2, criterion="scale", keep=0)
    assert widths(model) == {**widths(net()), "stem": 4, "outer": 4}


def test_each_step_scores_anew() -> None:
    model, refused = net(), list[int]()

    class Counting(ByNumber):
        def scores(self, view: UnitsInView) -> Mapping[int, Tensor]:
            refused.append(view.units.count)
            return super().scores(view)

    model.prune(0.5, steps=3, criterion=Counting())
    assert refused == [24, 20, 16]


def test_a_step_of_no_whole_unit_is_left_out() -> None:
    model, seen = net(), list[Edit]()
    model.prune(0.1, steps=5, recover=seen.append, layers=["hidden"])
    assert [edit.removed[0].width for edit in seen] == [(10, 9)]


def test_an_error_in_recover_or_in_a_later_step_leaves_the_earlier_steps() -> None:
    model, optimizer = net(), None

    def stop(edit: Edit) -> None:
        if edit.index == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        model.prune(0.6, steps=3, recover=stop)
    assert len(splitgrow.handle(model).edits) == 2
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    train_steps(model, (x(),), optimizer)
    calls = list[int]()

    def loss(model: nn.Module, batch: Any) -> Tensor:
        calls.append(1)
        if len(calls) > len(DATA["batches"]):
            raise ZeroDivisionError
        return loss_of(model, batch)

    after: list[Any] = []

    def recover(edit: Edit) -> None:
        after.append(unchanged(model, optimizer))
        after[-1].__enter__()

    with pytest.raises(ZeroDivisionError):
        model.prune(
            *(0.5,),
            **{**DATA, "loss": loss, "steps": 2, "recover": recover, "criterion": "taylor"},
            optimizer=optimizer,
        )
    after[0].__exit__(None, None, None)
    assert len(splitgrow.handle(model).edits) == 1


def test_keep_rounding_and_ignored_layers() -> None:
    model = net()
    model.prune(0.9, steps=2, keep=0.5, scope="layer", ignore=["inner"])
    assert widths(model) == {**widths(net()), "stem": 4, "outer": 4, "hidden": 5}
    model = net()
    model.prune(0.5, scope="layer", round_to=4)
    assert widths(model) == {**widths(net()), "stem": 4, "outer": 4, "inner": 4, "hidden": 8}
    with unchanged(model := net()), pytest.raises(ValueError, match="leaves every layer as it is"):
        model.prune(0.3, scope="layer", round_to=8, layers=["inner"])


def test_closed_generations_stay_unless_they_are_given_up() -> None:
    model = net()
    first = outputs_of(model, x())
    model.expand({"stem": 4, "hidden": 4})
    randomise_new_blocks(model)
    with unchanged(model), pytest.raises(GenerationError, match="give_up=True"):
        model.prune(0.8, criterion=ByNumber())
    last_first = ByNumber({"scores": torch.arange(12, 0, -1)})
    edit = model.prune(0.25, criterion=last_first, layers=["stem"])
    assert edit.gives_up == ()
    with model.at(0):
        assert_identical(outputs_of(model, x()), first)
    assert model.prune(0.5, criterion=ByNumber(), give_up=True).gives_up == (0,)


def test_recover_may_close_a_generation() -> None:
    model = net()

    def recover(edit: Edit) -> None:
        if edit.index == 1:
            model.next_generation()

    options = {**DATA, "refit": True, "give_up": True}
    with pytest.raises(GenerationError, match="readers cannot be fitted"):
        model.prune(0.5, steps=2, recover=recover, **options)
    assert len(splitgrow.handle(model).edits) == 1


# -- nothing else changes --------------------------------------------------------------------------


class Busy(Net):
    """It counts its calls, remembers its input, and a hook counts as well."""

    def __init__(self) -> None:
        super().__init__()
        self.calls, self.seen = 0, list[Any]()
        self.register_buffer("total", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.seen.append(x.shape)
        self.total += 1
        return super().forward(x)


def busy() -> Any:
    torch.manual_seed(0)
    model = splitgrow.growable(randomise(Busy()).double(), x()[:2])
    loss_of(model, (x(),)).backward()
    model.train()
    model.inner.requires_grad_(False)
    model.drop.eval()
    return model


MEASURED = [name for name in CRITERIA if name != "random"]


@pytest.mark.parametrize("criterion", MEASURED)
def test_scoring_leaves_no_trace(criterion: str) -> None:
    model = busy()
    model.drop.train()
    with unchanged(model), pytest.raises(ValueError, match="leaves every layer as it is"):
        model.prune(0.01, criterion=criterion, **DATA)


def test_control_runs_would_leave_traces() -> None:
    model = busy()
    with (
        pytest.raises(AssertionError, match=r"changed: .*calls.*gradient.*running_mean"),
        unchanged(model),
    ):
        loss_of(model, (x(),)).backward()


def test_all_that_is_not_units_stays_also_after_a_pruning() -> None:
    model = busy()
    state = torch.get_rng_state()
    hook = model.hidden.register_forward_hook(lambda *args: None)
    gradients = {name: p.grad for name, p in model.named_parameters()}
    edit = model.prune(0.4, criterion="taylor", **DATA)
    assert torch.equal(torch.get_rng_state(), state)
    assert (model.calls, len(model.seen), float(model.total)) == (1, 1, 1.0)
    assert hook.id in model.hidden._forward_hooks
    assert [m.training for m in (model, model.norm, model.drop)] == [True, True, False]
    assert not any(p.requires_grad for p in model.inner.parameters())
    assert all(p.requires_grad for p in model.hidden.parameters())
    gone = {item.name: item for item in edit.removed}
    for name, parameter in model.named_parameters():
        assert parameter.grad.shape == parameter.shape
        if name.partition(".")[0] not in gone:
            assert parameter.grad is gradients[name]
    model = busy()
    model.prune(0.4, criterion="random")
    assert not torch.equal(torch.get_rng_state(), state)


def test_it_works_where_gradients_and_history_are_off() -> None:
    expected = busy().prune(0.4, criterion="taylor", **DATA).removed
    for mode in (torch.no_grad(), torch.inference_mode()):
        model = busy()
        with mode:
            assert model.prune(0.4, criterion="taylor", **DATA).removed == expected
        loss_of(model, (x(),)).backward()


FAILURES: dict[str, Any] = {
    "an error in the loss": {"loss": lambda model, batch: 1 / 0, "criterion": "taylor"},
    "an error in the criterion": {"criterion": ByNumber({"fails": ZeroDivisionError()})},
    "an interrupt": {"criterion": ByNumber({"fails": KeyboardInterrupt()})},
    "a bad shape": {"criterion": ByNumber({"scores": torch.ones(3)})},
    "nan": {"criterion": ByNumber({"scores": torch.full((8,), float("nan"))}), "layers": ["stem"]},
    "no data": {"criterion": "fisher", "batches": ()},
    "no data to refit": {"refit": True, "batches": ()},
    "no scores": {"criterion": "scale", "ignore": ["stem"]},
    "no scores for a named layer": {"criterion": "scale", "layers": ["stem", "inner"]},
}


@pytest.mark.parametrize("name", FAILURES)
def test_a_failure_changes_nothing(name: str) -> None:
    model = busy()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    optimizer.step()
    errors = ValueError, ZeroDivisionError, KeyboardInterrupt
    with unchanged(model, optimizer), pytest.raises(errors) as caught:
        model.prune(0.5, **{**DATA, **FAILURES[name]}, optimizer=optimizer)
    expected = {
        "a bad shape": "scores of the shape (3,) to a group of",
        "nan": "scores that are not finite",
        "no data": "give `loss`",
        "no data to refit": "give `batches`",
        "no scores": "'scale' has no scores for the units of `hidden`, `inner`",
        "no scores for a named layer": "'scale' has no scores for the units of `inner`",
    }
    assert expected.get(name, "") in str(caught.value)


BAD: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "no amount": ({"amount": None}, ValueError, "either `amount`"),
    "both": ({"target": splitgrow.Target(macs=0.5)}, ValueError, "either `amount`"),
    "a text": ({"amount": "half"}, TypeError, "amount must be a number"),
    "a flag": ({"amount": True}, TypeError, "amount must be a number"),
    "zero": ({"amount": 0}, ValueError, "between 0 and 1"),
    "all": ({"amount": 1.0}, ValueError, "between 0 and 1"),
    "nan": ({"amount": float("nan")}, ValueError, "between 0 and 1"),
    "no target": ({"amount": None, "target": 0.5}, TypeError, "must be a splitgrow.Target"),
    "unknown": ({"criterion": "l3"}, ValueError, "no criterion 'l3'; there are group, l1"),
    "a class": ({"criterion": ByNumber}, TypeError, "a criterion is a name"),
    "scope": ({"scope": "layers"}, ValueError, "scope must be 'global' or 'layer'"),
    "steps": ({"steps": 0}, ValueError, "steps .=0. must be at least 1"),
    "half a step": ({"steps": 1.5}, TypeError, "steps must be an int"),
    "recover": ({"recover": 3}, TypeError, "recover must be a function"),
    "one layer": ({"layers": "stem"}, TypeError, "layers must be a list"),
    "no layers": ({"layers": []}, ValueError, "layers is empty"),
    "unknown layer": ({"layers": ["steam"]}, ValueError, "did you mean 'stem'"),
    "unknown ignored": ({"ignore": ["steam"]}, ValueError, "did you mean 'stem'"),
    "ignore": ({"ignore": "stem"}, TypeError, "ignore must be a list"),
    "nothing left": ({"ignore": ["stem", "inner", "hidden"]}, FixedWidthError, "no layer may"),
    "keep": ({"keep": 1.0}, ValueError, "less than 1"),
    "keep's type": ({"keep": "0.1"}, TypeError, "keep must be a number"),
    "refit": ({"refit": 1}, TypeError, "refit must be True, False or None"),
    "loss": ({"loss": 1.0}, TypeError, "loss must be a function"),
    "one batch": ({"batches": x()}, TypeError, "a list of batches, or a loader, got a Tensor"),
    "a mapping": ({"batches": {"x": x()}}, TypeError, "got a dict"),
    "no batches": ({"batches": 3}, TypeError, "got a int"),
    "rounding": ({"round_to": 0}, ValueError, "round_to"),
    "optimizer": ({"optimizer": 3}, TypeError, "optimizer"),
    "too little": ({"amount": 0.01}, ValueError, "amount=0.01 leaves every layer as it is"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_arguments_are_refused_and_change_nothing(name: str) -> None:
    options, error, match = BAD[name]
    model = net()
    with unchanged(model), pytest.raises(error, match=match):
        model.prune(**{"amount": 0.5, **options})


def test_a_model_that_is_not_growable_or_was_changed_by_hand_is_refused() -> None:
    with pytest.raises(SplitGrowError, match="not growable"):
        splitgrow.handle(Net())
    model = net()
    model.hidden = nn.Linear(8, 10).double()
    with unchanged(model), pytest.raises(SplitGrowError, match="hidden"):
        model.prune(0.5)


def test_a_criterion_of_ones_own_needs_a_name() -> None:
    class Nameless(Criterion):
        def scores(self, view: UnitsInView) -> Mapping[int, Tensor]:
            return {}

    with pytest.raises(TypeError, match=r"Nameless\.name must be a text"):
        net().prune(0.5, criterion=Nameless())
