"""The methods of a model that several processes train which add nothing to it."""

from __future__ import annotations

from torch import nn

from splitgrow.distributed.calls import in_words
from splitgrow.distributed.carrying import TIMEOUT, carry_out
from splitgrow.growth.edits import Edit


def next_generation(wrapped: nn.Module, *, timeout: float = TIMEOUT) -> int:
    """Closes the open generation in all processes, as `model.next_generation`.

    While nothing trains, which is so until the next growth, DistributedDataParallel has nothing to
    reduce and does not communicate.

    Args:
        wrapped: As in `expand_layer`.
        timeout: Seconds to wait for the other processes, at each step.

    Returns:
        The number of the generation that is open now.

    Raises:
        DistributedError: As in `expand_layer`.

    Example:
        >>> import torch, splitgrow
        >>> from torch import distributed as dist, nn
        >>> dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
        >>> net = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
        >>> net = splitgrow.growable(net, torch.ones(1, 2))  # the same in every process
        >>> splitgrow.distributed.next_generation(net)
        1
        >>> dist.destroy_process_group()
    """
    return carry_out(
        wrapped,
        in_words("next_generation"),
        lambda model: model.next_generation(),
        timeout=timeout,
    )


def consolidate(
    wrapped: nn.Module, *, optimizer: object = None, check: bool = True, timeout: float = TIMEOUT
) -> Edit | None:
    """Joins the blocks of several growths into one block each, as `model.consolidate`.

    Of a sharded model every process holds all of it for as long as that takes.

    Args:
        wrapped: As in `expand_layer`.
        optimizer: One or several optimizers of this process.
        check: As in `model.consolidate`.
        timeout: Seconds to wait for the other processes, at each step.

    Returns:
        The record of what was done; None if there was nothing to join.

    Raises:
        DistributedError: As in `expand_layer`.

    Example:
        >>> import torch, splitgrow
        >>> from torch import distributed as dist, nn
        >>> dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
        >>> net = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
        >>> net = splitgrow.growable(net, torch.ones(1, 2))  # the same in every process
        >>> for _ in range(2):
        ...     edit = splitgrow.distributed.expand_layer(net, "0", 1)
        >>> print(splitgrow.distributed.consolidate(net))
        Edit 3 (generation 1): joins what 2 edits added to 2 layers
        >>> dist.destroy_process_group()
    """
    return carry_out(
        wrapped,
        in_words("consolidate", check=check),
        lambda model: model.consolidate(optimizer=optimizer, check=check),
        optimizer=optimizer,
        timeout=timeout,
        values=True,
        shared=False,
    )


def absorb(
    wrapped: nn.Module, *, optimizer: object = None, check: bool = True, timeout: float = TIMEOUT
) -> Edit | None:
    """Makes every grown layer plain again, as `model.absorb`.

    Of a sharded model every process holds all of it for as long as that takes.

    Args:
        wrapped: As in `expand_layer`.
        optimizer: One or several optimizers of this process.
        check: As in `model.absorb`.
        timeout: Seconds to wait for the other processes, at each step.

    Returns:
        The record of what was done; None if there was nothing to make plain.

    Raises:
        DistributedError: As in `expand_layer`.

    Example:
        >>> import torch, splitgrow
        >>> from torch import distributed as dist, nn
        >>> dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
        >>> net = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
        >>> net = splitgrow.growable(net, torch.ones(1, 2))  # the same in every process
        >>> edit = splitgrow.distributed.expand_layer(net, "0", 2, freeze=False)
        >>> print(splitgrow.distributed.absorb(net))
        Edit 2 (generation 0): makes 2 layers plain
        >>> dist.destroy_process_group()
    """
    return carry_out(
        wrapped,
        in_words("absorb", check=check),
        lambda model: model.absorb(optimizer=optimizer, check=check),
        optimizer=optimizer,
        timeout=timeout,
        values=True,
        shared=False,
    )


def unfreeze(wrapped: nn.Module, *, timeout: float = TIMEOUT) -> None:
    """Lets everything train again, as `model.unfreeze`.

    Args:
        wrapped: As in `expand_layer`.
        timeout: Seconds to wait for the other processes, at each step.

    Raises:
        DistributedError: As in `expand_layer`.

    Example:
        >>> import torch, splitgrow
        >>> from torch import distributed as dist, nn
        >>> dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
        >>> net = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
        >>> net = splitgrow.growable(net, torch.ones(1, 2))  # the same in every process
        >>> edit = splitgrow.distributed.expand_layer(net, "0", 2)
        >>> splitgrow.distributed.unfreeze(net)
        >>> all(p.requires_grad for p in net.parameters())
        True
        >>> dist.destroy_process_group()
    """
    carry_out(wrapped, in_words("unfreeze"), lambda model: model.unfreeze(), timeout=timeout)
