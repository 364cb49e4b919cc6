"""A learned task stays the same, bit for bit, and the checks notice if it does not."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cases import CASES, Case
from helpers import assert_equal, largest_difference
from lessons import BODIES, MASKED, SHARING, Featured, images, learned, learner, net, outputs, task
from torch import Tensor, nn

from splitgrow.continual import METHODS, Learner, Task, Training
from splitgrow.continual.progressive import Apart
from splitgrow.continual.records import TaskRecord
from splitgrow.continual.units import Units
from splitgrow.growth.history_lookup import history_of
from splitgrow.layers.split_layer import SplitLayer


def changed(made: Learner, index: int) -> list[str]:
    """The tasks whose outputs are others after one more task."""
    before = outputs(made)
    made.learn(task(index))
    after = outputs(made)
    return [name for name, value in before.items() if not torch.equal(value, after[name])]


@pytest.mark.parametrize("method", [*MASKED, "separate"])
def test_outputs_of_every_task_are_the_same_bit_for_bit_after_later_tasks(method: str) -> None:
    made = learned(method, 1)
    first = {name: value.clone() for name, value in outputs(made).items()}
    for index in range(1, 4):
        assert not changed(made, index)
    assert torch.equal(outputs(made)["task 0"], first["task 0"])


@pytest.mark.parametrize("method", SHARING)
def test_the_check_notices_methods_that_forget(method: str) -> None:
    """The control: these change what earlier tasks use, by whatever little."""
    assert changed(learned(method, 1), 1) == ["task 0"]


@pytest.mark.parametrize("method", MASKED)
def test_a_weight_that_is_owned_never_changes_its_owner_or_value(method: str) -> None:
    made = learned(method, 2)
    body = made.body
    owned = {name: owners.clone() for name, owners in body.owners.items()}
    values = {name: body.slots[name].tensor.clone() for name in owned}
    made.learn(task(2))
    for name, owners in owned.items():
        there = owners > 0
        assert torch.equal(made.body.owners[name][there], owners[there])
        assert torch.equal(made.body.slots[name].tensor[there], values[name][there])
    gained = [(made.body.owners[n] == 3).any() for n in made.body.owners]
    assert any(gained) == (method != "piggyback")


def test_no_optimizer_moves_what_others_own_in_a_loop_of_ones_own() -> None:
    """With momentum and a weight decay that would move it."""
    made: Any = learned("cpg", 2)
    made.body = made.body.copied()
    study = made._begin(task(2), picks="binary")
    before = {name: slot.tensor.clone() for name, slot in made.body.shared.items()}
    seen = {name: value.detach().clone() for name, value in study.values().items()}
    optimizer = torch.optim.AdamW(study.parameters(), lr=0.1, weight_decay=0.5)
    x, y = task(2).train[:]
    for _ in range(5):
        optimizer.zero_grad()
        nn.functional.cross_entropy(study(x), y).backward()
        optimizer.step()
    moved = 0.0
    for name, slot in made.body.shared.items():
        owned = made.body.owners[name] > 0
        assert torch.equal(slot.tensor, before[name])
        now = study.values()[name].detach()
        score = study.score(name)
        kept = owned if score is None else owned & (score > 0.005)
        assert torch.equal(now[kept], before[name][kept])
        moved += float((now - seen[name])[~owned].abs().sum())
    assert moved > 0


def test_the_check_notices_gradients_that_are_masked_only() -> None:
    """The control: with masked gradients, momentum and decay move what is to be frozen."""
    weight = nn.Parameter(torch.ones(4))
    frozen = torch.tensor([True, True, False, False])
    optimizer = torch.optim.SGD([weight], lr=0.1, momentum=0.9, weight_decay=0.1)
    for step in range(3):
        optimizer.zero_grad()
        (weight * torch.arange(4.0)).sum().backward()
        if step:
            weight.grad[frozen] = 0
        optimizer.step()
    assert not torch.equal(weight[frozen], torch.ones(2))


def oracle(made: Learner, record: TaskRecord) -> nn.Module:
    """A task's network put together by hand from a model of the user's class."""
    plain: Any = net()
    width = made.body.new_head(1).in_features
    assert width == plain.head.in_features, "the oracle is for methods that have not grown"
    state: dict[str, Tensor] = {}
    for name, slot in made.body.slots.items():
        path, _, key = name.partition(":0.")
        value = slot.tensor.clone()
        if slot.shared:
            owners = made.body.owners[name].long()
            used = owners == record.number
            picks = torch.ones_like(value)
            if name in record.picks:
                bits = record.picks[name].numpy().tobytes()
                flat = [(bits[i // 8] >> (i % 8)) & 1 for i in range(value.numel())]
                picks = torch.tensor(flat).reshape(value.shape).to(value.dtype)
            earlier = (owners > 0) & (owners < record.number)
            value = torch.where(used, value, torch.where(earlier, value * picks, 0 * value))
        else:
            assert record.own is not None
            value = record.own[name]
        state[f"{path}.{key}"] = value
    plain.head = record.head
    missing, unexpected = plain.load_state_dict(state, strict=False)
    assert not unexpected
    assert all(name.startswith("head") for name in missing)
    return plain.eval()


@pytest.mark.parametrize("method", ["packnet", "piggyback", "cpg", "pack-and-expand"])
def test_a_tasks_network_is_the_users_class_with_the_weights_that_the_masks_leave(
    method: str,
) -> None:
    more = {"largest": 1.0} if method in {"cpg", "pack-and-expand"} else {}
    made = learned(method, 3, **more)
    for record in made.records:
        network = made.network(record.name)
        assert type(network) is type(net())
        assert {*dict(network.named_parameters())} == {*dict(net().named_parameters())}
        assert {*network.state_dict()} == {*net().state_dict()}
        assert all(p.requires_grad for p in network.parameters())
        assert not any(isinstance(module, SplitLayer) for module in network.modules())
        assert_equal(network(images(3)), oracle(made, record)(images(3)))
    # Masks that left everything would not be noticed otherwise.
    whole = {name: slot.tensor for name, slot in made.body.shared.items()}
    last = made.records[-2].values(made.body)
    assert any(not torch.equal(last[name], value) for name, value in whole.items())


@pytest.mark.parametrize("method", MASKED)
def test_what_is_judged_while_a_task_is_learned_is_what_its_network_gives(method: str) -> None:
    """The accuracy on validation data, of the study and of the plain network."""
    made = learner(method)
    for index in range(3):
        one = task(index)
        own = Task(one.name, 2, one.train, None, one.test)
        record = made.learn(own)
        assert record.accuracy == made.evaluate(one.test, task=one.name)


@pytest.mark.parametrize(
    ("case", "method"),
    [
        pytest.param(case, method, id=f"{case.name}-{method}")
        for index, case in enumerate(BODIES)
        for method in [("cpg", "progressive")[index % 2]]
    ],
)
def test_any_architecture_learns_tasks_and_remembers_them(case: Case, method: str) -> None:
    more: dict[str, Any] = {"goal": 1.0, "growth": 1.0, "largest": 2.0, "sparsities": (0.4,)}
    more = more if method == "cpg" else {"column": 1.0}
    training = Training(epochs=1, batch_size=8, lr=0.01, clip=1.0)
    made = METHODS[method](
        Featured(case.model()), case.inputs(), head=None, training=training, **more
    )
    found: dict[str, Tensor] = {}
    for index in range(3):
        (x,) = case.inputs(index)
        x = x.repeat(4, *[1] * (x.dim() - 1))
        y = torch.arange(len(x)) % 2
        made.learn(Task(f"{index}", 2, (x, y), None, (x, y)))
        found[f"{index}"] = made.predict(x, task=f"{index}")
        made._networks.clear()
        for name in made.tasks:
            given = case.inputs(int(name))[0]
            given = given.repeat(4, *[1] * (given.dim() - 1))
            assert torch.equal(made.predict(given, task=name), found[name])
    assert len({float(value.sum()) for value in found.values()}) == 3
    expansion = made.report().expansion
    graph = history_of(made.body.model).graph
    free = [n for n in graph.sized() if graph.steps(n) and not graph.grows_by_copies(n)]
    assert expansion > 1 or not free


def test_a_column_is_read_by_no_column_before_it() -> None:
    made = learned("progressive", 3)
    for slot in made.body.shared.values():
        if slot.block == "helper":
            assert not slot.tensor.any()
        elif slot.block == "new":
            assert slot.tensor.any()
    assert any(slot.block == "helper" for slot in made.body.shared.values())


def column_of(case: Case) -> tuple[Any, Units, Any]:
    """A second column before it has learned: the learner, the units before it, and the study."""
    made: Any = METHODS["progressive"](Featured(case.model()), case.inputs(), head=None)
    x = case.inputs(0)[0].repeat(4, *[1] * (len(case.shape) - 1))
    one = Task("a", 2, (x, torch.arange(len(x)) % 2))
    made.learn(one)
    made.body, earlier = made.body.copied(), Units(made.body)
    made._grow(one, 2.0, Apart())
    study = made._begin(one, mine=made._trains)
    made._set_apart_(study, earlier)
    return made, earlier, study


APART = [
    case
    for case in CASES
    if case.name in {"residual", "dense", "bottleneck", "u-net", "conv to linear", "1-d"}
]


@pytest.mark.parametrize("case", APART, ids=lambda case: case.name)
def test_a_column_begins_as_a_network_of_its_own_and_learns_to_read_the_others(case: Case) -> None:
    made, earlier, study = column_of(case)
    x = case.inputs(1)
    before = study.eval()(*x)
    assert before.std() > 0
    older = {part.slot for part in earlier.parts if part.shared}
    with torch.no_grad():
        for name in older:
            made.body.slots[name].tensor.mul_(3.0)
    assert torch.equal(study(*x), before)
    # The control: what it reads of the others has a gradient, and so learns.
    study.train()
    study(*case.inputs(2)).square().sum().backward()
    with torch.no_grad():
        for parameter in study.parameters():
            if parameter.grad is not None:
                parameter.sub_(0.01 * parameter.grad)
        after = study.eval()(*x)
        for name in older:
            made.body.slots[name].tensor.mul_(3.0)
    assert largest_difference(study(*x), after) > 1e-6


def test_what_a_column_reads_of_itself_is_drawn_as_in_a_network_of_its_width() -> None:
    made: Any = learned("progressive", 1, column=0.25)
    made.body, earlier = made.body.copied(), Units(made.body)
    made._grow(task(1), 1.25, Apart())
    study = made._begin(task(1), mine=made._trains)
    made._set_apart_(study, earlier)
    own, others = 2, 8  # units of the last layer
    weight = study.head.weight.detach()
    assert not weight[:, :others].any()
    assert 0.5 * own**-0.5 < float(weight[:, others:].abs().max()) <= own**-0.5
    # It learns by as much less as there are more of the others.
    features = study.eval().features(images(3))
    logits = study.head(features.detach())
    logits.square().sum().backward()
    whole = 2 * logits.detach().T @ features.detach()
    gradient = study.head.weight.grad
    assert_equal(gradient[:, others:], whole[:, others:])
    assert_equal(gradient[:, :others], whole[:, :others] * own / others)
    assert whole[:, :others].abs().max() > 0.1


def test_frozen_columns_are_known_not_to_train_and_run_as_one_layer() -> None:
    """The backward pass computes the gradients of the new column's weights, not of all."""
    made: Any = learned("progressive", 1)
    made.body = made.body.copied()
    made._grow(task(1), 1.5)
    study = made._begin(task(1), mine=made._trains)
    study(images(1)).sum().backward()
    runs = made.body.handle.runs
    assert {*runs} >= {"stem", "inner", "hidden"}
    assert {run.way for name, run in runs.items() if "norm" not in name} == {"merged"}
    assert 0 < runs["inner"].gradient < 0.6
    assert runs["stem"].gradient == pytest.approx(1 / 3)


@pytest.mark.parametrize("method", ["packnet", "cpg"])
def test_dead_units_are_taken_out_of_a_tasks_network_and_the_outputs_are_equal(
    method: str,
) -> None:
    """With hardly any weights left to a task, some units are read by nothing."""
    more = (
        {"prune": 0.97}
        if method == "packnet"
        else {"sparsities": (0.97,), "goal": 0.51, "tolerance": 0.51}
    )
    made = learned(method, 2, **more)
    smaller = 0
    for name in made.tasks:
        whole, compact = made.network(name, compact=False), made.network(name)
        assert_equal(compact(images(5)), whole(images(5)))
        sizes = [sum(p.numel() for p in each.parameters()) for each in (compact, whole)]
        assert sizes[0] <= sizes[1]
        smaller += sizes[0] < sizes[1]
    assert smaller > 0
