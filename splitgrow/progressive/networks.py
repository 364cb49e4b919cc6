"""Networks of encoders and decoders whose resolution grows: autoencoders, the halves of a GAN."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from splitgrow.progressive.base import Progressive
from splitgrow.progressive.coders import SLOPE, ProgressiveDecoder, ProgressiveEncoder
from splitgrow.progressive.halves import ProgressiveHalf


class ProgressiveAutoencoder(Progressive):
    """An encoder and a decoder that grow together, ``decoder(encoder(images))``.

    Right after `grow` it gives for images the doubled output of the old network for the halved
    images, bit for bit.

    Args:
        encoder: At the same level, with as many stages and the same resolution as the decoder.
        decoder: The decoder.

    Raises:
        ValueError: If the two do not belong together.

    Example:
        An autoencoder of grey images, four pixels by four, that goes on with eight by eight. The
        first convolution reads 16 channels from the beginning, and always will; a 1x1 convolution
        reads the images.

        >>> import torch, splitgrow
        >>> from torch.nn import functional as F
        >>> model = splitgrow.ProgressiveAutoencoder.of_widths([16, 8], image_channels=1, start=4)
        >>> [tuple(p.shape) for p in model.encoder.parameters() if p.dim() > 1]
        [(16, 1, 1, 1), (16, 16, 3, 3)]
        >>> optimizer = torch.optim.Adam(model.parameters())
        >>> images = torch.randn(8, 1, 8, 8)
        >>> small = model(F.avg_pool2d(images, 2))
        >>> new = model.grow(optimizer=optimizer)
        >>> torch.equal(model(images), F.interpolate(small, scale_factor=2))
        True
        >>> schedule = splitgrow.FadeSchedule(model, steps=10)
        >>> while not schedule.finished:
        ...     optimizer.zero_grad()
        ...     F.mse_loss(model(images), images).backward()
        ...     optimizer.step()
        ...     schedule.step()
        >>> model.finish()
        >>> [tuple(p.shape) for p in model.encoder.parameters() if p.dim() > 1]
        [(8, 1, 1, 1), (16, 16, 3, 3), (8, 8, 3, 3), (16, 8, 3, 3)]

    Reference:
        Karras et al. 2018, Progressive Growing of GANs, https://arxiv.org/abs/1710.10196,
        section 2, for the way of growing.
    """

    def __init__(self, encoder: ProgressiveEncoder, decoder: ProgressiveDecoder) -> None:
        super().__init__()
        sides = [
            (half.level, half.levels, half.start, half.image_channels)
            for half in (encoder, decoder)
        ]
        if sides[0] != sides[1]:
            raise ValueError(
                f"encoder and decoder must have the same level, number of levels, start and image "
                f"channels, not {sides[0]} and {sides[1]}"
            )
        self.encoder, self.decoder = encoder, decoder

    @classmethod
    def of_widths(
        cls,
        widths: Sequence[int],
        *,
        image_channels: int = 3,
        start: int = 4,
        latent: int | None = None,
    ) -> ProgressiveAutoencoder:
        """An autoencoder of the usual stages.

        Args:
            widths: The channels at each resolution, from coarse to fine.
            image_channels: The channels of the images, (N, image_channels, resolution, resolution).
            start: The resolution at level 0, which is that of the features between the halves.
            latent: The channels of those; default: ``widths[0]``.
        """
        options: dict[str, Any] = {
            "image_channels": image_channels,
            "start": start,
            "latent": latent,
        }
        return cls(
            ProgressiveEncoder.of_widths(widths, **options),
            ProgressiveDecoder.of_widths(widths, **options),
        )

    def halves(self) -> tuple[ProgressiveHalf, ...]:
        """The encoder and the decoder."""
        return self.encoder, self.decoder

    def forward(self, images: Tensor) -> Tensor:
        """The images again, (N, image_channels, resolution, resolution)."""
        return self.decoder(self.encoder(images))  # type: ignore[no-any-return]


class _Unfold(nn.Module):
    """A latent vector as features: a transposed convolution over one position."""

    def __init__(self, latent: int, width: int, size: int) -> None:
        super().__init__()
        self.conv = nn.ConvTranspose2d(latent, width, size)
        self.act = nn.LeakyReLU(SLOPE)

    def forward(self, z: Tensor) -> Tensor:
        return self.act(self.conv(z.unsqueeze(-1).unsqueeze(-1)))  # type: ignore[no-any-return]


class ProgressiveGenerator(Progressive):
    """A decoder behind a head that makes its features of latent vectors.

    Right after `grow` it gives the doubled images of the old network, bit for bit.

    Args:
        head: From latent vectors to the decoder's features.
        decoder: The decoder.

    Example:
        >>> import torch, splitgrow
        >>> model = splitgrow.ProgressiveGenerator.of_widths([32, 16, 8], latent=10)
        >>> new = model.grow()
        >>> model(torch.randn(2, 10)).shape
        torch.Size([2, 3, 8, 8])

    Reference:
        Karras et al. 2018, Progressive Growing of GANs, https://arxiv.org/abs/1710.10196.
    """

    def __init__(self, head: nn.Module, decoder: ProgressiveDecoder) -> None:
        super().__init__()
        self.head, self.decoder = head, decoder

    @classmethod
    def of_widths(
        cls, widths: Sequence[int], *, latent: int, image_channels: int = 3, start: int = 4
    ) -> ProgressiveGenerator:
        """A generator of the usual stages.

        Args:
            widths: The channels at each resolution, from coarse to fine.
            latent: The length of the latent vectors.
            image_channels: The channels of the images, (N, image_channels, resolution, resolution).
            start: The resolution at level 0: the height and width of images, in pixels.
        """
        decoder = ProgressiveDecoder.of_widths(widths, image_channels=image_channels, start=start)
        return cls(_Unfold(latent, widths[0], start), decoder)

    def halves(self) -> tuple[ProgressiveHalf, ...]:
        """The decoder."""
        return (self.decoder,)

    def forward(self, z: Tensor) -> Tensor:
        """Images of latent vectors."""
        return self.decoder(self.head(z))  # type: ignore[no-any-return]


class ProgressiveDiscriminator(Progressive):
    """An encoder before a head that makes a score of its features.

    Right after `grow` it maps images as the old network mapped the halved images, bit for bit.

    Args:
        encoder: The encoder.
        head: From its features to scores.

    Example:
        >>> import torch, splitgrow
        >>> model = splitgrow.ProgressiveDiscriminator.of_widths([32, 16, 8])
        >>> new = model.grow()
        >>> model(torch.randn(2, 3, 8, 8)).shape
        torch.Size([2, 1])

    Reference:
        Karras et al. 2018, Progressive Growing of GANs, https://arxiv.org/abs/1710.10196.
    """

    def __init__(self, encoder: ProgressiveEncoder, head: nn.Module) -> None:
        super().__init__()
        self.encoder, self.head = encoder, head

    @classmethod
    def of_widths(
        cls, widths: Sequence[int], *, image_channels: int = 3, start: int = 4
    ) -> ProgressiveDiscriminator:
        """A discriminator of the usual stages.

        Args:
            widths: The channels at each resolution, from coarse to fine.
            image_channels: The channels of the images, (N, image_channels, resolution, resolution).
            start: The resolution at level 0: the height and width of images, in pixels.
        """
        encoder = ProgressiveEncoder.of_widths(widths, image_channels=image_channels, start=start)
        width = widths[0]
        whole = nn.Conv2d(width, width, start)
        head = nn.Sequential(whole, nn.LeakyReLU(SLOPE), nn.Flatten(), nn.Linear(width, 1))
        return cls(encoder, head)

    def halves(self) -> tuple[ProgressiveHalf, ...]:
        """The encoder."""
        return (self.encoder,)

    def forward(self, images: Tensor) -> Tensor:
        """Scores of images, (N, 1)."""
        return self.head(self.encoder(images))  # type: ignore[no-any-return]
