"""Growth in the Trainer of transformers: `pip install splitgrow[transformers]`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import transformers
from transformers.trainer_callback import ExportableState

import splitgrow
from splitgrow.integrations.growable_part import find_growable
from splitgrow.integrations.growth_steps import GrowthSteps, WantedGrowth

if TYPE_CHECKING:
    _Trainer = Any
else:
    _Trainer = object


class GrowthCallback(transformers.TrainerCallback):
    """Grows the model of a Trainer in the middle of its training.

    Growth comes at the end of a step, before the checkpoint of that step is written. New parameters
    join the optimizer's groups, and existing ones keep their state. A run that is resumed does not
    grow again: its model has what the checkpoint had.

    Args:
        growths: What to do at the end of which steps, by the number of optimizer steps so far: new
            units by layer, as `expand` takes them, or a function of the growable model, to which it
            is `splitgrow.handle`, and of the optimizer.
        options: Further arguments of `expand`, such as ``initializer`` and ``freeze``.

    Raises:
        TypeError: If a step is no int, or a growth is neither a mapping nor callable.
        ValueError: If a step is not positive.

    While it trains:
        UnsupportedModelError: If no part of the model is growable, or DeepSpeed holds it.
        SplitGrowError: As the growth itself; the model and its optimizer stay as they are.

    Example:
        >>> callback = GrowthCallback(
        ...     {
        ...         1000: {"model.layers.0.mlp.up_proj": 64},
        ...         2000: lambda model, optimizer: model.insert_layer(
        ...             "model.layers.0", "block", optimizer=optimizer
        ...         ),
        ...     },
        ...     freeze=False,
        ... )
        >>> sorted(callback.growths)
        [1000, 2000]
    """

    def __init__(self, growths: Mapping[int, WantedGrowth], **options: Any) -> None:
        self._steps = GrowthSteps(growths, options)
        self.growths = dict(growths)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Takes note of the growths that a resumed run has behind it.

        Raises:
            UnsupportedModelError: If no part of the model is growable, or DeepSpeed holds it.
        """
        del control
        _refuse_deepspeed(args)
        find_growable(kwargs["model"])
        self._steps.begin(state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Grows, where this step is one of those."""
        del args, control
        model = find_growable(kwargs["model"])
        self._steps.grow(state.global_step, model, kwargs["optimizer"])


class GrowerCallback(transformers.TrainerCallback, ExportableState):
    """Grows the model of a Trainer by a policy: where, when and how much.

    It makes a `splitgrow.Grower` when training begins, and calls its `step` at the end of each
    optimizer step. Metrics of the logs and of evaluations reach it by their names, such as "loss"
    and "eval_loss", at the end of the next step. Its state is in the Trainer's checkpoints, so a
    run that is resumed grows on as if it had not been stopped.

    Args:
        when: When the model grows: see `splitgrow.Grower`.
        options: Further arguments of `splitgrow.Grower`, such as ``to`` and ``steps``.

    Attributes:
        grower: The grower, once training has begun.

    While it trains:
        UnsupportedModelError: If no part of the model is growable, or DeepSpeed holds it.
        SplitGrowError: As `splitgrow.Grower`; the model and its optimizer stay as they are.

    Example:
        >>> callback = GrowerCallback(
        ...     when=splitgrow.Plateau("eval_loss", patience=3), to=splitgrow.Factor(1.5), steps=2
        ... )
        >>> callback.state()["attributes"]
        {'saved': None}
    """

    def __init__(self, when: Any, **options: Any) -> None:
        self.when, self.options = when, options
        self.grower: splitgrow.Grower | None = None
        self._seen: dict[str, float] = {}

    def state(self) -> dict[str, Any]:
        """The grower's state, for a checkpoint of the Trainer."""
        if self.grower is None:
            return {"args": {}, "attributes": {"saved": None}}
        saved = {"grower": self.grower.state_dict(), "seen": dict(self._seen)}
        return {"args": {}, "attributes": {"saved": saved}}

    @classmethod
    def from_state(cls, state: Any) -> Any:
        """Refuses to be made of a state alone.

        Raises:
            ValueError: Always.
        """
        del state
        raise ValueError(
            "a policy is not in a checkpoint, only its progress, which it reads by itself: leave "
            "restore_callback_states_from_checkpoint off"
        )

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Makes the grower, and takes up the state of a resumed run.

        Raises:
            UnsupportedModelError: If no part of the model is growable, or DeepSpeed holds it.
        """
        del control
        _refuse_deepspeed(args)
        model = find_growable(kwargs["model"])
        self.grower = splitgrow.Grower(
            model, kwargs["optimizer"], kwargs.get("lr_scheduler"), when=self.when, **self.options
        )
        known = (getattr(state, "stateful_callbacks", None) or {}).get(type(self).__name__, {})
        saved = known.get("attributes", {}).get("saved") if state.global_step else None
        if saved:
            self.grower.load_state_dict(saved["grower"])
            self._seen = dict(saved["seen"])

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Takes note of logged metrics."""
        del args, state, control, kwargs
        self._note(logs)

    def on_evaluate(
        self, args: Any, state: Any, control: Any, metrics: Any = None, **kwargs: Any
    ) -> None:
        """Takes note of the metrics of an evaluation."""
        del args, state, control, kwargs
        self._note(metrics)

    def _note(self, metrics: Any) -> None:
        wanted = getattr(self.when, "metrics", ())
        self._seen.update((name, metrics[name]) for name in wanted if name in (metrics or {}))

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Tells the grower of the step."""
        del state, control, kwargs
        if self.grower is None:
            return
        wanted = getattr(self.when, "metrics", ())
        complete = bool(wanted) and all(name in self._seen for name in wanted)
        samples = args.train_batch_size * args.gradient_accumulation_steps
        self.grower.step(self._seen if complete else None, samples=samples)
        if complete:
            self._seen = {}


def _refuse_deepspeed(args: Any) -> None:
    """Makes sure that DeepSpeed does not hold the model.

    Raises:
        UnsupportedModelError: If it does.
    """
    if getattr(args, "deepspeed", None):
        raise splitgrow.UnsupportedModelError(
            "DeepSpeed keeps flat copies of the parameters, which would miss new ones: train "
            "by DistributedDataParallel or fully_shard, with splitgrow.distributed, or grow "
            "between two runs"
        )


class GrowingTrainerMixin(_Trainer):  # type: ignore[misc]
    """What a Trainer needs so that a run that grows resumes to the bit.

    The optimizer's checkpoints go by the parameters' names (`splitgrow.by_name`), since torch
    matches them by position. `save_model` saves what ``from_pretrained`` reads
    (`splitgrow.save_pretrained`); checkpoints of the run keep the blocks and their history.

    Example:
        >>> from transformers import Trainer
        >>> class GrowingTrainer(GrowingTrainerMixin, Trainer):
        ...     pass
        >>> issubclass(GrowingTrainer, Trainer)
        True
    """

    def create_optimizer(self, *args: Any, **kwargs: Any) -> Any:
        """The Trainer's optimizer, with checkpoints by name."""
        optimizer = super().create_optimizer(*args, **kwargs)
        self.optimizer = splitgrow.by_name(optimizer, self.model)
        return self.optimizer

    def save_model(self, output_dir: str | Path | None = None, _internal_call: bool = False) -> Any:  # noqa: FBT001, FBT002
        """Saves a checkpoint of the run as it is, and else a model that ``from_pretrained`` reads.

        Raises:
            ExportError: As `splitgrow.save_pretrained`.
        """
        model = self.model
        whole = hasattr(model, "save_pretrained") and getattr(model, "config", None) is not None
        try:
            grown = bool(splitgrow.handle(model).edits) if whole else False
        except splitgrow.SplitGrowError:
            grown = False
        if _internal_call or not grown:
            return super().save_model(output_dir, _internal_call)
        directory = self.args.output_dir if output_dir is None else output_dir
        if self.args.should_save:
            splitgrow.save_pretrained(model, directory)
            tokens = getattr(self, "processing_class", None)
            if tokens is not None:
                tokens.save_pretrained(directory)
        return None
