"""Parameters that stay the same objects while a model is rebuilt from its journal.

An optimizer that was made before a checkpoint is loaded holds them.
"""

from __future__ import annotations

from functools import partial

from torch import Tensor, nn

from splitgrow.utils.rollback import Undo

_FORMER = "_splitgrow_former"
"""The attribute of a Parameter without values that names the one whose place it took."""


def in_the_place_of_(newer: nn.Parameter, older: nn.Parameter, undo: Undo) -> nn.Parameter:
    """The older Parameter with the values of a newer one that takes its place.

    A newer one that has no values yet remembers the older one until it is given them: see
    `former_again_`.
    """
    if newer.is_meta and not older.is_meta:
        vars(newer)[_FORMER] = older
        return newer
    now = older.data, older.grad, older.requires_grad
    undo.on_failure(partial(_become_, older, *now))
    _become_(older, newer.data, newer.grad, newer.requires_grad)
    return older


def former_again_(filled: nn.Parameter, empty: nn.Parameter, undo: Undo) -> nn.Parameter:
    """The Parameter whose place one without values took, with these; or the filled one."""
    former = vars(empty).get(_FORMER)
    return filled if former is None else in_the_place_of_(filled, former, undo)


def _become_(parameter: nn.Parameter, data: Tensor, grad: Tensor | None, trains: bool) -> None:  # noqa: FBT001
    parameter.grad = None  # which has the shape of the values
    parameter.data = data
    parameter.grad = grad
    parameter.requires_grad_(trains)
