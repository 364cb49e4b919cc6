"""Networks that grow in resolution: encoders, decoders, autoencoders, and the two halves of a GAN.

Filters never change their shape. Only an adapter, a 1x1 convolution, ties a network to images of
one size and one number of channels. Each resolution has its own; the old one goes when the
new one has faded in (Karras et al. 2018, https://arxiv.org/abs/1710.10196, section 2).
"""

from splitgrow.progressive.coders import ProgressiveDecoder, ProgressiveEncoder
from splitgrow.progressive.networks import (
    ProgressiveAutoencoder,
    ProgressiveDiscriminator,
    ProgressiveGenerator,
)

__all__ = [
    "ProgressiveAutoencoder",
    "ProgressiveDecoder",
    "ProgressiveDiscriminator",
    "ProgressiveEncoder",
    "ProgressiveGenerator",
]
