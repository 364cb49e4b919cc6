"""The methods of a growable model that make it narrower."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from splitgrow.growth.edits import Edit
from splitgrow.growth.growing import GrowingBase
from splitgrow.growth.shrinking.shrinking import plan_shrinking, shrink_


class ShrinkMethods(GrowingBase):
    """Taking units out."""

    def shrink_layer(
        self,
        layer: int | str,
        channels: Sequence[int],
        *,
        give_up: bool = False,
        optimizer: object = None,
        check: bool = True,
    ) -> Edit:
        """Takes output channels out of a layer, and out of all that grew with it."""
        return self.shrink({layer: channels}, give_up=give_up, optimizer=optimizer, check=check)

    def shrink(
        self,
        request: Mapping[int | str, Sequence[int]],
        *,
        give_up: bool = False,
        optimizer: object = None,
        check: bool = True,
    ) -> Edit:
        """Takes output channels out of several layers at once."""
        return self._growth(
            "take units out",
            shrink_,
            request,
            give_up=give_up,
            optimizer=optimizer,
            check=check,
        )

    def plan_shrinking(
        self, request: Mapping[int | str, Sequence[int]], *, give_up: bool = False
    ) -> Edit:
        """The edit that `shrink` would apply, not applied; print it to see it."""
        return self._operation("plan to shrink", plan_shrinking, request, give_up=give_up)
