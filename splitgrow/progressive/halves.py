"""An encoder or a decoder by levels: a stage and an adapter for each, and a fade between two.

The fade runs stages and adapters where they are held, so that every module keeps its path, and
every Parameter its name, when the fade begins and when it is over.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from splitgrow.errors import SplitGrowError
from splitgrow.layers.fade import FadeIn
from splitgrow.progressive.base import Progressive, Upcoming
from splitgrow.progressive.ways import Maker, Path, Stage, Way, pointwise
from splitgrow.utils.eager import is_eager, is_watched
from splitgrow.utils.preserve import preserve_
from splitgrow.utils.rollback import Undo, temporarily


class ProgressiveHalf(Progressive):
    """The common base of encoders and decoders: stages, adapters, and a fade between two.

    Attributes:
        stages: The stages in use, by level.
        adapters: The adapter of the level; while a fade is under way, that of the level before too.
        fade: The fade, if one is under way.
        start: The resolution at level 0: the height and width of images, in pixels.
        channels: The channels between stage and adapter, for each level.
        image_channels: The channels of the images, (N, image_channels, resolution, resolution).
    """

    reached: Tensor
    fade: FadeIn | None

    def __init__(
        self,
        stages: Sequence[Stage],
        channels: Sequence[int],
        *,
        image_channels: int = 3,
        start: int = 4,
        adapter: Maker = pointwise,
    ) -> None:
        super().__init__()
        _check(stages, channels, image_channels, start)
        self.channels, self.image_channels, self.start = tuple(channels), image_channels, start
        self._to_come, self._adapter = list(stages), adapter
        self.adapters, self.stages = nn.ModuleDict(), nn.ModuleDict()
        self.register_module("fade", None)
        self.register_buffer("reached", torch.zeros(2, dtype=torch.int64))
        self._put(self._made(), fade=False)

    @property
    def level(self) -> int:
        """How often it has grown."""
        return len(self.stages) - 1

    @property
    def levels(self) -> int:
        """How many levels there are, those to come included."""
        return len(self.stages) + len(self._to_come)

    def halves(self) -> tuple[ProgressiveHalf, ...]:
        """Itself."""
        return (self,)

    @abstractmethod
    def _sides(self, level: int, width: int) -> tuple[tuple[int, int], tuple[int, int]]:
        """The channels that the stage of a level reads and gives, and those of its adapter.

        Args:
            level: The level.
            width: The channels where the stage meets that of the level before.
        """

    @abstractmethod
    def _width(self, adapter: nn.Module) -> int:
        """The channels on the network's side of an adapter, today."""

    @abstractmethod
    def _ways(self, old: str, new: str) -> tuple[Way, Way]:
        """The old and the new path of a fade, given the levels."""

    @abstractmethod
    def _probe(self, old: nn.Module) -> tuple[int, ...]:
        """The shape of an input for both paths."""

    def check_ready(self) -> None:
        """Makes sure that it can grow.

        Raises:
            SplitGrowError: If there is no further stage, or a fade is under way.
        """
        self.check_faded()
        if not self._to_come:
            raise SplitGrowError(
                f"all {len(self.stages)} stages are in use, at {self.resolution}x{self.resolution}"
            )

    def check_faded(self) -> None:
        """Makes sure that no fade is under way.

        Raises:
            SplitGrowError: If one is.
        """
        if self.fade is not None and not self.fade.finished:
            raise SplitGrowError(
                f"the fade to {self.resolution}x{self.resolution} is under way: its alpha is "
                f"{self.fade.alpha:g}; take it to 1 first"
            )

    def upcoming(self) -> Upcoming:
        """The next level, made and tried out; nothing is changed.

        Raises:
            ValueError: If it does not fit the last stage.
            MemoryError: If there is too little memory.
        """
        made = self._made()
        trial = nn.ModuleDict({"0": self.adapters[str(self.level)], "1": made.adapter})
        holder = nn.Module()
        holder.adapters, holder.stages = trial, nn.ModuleDict({"1": made.stage})
        paths = [Path(holder, way) for way in self._ways("0", "1")]
        parameter = next(self.adapters.parameters(), None)
        x = torch.zeros(self._probe(trial["0"]))
        x = x if parameter is None else x.to(parameter)
        try:
            old, new = _shapes_made(holder, paths, x)
        except MemoryError:
            raise
        except Exception as error:
            raise ValueError(
                f"stage {self.level + 1} does not fit: {type(error).__name__}: {error}"
            ) from error
        if old != new:
            raise ValueError(
                f"stage {self.level + 1} does not fit: it makes the shape {new} where the network "
                f"has {old}"
            )
        return made

    def _made(self) -> Upcoming:
        """The adapter and the stage of the next level, like the network in device and dtype."""
        level = self.level + 1
        old = self.adapters[str(level - 1)] if level else None
        width = self.channels[0] if old is None else self._width(old)
        sizes, around = self._sides(level, width)
        source = self._to_come[0]
        stage = source if isinstance(source, nn.Module) else source(*sizes)
        adapter = self._adapter(*around)
        return Upcoming(self, self._like_the_rest(adapter), self._like_the_rest(stage))

    def _like_the_rest(self, module: nn.Module) -> nn.Module:
        """A new module in the network's mode and dtype, on its device."""
        like = next(self.parameters(), None)
        if like is not None:
            module.to(like.device, like.dtype)
        return module.train(self.training)

    def place(self, new: Upcoming, *, fade: bool, undo: Undo) -> list[nn.Parameter]:
        """Puts the next level in place; returns the parameters of the adapters that go."""
        self._keep_level(undo)
        return [*self.drop_old(), *self._put(new, fade=fade)]

    def become(self, level: int, *, fading: bool, undo: Undo) -> None:
        """Grows to a level, without values to speak of: a checkpoint's are to follow.

        Args:
            level: The level.
            fading: Whether it fades in.
            undo: Takes it back.

        Raises:
            ValueError: If it cannot have that level, or has a higher one.
        """
        self._keep_level(undo)
        self._become(level, int(fading))

    def finish_(self, undo: Undo) -> list[nn.Parameter]:
        """As `drop_old`, until that is taken back."""
        self._keep_level(undo)
        return self.drop_old()

    def _keep_level(self, undo: Undo) -> None:
        undo.keep(vars(self), self._modules, self._buffers)
        undo.keep(self.adapters._modules, self.stages._modules)  # noqa: SLF001

    def _put(self, new: Upcoming, *, fade: bool) -> list[nn.Parameter]:
        level = self.level + 1
        self.stages[str(level)], self.adapters[str(level)] = new.stage, new.adapter
        self._to_come = self._to_come[1:]
        self._note(level, int(fade))
        if fade:
            self._begin_fade()
        if fade or not level:
            return []
        return list(self.adapters.pop(str(level - 1)).parameters())

    def _begin_fade(self) -> None:
        ways = self._ways(str(self.level - 1), str(self.level))
        self.fade = FadeIn(old=Path(self, ways[0]), new=Path(self, ways[1]))
        self.fade.train(self.training).to(self.reached.device)

    def _note(self, level: int, fading: int) -> None:
        # A new one: a state_dict that was loaded with assign=True holds the old one too.
        self.reached = torch.tensor([level, fading], device=self.reached.device)

    def drop_old(self) -> list[nn.Parameter]:
        """Drops the old adapter and the fade, if there are any; returns its parameters."""
        if self.fade is None:
            return []
        self.fade = None
        gone = list(self.adapters.pop(str(self.level - 1)).parameters())
        self._note(self.level, 0)
        return gone

    def hold_old_adapter(self, undo: Undo) -> None:
        """Keeps the adapter that fades out, if there is one, as it is."""
        if self.fade is not None:
            for parameter in self.adapters[str(self.level - 1)].parameters():
                undo.on_failure(partial(setattr, parameter, "grad", parameter.grad))
                undo.on_failure(partial(parameter.requires_grad_, parameter.requires_grad))
                parameter.requires_grad_(False)
                parameter.grad = None  # or momentum and decay would go on moving it

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        """Grows to the level that was saved, so that every tensor finds its place."""
        saved = state_dict.get(f"{prefix}reached")
        if saved is not None:
            self._become(*saved.tolist())
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _become(self, level: int, fading: int) -> None:
        if level < self.level or level > self.level + len(self._to_come):
            raise ValueError(
                f"the state was saved at level {level}; this {type(self).__name__} is at level "
                f"{self.level} and has {len(self._to_come)} more stages"
            )
        while self.level < level:
            self.drop_old()
            self._put(self._made(), fade=bool(fading) and self.level + 1 == level)
        if not fading:
            self.drop_old()
        elif self.fade is None:
            self.adapters[str(level - 1)] = self._like_the_rest(
                self._adapter(*self._sides(level - 1, self.channels[level - 1])[1])
            )
            self._begin_fade()

    def check_size(self, images: Tensor) -> None:
        """Makes sure of the images' size, where that can be done without being seen.

        Raises:
            ValueError: If it is not `resolution`.
        """
        if is_eager(images) and not is_watched() and not torch.compiler.is_compiling():
            size = tuple(images.shape[-2:])
            if size != (self.resolution, self.resolution):
                raise ValueError(
                    f"images of {size[0]}x{size[1]} at level {self.level}, where the network takes "
                    f"{self.resolution}x{self.resolution}"
                )


def _check(stages: Any, channels: Any, image_channels: Any, start: Any) -> None:
    """Makes sure of a constructor's arguments.

    Raises:
        TypeError: If one is of another type.
        ValueError: If one has another value.
    """
    for stage in stages:
        if not callable(stage):
            raise TypeError(f"a stage must be a module or make one, got {stage!r}")
    if not len(stages) or len(stages) != len(channels):
        raise ValueError(
            f"there must be a number of channels for each stage: {len(stages)} stages, "
            f"{len(channels)} numbers"
        )
    named = {"image_channels": image_channels, "start": start}
    named.update((f"channels[{index}]", value) for index, value in enumerate(channels))
    for name, value in named.items():
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"{name} must be an int, got {value!r}")
        if value < 1:
            raise ValueError(f"{name} must be positive, got {value}")


@temporarily
def _shapes_made(
    undo: Undo, holder: nn.Module, paths: Iterable[Path], x: Tensor
) -> list[tuple[int, ...]]:
    """The shapes of what paths through a module make of a tensor, in evaluation mode."""
    preserve_(holder, undo)
    torch.set_grad_enabled(False)
    for module in holder.modules():
        module.training = False
    return [tuple(path(x).shape) for path in paths]
