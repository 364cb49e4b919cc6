"""A Linear."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F

from splitgrow.layers.kernels.kernel import Kernel


@dataclass(frozen=True, slots=True)
class Linear(Kernel):
    """``x @ weight.T + bias``, the weight being (out, in); or (in, out) if `transposed`."""

    transposed: bool = False
    channel_dim = -1

    def output(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The layer's output, (..., out)."""
        return F.linear(x, weight.T if self.transposed else weight, bias)

    def input_gradient(
        self,
        of_output: Tensor,
        shape: tuple[int, ...],  # noqa: ARG002
        x: Tensor | None,  # noqa: ARG002
        weight: Tensor,
    ) -> Tensor:
        """(..., in)."""
        return of_output.matmul(weight.T if self.transposed else weight)

    def weight_gradient(self, of_output: Tensor, x: Tensor, weight: Tensor) -> Tensor:  # noqa: ARG002
        """(out, in), summed over everything before the channels."""
        rows, columns = (t.reshape(-1, t.shape[-1]) for t in (of_output, x))
        return columns.T.mm(rows) if self.transposed else rows.T.mm(columns)
