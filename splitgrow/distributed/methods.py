"""The methods of a model that several processes train, mirroring the model's own methods."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from splitgrow.distributed.calls import in_words
from splitgrow.distributed.carrying import TIMEOUT, carry_out, opened
from splitgrow.growth.edits import Edit
from splitgrow.growth.history_lookup import history_of
from splitgrow.growth.initializers import Initializer
from splitgrow.growth.insertion.request import After
from splitgrow.growth.planning import reads_values
from splitgrow.utils.schedulers import Schedulers
from splitgrow.utils.wrappers import is_sharded


def expand_layer(  # noqa: PLR0913
    wrapped: nn.Module,
    layer: int | str,
    n: int,
    *,
    round_to: int = 1,
    initializer: str | Initializer = "zero",
    freeze: bool = True,
    optimizer: Optimizer | Sequence[Optimizer] | None = None,
    lr_scale: float = 1.0,
    warmup: int = 0,
    scheduler: Schedulers | None = None,
    loss: Callable[[], Tensor] | None = None,
    check: bool = True,
    timeout: float = TIMEOUT,
) -> Edit:
    """Adds units to a layer in all processes that hold a model, as `model.expand_layer` in one.

    Call it in every process, with the same arguments. All of them must plan the same edit, which
    is compared by hash; the new tensors are the first rank's, so that the ranks stay equal bit for
    bit; the wrapper stays the same object, and so do parameters and optimizer. Every process draws
    as many random numbers as it would alone, from its own state, which stays its own.

    Args:
        wrapped: DistributedDataParallel around the growable model, or around a module that holds
            it; a growable model that `fully_shard` was applied to; or a growable model alone, which
            every process has and trains in a way of its own.
        layer: Its index or name in `layers`.
        n: The number of units that it gains.
        round_to: As in `model.expand_layer`, like `initializer` and `freeze`.
        initializer: How new blocks get their values. What one of them changes of existing values is
            the first rank's, too.
        freeze: Whether the first growth closes generation 0.
        optimizer: One or several optimizers of this process.
        lr_scale: As in `model.expand_layer`, like `warmup`, `scheduler` and `loss`.
        warmup: The steps over which the rates of new parameters rise.
        scheduler: One or several learning rate schedulers of this process.
        loss: A closure that returns a loss, of this process.
        check: As in `model.expand_layer`, in every process; a sharded model is compared only where
            all of it is held for the edit (`expand_input`, `expand_vocabulary`, `insert_layer`,
            `consolidate`, `absorb`, another initializer than "zero", new units that are made of old
            ones).
        timeout: Seconds to wait for the other processes, at each step.

    Returns:
        The record of what was done, the same in every process.

    Raises:
        DistributedError: In every process, if one failed, asked for something else, holds another
            model, or did not come in time; the message says which.
        UnsupportedModelError: If the wrapper is one that growth cannot follow.
        SplitGrowError: As `model.expand_layer`, if it raises the same in all of them;
            `ValueError` and `TypeError` likewise.

    In all these cases model, wrapper and optimizer are as before, in every process.

    Example:
        >>> import torch, splitgrow
        >>> from torch.nn.parallel import DistributedDataParallel
        >>> def worker() -> None:  # run by torchrun, in every process
        ...     torch.distributed.init_process_group("gloo")
        ...     net = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Linear(3, 1))
        ...     net = splitgrow.growable(net, torch.ones(1, 2))
        ...     optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        ...     ddp = DistributedDataParallel(net)
        ...     splitgrow.distributed.expand_layer(ddp, "0", 4, optimizer=optimizer)
    """
    return expand(
        wrapped,
        {layer: n},
        round_to=round_to,
        initializer=initializer,
        freeze=freeze,
        optimizer=optimizer,
        lr_scale=lr_scale,
        warmup=warmup,
        scheduler=scheduler,
        loss=loss,
        check=check,
        timeout=timeout,
    )


def expand(  # noqa: PLR0913
    wrapped: nn.Module,
    request: Mapping[int | str, int],
    *,
    round_to: int = 1,
    initializer: str | Initializer = "zero",
    freeze: bool = True,
    optimizer: Optimizer | Sequence[Optimizer] | None = None,
    lr_scale: float = 1.0,
    warmup: int = 0,
    scheduler: Schedulers | None = None,
    loss: Callable[[], Tensor] | None = None,
    check: bool = True,
    timeout: float = TIMEOUT,
) -> Edit:
    """Adds units to several layers, as `model.expand`; otherwise as `expand_layer`.

    Example:
        >>> import torch, splitgrow
        >>> from torch import distributed as dist, nn
        >>> dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
        >>> net = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
        >>> net = splitgrow.growable(net, torch.ones(1, 2))  # the same in every process
        >>> edit = splitgrow.distributed.expand(net, {"0": 2, "1": 1})
        >>> [layer.width for layer in net.layers]
        [5, 2]
        >>> dist.destroy_process_group()
    """
    options: dict[str, Any] = {
        "round_to": round_to,
        "initializer": initializer,
        "freeze": freeze,
        "lr_scale": lr_scale,
        "warmup": warmup,
        "loss": loss,
        "check": check,
    }
    own: dict[str, Any] = {"optimizer": optimizer, "scheduler": scheduler}
    asked = dict(request) if isinstance(request, Mapping) else request
    return carry_out(
        wrapped,
        in_words("expand", asked, **options),
        lambda model: model.expand(request, **options, **own),
        optimizer=optimizer,
        timeout=timeout,
        values=lambda model: initializer != "zero" or reads_values(history_of(model).graph, asked),
    )


def expand_vocabulary(  # noqa: PLR0913
    wrapped: nn.Module,
    n: int,
    embedding: int | str | None = None,
    *,
    head: int | str | None = None,
    round_to: int = 1,
    initializer: str | Initializer = "average",
    freeze: bool = True,
    optimizer: Optimizer | Sequence[Optimizer] | None = None,
    lr_scale: float = 1.0,
    warmup: int = 0,
    scheduler: Schedulers | None = None,
    loss: Callable[[], Tensor] | None = None,
    check: bool = True,
    timeout: float = TIMEOUT,
) -> Edit:
    """Adds rows to an embedding, as `model.expand_vocabulary`; otherwise as `expand_layer`.

    Of a sharded model every process holds all of it for as long as that takes, since new rows are
    made of the old ones.

    Example:
        >>> import torch, splitgrow
        >>> from torch import distributed as dist, nn
        >>> dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
        >>> net = nn.Sequential(nn.Embedding(7, 4), nn.Linear(4, 7))
        >>> net = splitgrow.growable(net, torch.arange(5))  # the same in every process
        >>> edit = splitgrow.distributed.expand_vocabulary(net, 2)
        >>> [layer.width for layer in net.layers if layer.name == "1"]
        [9]
        >>> dist.destroy_process_group()
    """
    options: dict[str, Any] = {
        "embedding": embedding,
        "head": head,
        "round_to": round_to,
        "initializer": initializer,
        "freeze": freeze,
        "lr_scale": lr_scale,
        "warmup": warmup,
        "loss": loss,
        "check": check,
    }
    own: dict[str, Any] = {"optimizer": optimizer, "scheduler": scheduler}
    return carry_out(
        wrapped,
        in_words("expand_vocabulary", n, **options),
        lambda model: model.expand_vocabulary(n, **options, **own),
        optimizer=optimizer,
        timeout=timeout,
        values=True,
    )


def expand_input(  # noqa: PLR0913
    wrapped: nn.Module,
    n: int,
    *,
    name: str | None = None,
    initializer: str | Initializer = "zero",
    freeze: bool = True,
    optimizer: Optimizer | Sequence[Optimizer] | None = None,
    lr_scale: float = 1.0,
    warmup: int = 0,
    scheduler: Schedulers | None = None,
    loss: Callable[[], Tensor] | None = None,
    check: bool = True,
    timeout: float = TIMEOUT,
) -> Edit:
    """Adds n channels to the model's input, as `model.expand_input`; otherwise as `expand_layer`.

    Of a sharded model every process holds all of it for as long as that takes, since the model is
    run on its example inputs.

    Example:
        >>> import torch, splitgrow
        >>> from torch import distributed as dist, nn
        >>> dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
        >>> net = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
        >>> net = splitgrow.growable(net, torch.ones(1, 2))  # the same in every process
        >>> edit = splitgrow.distributed.expand_input(net, 1)
        >>> net(torch.ones(1, 3)).shape
        torch.Size([1, 1])
        >>> dist.destroy_process_group()
    """
    options: dict[str, Any] = {
        "name": name,
        "initializer": initializer,
        "freeze": freeze,
        "lr_scale": lr_scale,
        "warmup": warmup,
        "loss": loss,
        "check": check,
    }
    own: dict[str, Any] = {"optimizer": optimizer, "scheduler": scheduler}
    return carry_out(
        wrapped,
        in_words("expand_input", n, **options),
        lambda model: model.expand_input(n, **options, **own),
        optimizer=optimizer,
        timeout=timeout,
        values=True,
    )


def insert_layer(  # noqa: PLR0913
    wrapped: nn.Module,
    after: After,
    kind: str = "residual",
    *,
    module: nn.Module | None = None,
    form: str = "plain",
    kernel_size: int = 3,
    activation: nn.Module | None = None,
    freeze: bool = True,
    optimizer: Optimizer | Sequence[Optimizer] | None = None,
    lr_scale: float = 1.0,
    warmup: int = 0,
    scheduler: Schedulers | None = None,
    check: bool = True,
    timeout: float = TIMEOUT,
) -> Edit:
    """Inserts a layer, or several, as `model.insert_layer`; otherwise as `expand_layer`.

    A `module` of yours is made in every process; the first rank's values count. Of a sharded model
    every process holds all of it for as long as that takes, since the model is run on its example
    inputs. The insertion is sharded with the unit around it.

    Example:
        >>> import torch, splitgrow
        >>> from torch import distributed as dist, nn
        >>> dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
        >>> net = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
        >>> net = splitgrow.growable(net, torch.ones(1, 2))  # the same in every process
        >>> edit = splitgrow.distributed.insert_layer(net, "0", "residual")
        >>> len(net.layers) > 2
        True
        >>> dist.destroy_process_group()
    """
    options: dict[str, Any] = {
        "module": module,
        "form": form,
        "kernel_size": kernel_size,
        "activation": activation,
        "freeze": freeze,
        "lr_scale": lr_scale,
        "warmup": warmup,
        "check": check,
    }
    own: dict[str, Any] = {"optimizer": optimizer, "scheduler": scheduler}
    return carry_out(
        wrapped,
        in_words("insert_layer", after, kind, **options),
        lambda model: model.insert_layer(after, kind, **options, **own),
        optimizer=optimizer,
        timeout=timeout,
        values=True,
    )


def expand_experts(  # noqa: PLR0913
    wrapped: nn.Module,
    n: int,
    mixture: str | None = None,
    *,
    noise: float = 0.01,
    freeze: bool = True,
    optimizer: Optimizer | Sequence[Optimizer] | None = None,
    lr_scale: float = 1.0,
    warmup: int = 0,
    scheduler: Schedulers | None = None,
    check: bool = True,
    timeout: float = TIMEOUT,
) -> Edit:
    """Adds experts to mixtures, as `model.expand_experts`; otherwise as `expand_layer`.

    Of a sharded model every process holds all of it for as long as that takes, since the model is
    run on its example inputs, and further experts are copies. There `noise` cannot move experts
    that exist and train: it must be 0, unless this edit freezes them.

    Example:
        >>> import torch, splitgrow
        >>> from torch import distributed as dist, nn
        >>> dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
        >>> x, net = torch.randn(5, 8), nn.Sequential(nn.Sequential(nn.Linear(8, 8)))
        >>> net = splitgrow.to_mixture(net, "0", experts=4, example_inputs=x)
        >>> net = splitgrow.growable(net, x)
        >>> edit = splitgrow.distributed.expand_experts(net, 4)
        >>> net.mixtures()[0].count
        8
        >>> dist.destroy_process_group()
    """
    options: dict[str, Any] = {
        "mixture": mixture,
        "noise": noise,
        "freeze": freeze,
        "lr_scale": lr_scale,
        "warmup": warmup,
        "check": check,
    }
    own: dict[str, Any] = {"optimizer": optimizer, "scheduler": scheduler}
    sharded = is_sharded(wrapped)

    def grow(model: Any) -> Edit:
        if sharded and noise and not (freeze and model.generation == 0):
            raise ValueError(
                f"noise (={noise}) moves experts that exist and train apart from their copies, "
                f"which is lost where FSDP holds them in pieces: give noise=0"
            )
        return model.expand_experts(n, **options, **own)  # type: ignore[no-any-return]

    return carry_out(
        wrapped,
        in_words("expand_experts", n, **options),
        grow,
        optimizer=optimizer,
        timeout=timeout,
        values=True,
    )


def gathered(wrapped: nn.Module, *, timeout: float = TIMEOUT) -> AbstractContextManager[nn.Module]:
    """The growable model, plain and whole in every process, inside a ``with`` block.

    There it can be merged, fused, copied and evaluated, as in one process. Enter it in every
    process. Changes of it are lost.

    Args:
        wrapped: As in `expand_layer`.
        timeout: Seconds to wait for the other processes.

    Raises:
        DistributedError: If a process failed or did not come.

    Example:
        >>> import splitgrow
        >>> def export(sharded):  # in every process
        ...     with splitgrow.distributed.gathered(sharded) as model:
        ...         return splitgrow.merge(model)
    """
    return opened(wrapped, in_words("gathered"), timeout)
