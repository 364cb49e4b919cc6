"""Fading in: a new path through a network takes over from an old one little by little."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from functools import partial
from numbers import Real
from typing import Any, Literal, get_args

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from splitgrow.layers.scripting import Unscriptable
from splitgrow.utils.eager import is_eager, is_watched
from splitgrow.utils.rollback import Undo, all_or_nothing

FadeShape = Literal["linear", "cosine"]


class FadeIn(Unscriptable, nn.Module):
    """Two paths, whose output is ``(1 - alpha) * old(x) + alpha * new(x)``.

    At alpha 0 the output is the old path's bit for bit, and at 1 the new path's, even if the other
    path returns infinities or NaNs. Both paths get the same arguments and return one tensor each,
    of one shape; the result has their dtype.

    Alpha lies in the state_dict, as ``share``: one number on the model's device, which stays in
    float32 when the model is converted to another dtype. It is no parameter: set it, or let a
    `FadeSchedule` do so. Code compiled with torch.compile sees the change and is not compiled
    again.

    In training mode both paths run at every alpha; at 0 the parameters of the new path get
    gradients of zero, at 1 those of the old one. In evaluation mode on the CPU a path that does not
    count does not run. On other devices both run there too: reading alpha would make the host wait
    for the device. Both also run in code that is traced or compiled. Once alpha is 1,
    `splitgrow.fuse` leaves the old path out, as does ``fade.new`` in the place of the fade.

    ``model.at(g)`` of a growable model shows the paths and the alpha that were when g was closed.

    Args:
        old: The path that counts at alpha 0.
        new: The path that counts at alpha 1.
        alpha: The new path's share.

    Raises:
        TypeError: If a path is not a module, or alpha not a number; in `forward`, if a path returns
            something else than a tensor.
        ValueError: If alpha does not lie from 0 to 1; in `forward`, if the outputs' shapes differ.

    Example:
        >>> import torch, splitgrow
        >>> from torch import nn
        >>> fade = splitgrow.FadeIn(old=nn.Identity(), new=nn.Conv2d(3, 3, 3, padding=1))
        >>> x = torch.randn(1, 3, 8, 8)
        >>> torch.equal(fade(x), x)
        True
        >>> fade.alpha = 0.25
        >>> torch.allclose(fade(x), 0.75 * x + 0.25 * fade.new(x), atol=1e-6)
        True

    Reference:
        Karras et al. 2018, Progressive Growing of GANs, https://arxiv.org/abs/1710.10196,
        section 2 and figure 2.
    """

    share: Tensor

    def __init__(self, old: nn.Module, new: nn.Module, alpha: float = 0.0) -> None:
        super().__init__()
        for name, path in (("old", old), ("new", new)):
            if not isinstance(path, nn.Module):
                raise TypeError(f"{name} must be a torch.nn.Module, got {type(path).__name__}")
        self.old, self.new = old, new
        first = next(iter((*new.parameters(), *old.parameters())), None)
        device = None if first is None else first.device
        value = _checked_share(alpha, "alpha")
        self.register_buffer("share", torch.tensor(value, dtype=torch.float32, device=device))

    @property
    def alpha(self) -> float:
        """The new path's share, in float32. Reading it waits for the device."""
        return float(self.share.item())

    @alpha.setter
    def alpha(self, value: float) -> None:
        checked = _checked_share(value, "alpha")
        self.share.detach().fill_(checked)

    @property
    def begun(self) -> bool:
        """Whether the new path counts at all."""
        return self.alpha > 0

    @property
    def finished(self) -> bool:
        """Whether the new path alone counts."""
        return self.alpha == 1

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """The two paths' outputs, blended."""
        if not self.training and not torch.compiler.is_compiling():
            alone = self._alone(args, kwargs)
            if alone is not None:
                return _apart(_tensor(alone(*args, **kwargs)), (args, kwargs))
        return blend(self.old(*args, **kwargs), self.new(*args, **kwargs), self.share)

    def _alone(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> nn.Module | None:
        """The one path that counts, where reading alpha costs nothing; None to run both."""
        share = self.share
        if not is_eager(share) or share.device.type != "cpu" or is_watched():
            return None
        leaves = pytree.tree_leaves((args, kwargs))
        if not all(is_eager(x) for x in leaves if isinstance(x, (Tensor, fx.Proxy))):
            return None
        alpha = share.item()
        if alpha == 0:
            return self.old
        return self.new if alpha == 1 else None

    def _apply(self, fn: Any, recurse: bool = True) -> FadeIn:  # noqa: FBT001, FBT002
        """Moves or converts both paths; alpha moves along but stays in float32."""
        before = self.share
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        after = self.share
        if after.dtype != torch.float32:
            exact = after.float() if before.is_meta else before.to(after.device)
            self.register_buffer("share", exact)
        return self

    def extra_repr(self) -> str:
        """Alpha."""
        return "" if self.share.is_meta else f"alpha={self.alpha:g}"


def blend(old: Tensor, new: Tensor, share: Tensor) -> Tensor:
    """``(1 - share) * old + share * new``; at the ends one of them alone, bit for bit.

    It is one node of a torch.fx graph, so that fusion sees that a fade is over.

    Args:
        old: Of any shape.
        new: Of the same shape. Where the dtypes differ, as they may under autocast, the result has
            the wider one.
        share: (), from 0 to 1.

    Raises:
        TypeError: If `old` or `new` is not a tensor.
        ValueError: If their shapes differ.
    """
    for path in (old, new):
        _tensor(path)
    # Comparing a shape's numbers while a model is analysed would count as a use of them.
    if not is_watched() and old.shape != new.shape:
        raise ValueError(
            f"the paths of a FadeIn must return tensors of one shape: the old one's is "
            f"{tuple(old.shape)}, the new one's {tuple(new.shape)}"
        )
    if old.dtype != new.dtype:
        dtype = torch.promote_types(old.dtype, new.dtype)
        old, new = old.to(dtype), new.to(dtype)
    mixed = torch.lerp(old, new, share.to(old))
    return torch.where(share == 0, old, torch.where(share == 1, new, mixed))


fx.wrap("blend")


def _tensor(value: Any) -> Tensor:
    if not isinstance(value, (Tensor, fx.Proxy)):
        raise TypeError(
            f"the paths of a FadeIn must each return one tensor, got {type(value).__name__}"
        )
    return value  # type: ignore[return-value]


def _apart(output: Tensor, inputs: Any) -> Tensor:
    """The output in its own memory, as a blend has it: later ops may write into it."""
    place = output.untyped_storage().data_ptr()
    given = (leaf for leaf in pytree.tree_leaves(inputs) if isinstance(leaf, Tensor))
    if any(leaf.untyped_storage().data_ptr() == place for leaf in given):
        return output.clone()
    return output


def _checked_share(value: Any, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be a number from 0 to 1, got {value!r}")
    share = float(value)
    if not 0 <= share <= 1:
        raise ValueError(f"{name} must lie from 0 to 1, got {value!r}")
    return share


class FadeSchedule:
    """Takes fades from `start` to 1 in a number of steps; call `step` after each optimizer step.

    After `step` number t of n, alpha is ``start + (1 - start) * f(t / n)``, where f(r) is r, or
    ``(1 - cos(pi * r)) / 2`` for "cosine", which begins and ends slowly. After n steps it is 1, and
    further ones change nothing. It does not use the optimizer, so torch's learning rate schedulers
    run beside it.

    The schedule leaves a fade alone that is over when the schedule is made; if all are over, as in
    a model that was loaded after its fade, it does nothing. To resume, load the model's state_dict
    and the schedule's, in any order: alpha depends on the number of steps only.

    Args:
        target: A `FadeIn`, a module that holds some, or several of these.
        steps: How many steps it takes.
        shape: "linear" or "cosine".
        start: Alpha before the first step.

    Raises:
        TypeError: If an argument is of another type.
        ValueError: If there is no `FadeIn`, `steps` is not positive, or `shape` or `start` is none
            of those allowed.

    Example:
        >>> import torch, splitgrow
        >>> from torch import nn
        >>> fade = splitgrow.FadeIn(nn.Identity(), nn.Linear(3, 3))
        >>> schedule = splitgrow.FadeSchedule(fade, steps=4)
        >>> for _ in range(3):
        ...     schedule.step()
        >>> fade.alpha, schedule.finished
        (0.75, False)
        >>> resumed = splitgrow.FadeSchedule(fade, steps=4)
        >>> resumed.load_state_dict(schedule.state_dict())
        >>> resumed.step()
        >>> fade.finished
        True
    """

    def __init__(
        self,
        target: nn.Module | Iterable[nn.Module],
        steps: int,
        *,
        shape: FadeShape = "linear",
        start: float = 0.0,
    ) -> None:
        found = _fades_in(target)
        self._set(steps, shape, start, taken=0)
        self._fades = [fade for fade in found if not fade.finished]
        all_or_nothing(self._show)()

    @property
    def steps(self) -> int:
        """How many steps the fade takes."""
        return self._steps

    @property
    def alpha(self) -> float:
        """The new paths' share, from the number of steps taken."""
        if self._taken == self._steps:
            return 1.0
        ratio = self._taken / self._steps
        if self._shape == "cosine":
            ratio = (1 - math.cos(math.pi * ratio)) / 2
        return self._start + (1 - self._start) * ratio

    @property
    def finished(self) -> bool:
        """Whether the new paths alone count."""
        return not self._fades or self._taken == self._steps

    def step(self) -> None:
        """Advances all fades by one step."""
        if self._taken < self._steps:
            all_or_nothing(self._show)(**{**self.state_dict(), "taken": self._taken + 1})

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers and a word, from which another schedule continues."""
        return {
            "steps": self._steps,
            "shape": self._shape,
            "start": self._start,
            "taken": self._taken,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continues where another schedule was, and sets the fades' alpha.

        Raises:
            ValueError: If it is not the state of a schedule.
            TypeError: If one of its values is of another type.
        """
        expected = self.state_dict().keys()
        if state.keys() != expected:
            given = ", ".join(map(str, state))
            raise ValueError(f"a FadeSchedule's state has {', '.join(expected)}; got {given}")
        all_or_nothing(self._show)(**state)

    def _set(self, steps: int, shape: str, start: float, taken: int) -> None:
        for name, value, least in (("steps", steps, 1), ("taken", taken, 0)):
            if isinstance(value, bool) or not isinstance(value, int):
                raise TypeError(f"{name} must be an int, got {value!r}")
            if value < least:
                raise ValueError(f"{name} must be at least {least}, got {value}")
        if taken > steps:
            raise ValueError(f"{taken} steps of {steps} cannot have been taken")
        if shape not in get_args(FadeShape):
            raise ValueError(f"no shape {shape!r}; there are {', '.join(get_args(FadeShape))}")
        start = _checked_share(start, "start")
        self._steps, self._shape, self._start, self._taken = steps, shape, start, taken

    def _show(self, undo: Undo, /, **state: Any) -> None:
        """Loads a state, if one is given, and sets the fades' alpha."""
        for fade in self._fades:
            undo.on_failure(partial(fade.share.copy_, fade.share.clone()))  # does not wait
        undo.keep(vars(self))
        if state:
            self._set(**state)
        for fade in self._fades:
            fade.alpha = self.alpha


def _fades_in(target: Any) -> list[FadeIn]:
    """Every `FadeIn` in the target, once.

    Raises:
        TypeError: If the target is something else than modules.
        ValueError: If there is none.
    """
    modules = [target] if isinstance(target, nn.Module) else target
    if not isinstance(modules, Iterable):
        raise TypeError(f"target must be a FadeIn, a module or several, got {target!r}")
    found: dict[int, FadeIn] = {}
    for module in modules:
        if not isinstance(module, nn.Module):
            raise TypeError(f"target must be a FadeIn, a module or several, got {module!r}")
        inside = (part for part in module.modules() if isinstance(part, FadeIn))
        found.update((id(fade), fade) for fade in inside)
    if not found:
        raise ValueError("there is no FadeIn in target")
    return list(found.values())
