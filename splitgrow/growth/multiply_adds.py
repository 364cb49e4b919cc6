"""The multiply-adds of a model, as it is and as it would be, without running it for real.

A copy without values runs on the meta device, where arithmetic takes no time and tensors take no
memory. Code that reads values, or makes tensors on a device by name, does not run there; then the
model, or a copy of it, runs on its example inputs.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils import _pytree as pytree
from torch.utils.flop_counter import FlopCounterMode

from splitgrow.analysis.output_comparison import NotRunnableError, fitting, outputs_of
from splitgrow.errors import SplitGrowError
from splitgrow.growth.apply import carry_out_, plan
from splitgrow.growth.copies import Kin
from splitgrow.growth.growth_options import GrowthOptions
from splitgrow.growth.history_lookup import history_of
from splitgrow.growth.initializers import Initializer
from splitgrow.growth.prepared import PreparedEdit
from splitgrow.utils.preserve import keep_random_states_
from splitgrow.utils.rollback import Undo, temporarily


class _ShapesOnly(Initializer):
    """Leaves new blocks as they are, since nobody looks at their values."""

    name = "shapes only"

    def __init__(self, way: str | None) -> None:
        self.way = way

    def apply(self, prepared: PreparedEdit) -> None:
        del prepared


class MacsCounter:
    """The multiply-adds of a forward pass for one sample, at widths of today and of tomorrow.

    Args:
        model: A growable model, which is copied without its values.

    Attributes:
        samples: The number of samples in the example inputs: the size of the first dimension of
            their first tensor.

    Raises:
        SplitGrowError: If the model does not run on its example inputs.
    """

    def __init__(self, model: nn.Module) -> None:
        self.samples = samples_of(model)
        self._model = model
        try:
            self._model = untold_copy(model, device="meta")
            self.macs = self._counted(self._model)
        except Exception:  # noqa: BLE001 - whatever forward, or a module's copy, raises there
            self._model = model
            self.macs = self._counted(model)

    def after(self, changes: Iterable[Callable[[nn.Module], object] | None]) -> Iterator[int]:
        """The multiply-adds after each of several changes of a copy, one after the other.

        Args:
            changes: Each changes a growable model, which may have no values; None changes nothing.
        """
        changed = untold_copy(self._model)
        macs = self.macs
        for change in changes:
            if change is not None:
                change(changed)
                macs = self._counted(changed)
            yield macs

    def _counted(self, model: nn.Module) -> int:
        return round(multiply_adds(model) / max(self.samples, 1))


def samples_of(model: nn.Module) -> int:
    """The number of samples in the example inputs: the first dimension of their first tensor."""
    inputs = history_of(model).inputs
    tensors = (t for t in pytree.tree_leaves(inputs) if isinstance(t, Tensor) and t.dim())
    return next((len(tensor) for tensor in tensors), 1)


def multiply_adds(model: nn.Module) -> int:
    """The multiply-adds of a forward pass on the example inputs, as torch counts them.

    Raises:
        SplitGrowError: If the model does not run on them.
    """
    history = history_of(model)
    counter = FlopCounterMode(display=False)
    meta = any(tensor.is_meta for tensor in (*model.parameters(), *model.buffers()))
    inputs = history.inputs.map(_on_meta) if meta else fitting(model, history.inputs)
    try:
        with sdpa_kernel(SDPBackend.MATH):  # torch does not count every fused attention
            outputs_of(model, inputs, hooks=False, watch=counter, touched=history.graph.touched)
    except NotRunnableError as error:
        raise SplitGrowError(
            f"the multiply-adds of {type(model).__name__} cannot be counted: it does not run on "
            f"its example inputs ({error})"
        ) from error
    return int(counter.get_total_flops()) // 2


def _on_meta(tensor: Tensor) -> Tensor:
    return tensor.to("meta")


def untold_copy(model: nn.Module, device: str | None = None) -> nn.Module:
    """A deep copy that the model does not know of.

    Args:
        model: A growable model.
        device: "meta" for a copy without values; None for one with those that the model has.
    """
    memo: dict[int, Any] = {id(history_of(model).kin): Kin()}
    if device is not None:
        for parameter in model.parameters():
            empty = torch.empty_like(parameter, device=device)
            memo[id(parameter)] = nn.Parameter(empty, requires_grad=parameter.requires_grad)
        for buffer in model.buffers():
            memo[id(buffer)] = torch.empty_like(buffer, device=device)
    return copy.deepcopy(model, memo)


@temporarily
def grow_copy_(undo: Undo, model: nn.Module, request: Mapping[str, int], way: str | None) -> None:
    """Grows a copy for good; random numbers are as before."""
    keep_random_states_(model.modules(), undo)
    history, shapes = history_of(model), _ShapesOnly(way)
    asked: dict[int | str, int] = dict(request.items())
    edit = plan(model, history, asked, freeze=False, initializer=shapes)
    final = Undo()
    carry_out_(final, model, history, edit, replace(GrowthOptions(), initializer=shapes), [])
    final.commit()
