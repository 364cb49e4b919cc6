"""Initializers that draw the weights of new units in another way than torch, with helpers zero."""

from __future__ import annotations

import math
from abc import abstractmethod

import torch
from torch import Tensor

from splitgrow.analysis.units import Unit, values_like
from splitgrow.growth.initializers.initializer import Initializer
from splitgrow.growth.initializers.orthonormal import orthonormal_rows
from splitgrow.growth.prepared import PreparedEdit
from splitgrow.growth.starting import set_start_values_
from splitgrow.growth.unit_tensors import UnitTensor, unit_tensors
from splitgrow.layers.types import TensorBlock


class DrawnUnits(Initializer):
    """A base class: the weights of new units are drawn, their biases zero, helpers zero.

    Tables, norms and tensors that are no weights keep the values that torch gives them.
    """

    def apply(self, prepared: PreparedEdit) -> None:
        """Sets the helpers to zero, and draws the new units."""
        for each in unit_tensors(prepared):
            weighs = each.weighs and not each.layer.layer_type.looks_up
            if weighs:
                draw_rows_(each, self, prepared.generator)
            elif each.key.startswith("bias") and _has_weights(each):
                _without_new(each)
        for layer in prepared.layers.values():
            set_start_values_(layer)

    @abstractmethod
    def rows(
        self, count: int, length: int, old: Tensor, generator: torch.Generator | None
    ) -> Tensor:
        """The weights of new units.

        Args:
            count: The number of units.
            length: The number of weights of each.
            old: The weights of the old ones, units x weights of each, which may be fewer.
            generator: The source of random numbers.

        Returns:
            A tensor (count, length) of the dtype and device of `old`.
        """


def draw_rows_(tensor: UnitTensor, drawn: DrawnUnits, generator: torch.Generator | None) -> None:
    """Draws a tensor's weights of new units: apart for each convolution group and gate."""
    whole, dim = tensor.value(), tensor.makes
    if whole is None or dim is None:
        return
    along, reads = tensor.axes[dim], tensor.reads
    sections = 1 if reads is None else tensor.axes[reads].sections
    moved, born = whole.movedim(dim, 0), tensor.born(dim, whole.device)
    before = tensor.old(whole).movedim(dim, 0).flatten(1)
    old = before.reshape(before.shape[0] * along.sections, -1)
    for rows, new in zip(
        moved.chunk(along.copies * sections), born.chunk(along.copies * sections), strict=True
    ):
        for part in rows.chunk(along.sections, dim=1):
            if bool(new.any()):
                made = part[new]
                made = drawn.rows(made.shape[0], made[0].numel(), old, generator).view(made.shape)
                part[new] = made
    padding = getattr(tensor.layer.original, "padding_idx", None)
    if padding is not None:  # torch keeps the row of the padding at zero
        moved[born, padding] = 0
    tensor.fill_(whole)


def _has_weights(tensor: UnitTensor) -> bool:
    """Whether the layer of a bias has weights too, as norms have not."""
    layer = tensor.layer
    return any(UnitTensor(layer, key, {}).weighs for key in layer.tensors)


def _without_new(tensor: UnitTensor) -> None:
    """Sets the entries of new units to zero."""
    whole, dim = tensor.value(), tensor.makes
    if whole is not None and dim is not None:
        born = tensor.born(dim, whole.device)
        tensor.fill_(whole.index_fill_(dim, born.nonzero().flatten(), 0))


def random_rows(count: int, length: int, like: Tensor, generator: torch.Generator | None) -> Tensor:
    """Standard normal numbers of the dtype and device of another tensor."""
    made = torch.empty(count, length, dtype=like.dtype, device=like.device)
    return made.normal_(generator=generator)


class Kaiming(DrawnUnits):
    r"""Helpers zero, and the weights of new units normal with the deviation gain / sqrt(fan-in).

    He et al. 2015, https://arxiv.org/abs/1502.01852, equation 10, :math:`\sqrt{2 / n_l}`. The
    fan-in counts all inputs after the edit; biases of new units are zero.

    Args:
        gain: The gain of the activation: sqrt(2) for ReLU; see `torch.nn.init.calculate_gain`.

    Example:
        >>> import torch, splitgrow
        >>> net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 1))
        >>> net = splitgrow.growable(net, torch.ones(1, 3))
        >>> net.expand_layer("0", 2, initializer="kaiming").initializer
        'kaiming'
    """

    name = "kaiming"

    def __init__(self, gain: float = math.sqrt(2)) -> None:
        self.gain = positive("gain", gain)

    def rows(
        self, count: int, length: int, old: Tensor, generator: torch.Generator | None
    ) -> Tensor:
        """Normal numbers."""
        return random_rows(count, length, old, generator) * (self.gain / math.sqrt(length))


class Orthogonal(DrawnUnits):
    """Helpers zero, and the weights of new units orthogonal to each other, as far as they can be.

    Saxe et al. 2014, https://arxiv.org/abs/1312.6120, section 3. The norm of each row is the root
    mean square of those of the layer's old rows, so that the variance of new units is that of the
    old ones. More units than each has weights are orthogonal in their columns instead. Biases of
    new units are zero.

    Args:
        gain: A factor for the norm.
    """

    name = "orthogonal"
    keeps_variance = True

    def __init__(self, gain: float = 1.0) -> None:
        self.gain = positive("gain", gain)
        self.keeps_variance = gain == 1.0

    def rows(
        self, count: int, length: int, old: Tensor, generator: torch.Generator | None
    ) -> Tensor:
        """Orthogonal rows, from the QR decomposition of normal numbers."""
        drawn = random_rows(count, length, old.double(), generator)
        drawn = drawn if count <= length else drawn.T
        rows = orthonormal_rows(drawn)
        # More rows than columns are shorter than one each.
        rows = rows if count <= length else rows.T * math.sqrt(count / length)
        size = old.double().square().sum(1).mean().sqrt()
        found: Tensor = rows * torch.where(size > 0, size, 1.0) * self.gain
        return found.to(old.dtype)


class CopyStatistics(DrawnUnits):
    """Helpers zero, and new weights normal with the mean and deviation of the layer's old ones.

    Each row is as large as the old rows on average: where new units read more inputs than the old
    ones did, both are smaller by the root of that factor (Yuan et al. 2023,
    https://arxiv.org/abs/2306.12700, section 3.1). Biases, norms and running statistics are those
    of the old units in turn. A layer of zeros has nothing to copy, and its new units keep the
    values that torch draws, since zeros behind zeros would never learn.
    """

    name = "copy_statistics"
    keeps_variance = True

    def apply(self, prepared: PreparedEdit) -> None:
        """Sets the helpers to zero, and draws the new units."""
        draw_alike_(prepared, self)
        for layer in prepared.layers.values():
            set_start_values_(layer)

    def rows(
        self, count: int, length: int, old: Tensor, generator: torch.Generator | None
    ) -> Tensor:
        """Normal numbers with the old ones' mean and deviation."""
        values = old.double()
        mean, deviation = values.mean(), values.std(correction=0)
        drawn = random_rows(count, length, old.double(), generator) * deviation + mean
        torch_own = random_rows(count, length, old.double(), generator) / math.sqrt(3 * length)
        drawn = torch.where(values.abs().amax() > 0, drawn * self.share(length, old), torch_own)
        return drawn.to(old.dtype)

    def share(self, length: int, old: Tensor) -> float:
        """The factor by which weights are smaller than old ones."""
        return math.sqrt(old.shape[1] / length)


def draw_alike_(prepared: PreparedEdit, drawn: DrawnUnits) -> None:
    """Draws the weights of new units; their other numbers are those of the old ones in turn."""
    turns: dict[Unit, Unit] = {}
    for group, new in prepared.units.items():
        turns.update((unit, Unit(group, unit.nth % new[0].nth)) for unit in new if new[0].nth)
    for each in unit_tensors(prepared):
        if each.weighs:
            draw_rows_(each, drawn, prepared.generator)
        elif each.reads is None and not isinstance(each.layer.original, TensorBlock):
            whole = each.value()
            if whole is not None:
                each.fill_(values_like(whole, each.places, lambda unit: turns.get(unit, unit)))


def positive(name: str, number: float) -> float:
    """A factor.

    Raises:
        TypeError: If it is no number.
        ValueError: If it is not positive, or not finite.
    """
    if isinstance(number, bool) or not isinstance(number, (int, float)):
        raise TypeError(f"{name} must be a number, got {number!r}")
    if not 0 < number < math.inf:
        raise ValueError(f"{name} must be positive and finite, got {number!r}")
    return float(number)
