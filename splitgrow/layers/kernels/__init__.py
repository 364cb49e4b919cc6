"""The arithmetic of plain layers with their gradients apart: pure functions on tensors.

A grown layer that trains a part of its weight needs the gradient of that part only. Torch's own
layers always compute all of it, so this package spells out their gradients, by the same kernels.
"""

from splitgrow.layers.kernels.batchnorm import MixedBatchNorm
from splitgrow.layers.kernels.convolution import Convolution
from splitgrow.layers.kernels.kernel import Kernel
from splitgrow.layers.kernels.linear import Linear

__all__ = ["Convolution", "Kernel", "Linear", "MixedBatchNorm"]
