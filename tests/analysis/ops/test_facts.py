"""The facts in the table of ops hold in values, for calls of torch's own list and for modules."""

from __future__ import annotations

import math
import operator
import warnings
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import pytest
import torch
from op_list import list_of_ops, raw_samples
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from splitgrow.analysis.ops import Arithmetic, Facts, Values, facts_of, is_in_place_name
from splitgrow.analysis.ops.facts import EVERYTHING, ValueRange
from splitgrow.analysis.ops.registry import OPS
from splitgrow.analysis.ops.targets import target_of

try:
    INFOS = list_of_ops()
except ImportError as error:  # torch keeps the list to itself and may move it
    pytest.skip(f"this torch comes without its list of ops: {error}", allow_module_level=True)

ROUNDING = 1e-9


class Call:
    """One call of an op, which can be repeated on other tensors."""

    def __init__(self, function: Any, args: Any, kwargs: Any, module: Any = None) -> None:
        self.function, self.module, self.kwargs = function, module, kwargs
        self.name, self.target, self.args = target_of(function, tuple(args))
        if module is not None:
            self.name, self.target, self.args = type(module).__name__, type(module), tuple(args)
        self._given = (tuple(args), kwargs)
        self.tensors = [t for t in pytree.tree_leaves(self._given) if _is_real(t)]

    @property
    def in_place(self) -> bool:
        """Whether it may write into what it is given."""
        own = self.target if isinstance(self.target, str) else self.name
        told = self.kwargs.get("inplace") or any(a is True for a in self.args[1:])
        return is_in_place_name(own) or bool(told) or "out" in self.kwargs

    def on(self, change: Callable[[Tensor], Tensor]) -> Any:
        """The result for changed tensors."""
        args, kwargs = pytree.tree_map(lambda t: change(t) if _is_real(t) else t, self._given)
        torch.default_generator.manual_seed(0)  # the other way looks at all devices
        return self.function(*args, **kwargs)

    def plain(self) -> Any:
        """The result, on copies."""
        return self.on(Tensor.clone)


def _is_real(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and leaf.is_floating_point()


def _results(result: Any) -> list[Tensor]:
    return [leaf for leaf in _tensors(result) if _is_real(leaf)]


def _tensors(result: Any) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(result) if isinstance(leaf, Tensor)]


def _within(result: Any, bounds: ValueRange) -> bool:
    slack = ROUNDING * max(1.0, *(abs(end) for end in bounds if math.isfinite(end)), 1.0)
    low, high = bounds[0] - slack, bounds[1] + slack
    return all(bool(((t >= low) & (t <= high) | t.isnan()).all()) for t in _results(result))


def _close(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and torch.allclose(one, other, 1e-7, 1e-7, equal_nan=True)


# --- one check for each fact ---------------------------------------------------------------------


def wrong_memory(call: Call, facts: Facts) -> str:
    if not facts.fresh or call.in_place:
        return ""
    kept: list[Tensor] = []
    made = call.on(lambda t: kept.append(t.clone()) or kept[-1])  # type: ignore[func-returns-value]
    given = {t.untyped_storage()._cdata for t in kept}
    shared = any(t.untyped_storage()._cdata in given for t in _tensors(made))
    return "its result lies in an operand's memory" if shared else ""


def wrong_bounds(call: Call, facts: Facts) -> str:
    bounds = facts.bounds_of(call.args, call.kwargs, call.module)
    inside = bounds == EVERYTHING or _within(call.plain(), bounds)
    if inside and facts.clip and bounds != EVERYTHING and call.tensors:
        x, once = call.tensors[0], _results(call.plain())[0]
        kept = (x >= bounds[0]) & (x <= bounds[1])
        same = once.shape == x.shape and torch.equal(once[kept], x[kept])
        return "" if same else "it changes what lies in its bounds"
    return "" if inside else f"its result leaves {bounds}"


def wrong_carry(call: Call, facts: Facts) -> str:
    if facts.carry is None or not call.tensors or (call.kwargs and len(call.tensors) > 1):
        return ""
    operands = [(float(t.min()), float(t.max())) for t in call.tensors if t.numel()]
    if not operands or len(operands) != len(call.tensors):
        return ""
    return "" if _within(call.plain(), facts.carry(operands)) else "its result leaves its operands'"


def wrong_zeros(call: Call, facts: Facts) -> str:
    numbers = any(type(a) in (int, float, complex) and a for a in call.args)
    numbers = numbers or bool(call.kwargs)  # rules look at those themselves
    if not facts.zero or numbers or not call.tensors or not call.target:
        return ""
    made = _results(call.on(torch.zeros_like))
    return "" if all(not t.any() for t in made) else "it makes something else of zeros"


def wrong_values(call: Call, facts: Facts) -> str:
    check = _VALUES.get(facts.values)
    if check is None or not call.tensors or call.in_place:
        return ""
    return check(call, facts)


def _pointwise(call: Call, facts: Facts) -> str:
    shape = call.tensors[0].shape
    others = [t for t in call.args if isinstance(t, Tensor)]
    if any(t.shape != shape or not _is_real(t) for t in others) or call.kwargs or not shape:
        return ""
    made, turned = call.plain(), call.on(lambda t: t.flip(0))
    if not _close(made.flip(0), turned):
        return "positions depend on each other"
    if facts.arithmetic is not None and len(call.tensors) > 1:
        return ""
    points = torch.arange(-8, 9, dtype=torch.float64) / 4
    below, above = (call.on(lambda t, s=s: (points + s).to(t.dtype)) for s in (-1e-12, 1e-12))
    return "" if _close(below, above) else "it jumps"


def _kept(call: Call, facts: Facts) -> str:
    training = call.kwargs.get("training", call.args[2] if len(call.args) > 2 else True)
    if facts.drawn and call.module is None and training is not False:
        return ""
    made = _results(call.plain())
    same = not made or torch.equal(made[0], call.tensors[0].to(made[0].dtype))
    return "" if same else "it changes values"


def _moved(call: Call, facts: Facts) -> str:
    known = torch.cat([t.flatten().double() for t in call.tensors]).unique()
    made = [t.flatten().double() for t in _results(call.plain())]
    inside = all(bool(torch.isin(t, known).all()) for t in made)
    return "" if inside else "it makes new values"


def _pooled(call: Call, facts: Facts) -> str:
    made = _results(call.on(lambda t: torch.full_like(t, 0.7)))[:1]
    alike = all(_close(t, torch.full_like(t, 0.7)) for t in made)
    return "" if alike else "it makes another number of a constant"


def _summed(call: Call, facts: Facts) -> str:
    made = _results(call.on(torch.zeros_like))
    return "" if all(not t.any() for t in made) else "it makes something else of zeros"


def _product(call: Call, facts: Facts) -> str:
    for index, name in facts.factors:
        factor = call.kwargs.get(name, call.args[index] if index < len(call.args) else None)
        made = _results(call.on(lambda t, f=factor: torch.zeros_like(t) if t is f else t.clone()))
        if factor is not None and any(bool(t.any()) for t in made):
            return f"it is not zero where `{name}` is"
    return ""


_VALUES: dict[Values, Callable[[Call, Facts], str]] = {
    Values.POINTWISE: _pointwise,
    Values.KEPT: _kept,
    Values.MOVED: _moved,
    Values.POOLED: _pooled,
    Values.SUMMED: _summed,
    Values.PRODUCT: _product,
}


def wrong_neutral(call: Call, facts: Facts) -> str:
    neutral = facts.arithmetic.neutral if facts.arithmetic is not None else None
    if neutral is None or len(call.tensors) != 2 or call.kwargs or len(call.args) != 2:
        return ""
    one, other = call.tensors
    if one.shape != other.shape or one.dtype != other.dtype or one is other:
        return ""
    for number, kept in ((one, other), (other, one)):
        made = call.on(lambda t, n=number: torch.full_like(t, neutral) if t is n else t.clone())
        if not torch.equal(made, kept):
            return f"{neutral} is not neutral"
    return ""


CHECKS = (wrong_memory, wrong_bounds, wrong_carry, wrong_zeros, wrong_values, wrong_neutral)


def judge(call: Call, facts: Facts) -> list[str]:
    """What is wrong with the facts of a call's op."""
    found = []
    for check in CHECKS:
        try:
            text = check(call, facts)
        except (TypeError, ValueError, RuntimeError) as error:
            text = f"{check.__name__} cannot be tried: {error}"
        if text:
            found.append(f"{call.name}{call.args!r:.200}: {text}")
    return found


OWNERS: dict[str, Any] = {
    "": torch,
    "nn.functional.": torch.nn.functional,
    "special.": torch.special,
    "linalg.": torch.linalg,
    "fft.": torch.fft,
    "_nn.": torch._C._nn,
}
X = torch.linspace(-2, 2, 24, dtype=torch.float64).reshape(2, 3, 4)
IMAGE = torch.linspace(-2, 2, 256, dtype=torch.float64).reshape(2, 2, 8, 8)
_INFIX = "truediv itruediv iadd isub imul rmul ipow imod mod floordiv ifloordiv rfloordiv"
_POOLED = "max_pool{}_with_indices adaptive_max_pool{}_with_indices"
MORE: dict[str, tuple[Any, ...]] = {
    **dict.fromkeys(["detach", "cpu", "pos", "relu_", "abs_", "sigmoid_"], (X,)),
    **dict.fromkeys(
        ["truediv", "itruediv", "idiv", "iadd", "isub", "imul", "rmul", "ipow", "imod"], (X, 0.7)
    ),
    **dict.fromkeys(["mod", "floordiv", "ifloordiv", "rdiv", "rfloordiv"], (X, 0.7)),
    "type": (X, torch.float32),
    "type_as": (X, torch.ones(1)),
    "unsafe_split_with_sizes": (X, [1, 2], 1),
    "einsum": ("ij,j->i", X[0], X[0, 0]),
    "nn.functional.dropout1d": (X, 0.5, False),
    "nn.functional.embedding": (torch.tensor([0, 1]), X[0]),
    "nn.functional.fold": (X.reshape(2, 4, 3).repeat(1, 1, 3), (4, 4), 2),
    "nn.functional.upsample": (IMAGE, 16),
    "_pack_padded_sequence": (X, torch.tensor([2, 2, 1]), False),
    "_pad_packed_sequence": (X.flatten(0, 1), torch.tensor([3, 2, 1]), True, 0.0, 4),
    "_nn.pad_sequence": ([X[0], X[1][:2]], True, 0.0),
    "nn.functional.lp_pool1d": (X, 2.0, 2),
    "nn.functional.lp_pool2d": (IMAGE, 2.0, 2),
    "nn.functional.lp_pool3d": (IMAGE, 2.0, 2),
    **{f"nn.functional.{n}": (X, 2) for n in _POOLED.format("1d", "1d").split()},
    **{f"nn.functional.{n}": (IMAGE, 2) for n in _POOLED.format("2d", "2d").split()},
    **{f"nn.functional.{n}": (IMAGE, 2) for n in _POOLED.format("3d", "3d").split()},
}
"""The arguments of functions and methods that torch's list has no samples of."""


def listed_calls() -> Iterator[Call]:
    """Calls of all functions and methods of the table that torch's list, or `MORE`, knows."""
    infos: dict[str, list[Any]] = {}
    for info in INFOS:
        for name in (info.name, *(alias.name for alias in info.aliases)):
            infos.setdefault(name, []).append(info)
    for target in OPS:
        for name, function in _names_of(target):
            for info in infos.get(name, ()):
                for sample in _samples(info.name, info.variant_test_name):
                    yield Call(function, (sample.input, *sample.args), sample.kwargs)
            if name in MORE:
                yield Call(function, MORE[name], {})


@cache
def _samples(name: str, variant: str) -> list[Any]:
    (info,) = (i for i in INFOS if (i.name, i.variant_test_name) == (name, variant))
    return raw_samples(info, 3)


def _names_of(target: Any) -> Iterator[tuple[str, Any]]:
    """The names of a target in torch's list, each with what to call."""
    if isinstance(target, str):
        if "." not in target:
            yield target, getattr(Tensor, target)
            yield target.strip("_"), getattr(Tensor, target)
        return
    if target is operator.getitem:
        yield "__getitem__", Tensor.__getitem__
    for prefix, owner in OWNERS.items():
        for name, value in vars(owner).items():
            if value is target:
                yield f"{prefix}{name}", target


@torch.no_grad()
def tried(facts: Callable[[Any], Facts] = facts_of) -> tuple[set[Any], list[str]]:
    """The targets whose facts were tried, and what is wrong."""
    seen, wrong = set(), []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for call in listed_calls():
            try:
                made = call.plain()
            except (NotImplementedError, RuntimeError, TypeError):  # it takes no such tensors
                continue
            if all(t.isfinite().all() for t in call.tensors) and _tensors(made):
                seen.add(call.target)
                wrong += judge(call, facts(call.target))
    return seen, wrong


@pytest.fixture(scope="module")
def outcome() -> tuple[set[Any], list[str]]:
    return tried()


def test_what_the_table_says_of_functions_and_methods_holds_in_values(outcome: Any) -> None:
    assert not outcome[1]


def test_no_op_that_something_is_known_of_goes_untried(outcome: Any) -> None:
    told = {target for target, known in OPS.items() if known.built_in and known.facts != Facts()}
    names = {_plain(t) for t in told if not isinstance(t, type)}
    assert len(names) > 300
    assert sorted(names - {_plain(t) for t in outcome[0]}) == sorted(UNTRIED)


def _plain(target: Any) -> str:
    name = target if isinstance(target, str) else getattr(target, "__name__", str(target))
    return name.strip("_")


_WHOLE = "and or xor iand ior ixor ror rxor invert lshift rshift bitwise_and bitwise_or"
_MAKERS = "rand randperm tensor new_tensor size getattr requires_grad cuda gumbel_softmax"
_POOLS = "fractional_max_pool2d_with_indices fractional_max_pool3d_with_indices"
_OTHER_NAMES = "idiv rdiv pos view_as_real"
UNTRIED = {
    *f"{_WHOLE} bitwise_xor bitwise_not grouped_mm {_MAKERS} {_POOLS} {_OTHER_NAMES}".split(),
}
"""Ops of whole, random and complex numbers, of half precision, of another device, and methods that
are others too."""


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("cos", {"values": Values.POINTWISE, "bounds": (0.0, 1.0)}),
        ("round", {"values": Values.POINTWISE}),
        ("exp", {"zero": True}),
        ("permute", {"fresh": True}),
        ("cumsum", {"values": Values.MOVED}),
        ("mean", {"carry": lambda operands: (0.0, 1.0)}),
        ("std", {"values": Values.POOLED}),
        ("softmax", {"values": Values.KEPT}),
        ("sub", {"arithmetic": Arithmetic.ADDS}),
        ("std", {"values": Values.PRODUCT}),
        ("sigmoid", {"clip": True}),
    ],
)
def test_control_a_wrong_fact_is_noticed(name: str, changes: Any, monkeypatch: Any) -> None:
    chosen = {t: k for t, k in OPS.items() if not isinstance(t, type) and _plain(t) == name}
    assert chosen
    monkeypatch.setitem(globals(), "OPS", chosen)
    _, wrong = tried(lambda target: facts_of(target).but(**changes))
    assert wrong


def _modules() -> Iterator[nn.Module]:
    torch.manual_seed(0)
    for target in OPS:
        if isinstance(target, type) and target.__module__.startswith("torch."):
            for args in ((), (2,), (2, 2), (1, 3), (2, (2, 2)), ((4, 4), 2), (4,), (0.1, 0.4)):
                try:
                    made = target(*args).double().eval()
                except Exception:  # noqa: BLE001 - it is made in another way
                    continue
                if any(_runs(made, x) for x in _inputs()):
                    yield made
                    break


def _inputs() -> list[Tensor]:
    torch.manual_seed(1)
    return [
        torch.randn(*s, dtype=torch.float64)
        for s in ((3, 4, 6, 6), (2, 4, 6), (2, 4, 4, 4, 4), (2, 4))
    ]


def _runs(module: nn.Module, x: Tensor) -> bool:
    try:
        module(x.clone())
    except Exception:  # noqa: BLE001 - it takes another shape
        return False
    return True


@torch.no_grad()
def test_what_the_table_says_of_modules_holds_in_values() -> None:
    tried_types, wrong = set(), []
    for module in _modules():
        for x in _inputs():
            if _runs(module, x):
                tried_types.add(type(module))
                wrong += judge(Call(module.forward, (x,), {}, module), facts_of(type(module)))
    assert not wrong
    assert len(tried_types) > 60
