"""Growth beside low-rank adapters: exact where both can be, refused with the way out elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers import assert_equal
from snapshots import unchanged
from torch import Tensor, nn

import splitgrow
from benchmarks.vision import torchvision
from splitgrow.errors import UnsupportedModelError
from splitgrow.utils.adapters import is_adapter

WAY_OUT = r"is an adapter \(.*\).*merge_and_unload\(\).*splitgrow\.merge\(model\)"


class Net(nn.Module):
    def __init__(self, around: Callable[[nn.Linear], nn.Module] = lambda layer: layer) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.a, self.c = nn.Linear(6, 8).double(), nn.Linear(8, 2).double()
        self.b = around(nn.Linear(8, 8).double()).double()

    def forward(self, x: Tensor) -> Tensor:
        return self.c(torch.tanh(self.b(torch.tanh(self.a(x)))))


def inputs() -> Tensor:
    return torch.randn(5, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def stirred(model: Any, *names: str) -> Any:
    """The model, with other values in the parameters that have one of the names in theirs."""
    torch.manual_seed(2)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if any(each in name for each in names):
                parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


# -- PEFT ------------------------------------------------------------------------------------------

ADAPTERS: dict[str, dict[str, Any]] = {
    "LoraConfig": {"r": 2},
    "LoraConfig, DoRA": {"r": 2, "use_dora": True},
    "IA3Config": {"feedforward_modules": []},
    "LoHaConfig": {"r": 2},
    "LoKrConfig": {"r": 2},
    "OFTConfig": {"oft_block_size": 4, "r": 0},
    "VeraConfig": {"r": 2},
    "HRAConfig": {"r": 2},
    "RandLoraConfig": {"r": 2},
    "AdaLoraConfig": {"init_r": 2, "total_step": 10},
}


@pytest.fixture
def peft() -> Any:
    torchvision()  # transformers imports it
    return pytest.importorskip("peft")


def config(peft: Any, kind: str, target: str = "b") -> Any:
    return getattr(peft, kind.partition(",")[0])(target_modules=[target], **ADAPTERS[kind])


peft_tests = [
    pytest.mark.zoo,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning:peft"),
]


def marked(test: Any) -> Any:
    for mark in peft_tests:
        test = mark(test)
    return test


@marked
@pytest.mark.parametrize("kind", ADAPTERS)
def test_a_model_with_adapters_is_not_made_growable_and_stays_as_it_is(kind: str, peft) -> None:
    model = stirred(peft.get_peft_model(Net(), config(peft, kind)), "b.")
    expected = model(inputs()).detach()
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    for part in (model, model.base_model.model):
        with unchanged(part), pytest.raises(UnsupportedModelError, match=WAY_OUT):
            splitgrow.growable(part, inputs())
    assert [name for name, p in model.named_parameters() if p.requires_grad] == trained
    assert len(trained) > 0
    assert_equal(model.merge_and_unload()(inputs()), expected)


@marked
@pytest.mark.parametrize("kind", ADAPTERS)
def test_the_way_out_is_exact(kind: str, peft) -> None:
    """Merge, grow, make plain, and add adapters anew."""
    model = stirred(peft.get_peft_model(Net(), config(peft, kind)), "b.")
    expected = model(inputs()).detach()
    grown: Any = splitgrow.growable(model.merge_and_unload(), inputs())
    grown.expand({"a": 3, "b": 2})
    assert_equal(grown(inputs()), expected)
    stirred(grown, ".1.")
    plain = splitgrow.merge(grown)
    assert (plain(inputs()) - expected).abs().max() > 1e-3
    again = stirred(peft.get_peft_model(plain, config(peft, "LoraConfig")), "lora")
    expected = again(inputs()).detach()
    assert sum(p.numel() for p in again.parameters() if p.requires_grad) == 2 * (11 + 10)
    assert_equal(again.merge_and_unload()(inputs()), expected)


@marked
def test_adapters_on_layers_that_did_not_grow_merge_and_keep_the_model_from_changing(peft) -> None:
    model: Any = splitgrow.growable(Net(), inputs())
    model.expand_layer("a", 3)
    adapted = stirred(peft.get_peft_model(model, config(peft, "LoraConfig", "c")), "lora")
    trained = [name for name, p in adapted.named_parameters() if p.requires_grad]
    for change in (
        lambda: model.expand_layer("a", 1),
        lambda: model.insert_layer("a"),
        model.next_generation,
        model.consolidate,
        model.absorb,
    ):
        with pytest.raises(UnsupportedModelError, match=WAY_OUT):
            change()
    assert [name for name, p in adapted.named_parameters() if p.requires_grad] == trained
    expected = adapted(inputs()).detach()
    assert_equal(adapted.merge_and_unload()(inputs()), expected)
    model.next_generation()


@marked
@pytest.mark.parametrize("target", ["b", "0", "all-linear"])
def test_adapters_on_a_grown_layer_are_refused(target: str, peft) -> None:
    model: Any = splitgrow.growable(Net(), inputs())
    model.expand_layer("a", 3)
    expected = model(inputs()).detach()
    where = target if target == "all-linear" else [target]
    made = peft.LoraConfig(target_modules=where, r=2)
    with pytest.raises(
        (ValueError, splitgrow.SplitGrowError), match=r"SplitLayer|splitgrow\.merge"
    ):
        peft.get_peft_model(model, made)
    assert_equal(model(inputs()), expected)


@marked
def test_a_module_that_is_saved_beside_adapters_counts_as_one(peft) -> None:
    made = peft.LoraConfig(target_modules=["b"], modules_to_save=["c"], r=2)
    model = peft.get_peft_model(Net(), made)
    found = {path.rpartition(".")[2] for path, m in model.named_modules() if is_adapter(m)}
    assert found == {"b", "c"}


# -- adapters of other libraries, and of one's own -------------------------------------------------


def library_layer(name: str) -> type[nn.Module]:
    """A stand-in for a layer of another library, which wraps a Linear."""

    class Adapter(nn.Module):
        def __init__(self, base: nn.Module) -> None:
            super().__init__()
            self.base_layer = base

        def forward(self, x: Tensor) -> Tensor:
            return self.base_layer(x)

    Adapter.__module__, _, Adapter.__qualname__ = name.rpartition(".")
    return Adapter


@pytest.mark.parametrize(
    "name",
    [
        "loralib.layers.LoRALayer",
        "adapters.methods.adapter_layer_base.AdapterLayerBase",
        "lycoris.modules.base.LycorisBaseModule",
        "torchtune.modules.peft.lora.LoRALinear",
    ],
)
def test_an_adapter_of_a_known_library_is_refused(name: str) -> None:
    kind: Any = type("Linear", (library_layer(name),), {})
    with pytest.raises(UnsupportedModelError, match=WAY_OUT):
        splitgrow.growable(Net(kind), inputs())


class LowRank(nn.Module):
    """An adapter of one's own, which `merged` makes a plain layer by one of two ways."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base, self.way = base, ""
        self.down, self.up = nn.Linear(8, 2, bias=False), nn.Linear(2, 8, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.up(self.down(x))

    @torch.no_grad()
    def merged(self) -> nn.Module:
        delta = self.up.weight @ self.down.weight
        if self.way == "in place":
            self.base.weight.data += delta
            return self.base
        if self.way == "assigned":
            self.base.weight.data = self.base.weight.data + delta
            return self.base
        plain = nn.Linear(self.base.in_features, self.base.out_features).double()
        plain.weight.copy_(self.base.weight + delta)
        plain.bias.copy_(self.base.bias)
        return plain


class Unmergeable(LowRank):
    def merge(self) -> None:
        """Puts the adapter into the base layer's weight."""

    def unmerge(self) -> None:
        """Takes it out again."""


def test_a_layer_that_can_merge_and_unmerge_is_an_adapter() -> None:
    with pytest.raises(UnsupportedModelError, match=r"`b` is an adapter \(.*Unmergeable\)"):
        splitgrow.growable(Net(Unmergeable), inputs())
    assert not is_adapter(LowRank(nn.Linear(8, 8)))
    assert is_adapter(Unmergeable(nn.Linear(8, 8)))
    tokens = type("Tokens", (nn.Module,), {"merge": lambda: None, "unmerge": lambda: None})
    assert not is_adapter(tokens())  # it merges something, but no layer


@pytest.mark.parametrize("way", ["in place", "assigned", "a new layer"])
@pytest.mark.parametrize("layer", ["a", "b.base"])
def test_an_adapter_of_ones_own_grows_and_merges_by_the_attributes_of_the_layer(
    layer: str, way: str
) -> None:
    model: Any = splitgrow.growable(Net(LowRank), inputs())
    before = model(inputs()).detach()
    model.expand_layer(layer, 3, freeze=False)
    assert_equal(model(inputs()), before)
    stirred(model, "")
    expected = model(inputs()).detach()
    model.b.way = way
    model.b = model.b.merged()
    assert_equal(model(inputs()), expected)
    assert (expected - before).abs().max() > 1e-2


@pytest.mark.parametrize("way", ["in place", "assigned"])
def test_a_merge_into_a_closed_generation_is_refused_and_writes_nothing(way: str) -> None:
    model: Any = splitgrow.growable(Net(LowRank), inputs())
    model.expand_layer("a", 3)
    stirred(model, "1.")
    model.b.way, expected = way, model(inputs()).detach()
    with unchanged(model), pytest.raises(splitgrow.SplitGrowError, match="nothing was written"):
        model.b.merged()
    assert_equal(model(inputs()), expected)


def test_a_closed_generation_has_its_adapters_and_they_train_without_freezing() -> None:
    model: Any = splitgrow.growable(Net(LowRank), inputs())
    model.expand_layer("a", 1)
    assert not model.b.up.weight.requires_grad
    free: Any = splitgrow.growable(Net(LowRank), inputs())
    free.expand_layer("a", 1, freeze=False)
    assert free.b.up.weight.requires_grad


class Raw(nn.Module):
    """LoRA on raw parameters."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base
        self.down, self.up = nn.Parameter(torch.randn(2, 8)), nn.Parameter(torch.randn(8, 2))

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + x @ self.down.T @ self.up.T


class Folded(Raw):
    """LoRA that adds itself to the weight at each call."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.base.weight + self.up @ self.down, self.base.bias)


class Dora(Raw):
    """DoRA: a direction and a magnitude."""

    def forward(self, x: Tensor) -> Tensor:
        weight = self.base.weight + self.up @ self.down
        return F.linear(x, weight / weight.norm(dim=1, keepdim=True), self.base.bias)


class Scaled(nn.Module):
    """IA3: a factor for each output."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base, self.factor = base, nn.Parameter(torch.linspace(0.5, 1.5, 8))

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) * self.factor


class Bottleneck(nn.Module):
    """Houlsby's adapter behind a layer."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base, self.down, self.up = base, nn.Linear(8, 3), nn.Linear(3, 8)

    def forward(self, x: Tensor) -> Tensor:
        h = self.base(x)
        return h + self.up(torch.relu(self.down(h)))


class Gated(nn.Module):
    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base, self.gate = base, nn.Parameter(torch.tensor(0.3))

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) * self.gate


class Halving(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight / 2


def parametrized(base: nn.Linear) -> nn.Module:
    nn.utils.parametrize.register_parametrization(base, "weight", Halving())
    return base


OWN: dict[str, tuple[Callable[[nn.Linear], nn.Module], set[str]]] = {
    "low rank": (LowRank, {"a", "b.base", "b.down", "b.up"}),
    "raw": (Raw, {"a", "b.base", "b.down"}),
    "folded": (Folded, set()),
    "DoRA": (Dora, set()),
    "IA3": (Scaled, {"a", "b.base"}),
    "bottleneck": (Bottleneck, {"a", "b.base", "b.down", "b.up"}),
    "gated": (Gated, {"a", "b.base"}),
    "parametrized": (parametrized, {"a", "b"}),
    "weight norm": (nn.utils.parametrizations.weight_norm, {"a", "b"}),
    "spectral norm": (nn.utils.parametrizations.spectral_norm, set()),
}
"""Wrappers of a Linear, and the layers beside the last that grow with them."""


@pytest.mark.parametrize("kind", OWN)
def test_layers_in_and_around_a_wrapper_grow_exactly_or_are_fixed(kind: str) -> None:
    around, growing = OWN[kind]
    model: Any = splitgrow.growable(Net(around).eval(), inputs())
    found = {layer.name for layer in model.layers if layer.growable}
    assert found - {"c"} == growing
    before = model(inputs()).detach()
    for layer in sorted(growing):
        one: Any = splitgrow.growable(Net(around).eval(), inputs())
        one.expand_layer(layer, 3)
        assert_equal(one(inputs()), before)
        stirred(one, ".1.")
        assert (one(inputs()) - before).abs().max() > 1e-4
        assert_equal(splitgrow.merge(one)(inputs()), one(inputs()))


# -- quantized layers ------------------------------------------------------------------------------


class Linear4bit(nn.Linear):
    """A stand-in for that of bitsandbytes, whose weight is packed."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__(8, 8)
        self.scale = base.weight.detach().abs().max()
        packed = (base.weight.detach() / self.scale * 127 + 128).round().to(torch.uint8)
        self.weight = nn.Parameter(packed.view(-1, 1), requires_grad=False)
        self.bias = nn.Parameter(base.bias.detach())

    def forward(self, x: Tensor) -> Tensor:
        weight = (self.weight.view(8, 8).to(x.dtype) - 128) / 127 * self.scale
        return F.linear(x, weight, self.bias)


class Quantized(Tensor):
    """A stand-in for torchao's tensors: of the plain shape and type, kept as bytes."""

    kept: Tensor

    @staticmethod
    def __new__(cls, kept: Tensor) -> Quantized:
        make: Any = Tensor._make_wrapper_subclass
        return make(cls, kept.shape, dtype=torch.float64)  # type: ignore[no-any-return]

    def __init__(self, kept: Tensor) -> None:
        self.kept = kept

    def dequantize(self) -> Tensor:  # type: ignore[override]
        return self.kept.double() / 100

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.detach.default:
            return cls(args[0].kept)
        plain = torch.utils._pytree.tree_map(
            lambda t: t.dequantize() if isinstance(t, cls) else t, args
        )
        return func(*plain, **(kwargs or {}))


def quantized(base: nn.Linear) -> nn.Module:
    kept = (base.weight.detach() * 100).round().to(torch.int8)
    base.weight = nn.Parameter(Quantized(kept), requires_grad=False)
    return base


@pytest.mark.parametrize("around", [Linear4bit, quantized], ids=["packed", "tensor subclass"])
def test_a_quantized_layer_and_those_before_it_are_fixed_with_the_way_out(around: Any) -> None:
    torch.manual_seed(1)
    model: Any = Net()
    model.b = around(model.b)
    expected = model(inputs()).detach()
    grown: Any = splitgrow.growable(model, inputs())
    for layer in ("a", "b"):
        with (
            unchanged(grown),
            pytest.raises(splitgrow.SplitGrowError, match=r"quantized \(.*before it is quantized"),
        ):
            grown.expand_layer(layer, 2)
    assert_equal(grown(inputs()), expected)


def test_a_packed_layer_is_refused_as_a_form_of_a_plain_one() -> None:
    splitgrow.register_layer(Linear4bit, like=nn.Linear)
    try:
        torch.manual_seed(1)
        model: Any = Net()
        model.b = Linear4bit(model.b)
        with pytest.raises(splitgrow.SplitGrowError, match=r"`weight` is \(64, 1\)"):
            splitgrow.growable(model, inputs())
    finally:
        splitgrow.unregister_layer(Linear4bit)


class Attributed(nn.Parameter):
    """A stand-in for bitsandbytes' parameters, which keep their scale in an attribute."""

    scale: Tensor

    def __new__(cls, data: Tensor, scale: Tensor) -> Attributed:
        made = Tensor._make_subclass(cls, data, False)
        made.scale = scale
        return made

    def __deepcopy__(self, memo: Any) -> Attributed:
        return Attributed(self.data, self.scale)  # it shares the bytes, as some packages do


class Packed(nn.Linear):
    """A layer with such a weight."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__(8, 8)
        scale = base.weight.detach().abs().max()
        packed = (base.weight.detach() / scale * 127).round().to(torch.int8)
        self.weight = Attributed(packed, scale)
        self.bias = nn.Parameter(base.bias.detach())

    def forward(self, x: Tensor) -> Tensor:
        weight: Any = self.weight
        return F.linear(x, weight.to(x.dtype) / 127 * weight.scale, self.bias)


class PackedBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = Packed(nn.Linear(8, 8).double())

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layer(x).tanh()


def test_weights_with_attributes_are_run_as_they_are_and_no_block_of_them_is_copied() -> None:
    torch.manual_seed(0)
    blocks = nn.ModuleList([PackedBlock(), PackedBlock()])
    head = nn.Linear(8, 2).double()
    model: Any = splitgrow.growable(nn.Sequential(*blocks, head).eval(), torch.ones(2, 8).double())
    before = model(torch.ones(2, 8).double())
    for kind in ("block", "interpolate"):
        with pytest.raises(splitgrow.InsertionError, match=r"`0.layer`: its `weight` is quantized"):
            model.insert_layer("0", kind)
    model.expand_layer("2", 3)
    assert_equal(model(torch.ones(2, 8).double())[:, :2], before)
