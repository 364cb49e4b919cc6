"""Recurrent layers of every form, against torch's own at every width that they grow through."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import (
    assert_equal,
    assert_identical,
    largest_difference,
    outputs_of,
    randomise,
    randomise_new_blocks,
    tensors_of,
)
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pack_sequence

import splitgrow

KINDS: dict[str, Any] = {"LSTM": nn.LSTM, "GRU": nn.GRU, "RNN": nn.RNN}
CELLS: dict[str, Any] = {"LSTM": nn.LSTMCell, "GRU": nn.GRUCell, "RNN": nn.RNNCell}
FORMS: dict[str, dict[str, Any]] = {
    "one": {},
    "no bias": {"bias": False},
    "stack": {"num_layers": 3},
    "both directions": {"bidirectional": True, "num_layers": 2},
    "batch first": {"batch_first": True, "bidirectional": True},
    "projection": {"proj_size": 3, "num_layers": 2, "bidirectional": True},
    "projection, no bias": {"proj_size": 2, "bias": False},
}
TABLE = [
    pytest.param(kind, form, id=f"{kind}, {form}")
    for kind in KINDS
    for form in FORMS
    if kind == "LSTM" or "projection" not in form
]
every_form = pytest.mark.parametrize(("kind", "form"), TABLE)


class Net(nn.Module):
    """A layer that grows, a recurrent layer behind it, and a head for each of its results."""

    def __init__(self, rnn: nn.Module) -> None:
        super().__init__()
        self.stem, self.rnn = nn.Linear(3, 5), rnn
        with torch.no_grad():
            results = tensors_of(rnn(torch.zeros(2, 5)))
        self.heads = nn.ModuleList(nn.Linear(t.shape[-1], 2) for t in results)

    def forward(self, x: Tensor, *state: Tensor) -> Any:
        results = self.rnn(self.stem(x), *state)
        flat = results if isinstance(results, tuple) else (results,)
        flat = (*flat[:-1], *flat[-1]) if isinstance(flat[-1], tuple) else flat
        return [head(t) for head, t in zip(self.heads, flat, strict=True)]


def make(kind: str, form: str = "one", **more: Any) -> Net:
    torch.manual_seed(0)
    hidden = 12 if "projection" in form else 4
    return randomise(Net(KINDS[kind](5, hidden, **FORMS[form], **more)).double().eval())  # type: ignore[return-value]


def sequence(*shape: int) -> Tensor:
    torch.manual_seed(1)
    return torch.randn(shape or (6, 3, 3), dtype=torch.float64)


def grown(model: nn.Module, x: Any, *, freeze: bool = True, values: bool = True) -> Any:
    """The model, whose layers have grown alone, together and twice, with values that matter."""
    made: Any = splitgrow.growable(model, x)
    for request in ({"rnn": 2}, {"stem": 1}, {"stem": 2, "rnn": 1}):
        made.expand(request, freeze=freeze)
    if values:
        randomise_new_blocks(made)
    return made


def with_gradients(model: Any, x: Tensor) -> tuple[Any, Tensor, dict[str, Tensor]]:
    """Its results, and the gradients of a loss of all of them."""
    x = x.clone().requires_grad_()
    model.zero_grad()
    results = model(x)
    sum((t * t.detach().cos()).sum() for t in tensors_of(results)).backward()
    assert x.grad is not None
    found = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    return results, x.grad, found


def whole_gradients(split: Any) -> dict[str, Tensor]:
    """The blocks' gradients, put together as their values are."""
    twin = copy.deepcopy(split)
    with torch.no_grad():
        for mine, theirs in zip(twin.parameters(), split.parameters(), strict=True):
            mine.copy_(theirs.grad)
    return dict(twin.plain().named_parameters())


@every_form
def test_new_units_change_nothing_at_birth(kind: str, form: str) -> None:
    x, model = sequence(), make(kind, form)
    before = outputs_of(model, x)
    made = grown(model, x, values=False)
    assert made.rnn.weight_ih_l0.shape[1] == 8
    assert (made.rnn.proj_size or made.rnn.hidden_size) == (model.rnn[0].proj_size or 4) + 3
    assert_equal(outputs_of(made, x), before)
    randomise_new_blocks(made)
    assert largest_difference(outputs_of(made, x), before) > 1e-3  # the control


@every_form
def test_outputs_and_gradients_are_those_of_torchs_own_layer(kind: str, form: str) -> None:
    """With the merged weights, at every width that it has had."""
    x, model = sequence(), splitgrow.growable(make(kind, form), sequence())
    for request in ({"rnn": 2}, {"stem": 2}, {"stem": 1, "rnn": 1}, {"rnn": 1}):
        model.expand(request, freeze=False)  # type: ignore[attr-defined]
        randomise_new_blocks(model)
        plain: Any = splitgrow.merge(model)
        assert type(plain.rnn) is KINDS[kind]
        ours, theirs = with_gradients(model, x), with_gradients(plain, x)
        assert_equal(ours[0], theirs[0])
        assert_equal(ours[1], theirs[1])
        scale = max(gradient.abs().max().item() for gradient in theirs[2].values())
        for name, gradient in whole_gradients(model.rnn).items():
            assert (gradient - theirs[2][f"rnn.{name}"]).abs().max() <= 1e-12 * scale
        # The control: one number of a gate's helper is off.
        with torch.no_grad():
            model.rnn[1].weight_hh_l0[-1, 0] += 0.01
        assert largest_difference(outputs_of(model, x), ours[0]) > 1e-9


@every_form
def test_earlier_generations_are_torchs_own_layer_on_its_own_tensors(kind: str, form: str) -> None:
    x, model = sequence(), make(kind, form)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    closed, made = [outputs_of(model, x)], splitgrow.growable(model, x)
    for _ in range(2):
        made.expand({"stem": 1, "rnn": 1}, optimizer=optimizer)  # type: ignore[attr-defined]
        for _ in range(3):
            optimizer.zero_grad()
            sum(t.square().sum() for t in tensors_of(made(x))).backward()  # type: ignore[union-attr]
            optimizer.step()
        closed.append(outputs_of(made, x))
        made.next_generation()  # type: ignore[attr-defined]
    for generation, expected in enumerate(closed):
        with made.at(generation):  # type: ignore[attr-defined]
            assert_identical(outputs_of(made, x), expected)


@pytest.mark.parametrize("kind", CELLS)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(4, 3), (3,)])
def test_cells_too(kind: str, bias: bool, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    model = randomise(Net(CELLS[kind](5, 4, bias=bias)).double())
    x = sequence(*shape)
    before = outputs_of(model, x)
    made = grown(model, x, freeze=False, values=False)
    assert made.rnn.hidden_size == 7
    assert_equal(outputs_of(made, x), before)
    randomise_new_blocks(made)
    plain = splitgrow.merge(made)
    ours, theirs = with_gradients(made, x), with_gradients(plain, x)
    assert_equal(ours[:2], theirs[:2])
    for name, gradient in whole_gradients(made.rnn).items():
        assert_equal(gradient, theirs[2][f"rnn.{name}"])


def test_a_relu_layer_keeps_its_nonlinearity() -> None:
    torch.manual_seed(0)
    rnn = nn.RNN(5, 4, nonlinearity="relu")
    made = grown(Net(rnn).double(), sequence())
    assert made.rnn.nonlinearity == "relu"
    merged: Any = splitgrow.merge(made)
    assert merged.rnn.nonlinearity == "relu"
    assert_equal(outputs_of(merged, sequence()), outputs_of(made, sequence()))


@pytest.mark.parametrize("kind", KINDS)
def test_a_sequence_without_a_batch(kind: str) -> None:
    x = sequence(6, 3)
    made = grown(make(kind, "both directions"), x)
    assert_equal(outputs_of(made, x), outputs_of(splitgrow.merge(made), x))


@pytest.mark.parametrize("kind", KINDS)
def test_dropout_between_layers_draws_as_torchs_own(kind: str) -> None:
    x, results = sequence(), []
    made = grown(make(kind, "stack", dropout=0.5), x, freeze=False)
    merged = splitgrow.merge(made).train()
    for network in (made.train(), merged):
        torch.manual_seed(5)
        results.append(outputs_of(network, x))
    assert_equal(*results)
    assert largest_difference(outputs_of(made, x), results[0]) > 1e-3  # another draw
    assert made.rnn.dropout == merged.rnn.dropout == 0.5  # type: ignore[union-attr]


def test_a_dropout_that_does_nothing_is_warned_of_once() -> None:
    with pytest.warns(UserWarning, match="dropout option adds dropout"):
        model = make("GRU", dropout=0.5)
    grown(model, sequence())


# -- states ---------------------------------------------------------------------------------------


class Given(nn.Module):
    """A recurrent layer that starts from a state."""

    def __init__(self, state: Any) -> None:
        super().__init__()
        self.rnn, self.hidden_size = nn.LSTM(3, 4), 4
        self.head, self.source = nn.Linear(4, 2), nn.Linear(3, 4)
        vars(self)["state"] = state

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x, self.state(self, x))[0])


def of_its_size(net: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    zeros = torch.zeros(1, x.shape[1], net.hidden_size, dtype=x.dtype)
    return zeros, zeros


def of_the_layers_size(net: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    return tuple(x.new_zeros(1, x.size(1), net.rnn.hidden_size) for _ in range(2))  # type: ignore[return-value]


def of_another_layer(net: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    state = net.source(x[:1])
    return state, state.tanh()


def of_another_call(net: Any, x: Tensor) -> Any:
    return net.rnn(x.flip(0))[1]


def written_down(net: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    return torch.ones(1, x.shape[1], 4, dtype=x.dtype), x.new_zeros(1, x.shape[1], 4)


@pytest.mark.parametrize(
    "state", [of_its_size, of_the_layers_size, of_another_layer, of_another_call]
)
def test_a_given_state_grows_along(state: Any) -> None:
    x, model = sequence(), randomise(Given(state).double().eval())
    before = outputs_of(model, x)
    made: Any = splitgrow.growable(model, x)
    made.expand_layer("rnn", 3)
    assert made.hidden_size == (7 if state is of_its_size else 4)
    assert made.source.out_features == (7 if state is of_another_layer else 4)
    assert_equal(outputs_of(made, x), before)
    randomise_new_blocks(made)
    merged = splitgrow.merge(made)
    assert_equal(outputs_of(merged, x), outputs_of(made, x))
    made.next_generation()
    with made.at(0):
        assert_identical(outputs_of(made, x), before)


def test_a_state_of_a_width_that_is_written_down_fixes_the_layer() -> None:
    made: Any = splitgrow.growable(Given(written_down).double(), sequence())
    layer = next(layer for layer in made.layers if layer.name == "rnn")
    assert not layer.growable
    assert "`LSTM` at " in layer.reason
    assert "hidden_size" in layer.reason


def test_a_state_of_another_width_is_torchs_own_error() -> None:
    made = grown(make("GRU"), sequence())
    with pytest.raises(RuntimeError, match="Expected hidden size"):
        made(sequence(), torch.zeros(1, 3, 4, dtype=torch.float64))
    with pytest.raises(RuntimeError, match="must be equal to input_size"):
        made.rnn(sequence(6, 3, 5))


# -- packed sequences -----------------------------------------------------------------------------


class Packed(nn.Module):
    """A layer on the data of packed sequences, and a recurrent one on these."""

    def __init__(self, kind: str, *, pack: bool) -> None:
        super().__init__()
        self.pack, self.stem = pack, nn.Linear(3, 5)
        self.rnn = KINDS[kind](5, 4, num_layers=2, bidirectional=True)
        self.head = nn.Linear(8, 2)

    def forward(self, x: Any) -> Any:
        if self.pack:
            x = pack_padded_sequence(x, torch.tensor([3, 6, 2]), enforce_sorted=False)
        made = PackedSequence(self.stem(x.data), *x[1:])
        packed, states = self.rnn(made)
        return self.head(packed.data), states


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("pack", [True, False])
def test_packed_sequences_pass_through(kind: str, pack: bool) -> None:
    torch.manual_seed(0)
    model: Any = randomise(Packed(kind, pack=pack).double().eval())
    x: Any = sequence()
    if not pack:
        x = pack_sequence([sequence(n, 3) for n in (5, 2, 4)], enforce_sorted=False)
    before = model(x)[0]
    made: Any = splitgrow.growable(model, (x,))
    made.expand({"stem": 2, "rnn": 1})
    assert_equal(made(x)[0], before)
    randomise_new_blocks(made)
    assert_equal(made(x), splitgrow.merge(made)(x))
    with made.at(0):
        assert_identical(made(x)[0], before)


# -- in the place of the plain layer --------------------------------------------------------------


def test_a_grown_layer_answers_as_the_plain_one_does() -> None:
    made = grown(make("LSTM", "both directions"), sequence())
    split, plain = made.rnn, splitgrow.merge(made).rnn
    assert (split.hidden_size, split.input_size, split.num_layers) == (7, 8, 2)
    for ours, theirs in zip(split.all_weights, plain.all_weights, strict=True):  # type: ignore[arg-type,union-attr]
        assert_identical(ours, theirs)
    assert len(split._flat_weights) == len(plain._flat_weights)  # type: ignore[arg-type,union-attr]
    before = outputs_of(made, sequence())
    split.flatten_parameters()
    assert_identical(outputs_of(made, sequence()), before)


def test_it_is_copied_pickled_and_saved(tmp_path: Path) -> None:
    x, made = sequence(), grown(make("LSTM", "stack"), sequence())
    expected = outputs_of(made, x)
    assert_identical(outputs_of(copy.deepcopy(made), x), expected)
    assert_identical(outputs_of(pickle.loads(pickle.dumps(made)), x), expected)
    splitgrow.save(made, tmp_path / "made.pt")
    again = make("LSTM", "stack")
    splitgrow.load(again, tmp_path / "made.pt")
    assert_identical(outputs_of(again, x), expected)
    fresh: Any = splitgrow.growable(make("LSTM", "stack"), x)
    fresh.load_state_dict(made.state_dict())
    assert_identical(outputs_of(fresh, x), expected)


def test_replaced_parameters_count_for_one_call() -> None:
    made = grown(make("GRU", "stack"), sequence(), freeze=False)
    own = dict(made.named_parameters())

    def loss(parameters: dict[str, Tensor]) -> Tensor:
        results = torch.func.functional_call(made, parameters, (sequence(),))
        return sum(t.square().sum() for t in tensors_of(results))  # type: ignore[return-value]

    found = torch.func.grad(loss)(own)
    loss(own).backward()
    for name, parameter in own.items():
        assert_equal(found[name], parameter.grad)
    doubled = copy.deepcopy(made)
    with torch.no_grad():
        for parameter in doubled.parameters():
            parameter.mul_(2)
    other = {name: 2 * parameter for name, parameter in own.items()}
    results = torch.func.functional_call(made, other, (sequence(),))
    assert_equal(results, outputs_of(doubled, sequence()))


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.parametrize("kind", KINDS)
def test_compiled_and_under_autocast_it_is_as_the_plain_layer(kind: str) -> None:
    x, made = sequence(), grown(make(kind, "stack"), sequence())
    compiled = torch.compile(made, backend="aot_eager")
    assert_equal(compiled(x), outputs_of(made, x))
    made, x = made.float(), x.float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours, theirs = outputs_of(made, x), outputs_of(splitgrow.merge(made), x)
    assert {t.dtype for t in tensors_of(ours)} == {t.dtype for t in tensors_of(theirs)}
    pairs = zip(tensors_of(ours), tensors_of(theirs), strict=True)
    assert all((one - other).abs().max() <= 2**-6 for one, other in pairs)


def test_momentum_goes_on_for_what_existed() -> None:
    x, model = sequence(), make("LSTM")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    made: Any = splitgrow.growable(model, x)
    sum(t.sum() for t in tensors_of(made(x))).backward()  # type: ignore[union-attr]
    optimizer.step()
    momentum = optimizer.state[made.rnn.weight_hh_l0]["momentum_buffer"].clone()
    own = made.rnn.weight_hh_l0
    made.expand({"rnn": 2}, freeze=False, optimizer=optimizer)
    assert torch.equal(optimizer.state[own]["momentum_buffer"], momentum)
    parameters = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert parameters == {id(p) for p in made.parameters()}


# -- what cannot grow -----------------------------------------------------------------------------


def test_the_width_of_a_projection_stays_below_that_of_the_hidden_units() -> None:
    made: Any = splitgrow.growable(make("LSTM", "projection"), sequence())
    assert made.layers[1].width == 3
    made.expand_layer("rnn", 8)
    assert made.rnn.proj_size == 11
    assert made.rnn.hidden_size == 12
    state = outputs_of(made, sequence())
    with pytest.raises(ValueError, match="more than 12 hidden units, and it has 12"):
        made.expand_layer("rnn", 1)
    assert_identical(outputs_of(made, sequence()), state)


def test_new_units_are_as_torch_would_draw_them_for_the_whole_layer() -> None:
    model: Any = splitgrow.growable(Net(nn.GRU(5, 100)).double(), sequence())
    model.expand_layer("rnn", 300)
    helper, new = model.rnn[1], model.rnn[2]
    assert not any(p.any() for p in helper.parameters())
    for parameter in new.parameters():
        assert 0.045 < parameter.abs().max() <= 400**-0.5
    assert new.weight_hh_l0.shape == (900, 400)


def test_units_that_an_rms_norm_reads_are_silent_and_learn() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 5), nn.GRUCell(5, 4), nn.RMSNorm(4), nn.Linear(4, 2))
    x, model = sequence(6, 3), randomise(net.double())
    before = outputs_of(model, x)
    made: Any = splitgrow.growable(model, x)
    made.expand_layer("1", 2)
    assert_equal(outputs_of(made, x), before)
    assert not any(p.any() for p in made[1][2].parameters())
    assert made[1][1].weight_hh.any()
    made(x).square().sum().backward()
    assert any(p.grad is not None and p.grad.any() for p in made[1][2].parameters())


class Flattening(nn.Module):
    """Asks for the layout of the weights in each call, as programs for several GPUs do."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.head = nn.LSTM(3, 4, dropout=0.3, num_layers=2), nn.Linear(4, 2)

    def forward(self, x: Tensor, hidden: Any = None) -> tuple[Tensor, Any]:
        self.rnn.flatten_parameters()
        y, hidden = self.rnn(x, hidden)
        return self.head(y), hidden


def test_a_model_that_lays_its_weights_out_and_hands_its_states_on_grows() -> None:
    """States are handed on from batch to batch, detached; growth comes in between."""
    torch.manual_seed(0)
    made: Any = splitgrow.growable(randomise(Flattening().double().eval()), sequence())
    y, states = outputs_of(made, sequence())
    made.expand_layer("rnn", 2)
    after, wider = outputs_of(made, sequence())
    assert_equal(after, y)
    assert [state.shape[-1] for state in wider] == [6, 6]
    padded = tuple(nn.functional.pad(state, (0, 2)) for state in states)
    randomise_new_blocks(made)
    plain = splitgrow.merge(made)
    assert_equal(outputs_of(made, sequence(), padded), outputs_of(plain, sequence(), padded))
