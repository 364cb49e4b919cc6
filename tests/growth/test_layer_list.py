"""The layers of a model: looked up, chosen, and as a table."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import splitgrow


@pytest.fixture
def net() -> splitgrow.Handle:
    body = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3))
    parts = {"body": body, "flat": nn.Flatten(), "head": nn.Linear(8 * 16, 5)}
    model = nn.Sequential()
    for name, part in parts.items():
        model.add_module(name, part)
    return splitgrow.handle(splitgrow.growable(model, torch.randn(2, 3, 8, 8)))


def test_a_layer_is_found_by_index_name_and_slice(net: splitgrow.Handle) -> None:
    layers = net.layers
    assert layers["head"] is layers[2] or layers["head"] == layers[2]
    assert layers[-1].name == "head"
    assert layers[:2].names == ("body.0", "body.2")
    with pytest.raises(ValueError, match=r"no layer 'haed'; did you mean 'head'\?"):
        layers["haed"]


@pytest.mark.parametrize(
    ("conditions", "names"),
    [
        ({"kind": "Conv2d"}, ("body.0", "body.2")),
        ({"kind": ("Conv2d", "Linear")}, ("body.0", "body.2", "head")),
        ({"kind": "Embedding"}, ()),
        ({"name": "body.*"}, ("body.0", "body.2")),
        ({"output": True}, ("head",)),
        ({"output": False, "name": "*.0"}, ("body.0",)),
        ({"growable": False}, ()),
        ({}, ("body.0", "body.2", "head")),
    ],
)
def test_where_keeps_the_layers_that_meet_all_conditions(
    net: splitgrow.Handle, conditions: dict[str, object], names: tuple[str, ...]
) -> None:
    assert net.layers.where(**conditions).names == names


def test_layers_are_a_tuple_that_prints_as_a_table(net: splitgrow.Handle) -> None:
    layers = net.layers
    assert isinstance(layers, tuple)
    assert layers == tuple(layers)
    assert str(layers).splitlines()[1].split() == [
        *("#", "layer", "type", "units", "step", "grows", "with", "can", "grow")
    ]
    assert "yes, output" in str(layers)
    assert layers._repr_html_().count("<tr>") == 1 + len(layers)


class Reshaped(nn.Module):
    """Returns the units of a layer whose width is fixed, and of one behind a residual sum."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 6), nn.Linear(6, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.first(x)
        return hidden + self.second(hidden).relu()


def test_every_layer_whose_units_are_returned_is_an_output() -> None:
    net = splitgrow.growable(Reshaped(), torch.ones(2, 4))
    assert [layer.output for layer in net.layers] == [True, True]


def test_on_a_screen_long_tables_and_names_are_cut_and_print_has_all() -> None:
    deep = nn.Sequential(*[nn.Linear(2, 2) for _ in range(30)])
    for _ in range(6):
        deep = nn.Sequential(deep)
    named = nn.ModuleDict({"a_module_with_a_long_name": deep})

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parts = named

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.parts["a_module_with_a_long_name"](x)

    net = splitgrow.growable(Net(), torch.ones(1, 2))
    edit = net.expand({layer.name: 1 for layer in net.layers})
    for shown in (net.layers, edit, net.summary()):
        lines = repr(shown).splitlines()
        assert len(lines) <= 25
        assert max(map(len, lines)) <= 220
        assert "more; print() shows all" in lines[-1]
        assert all(layer.name in str(shown) for layer in net.layers)
