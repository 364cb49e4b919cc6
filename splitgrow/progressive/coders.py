"""Encoders and decoders whose resolution grows, and their usual stages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from splitgrow.progressive.halves import ProgressiveHalf
from splitgrow.progressive.ways import Stage, Way, doubled, halved

SLOPE = 0.2  # of leaky ReLUs, as in the paper


def _rectified(ins: int, outs: int) -> list[nn.Module]:
    return [nn.Conv2d(ins, outs, 3, padding=1), nn.LeakyReLU(SLOPE)]


def first_stage(ins: int, outs: int) -> nn.Module:
    """The usual stage at the lowest resolution: a 3x3 convolution."""
    return nn.Sequential(*_rectified(ins, outs))


def encoder_stage(ins: int, outs: int) -> nn.Module:
    """The usual stage of an encoder: two 3x3 convolutions, then the mean of two by two pixels."""
    return nn.Sequential(*_rectified(ins, ins), *_rectified(ins, outs), nn.AvgPool2d(2))


def decoder_stage(ins: int, outs: int) -> nn.Module:
    """The usual stage of a decoder: each pixel four times, then two 3x3 convolutions."""
    return nn.Sequential(
        nn.Upsample(scale_factor=2), *_rectified(ins, outs), *_rectified(outs, outs)
    )


class ProgressiveEncoder(ProgressiveHalf):
    """From images to features, at a resolution that doubles with each growth.

    The stage of level k takes ``channels[k]`` features to the ``channels[k - 1]`` that the stage
    before reads, at half the resolution; that of level 0 makes the output. The adapter of level k
    takes images to ``channels[k]`` features.

    Right after `grow`, the new network maps images as the old one mapped the halved images (means
    of two by two pixels), bit for bit: ``(1 - alpha) * old adapter(halved) + alpha * new
    stage(new adapter(images))`` with alpha 0.

    The state_dict of a grown encoder loads into a fresh one that is made of the same stages; make
    its optimizer afterwards.

    Args:
        stages: From coarse to fine. Each is a module, or a function that makes it of the numbers of
            channels that it reads and gives when its turn comes; then layers that have grown wider
            meanwhile are no obstacle.
        channels: The numbers of channels that the stages read.
        image_channels: The channels of the images, (N, image_channels, resolution, resolution).
        start: The resolution at level 0: the height and width of images, in pixels.
        adapter: Makes an adapter of the numbers of channels that it reads and gives; by default
            a 1x1 convolution.

    Raises:
        TypeError: If an argument is of another type.
        ValueError: If there is not one number of channels for each stage, or a number is not
            positive; in `forward`, if images have another size than `resolution`.

    Example:
        >>> import torch, splitgrow
        >>> from torch import nn
        >>> coarse, fine = nn.Conv2d(16, 5, 3, padding=1), nn.Conv2d(8, 16, 4, 2, 1)
        >>> encoder = splitgrow.ProgressiveEncoder([coarse, fine], [16, 8], image_channels=1)
        >>> images = torch.randn(2, 1, 8, 8)
        >>> before = encoder(nn.functional.avg_pool2d(images, 2))
        >>> new = encoder.grow()
        >>> encoder.resolution, torch.equal(encoder(images), before)
        (8, True)

    Reference:
        Karras et al. 2018, Progressive Growing of GANs, https://arxiv.org/abs/1710.10196,
        section 2 and figure 2.
    """

    @classmethod
    def of_widths(
        cls,
        widths: Sequence[int],
        *,
        image_channels: int = 3,
        start: int = 4,
        latent: int | None = None,
    ) -> ProgressiveEncoder:
        """An encoder of the usual stages.

        Args:
            widths: The channels at each resolution, from coarse to fine.
            image_channels: The channels of the images, (N, image_channels, resolution, resolution).
            start: The resolution at level 0: the height and width of images, in pixels.
            latent: The channels of the output; default: ``widths[0]``.
        """
        first: Stage = first_stage if latent is None else first_stage(widths[0], latent)
        stages = [first, *[encoder_stage] * (len(widths) - 1)]
        return cls(stages, widths, image_channels=image_channels, start=start)

    def forward(self, images: Tensor) -> Tensor:
        """Features of images, (N, image_channels, resolution, resolution)."""
        self.check_size(images)
        top = self.level
        if self.fade is None:
            x = self.stages[str(top)](self.adapters[str(top)](images))
        else:
            x = self.fade(images)
        for level in reversed(range(top)):
            x = self.stages[str(level)](x)
        return x  # type: ignore[no-any-return]

    def _sides(self, level: int, width: int) -> tuple[tuple[int, int], tuple[int, int]]:
        own = self.channels[level]
        return (own, width), (self.image_channels, own)

    def _width(self, adapter: nn.Module) -> int:
        return _number(adapter, "out_channels", self.channels[self.level])

    def _ways(self, old: str, new: str) -> tuple[Way, Way]:
        return (halved, ("adapters", old)), (("adapters", new), ("stages", new))

    def _probe(self, old: nn.Module) -> tuple[int, ...]:  # noqa: ARG002
        return 1, self.image_channels, 2 * self.resolution, 2 * self.resolution


class ProgressiveDecoder(ProgressiveHalf):
    """From features to images, at a resolution that doubles with each growth.

    The mirror image of `ProgressiveEncoder`: the stage of level k takes the ``channels[k - 1]``
    features of the stage before to ``channels[k]`` at twice the resolution, of which the adapter of
    level k makes images. That of level 0 reads the input.

    Right after `grow`, the new network gives the doubled images (each pixel four times) of the old
    one, bit for bit: ``(1 - alpha) * doubled(old adapter(x)) + alpha * new adapter(new stage(x))``
    with alpha 0.

    Args:
        stages: From coarse to fine, as for `ProgressiveEncoder`.
        channels: The numbers of channels that the stages give.
        image_channels: The channels of the images, (N, image_channels, resolution, resolution).
        start: The resolution at level 0: the height and width of images, in pixels.
        adapter: Makes an adapter of the numbers of channels that it reads and gives; by default
            a 1x1 convolution.

    Raises:
        TypeError: If an argument is of another type.
        ValueError: If there is not one number of channels for each stage, or a number is not
            positive.

    Example:
        >>> import torch, splitgrow
        >>> decoder = splitgrow.ProgressiveDecoder.of_widths([16, 8], image_channels=1)
        >>> features = torch.randn(2, 16, 4, 4)
        >>> before = decoder(features)
        >>> new = decoder.grow()
        >>> after = decoder(features)
        >>> torch.equal(after, before.repeat_interleave(2, 2).repeat_interleave(2, 3))
        True

    Reference:
        Karras et al. 2018, Progressive Growing of GANs, https://arxiv.org/abs/1710.10196,
        section 2 and figure 2.
    """

    @classmethod
    def of_widths(
        cls,
        widths: Sequence[int],
        *,
        image_channels: int = 3,
        start: int = 4,
        latent: int | None = None,
    ) -> ProgressiveDecoder:
        """A decoder of the usual stages.

        Args:
            widths: The channels at each resolution, from coarse to fine.
            image_channels: The channels of the images, (N, image_channels, resolution, resolution).
            start: The resolution at level 0: the height and width of images, in pixels.
            latent: The channels of the input; default: ``widths[0]``.
        """
        first: Stage = first_stage if latent is None else first_stage(latent, widths[0])
        stages = [first, *[decoder_stage] * (len(widths) - 1)]
        return cls(stages, widths, image_channels=image_channels, start=start)

    def forward(self, features: Tensor) -> Tensor:
        """Images of features, (N, image_channels, resolution, resolution)."""
        x, top = features, self.level
        for level in range(top):
            x = self.stages[str(level)](x)
        if self.fade is not None:
            return self.fade(x)  # type: ignore[no-any-return]
        return self.adapters[str(top)](self.stages[str(top)](x))  # type: ignore[no-any-return]

    def _sides(self, level: int, width: int) -> tuple[tuple[int, int], tuple[int, int]]:
        own = self.channels[level]
        return (width, own), (own, self.image_channels)

    def _width(self, adapter: nn.Module) -> int:
        return _number(adapter, "in_channels", self.channels[self.level])

    def _ways(self, old: str, new: str) -> tuple[Way, Way]:
        return (("adapters", old), doubled), (("stages", new), ("adapters", new))

    def _probe(self, old: nn.Module) -> tuple[int, ...]:
        return 1, self._width(old), self.resolution, self.resolution


def _number(module: nn.Module, name: str, default: int) -> int:
    """A number of channels that a layer has, grown or not."""
    value: Any = getattr(module, name, default)
    return value if isinstance(value, int) else default
