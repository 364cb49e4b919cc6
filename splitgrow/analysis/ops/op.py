"""One op as its rule sees it: axes instead of tensors, and ways to state constraints on them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from torch.utils import _pytree as pytree

from splitgrow.analysis.channels.channel_axes import Axis, Size, constant
from splitgrow.analysis.channels.channel_groups import Groups
from splitgrow.analysis.channels.width_remainders import Remainders


@dataclass(frozen=True)
class Origin:
    """The tensor of a module that a value is, with its dimensions perhaps in another order.

    Attributes:
        path: The tensor's name in the state_dict.
        dims: For each dimension of the value that of the tensor, or `NO_DIM`.
    """

    path: str
    dims: tuple[int, ...]


NO_DIM = -1
"""Stands for a dimension along which entries of a tensor were picked."""


@dataclass(frozen=True)
class Shaped:
    """A tensor on its way through the network: one axis for each of its dimensions.

    Attributes:
        axes: The axes.
        origin: The module's tensor that it is; None if an op has made it.
    """

    axes: tuple[Axis, ...]
    origin: Origin | None = field(default=None, compare=False)


class Unknown(Exception):  # noqa: N818 - raised by a rule to say that it cannot tell
    """The rule cannot follow the channels: they become fixed, for this reason."""


@dataclass(frozen=True)
class Choice:
    """A place where several numbers could follow a dimension, and one was chosen.

    Attributes:
        place: The line of the user's source.
        count: The number of candidates.
        rest: The index of the -1 among them, if there is one.
        taken: The axis of the chosen one.
    """

    place: str
    count: int
    rest: int | None
    taken: Axis


_OTHER_NAMES = {
    "dim": ("axis",),
    "dims": ("dim", "axis"),
    "keepdim": ("keepdims",),
    "input": ("x", "a", "x1", "self", "tensor"),
    "other": ("x2", "mat2", "vec2", "tensor2"),
    "size": ("sizes", "shape"),
    "shape": ("size",),
    "tensors": ("arrays",),
}
"""Other names under which torch takes an argument, numpy's above all."""


@dataclass(frozen=True)
class Op:
    """One op of a traced network, as its rule sees it.

    Attributes:
        name: The user's name for it: ``add``, ``Conv2d``.
        place: The line of the user's source that runs it.
        target: The function, the module's type or the method's name.
        args: Positional arguments; tensors are `Shaped`, numbers from shapes are `Size`.
        kwargs: Named arguments, likewise.
        example: An example result, of fake tensors and plain numbers.
        groups: The store in which the rule states constraints.
        module: The module, if the op is a module call.
        preferred: The index of the chosen one of several numbers that could follow a dimension, by
            place; otherwise the outermost.
        choices: The places of such a choice.
        marks: Notes on this op: "not zero" where it makes something else than zeros of zeros.
        remainders: The remainders of divisions that must stay.
        couplings: The axes of which it makes one value of all channels, which stays if each channel
            comes several times over, and the reasons for which they cannot grow otherwise.
        summed: Is told of a module's tensor and the place of a dimension that a product sums over;
            answers whether new entries there can start as zeros.
    """

    name: str
    place: str
    target: Any
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    example: Any
    groups: Groups
    module: nn.Module | None = field(default=None)
    preferred: Mapping[str, int] = field(default_factory=dict)
    choices: list[Choice] = field(default_factory=list)
    remainders: Remainders | None = None
    summed: Callable[[Origin, int], bool] | None = None
    marks: set[str] = field(default_factory=set)
    couplings: list[tuple[Axis, str]] = field(default_factory=list)

    def argument(self, index: int, name: str, default: Any = None) -> Any:
        """An argument given by position or by name; of a module, one of its attributes.

        Torch takes many by several names, such as ``dim`` and ``axis``, and so does this.
        """
        if self.module is not None and index > 0:
            return getattr(self.module, name, default)
        if index < len(self.args):
            return self.args[index]
        names = (name, *_OTHER_NAMES.get(name, ()))
        return next((self.kwargs[key] for key in names if key in self.kwargs), default)

    def several(self, index: int, name: str) -> Sequence[Any]:
        """Numbers given as one tuple, as one number, or each by itself from a position on."""
        first = self.argument(index, name)
        if isinstance(first, (tuple, list)):
            return first
        if isinstance(first, Shaped):
            raise Unknown("is given a tensor where numbers were expected")
        return () if first is None else (first, *self.args[index + 1 :])

    def tensor(self, index: int, name: str) -> Shaped:
        """An argument that must be a tensor."""
        tensor = self.argument(index, name)
        if not isinstance(tensor, Shaped):
            raise Unknown("is given something else than a tensor")
        return tensor

    @property
    def x(self) -> Shaped:
        """The first argument, which must be a tensor."""
        return self.tensor(0, "input")

    def reason(self, text: str) -> str:
        """A reason for fixing an axis, naming the op and its place: "`add` at model.py:12 ..."."""
        return f"`{self.name}` at {self.place} {text}"

    def shaped(self) -> Iterator[Shaped]:
        """All tensors among the arguments."""
        return shaped_in((self.args, self.kwargs))

    def sizes(self) -> Iterator[Size]:
        """All numbers among the arguments that come from shapes."""
        return (leaf for leaf in leaves_of((self.args, self.kwargs)) if isinstance(leaf, Size))

    def fix(self, axis: Axis, text: str) -> None:
        """Fixes an axis, for a reason that names the op."""
        self.groups.fix(axis, self.reason(text))

    def couple(self, axis: Axis, text: str) -> None:
        """States that an axis can grow by copies of its channels only, for a reason."""
        self.couplings.append((axis, self.reason(text)))

    def fix_all(self, text: str, *, but: Sequence[Shaped] = ()) -> None:
        """Fixes all tensors among the arguments except some."""
        for shaped in self.shaped():
            if not any(shaped is other for other in but):
                for axis in shaped.axes:
                    self.fix(axis, text)

    def plain(self, value: Any) -> Any:
        """A value with plain numbers; those that could have grown no longer can."""
        if isinstance(value, Size):
            self.groups.fix_size(value, self.reason("uses the number as it is"))
            return value.value
        if isinstance(value, (tuple, list)):
            return type(value)(self.plain(item) for item in value)
        if isinstance(value, dict):
            return {key: self.plain(item) for key, item in value.items()}
        if isinstance(value, slice):
            return slice(self.plain(value.start), self.plain(value.stop), self.plain(value.step))
        return value

    def not_zero(self, result: Any) -> None:  # noqa: ARG002 - rules of users pass it
        """States that channels of the result are not zero where those of the operands are."""
        self.marks.add("not zero")

    def constants(self, text: str) -> Any:
        """A result like the example's whose tensors have no channels that could grow."""
        reason = self.reason(text)
        return pytree.tree_map(lambda leaf: constant_like(leaf, reason), self.example)

    def given_up(self, axes: Iterable[Axis], length: int) -> Axis:
        """A constant axis made of others, with the reason why those are fixed."""
        reasons = (reason for axis in axes for reason in self.groups.reasons(axis))
        return constant(length, next(reasons, ""))


def constant_like(example: Any, reason: str) -> Any:
    """A tensor with constant axes of the example's shape; anything but a tensor as it is."""
    if isinstance(example, Tensor):
        return Shaped(tuple(constant(int(size), reason) for size in example.shape))
    return example


def shaped_in(value: Any) -> Iterator[Shaped]:
    """All tensors in nested values."""
    return (leaf for leaf in leaves_of(value) if isinstance(leaf, Shaped))


def leaves_of(value: Any) -> Iterator[Any]:
    """The leaves that pytree finds in nested values, without its detours in the common cases."""
    if isinstance(value, _LEAVES):
        yield value
    elif type(value) in (tuple, list, dict):
        for item in value.values() if type(value) is dict else value:
            yield from leaves_of(item)
    else:
        yield from pytree.tree_leaves(value, is_leaf=_is_value)


_LEAVES = (Shaped, Size, Tensor, int, float, str)


def _is_value(node: Any) -> bool:
    return isinstance(node, (Shaped, Size))


def as_size(number: Any) -> Size:
    """A number of a shape, whether written down or taken from a tensor."""
    if isinstance(number, Size):
        return number
    if isinstance(number, int) and not isinstance(number, bool):
        return Size(number)
    raise Unknown(f"is given {number!r} where a whole number was expected")
