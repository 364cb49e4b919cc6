"""Making a model growable: it is analysed, tried out, and gains splitgrow's methods."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from splitgrow.analysis.analyzer import analyse_runs, try_evaluation
from splitgrow.analysis.unsupported_models import refuse_unsupported
from splitgrow.errors import UnsupportedModelError
from splitgrow.growth.growable_class import class_for
from splitgrow.growth.history import History, changed_modules, grown_elsewhere, structure
from splitgrow.growth.history_lookup import HISTORY
from splitgrow.growth.own_configs import own_configs_
from splitgrow.growth.value_trials import fix_what_values_break
from splitgrow.handle import Handle
from splitgrow.utils.example_call import ExampleInputs, example_call
from splitgrow.utils.model_lock import ModelLock, change_alone, refuse_inside_forward
from splitgrow.utils.rollback import Undo


def growable(
    model: nn.Module,
    example_inputs: ExampleInputs = (),
    example_kwargs: Mapping[str, Any] | None = None,
    *,
    check: bool = True,
) -> Any:
    """Makes a model growable, in place, and returns it.

    The model's layers are analysed once, and nothing is replaced yet: module paths, state_dict,
    flags, buffers, hooks and random state are as before. It stays an instance of its class and
    gains the attributes and methods of `splitgrow.Handle`: to inspect (`layers`, `summary`,
    `mixtures`, `runs`, `generation`), to plan (`plan`, `plan_insertion`, `plan_experts`,
    `plan_shrinking`), to grow (`expand_layer`, `expand`, `expand_input`, `expand_vocabulary`,
    `expand_experts`, `insert_layer`), to shrink (`shrink_layer`, `shrink`, `prune`,
    `remove_layer`), to handle generations (`next_generation`, `at`, `unfreeze`), and to train
    (`generation_parameters`, `parameters_of`, `param_groups`, `consolidate`, `absorb`). A name that
    the model uses itself stays the model's, with a warning; `splitgrow.handle(model)` then has the
    method. It has `edits`, too: all so far.
    No type of Python's is both the model's class and a growable model, so the result is `Any` for
    type checkers; what `splitgrow.handle` returns has the methods with their types.

    Analysing again is harmless, and is needed after the model was changed by hand.

    Since shapes do not show everything, growth is also tried in values: the model runs on the
    example inputs as it is, and then as if all layers that can grow had grown, with helpers at zero
    and random new units, and must return the same up to rounding. Layers that break this are fixed,
    and their reason names the place where values first differ. The model's hooks run in these runs,
    and random draws are constants. That takes two forward passes (four if the model runs other ops
    in training); a model on the meta device, or one that rounding alone changes, is analysed by
    shapes only.

    Other threads may run the model meanwhile, and while it grows: a change waits until running
    calls of the model or its parts have ended, for a minute at most, and calls of the model wait
    until a change is done. While one thread shows an earlier generation, by `at`, the others' calls
    and changes are refused. The lock does not cover backward passes and optimizer steps (grow
    between training steps), calls of single parts that begin during a change, compiled code, and
    copying or saving in another thread.

    Args:
        model: Any module that runs on the example inputs.
        example_inputs: An example call: a tensor is one positional argument, a tuple is the
            positional arguments, and a mapping is the keyword arguments. A dict as one positional
            argument is ``({...},)``.
        example_kwargs: The keyword arguments of the call, beside a tensor or a tuple.
        check: Whether to try growth in values as well as shapes.

    Raises:
        TypeError: If the arguments are of other types, or keyword arguments are given twice.
        ValueError: If the model does not run on the example inputs, or they do not fit forward.
        TraceError: If the model's forward cannot be traced.
        UnsupportedModelError: If the model is wrapped, compiled, scripted or uninitialised, or has
            layers that grew as part of another model.
        UnsupportedLayerError: If a layer is not of the form that it was registered as.

    Example:
        >>> import torch, splitgrow
        >>> from torch import nn
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
        >>> net = splitgrow.growable(net, torch.randn(1, 3, 8, 8))
        >>> [(layer.name, layer.width, layer.growable) for layer in net.layers]
        [('0', 8, True), ('2', 4, True)]
        >>> net.expand_layer("0", 4).parameters
        256
        >>> net.layers[0].width
        12
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    refuse_unsupported(model)
    inputs = example_call(example_inputs, example_kwargs)
    old: History | None = vars(model).get(HISTORY)
    what, model_lock = "analyse the model", ModelLock() if old is None else old.model_lock
    model_lock.refuse_if_shown(what)
    if old is not None:
        old.refuse_while_viewing(what)
    refuse_inside_forward(model, what)
    foreign = grown_elsewhere(model, old.edits if old is not None else ())
    if foreign:
        raise UnsupportedModelError(
            f"{', '.join(foreign)} did not grow here, as part of this model; build it from the "
            f"parts of splitgrow.merge(the model in which they grew)"
        )

    def analyse_(undo: Undo) -> nn.Module:
        followed = analyse_runs(model, inputs)
        edits = len(old.edits) if old is not None else 0
        broken: dict[str, str] = {}
        if check:
            broken = fix_what_values_break(model, inputs, followed, edits)
        else:
            try_evaluation(model, inputs, followed)
        history = History(
            followed.graph, inputs, structure(model), model_lock=model_lock, broken=broken
        )
        if old is not None:
            _carry_on(history, old)
        own_configs_(model, undo)
        adopt_(model, history, undo)
        return model

    return change_alone(model, model_lock, what, analyse_)


def adopt_(model: nn.Module, history: History, undo: Undo) -> None:
    """Gives a model a history, which makes it growable if it was not; close its lock first.

    Args:
        model: The model.
        history: Its history.
        undo: Takes it back.
    """
    model_lock = history.model_lock
    cls = class_for(model, model_lock.open_class or type(model), Handle)
    undo.keep(vars(model), vars(model_lock))
    vars(model)[HISTORY], model_lock.open_class = history, cls


def _carry_on(history: History, old: History) -> None:
    history.edits, history.generation = old.edits, old.generation
    history.exact_from, history.frozen = old.exact_from, old.frozen
    history.narrower, history.shares = old.narrower, old.shares
    history.states, history.kin = old.states, old.kin
    if changed_modules(history.modules, old):
        # Closed generations held modules that are gone.
        history.exact_from = history.generation
