"""Growth by a level, all or nothing, with the optimizers: the base of all progressive networks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from torch import nn
from torch.optim import Optimizer

from splitgrow.errors import OptimizerError
from splitgrow.growth.optimizers import (
    Joining,
    NewParameter,
    ParameterPaths,
    arrange_,
    join_,
    leave_,
    listed,
    plan_joining,
)
from splitgrow.growth.untrained import watch_new_
from splitgrow.layers.fade import FadeIn
from splitgrow.layers.freezing import Owned, free_, freeze_, held, let_move_
from splitgrow.layers.scripting import Unscriptable
from splitgrow.utils.preserve import keep_surroundings_
from splitgrow.utils.rollback import Undo, all_or_nothing
from splitgrow.utils.wrappers import refuse_wrapped


class Half(Protocol):
    """An encoder or decoder, as the network that it is a part of knows it."""

    start: int
    adapters: nn.ModuleDict
    fade: FadeIn | None

    @property
    def level(self) -> int:
        """How often it has grown."""

    def check_ready(self) -> None:
        """Makes sure that it can grow."""

    def check_faded(self) -> None:
        """Makes sure that no fade is under way."""

    def upcoming(self) -> Upcoming:
        """The next level."""

    def place(self, new: Upcoming, *, fade: bool, undo: Undo) -> list[nn.Parameter]:
        """Puts the next level in place; the parameters that are no longer needed."""

    def hold_old_adapter(self, undo: Undo) -> None:
        """Keeps the old adapter's values as they are."""

    def finish_(self, undo: Undo) -> list[nn.Parameter]:
        """Drops the old adapter; its parameters."""


class Progressive(Unscriptable, nn.Module, ABC):
    """The base of all networks that grow in resolution."""

    def __init__(self) -> None:
        super().__init__()
        self._frozen: list[Owned] = []
        self._held: list[nn.Module] = []

    @abstractmethod
    def halves(self) -> tuple[Half, ...]:
        """The encoders and decoders in it, which grow together."""

    @property
    def level(self) -> int:
        """How often it has grown."""
        return self.halves()[0].level

    @property
    def resolution(self) -> int:
        """The height and width of the images that it takes or gives now."""
        half = self.halves()[0]
        return int(half.start * 2**half.level)

    @property
    def alpha(self) -> float:
        """The share of the newest stage; 1 when no fade is under way."""
        return min((half.fade.alpha for half in self.halves() if half.fade is not None), default=1)

    def grow(
        self,
        *,
        optimizer: Optimizer | Sequence[Optimizer] | None = None,
        fade: bool = True,
        freeze: bool = False,
        hold_old: bool = False,
    ) -> list[nn.Parameter]:
        """Adds the next stage, which doubles the resolution, with an adapter of its own.

        With a fade the output does not change, bit for bit: an encoder maps an image as it mapped
        the halved image, and a decoder returns its old image, doubled. Let a `FadeSchedule` take
        the fade to 1; then call `finish`. No Parameter object is replaced, and every module keeps
        its path.

        If the model was made growable, `splitgrow.growable(model, images)` analyses it anew.

        Args:
            optimizer: One or several optimizers. New parameters join the group of the old adapter's
                weight, biases that of its bias.
            fade: Whether the new stage fades in. Without, it counts at once and alone.
            freeze: Whether the parameters and running statistics that exist are frozen; `thaw`
                frees them.
            hold_old: Whether the old adapter keeps its values while it fades out. In the paper it
                goes on training.

        Returns:
            The new parameters.

        Raises:
            SplitGrowError: If there is no further stage, or a fade is under way.
            UnsupportedModelError: If a wrapper for several processes would miss it.
            ValueError: If the new stage does not fit.
            OptimizerError: If the optimizer does not train the old adapter.
            TypeError: If `optimizer` is something else than optimizers.

        In all these cases model and optimizer are as before.
        """
        optimizers = listed(optimizer)
        refuse_wrapped(self, "grow", mirrored=False)
        halves = self.halves()
        for half in halves:
            half.check_ready()

        def grow(undo: Undo) -> list[nn.Parameter]:
            keep_surroundings_(self, undo)
            coming = [half.upcoming() for half in halves]
            before = ParameterPaths.now(self, optimizers)
            paths = {module: name for name, module in self.named_modules()}
            new = [item for each in coming for item in each.parameters(paths[each.half])]
            new = [item for item in new if id(item.parameter) not in before.of]  # stages may share
            joining = _plan_joining(optimizers, new)
            if freeze:
                self._freeze(undo)
            gone = [p for each in coming for p in each.half.place(each, fade=fade, undo=undo)]
            for half in halves if hold_old else ():
                half.hold_old_adapter(undo)
            join_(joining, undo)
            leave_(optimizers, gone, undo)
            arrange_(optimizers, before, self, undo)
            made = [item.parameter for item in new]
            watch_new_(self, "grow", made, optimizers, undo)
            return made

        return all_or_nothing(grow)()

    def finish(self, *, optimizer: Optimizer | Sequence[Optimizer] | None = None) -> None:
        """Drops the old adapters, once they no longer count. Without a fade it does nothing.

        Args:
            optimizer: One or several optimizers, which let go of the old adapters' parameters.

        Raises:
            SplitGrowError: If the fade is under way.
            UnsupportedModelError: If a wrapper for several processes would miss it.
            TypeError: If `optimizer` is something else than optimizers.
            OptimizerError: If it is of a kind that cannot let go.

        In all these cases model and optimizer are as before.
        """
        optimizers = listed(optimizer)
        refuse_wrapped(self, "finish", mirrored=False)
        for half in self.halves():
            half.check_faded()

        def finish(undo: Undo) -> None:
            gone = [parameter for half in self.halves() for parameter in half.finish_(undo)]
            leave_(optimizers, gone, undo)

        all_or_nothing(finish)()

    def thaw(self) -> None:
        """Lets everything train again that `grow(freeze=True)` froze."""
        all_or_nothing(self._thaw)()

    def _thaw(self, undo: Undo) -> None:
        self._keep(undo)
        free_(self._frozen, undo)
        for module in self._held:
            let_move_(module, undo, training=self.training)
        self._frozen, self._held = [], []

    def _keep(self, undo: Undo) -> None:
        undo.on_failure(partial(vars(self).update, _frozen=self._frozen, _held=self._held))

    def _freeze(self, undo: Undo) -> None:
        self._keep(undo)
        before = {id(module) for module in self.modules() if held(module)}
        self._frozen = self._frozen + freeze_(self, undo)
        now = [module for module in self.modules() if held(module) and id(module) not in before]
        self._held = self._held + now


def _plan_joining(optimizers: list[Optimizer], new: list[NewParameter]) -> list[Joining]:
    try:
        return plan_joining(optimizers, new)
    except OptimizerError:
        raise OptimizerError(
            "the optimizer does not train the adapter whose group the new parameters would join; "
            "pass the one that does, or grow without `optimizer=` and add what `grow` returns to a "
            "group of its own"
        ) from None


@dataclass(frozen=True)
class Upcoming:
    """The next level of an encoder or decoder: made, but not yet in place.

    Attributes:
        half: The encoder or decoder.
        adapter: The adapter between images and the new stage.
        stage: The new stage.
    """

    half: Half
    adapter: nn.Module
    stage: nn.Module

    def parameters(self, path: str) -> Iterator[NewParameter]:
        """The new parameters, each with those of the old adapter whose group it joins."""
        older = list(self.half.adapters[str(self.half.level)].parameters())
        weights = [p for p in older if p.dim() > 1] or older
        biases = [p for p in older if p.dim() == 1]
        for kind, module in (("adapters", self.adapter), ("stages", self.stage)):
            for name, parameter in module.named_parameters():
                own = f"{path}.{kind}.{self.half.level + 1}.{name}".removeprefix(".")
                group = (*biases, *weights) if name.endswith("bias") else (*weights,)
                yield NewParameter(own, parameter, group)
