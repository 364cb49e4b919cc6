"""The methods of a model that several processes train which make it smaller."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from splitgrow.distributed.calls import as_list, in_words
from splitgrow.distributed.carrying import TIMEOUT, ByChoice, carry_out
from splitgrow.growth.edits import Edit
from splitgrow.handle import Handle


def shrink_layer(  # noqa: PLR0913
    wrapped: nn.Module,
    layer: int | str,
    channels: int | Sequence[int],
    *,
    round_to: int = 1,
    give_up: bool = False,
    optimizer: object = None,
    check: bool = True,
    timeout: float = TIMEOUT,
) -> Edit:
    """Takes output channels out of a layer in all processes, as `model.shrink_layer` in one.

    See `shrink`.

    Args:
        wrapped: As in `shrink`.
        layer: The layer's index or name.
        channels: The channels that go, counted from 0; or how many, the weakest.
        round_to: As in `shrink`, like `give_up`, `optimizer`, `check` and `timeout`.
        give_up: Whether closed generations may lose channels.
        optimizer: One or several optimizers of this process.
        check: Whether to compare outputs.
        timeout: Seconds to wait for the other processes, at each step.

    Returns:
        The edit.

    Raises:
        DistributedError: As in `shrink`, which also raises all that `model.shrink` does.

    Example:
        >>> import torch, splitgrow
        >>> from torch import distributed as dist, nn
        >>> dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
        >>> net = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
        >>> net = splitgrow.growable(net, torch.ones(1, 2))  # the same in every process
        >>> edit = splitgrow.distributed.shrink_layer(net, "0", [1])
        >>> net.layers[0].width
        2
        >>> dist.destroy_process_group()
    """
    return shrink(
        wrapped,
        {layer: channels},
        round_to=round_to,
        give_up=give_up,
        optimizer=optimizer,
        check=check,
        timeout=timeout,
    )


def shrink(
    wrapped: nn.Module,
    request: Mapping[int | str, int | Sequence[int]],
    *,
    round_to: int = 1,
    give_up: bool = False,
    optimizer: object = None,
    check: bool = True,
    timeout: float = TIMEOUT,
) -> Edit:
    """Takes output channels out of several layers in all processes, as `model.shrink` in one.

    Call it in every process, with the same arguments. Where a number of channels is given, the
    first rank's weakest ones go on all ranks; so models that every process trains in a way of its
    own stay of one shape. The ranks keep their own values of all that stays: those of
    DistributedDataParallel and FSDP are equal before, and so they are afterwards. Of a sharded
    model every process holds all of it for as long as that takes, and shards the tensors that got
    smaller anew, each in its unit.

    Args:
        wrapped: As in `expand_layer`.
        request: As in `model.shrink`: by layers the channels that go, or how many, the weakest.
        round_to: The number of which a width that stays is a multiple, where a number is given.
        give_up: Whether closed generations may lose channels; they can no longer be recovered then.
        optimizer: One or several optimizers of this process. Parameters that get smaller are
            others, in the same places of their groups, with the same part of the state.
        check: As in `model.shrink`, in every process.
        timeout: Seconds to wait for the other processes, at each step.

    Returns:
        The edit, the same in every process: `moved` is the first rank's.

    Raises:
        DistributedError: In every process, if one failed, asked for something else, holds another
            model, or did not come in time; the message says which.
        UnsupportedModelError: If the wrapper is one that a change cannot follow, or a parameter
            that would get smaller has hooks.
        SplitGrowError: As `model.shrink`, if it raises the same in all of them; `ValueError` and
            `TypeError` likewise.

    In all these cases model, wrapper and optimizer are as before, in every process.

    Example:
        >>> import splitgrow
        >>> def make_narrower(ddp, optimizer):  # in every process
        ...     return splitgrow.distributed.shrink(ddp, {"layer1": 8}, optimizer=optimizer)
    """
    asked = _listed(request)
    options: dict[str, Any] = {"round_to": round_to, "give_up": give_up}

    def chosen(model: Handle) -> dict[str, list[int]]:
        return _channels_of(model.plan_shrinking(asked, **options))

    def take_out(model: Handle, channels: Mapping[int | str, Sequence[int]]) -> Edit:
        return model.shrink(channels, give_up=give_up, optimizer=optimizer, check=check)

    return carry_out(
        wrapped,
        in_words("shrink", asked, **options, check=check),
        ByChoice(chosen, take_out),
        optimizer=optimizer,
        timeout=timeout,
        values=True,
        shared=False,
    )


def remove_layer(
    wrapped: nn.Module,
    name: str,
    *,
    give_up: bool = False,
    optimizer: object = None,
    check: bool = True,
    timeout: float = TIMEOUT,
) -> Edit:
    """Takes a layer out in all processes, as `model.remove_layer` in one.

    Of a sharded model every process holds all of it for as long as that takes.

    Args:
        wrapped: As in `shrink`.
        name: The path of the layer: of an insertion, or of a module that adds nothing.
        give_up: Whether closed generations may lose it.
        optimizer: One or several optimizers of this process, which the parameters leave.
        check: As in `model.remove_layer`, in every process.
        timeout: Seconds to wait for the other processes, at each step.

    Returns:
        The edit, the same in every process.

    Raises:
        DistributedError: As in `shrink`, which also raises all that `model.remove_layer` does.

    Example:
        >>> import torch, splitgrow
        >>> from torch import distributed as dist, nn
        >>> dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
        >>> net = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
        >>> net = splitgrow.growable(net, torch.ones(1, 2))  # the same in every process
        >>> edit = splitgrow.distributed.insert_layer(net, "0", "residual", freeze=False)
        >>> edit = splitgrow.distributed.remove_layer(net, edit.inserted[0].name)
        >>> len(net.layers)
        2
        >>> dist.destroy_process_group()
    """
    options: dict[str, Any] = {"give_up": give_up, "check": check}
    return carry_out(
        wrapped,
        in_words("remove_layer", name, **options),
        lambda model: model.remove_layer(name, optimizer=optimizer, **options),
        optimizer=optimizer,
        timeout=timeout,
        values=True,
        shared=False,
    )


def _listed(request: Any) -> Any:
    """A request whose words are the same in every process, and that can be read twice."""
    if not isinstance(request, Mapping):
        return request
    return {layer: as_list(channels) for layer, channels in request.items()}


def _channels_of(edit: Edit) -> dict[str, list[int]]:
    """The output channels that an edit takes out of the layers that were asked to lose some."""
    gone = {item.name: item.outs for item in edit.removed}
    return {
        name: [channel for start, count in gone[name] for channel in range(start, start + count)]
        for name in edit.request
    }
