"""Initializers whose helpers are zero, so that new units add nothing until these have learned."""

from __future__ import annotations

from splitgrow.growth.initializers.initializer import Initializer
from splitgrow.growth.prepared import PreparedEdit
from splitgrow.growth.starting import set_start_values_
from splitgrow.layers.types import Start, TensorBlock


class Zero(Initializer):
    """Helpers zero, new units as torch initialises a layer of their shape.

    The old outputs are unchanged, since helpers add nothing yet. Helpers learn from the first step
    and new units from the second; if both were zero, neither would ever learn. Where a norm over
    all channels reads new units, they are zeros, means or copies of the old units, as the edit
    says. A helper that reads zeros keeps torch's values.
    """

    name = "zero"

    def apply(self, prepared: PreparedEdit) -> None:
        """Sets the helpers to zero, and units that must have certain values."""
        for layer in prepared.layers.values():
            set_start_values_(layer)


class Average(Initializer):
    """Helpers zero, and each new unit the mean of the old ones.

    On a stream that LayerNorms read it is the way that is exact for any width, if each layer that
    makes the stream can make means (Wang et al. 2023, https://arxiv.org/abs/2310.07999).
    """

    name = "average"
    way = "average"
    differ_from = ""

    def apply(self, prepared: PreparedEdit) -> None:
        """Sets the helpers to zero, and new units to the mean of the old ones."""
        for layer in prepared.layers.values():
            set_start_values_(layer, Start.MEAN)


class Duplicate(Initializer):
    """Helpers zero, and new units copies of the old ones in turn.

    On a stream that norms over all channels read it is exact if the width becomes a multiple: every
    statistic stays the same (Samragh et al. 2024, https://arxiv.org/abs/2409.12903).
    """

    name = "duplicate"
    way = "duplicate"
    differ_from = ""
    keeps_variance = True

    def apply(self, prepared: PreparedEdit) -> None:
        """Sets the helpers to zero, and new units to copies of the old ones."""
        for layer in prepared.layers.values():
            set_start_values_(layer, Start.COPY)


class Stirred(Zero):
    """Helpers zero, and new units with random values also in biases and norms, for trials.

    Where units must have certain values at birth they are as `Zero` has them.
    """

    name = "stirred"

    def apply(self, prepared: PreparedEdit) -> None:
        """Sets the helpers to zero, and gives norms of new units values that show in a trial."""
        super().apply(prepared)
        for layer in prepared.layers.values():
            block = layer.added.get("new")
            tensor_block = isinstance(block, TensorBlock)  # of any range: a variance, a decay
            if block is None or tensor_block or {*layer.starts("new")} != {Start.FREE}:
                continue
            for name, tensor in (*block.named_parameters(), *block.named_buffers()):
                if not tensor.is_floating_point():
                    continue
                if name == "running_var" or (name == "weight" and tensor.dim() == 1):
                    tensor.uniform_(0.5, 1.5)
                elif tensor.dim() == 1:
                    tensor.normal_(std=0.3)
