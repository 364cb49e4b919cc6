"""Growth in the Trainer of Lightning: `pip install splitgrow[lightning]`."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from torch.utils._pytree import tree_leaves

import splitgrow
from splitgrow.integrations.growable_part import find_growable
from splitgrow.integrations.growth_steps import GrowthSteps, WantedGrowth

if TYPE_CHECKING:
    _Callback = Any
    _StochasticAveraging: type = object
else:
    try:
        from lightning.pytorch import Callback as _Callback
        from lightning.pytorch.callbacks import StochasticWeightAveraging as _StochasticAveraging
    except ModuleNotFoundError:  # the older name of the same package
        from pytorch_lightning import Callback as _Callback
        from pytorch_lightning.callbacks import StochasticWeightAveraging as _StochasticAveraging


class _GrowingCallback(_Callback):  # type: ignore[misc]
    """A callback that grows the model: what all of them tell the rest of the training.

    Growth draws random numbers by a seed of its own, which is in the callback's state: Lightning's
    checkpoints have no generators, and a resumed run shall draw the same.
    """

    def __init__(self) -> None:
        self._seed: int | None = None

    def _begin(self, saved: Mapping[str, Any]) -> None:
        """Takes the seed of a run that is resumed, or that of this process."""
        self._seed = saved.get("seed", torch.initial_seed())

    @contextmanager
    def _own_random_numbers(self, trainer: Any, pl_module: Any) -> Iterator[None]:
        """Random numbers that depend on the seed and the step alone; none of others are used up."""
        device = pl_module.device
        forked = {"devices": []} if device.type == "cpu" else {"devices": [device]}
        with torch.random.fork_rng(**forked, device_type=device.type):
            torch.manual_seed(((self._seed or 0) + trainer.global_step) % 2**63)
            yield

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Has the optimizers' checkpoints go by name, before one of them is loaded.

        The averages of other callbacks, which are loaded already, grow along from now on.

        Raises:
            UnsupportedModelError: If no part of the module is growable, or its strategy is one that
                growth cannot follow.
        """
        find_growable(pl_module)
        _refuse_strategy(trainer)
        for optimizer in trainer.optimizers:
            splitgrow.by_name(optimizer, pl_module)
        for average in _averages(trainer):
            splitgrow.follow(average, pl_module)


class GrowthCallback(_GrowingCallback):
    """Grows the model of a LightningModule in the middle of its training, at given steps.

    Growth comes after a batch with an optimizer step, before a `ModelCheckpoint` of that step. New
    parameters join the optimizers' groups, and existing ones keep their state. Schedulers go on. In
    several processes (DistributedDataParallel) all of them grow alike. The averages of Lightning's
    callbacks (EMA, SWA) grow along.

    A run resumes by ``fit(ckpt_path=...)``, from the same module as it was before it grew: the
    state_dict grows the model again, the optimizers' checkpoints go by the parameters' names, and
    growths that the run has behind it are not repeated.

    Args:
        growths: What to do at the end of which steps, by ``trainer.global_step``: new units by
            layer, as `expand` takes them, or a function of the growable model, to which it is
            `splitgrow.handle`, and of the list of optimizers. In several processes the function
            gets the wrapper, for the functions of `splitgrow.distributed`.
        options: Further arguments of `expand`, such as ``initializer`` and ``freeze``.

    Raises:
        TypeError: If a step is no int, or a growth is neither a mapping nor callable.
        ValueError: If a step is not positive.

    While it trains:
        UnsupportedModelError: If no part of the module is growable, or its strategy is one that
            growth cannot follow.
        SplitGrowError: As the growth itself; the model and its optimizers stay as they are.

    Example:
        >>> callback = GrowthCallback(
        ...     {
        ...         1000: {"layer1": 64},
        ...         2000: lambda model, optimizers: model.insert_layer(
        ...             "layer1", "residual", optimizer=optimizers
        ...         ),
        ...     },
        ...     freeze=False,
        ... )
        >>> sorted(callback.growths)
        [1000, 2000]
    """

    def __init__(self, growths: Mapping[int, WantedGrowth], **options: Any) -> None:
        super().__init__()
        self._steps = GrowthSteps(growths, options)
        self.growths = dict(growths)
        self._saved: dict[str, Any] = {}

    def state_dict(self) -> dict[str, Any]:
        """The seed of the random numbers of growth, for a checkpoint of the Trainer."""
        return {} if self._seed is None else {"seed": self._seed}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keeps the state of a checkpoint until training begins."""
        self._saved = dict(state_dict)

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Takes note of the growths that a resumed run has behind it."""
        del pl_module
        self._begin(self._saved)
        self._steps.begin(trainer.global_step)

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Grows, where this step is one of those."""
        del outputs, batch, batch_idx
        model, several = _held(trainer, pl_module)
        step = trainer.global_step
        if self._steps.due(step):
            with self._own_random_numbers(trainer, pl_module):
                self._steps.grow(step, model, trainer.optimizers, wrapped=several)


class GrowerCallback(_GrowingCallback):
    """Grows the model of a LightningModule by a policy: where, when and how much.

    It makes a `splitgrow.Grower` when training begins, and calls its `step` after each batch with
    an optimizer step, which with ``accumulate_grad_batches`` is not each. That is before a
    `ModelCheckpoint` of the same step. What the module logs reaches the policy by its name, as
    ``trainer.callback_metrics`` has it, such as "val_loss", each value once. Schedulers go on, and
    the averages of Lightning's callbacks (EMA, SWA) grow along.

    A run resumes by ``fit(ckpt_path=...)``, from the same module as it was before it grew: the
    state_dict grows the model again, the optimizers' checkpoints go by the parameters' names, and
    the callback's state is in the checkpoint.

    Args:
        when: When the model grows: see `splitgrow.Grower`.
        samples: The number of samples in a batch of one process; by default the first size of its
            first tensor.
        options: Further arguments of `splitgrow.Grower`, such as ``to`` and ``steps``.

    Attributes:
        grower: The grower, once training has begun.

    While it trains:
        UnsupportedModelError: If no part of the module is growable, or its strategy is one that
            growth cannot follow.
        SplitGrowError: As `splitgrow.Grower`; the model and its optimizers stay as they are.

    Example:
        >>> callback = GrowerCallback(
        ...     when=splitgrow.Plateau("val_loss", patience=3), to=splitgrow.Factor(1.5), steps=2
        ... )
        >>> callback.state_dict()
        {}
    """

    def __init__(self, when: Any, *, samples: int | None = None, **options: Any) -> None:
        super().__init__()
        self.when, self.samples, self.options = when, samples, options
        self.grower: splitgrow.Grower | None = None
        self._saved: dict[str, Any] = {}
        self._values: dict[str, Tensor] = {}
        self._seen: dict[str, float] = {}
        self._steps = self._count = 0

    def state_dict(self) -> dict[str, Any]:
        """The grower's state, for a checkpoint of the Trainer."""
        if self.grower is None:
            return dict(self._saved)
        own = {"seen": dict(self._seen), "count": self._count, "seed": self._seed}
        return {"grower": self.grower.state_dict(), **own}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keeps the state of a checkpoint until there is a grower that takes it up."""
        self._saved = dict(state_dict)

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Makes the grower, and takes up the state of a run that is resumed.

        Raises:
            ValueError: If the state is that of another policy.
        """
        schedulers = [config.scheduler for config in trainer.lr_scheduler_configs]
        self.grower = splitgrow.Grower(
            _held(trainer, pl_module)[0],
            trainer.optimizers,
            schedulers or None,
            when=self.when,
            **self.options,
        )
        self._begin(self._saved)
        self._values, self._seen, self._count = {}, {}, 0
        if self._saved:
            self.grower.load_state_dict(self._saved["grower"])
            self._seen, self._count = dict(self._saved["seen"]), self._saved["count"]
            self._saved = {}
        self._steps = trainer.global_step

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Tells the grower of the step, if the batch has ended with one."""
        del outputs, batch_idx
        if self.grower is None:
            return
        self._count += _samples_of(batch) if self.samples is None else self.samples
        self._note(trainer.callback_metrics)
        if trainer.global_step == self._steps:
            return
        wanted = getattr(self.when, "metrics", ())
        complete = bool(wanted) and all(name in self._seen for name in wanted)
        with self._own_random_numbers(trainer, pl_module):
            self.grower.step(self._seen if complete else None, samples=self._count)
        self._steps, self._count = trainer.global_step, 0
        if complete:
            self._seen = {}

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        """Takes note of what a validation has logged, before a checkpoint that comes behind it."""
        del pl_module
        if not trainer.sanity_checking:
            self._note(trainer.callback_metrics)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Warns of a policy that waited for a metric which was never logged."""
        del pl_module
        wanted = getattr(self.when, "metrics", ())
        missing = [name for name in wanted if name not in trainer.callback_metrics]
        if missing and self.grower is not None and not self.grower.done:
            warnings.warn(
                f"the policy waits for {', '.join(map(repr, missing))}, which the module has never "
                f"logged by self.log: there are {', '.join(sorted(trainer.callback_metrics))}",
                splitgrow.SplitGrowWarning,
                stacklevel=2,
            )

    def _note(self, metrics: Any) -> None:
        """Takes note of the values that were logged since the last look.

        A value that was not logged again is in the same memory as then.
        """
        for name in getattr(self.when, "metrics", ()):
            value = metrics.get(name)
            before = self._values.get(name)
            if value is None or (before is not None and value.data_ptr() == before.data_ptr()):
                continue
            self._values[name], self._seen[name] = value, float(value)


def _held(trainer: Any, pl_module: Any) -> tuple[nn.Module, bool]:
    """The growable model; or its wrapper, if there are several processes."""
    several = trainer.world_size > 1
    return (trainer.strategy.model if several else find_growable(pl_module)), several


def _averages(trainer: Any) -> Iterator[nn.Module]:
    """The averages that the callbacks of a trainer hold."""
    for callback in trainer.callbacks:
        for value in vars(callback).values():
            of_swa = isinstance(callback, _StochasticAveraging)
            if isinstance(value, AveragedModel) or (of_swa and isinstance(value, nn.Module)):
                yield value


def _samples_of(batch: Any) -> int:
    """The first size of the first tensor in a batch.

    Raises:
        ValueError: If it has none.
    """
    sizes = (
        leaf.shape[0] for leaf in tree_leaves(batch) if isinstance(leaf, Tensor) and leaf.dim()
    )
    found = next(sizes, None)
    if found is None:
        raise ValueError("no tensor in the batch tells its number of samples: give samples=")
    return int(found)


def _refuse_strategy(trainer: Any) -> None:
    """Makes sure that the model is in one piece, and grown by its checkpoint before optimizers are.

    Raises:
        UnsupportedModelError: If it is not.
    """
    strategy = trainer.strategy
    if strategy.restore_checkpoint_after_setup or isinstance(strategy.model, nn.DataParallel):
        raise splitgrow.UnsupportedModelError(
            f"{type(strategy).__name__} holds the model in pieces of its own, and loads a "
            f"checkpoint into them after it has made the optimizers, where new parameters would be "
            f"missing: train in one process or by DistributedDataParallel, or grow by "
            f"splitgrow.distributed in a loop of your own"
        )
