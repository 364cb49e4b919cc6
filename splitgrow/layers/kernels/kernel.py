"""The interface of a layer that multiplies with a weight."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor


class Kernel(ABC):
    """A layer that is linear in its input and in its weight, as functions on tensors.

    All of them can be differentiated again. Inputs and output gradients may be slices along their
    channels, with a weight of the shape that goes with them.
    """

    channel_dim: int
    """The dimension of input and output on which the channels lie, from behind."""

    def prepared(self, x: Tensor) -> Tensor:
        """The input as the other functions take it."""
        return x

    def batched(self, x: Tensor) -> bool:  # noqa: ARG002
        """Whether an input has all the dimensions that the gradients need."""
        return True

    @abstractmethod
    def output(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The layer's output."""

    @abstractmethod
    def input_gradient(
        self, of_output: Tensor, shape: tuple[int, ...], x: Tensor | None, weight: Tensor
    ) -> Tensor:
        """The gradient with respect to the input, of this shape; its values may be unknown."""

    @abstractmethod
    def weight_gradient(self, of_output: Tensor, x: Tensor, weight: Tensor) -> Tensor:
        """The gradient with respect to a weight; only the weight's shape is read."""

    def gradients(self, of_output: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        """The gradients with respect to the input and to the whole weight."""
        of_x = self.input_gradient(of_output, tuple(x.shape), x, weight)
        return of_x, self.weight_gradient(of_output, x, weight)
