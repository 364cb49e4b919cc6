"""The public way to have an averaged copy of a model grow with it."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import TypeVar
from weakref import ref

import torch
from torch import Tensor, nn

from splitgrow.analysis.channel_graph import ChannelGraph
from splitgrow.errors import CheckpointError, SplitGrowError
from splitgrow.growth.averages import catch_up_
from splitgrow.growth.copies import modules_in
from splitgrow.growth.edits import Edit
from splitgrow.growth.growable_class import class_like, original_class
from splitgrow.growth.history import History, structure
from splitgrow.growth.history_lookup import HISTORY, history_of
from splitgrow.growth.journal.state_dict import common_edits
from splitgrow.utils.rollback import Undo, all_or_nothing

Average = TypeVar("Average")


def follow(average: Average, model: nn.Module) -> Average:
    """Has an averaged copy of a model grow with the model, and keep its averages.

    It makes up for growth that has happened already, and takes part in growth to come. The
    average stays the same object, as do its parameters and their values; the parameters that are
    new begin their averages with the model's present values, and so do those that an initializer
    has changed, such as "net2net". So an average that is told before a
    growth computes the same after it, as the model does.

    It is for any object that holds a deep copy of the model: torch's ``AveragedModel``, the
    averages of timm, Lightning and ema_pytorch, one of yours, or the copy itself. The copy may be
    older than the call of `splitgrow.growable`. Names of parameters that an average keeps in sets
    or lists follow as well.

    An average goes on changing after a generation was closed. So ``at`` shows the averages of that
    generation's parameters as they are now. The copy's state_dict has the model's own journal.

    Args:
        average: The copy, or a module or another object that has it as an attribute.
        model: The growable model, or a module that holds it, if the copy is one of that module.

    Returns:
        The average.

    Raises:
        TypeError: If the model is no module.
        SplitGrowError: If the average holds no copy of the model, or the model is not growable.
        CheckpointError: If the copy has grown by itself. Nothing changes then.

    Example:
        >>> import torch, splitgrow
        >>> from torch.optim.swa_utils import AveragedModel
        >>> net = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Linear(3, 1))
        >>> net = splitgrow.growable(net, torch.ones(1, 2))
        >>> average = splitgrow.follow(AveragedModel(net), net)
        >>> edit = net.expand_layer("0", 2)
        >>> average.module.layers[0].width
        5
        >>> average.update_parameters(net)
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    models = list(_growable_in(model))
    if not models:
        raise SplitGrowError(
            f"{type(model).__name__} is not growable yet; call splitgrow.growable first"
        )

    def begin(undo: Undo) -> None:
        for own in models:
            copied = _copy_in(average, own)
            kin = history_of(own).kin
            undo.on_failure(partial(setattr, kin, "followers", list(kin.followers)))
            kin.followers = [
                (c, a) for c, a in kin.followers if c() is not None and c() is not copied
            ]
            kin.followers.append((ref(copied), ref(average)))
            if HISTORY not in vars(copied):
                _make_growable_(copied, own, undo)
            undo.keep(vars(history_of(copied).kin))
            history_of(copied).kin.leader = ref(own)
            catch_up_(copied, average, own, undo)

    all_or_nothing(begin)()
    return average


def _growable_in(model: nn.Module) -> Iterator[nn.Module]:
    """The growable models in a module, but not those inside of others."""
    if HISTORY in vars(model):
        yield model
        return
    for child in model.children():
        yield from _growable_in(child)


def _copy_in(average: object, model: nn.Module) -> nn.Module:
    """The copy of a model that an average holds.

    Raises:
        SplitGrowError: If it holds none, or several that may be meant.
    """
    copies = {id(kin.model()) for kin in history_of(model).kin.copies if kin.model is not None}
    others = [module for _, module in modules_in(average) if module is not model]
    found = [module for module in others if id(module) in copies]
    if not found:
        found = [module for module in others if _is_like(module, model)]
    if not found:
        raise SplitGrowError(
            f"this {type(average).__name__} holds no copy of the {type(model).__name__} that could "
            f"follow it; averages that are lists of tensors are to be made anew after a growth"
        )
    if len(found) > 1:
        raise SplitGrowError(
            f"this {type(average).__name__} holds {len(found)} copies of the "
            f"{type(model).__name__}; pass the one that is to follow"
        )
    return found[0]


def _is_like(module: nn.Module, model: nn.Module) -> bool:
    """Whether a module may be a copy of a model, of today or from before it grew."""
    if original_class(module) is not original_class(model):
        return False
    if HISTORY in vars(module):
        own, other = vars(module)[HISTORY].edits, history_of(model).edits
        return len(own) <= len(other) and _shares(own, other)
    return True


def _shares(own: list[Edit], other: list[Edit]) -> bool:
    try:
        return common_edits(own, tuple(other)) == len(own)
    except CheckpointError:
        return False


def _make_growable_(copied: nn.Module, model: nn.Module, undo: Undo) -> None:
    """Gives a copy from before the analysis a history; its graph is made when it catches up."""
    history = history_of(model)
    theirs, own = (next((p for p in m.parameters()), torch.empty(0)) for m in (model, copied))

    def follow_copy(tensor: Tensor) -> Tensor:
        dtype = own.dtype if tensor.dtype == theirs.dtype else tensor.dtype
        return tensor.to(own.device, dtype)

    inputs = history.inputs_at(0).map(follow_copy)
    undo.on_failure(partial(setattr, copied, "__class__", type(copied)))
    undo.keep(vars(copied))
    vars(copied)[HISTORY] = History(ChannelGraph(), inputs, structure(copied))
    copied.__class__ = class_like(model, copied)
