"""The methods of a growable model that make it narrower."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from splitgrow.growth.edits import Edit
from splitgrow.growth.growing import GrowingBase
from splitgrow.pruning.shrinking.shrinking import plan_shrinking, take_out_


class ShrinkMethods(GrowingBase):
    """Taking units out."""

    def shrink_layer(
        self,
        layer: int | str,
        channels: int | Sequence[int],
        *,
        round_to: int = 1,
        give_up: bool = False,
        optimizer: object = None,
        check: bool = True,
    ) -> Edit:
        """Takes output channels out of a layer, and out of all layers that are tied to it.

        See `shrink`.

        Args:
            layer: The layer's index or name.
            channels: The channels that go, counted from 0; or how many, the weakest.
            round_to: As of `shrink`.
            give_up: As of `shrink`.
            optimizer: As of `shrink`.
            check: As of `shrink`.

        Returns:
            The edit.

        Raises:
            SplitGrowError: As `shrink`, which also raises TypeError and ValueError.

        Example:
            >>> import torch, splitgrow
            >>> from torch import nn
            >>> net = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 1))
            >>> net = splitgrow.growable(net, torch.ones(1, 2))
            >>> _ = nn.init.zeros_(net[2].weight[:, 1:2].detach())
            >>> print(net.shrink_layer("0", [1]))
            Edit 1 (generation 0): 0 -1
            takes 4 parameters from 2 layers
              layer  type    inputs  units   parameters
              0      Linear  2       4 -> 3  -3
              2      Linear  4 -> 3  1       -1
        """
        return self.shrink(
            {layer: channels},
            round_to=round_to,
            give_up=give_up,
            optimizer=optimizer,
            check=check,
        )

    def shrink(
        self,
        request: Mapping[int | str, int | Sequence[int]],
        *,
        round_to: int = 1,
        give_up: bool = False,
        optimizer: object = None,
        check: bool = True,
    ) -> Edit:
        """Takes output channels out of several layers at once, all or nothing.

        The layers have then the tensors of a plain model, without those channels: in every layer
        that makes them, that is tied to these, or that reads them. The optimizers keep the state of
        all that stays. A norm over all channels makes up for those that had joined it, as long as
        they are there. Closed generations stay as they are, bit for bit, if only newer channels go.

        Channels that nothing reads go without a change of the function. For others the edit says
        how far the outputs on the example inputs have moved, relative to the largest (`moved`).

        Args:
            request: By layers' names or indices the channels that go, counted from 0; or how many,
                the weakest: those whose weights, in all layers that make or read them, have the
                smallest sum of squares. Heads and other units of several channels go whole.
            round_to: The number of which a width that stays is a multiple, where a number of
                channels is given; then more of them go.
            give_up: Whether closed generations may lose channels; they can no longer be recovered
                then.
            optimizer: One or several optimizers. Parameters that get smaller are others, in the
                same places of their groups, with the same part of the state.
            check: Whether to compare the outputs with those of the model while nothing reads the
                channels. Where a norm over all channels, or a function, reads them, only their
                shapes are compared.

        Returns:
            The edit.

        Raises:
            TypeError: If an argument is of another type.
            ValueError: If there is no such layer or channel, only a part of a unit would go, or all
                units of a layer.
            FixedWidthError: If a layer's width is fixed.
            UnsupportedLayerError: If a layer computes its weight, or a tensor has hooks.
            GenerationError: If closed generations would lose channels without `give_up`.
            OptimizerError: If an optimizer's state lies in a way that is not known.
            InexactError: If `check` finds that more than those channels would change.
            StructureChangedError: If the model was changed by hand since it was analysed.

        In all these cases model and optimizer are as before.

        Example:
            >>> import torch, splitgrow
            >>> from torch import nn
            >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
            >>> net = splitgrow.growable(net, torch.randn(1, 3, 8, 8))
            >>> edit = net.shrink({"0": 2, "2": [3]})
            >>> [layer.width for layer in net.layers]
            [6, 3]
        """
        return self._growth(
            "take channels out",
            take_out_,
            request,
            round_to=round_to,
            give_up=give_up,
            optimizer=optimizer,
            check=check,
        )

    def plan_shrinking(
        self,
        request: Mapping[int | str, int | Sequence[int]],
        *,
        round_to: int = 1,
        give_up: bool = False,
    ) -> Edit:
        """The edit that `shrink` would apply, not applied; print it to see it.

        Args:
            request: As of `shrink`.
            round_to: As of `shrink`.
            give_up: As of `shrink`.

        Raises:
            SplitGrowError: As `shrink`, which also raises TypeError and ValueError.
        """
        return self._operation(
            "plan to take channels out",
            plan_shrinking,
            request,
            round_to=round_to,
            give_up=give_up,
        )
