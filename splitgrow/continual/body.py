"""The part of a network that all tasks share: a growable model without its head."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from splitgrow.continual.masks import no_owners, owned_by
from splitgrow.continual.slots import Slot, slots_of, substituted
from splitgrow.deploy.merge import merge, merged_at
from splitgrow.errors import UnsupportedModelError
from splitgrow.growable import growable
from splitgrow.growth.apply import apply_
from splitgrow.growth.edits import Edit
from splitgrow.growth.growth_options import GrowthOptions
from splitgrow.growth.history import History, check_structure
from splitgrow.growth.history_lookup import HISTORY, history_of
from splitgrow.growth.initializers import Initializer, chosen_initializer
from splitgrow.growth.planning import make_plan
from splitgrow.handle import Handle, handle
from splitgrow.layers.own_weights import leave_computed_
from splitgrow.pruning.choosing import as_request
from splitgrow.utils.example_call import ExampleCall
from splitgrow.utils.model_lock import change_alone
from splitgrow.utils.preserve import preserve_
from splitgrow.utils.rollback import Undo, temporarily


def _leave_tensors_(history: History) -> None:
    """Fixes the channels of tensors that modules hold themselves: tasks share layers' weights."""
    graph, broken = history.graph, dict(history.broken)
    for node in [node for node in graph.nodes.values() if node.use is not None]:
        reason = f"the tensor `{node.name}` lies along it, and tasks share the weights of layers"
        for group in (*graph.growing_groups(node.ins), *graph.growing_groups(node.outs)):
            broken |= graph.fix_group(group, reason)
        del graph.nodes[node.name]
    history.broken = broken


class Body:
    """The shared part of all tasks: a growable model without its head, and its weights' owners.

    Attributes:
        model: The model; it returns features `(N, width)`. Its parameters never train themselves:
            they hold the weights of learned tasks, and zeros or initial values where free.
        inputs: The example inputs.
        head: The path where the head was; None if the model has none.
        owners: For each shared tensor, by its slot's name, the tasks that own its weights: 1 for
            the first; 0 where they are free.
        weights: How many shared weights the model had at first.

    Args:
        model: The user's model, which is copied.
        inputs: Example inputs.
        head: The path of its head, "auto" to find it, or None if it returns features.

    Raises:
        ValueError: If there is no such head.
        UnsupportedModelError: If no head is found, or the features are no matrix.
    """

    def __init__(self, model: nn.Module, inputs: ExampleCall, head: str | None) -> None:
        model = merge(model) if HISTORY in vars(model) else copy.deepcopy(model)
        leave_computed_(model)  # tasks own weights one by one
        self.head = _head_of(model, inputs, head)
        if self.head is not None:
            _put(model, self.head, nn.Identity())
        self.model: Any = growable(model, inputs)
        _leave_tensors_(history_of(self.model))
        self.inputs = history_of(self.model).inputs
        self.owners: dict[str, Tensor] = {}
        self._slots: dict[str, Slot] = {}
        self.renew()
        self.weights = self.size
        self._features()

    @property
    def slots(self) -> Mapping[str, Slot]:
        """The model's tensors."""
        return self._slots

    @property
    def shared(self) -> dict[str, Slot]:
        """The tensors whose weights tasks share."""
        return {name: slot for name, slot in self._slots.items() if slot.shared}

    @property
    def edit(self) -> int:
        """The number of the last edit: a timestamp of the model's widths."""
        return history_of(self.model).last_edit(history_of(self.model).generation)

    @property
    def handle(self) -> Handle:
        """The calls that edit the model."""
        return handle(self.model)

    @property
    def size(self) -> int:
        """How many shared weights there are."""
        return sum(slot.tensor.numel() for slot in self.shared.values())

    @property
    def device(self) -> torch.device:
        """The device of the model."""
        tensor = next((slot.tensor for slot in self._slots.values()), None)
        return tensor.device if tensor is not None else torch.device("cpu")

    def renew(self) -> None:
        """Finds the tensors that growth has brought or shrunk: nobody owns them, none trains."""
        self._slots = slots_of(self.model)
        for parameter in self.model.parameters():
            parameter.requires_grad_(False)
        none = {name: no_owners(slot.tensor) for name, slot in self.shared.items()}
        known = {name: self.owners[name] for name in none if name in self.owners}
        self.owners = none | {n: o for n, o in known.items() if o.shape == none[n].shape}

    def copied(self) -> Body:
        """A body with the same values in tensors of its own."""
        return copy.deepcopy(self)

    def __deepcopy__(self, memo: dict[int, Any]) -> Body:
        """Copies all but the slots, which are found anew in the copied model."""
        twin: Body = object.__new__(type(self))
        memo[id(self)] = twin
        vars(twin).update(
            {k: copy.deepcopy(v, memo) for k, v in vars(self).items() if k != "_slots"}
        )
        twin._slots = slots_of(twin.model)
        return twin

    @contextmanager
    def reading(self, values: Mapping[str, Tensor]) -> Iterator[Any]:
        """Makes the model read other tensors in place of its own, inside a ``with`` block."""
        with substituted(self._slots, values):
            yield self.model

    def new_head(self, classes: int) -> nn.Linear:
        """A linear layer that reads the features, with random values."""
        features = self._features()
        device, dtype = features.device, features.dtype
        return nn.Linear(features.shape[1], classes, device=device, dtype=dtype)

    def _features(self) -> Tensor:
        """The features of the example inputs.

        Raises:
            UnsupportedModelError: If they are no matrix.
        """
        found = _run_in_evaluation(self.model, self.inputs)
        if not isinstance(found, Tensor) or found.dim() != 2:
            what = f"shape {tuple(found.shape)}" if isinstance(found, Tensor) else type(found)
            raise UnsupportedModelError(
                f"without its head, the model returns {what} instead of features (N, width); end "
                f"it with a pooling and a flattening, and give it as it is with head=None"
            )
        return found

    def grow(self, factor: float, initializer: str | Initializer = "zero") -> Edit | None:
        """Widens every layer inside by about a factor; nobody owns the new weights.

        Args:
            factor: The factor; 1.5 adds half of the original width.
            initializer: Gives new units their values.

        Returns:
            The edit; None if nothing can grow by so little.

        Raises:
            FixedWidthError: If no layer can grow.
        """
        own = self.handle
        graph = history_of(self.model).graph
        # New units of these have to be copies, which a task cannot own apart.
        copied = {n.name for n in graph.sized() if graph.grows_by_copies(n)}
        request: dict[int | str, int] = {}
        seen: set[str] = set()
        for layer in own.layers:
            if layer.growable and layer.name not in seen:
                more = round((factor - 1) * layer.width / layer.step) * layer.step
                if more > 0 and layer.name not in copied:
                    request[layer.name] = more
            seen.update((layer.name, *layer.group))
        if not request:
            return None
        edit = own.expand(request, initializer=initializer, freeze=False)
        self.renew()
        return edit

    def grow_units(
        self, growth: Mapping[int, int], initializer: str | Initializer = "zero"
    ) -> Edit:
        """Adds units to groups of channels; nobody owns the new weights.

        Args:
            growth: The number of units, by the group's number in the channel graph.
            initializer: Gives new units their values.
        """
        history = history_of(self.model)

        def grow(undo: Undo) -> Edit:
            check_structure(self.model, history)
            opened = history.next_edit(freeze=False)
            edit = make_plan(history.graph, history.modules, growth, history.edits, opened)
            options = GrowthOptions(chosen_initializer(initializer))
            return apply_(undo, self.model, history, edit, options, [])

        edit = change_alone(self.model, history.model_lock, "grow", grow)
        self.renew()
        return edit

    def shrink_units(self, units: Mapping[int, Iterable[int]]) -> Edit:
        """Takes units that no task has seen out of groups of channels.

        Args:
            units: The units, by the group's number in the channel graph.
        """
        request = as_request(history_of(self.model).graph, units)
        edit = self.handle.shrink(dict(request.items()))
        self.renew()
        return edit

    def plain(self, values: Mapping[str, Tensor], edit: int, head: nn.Module) -> nn.Module:
        """A plain model of the user's class, with the widths after an edit and a head.

        Args:
            values: Tensors in place of the model's own.
            edit: The number of the edit.
            head: Is put where the model's head was, or behind the model if it had none.
        """
        history = history_of(self.model)
        values = {
            name: nn.Parameter(value) if self._slots[name].trains else value
            for name, value in values.items()
        }
        with history.model_lock.rlock, self.reading(values):
            plain = merged_at(self.model, history, edit, {})
        for parameter in plain.parameters():
            parameter.requires_grad_(True)
        plain.eval()
        head = copy.deepcopy(head).eval()
        if self.head is None:
            return nn.Sequential(plain, head)
        _put(plain, self.head, head)
        return plain

    def free(self, name: str) -> Tensor:
        """The free weights of a shared tensor, as bools."""
        return self.owners[name] == 0

    def give(self, name: str, mask: Tensor, values: Tensor, task: int) -> None:
        """Gives weights to a task, with their values."""
        tensor = self._slots[name].tensor
        with torch.no_grad():
            tensor.copy_(torch.where(mask, values.to(tensor.dtype), tensor))
        self.owners[name] = owned_by(self.owners[name], mask, task)

    def set_values(self, values: Mapping[str, Tensor]) -> None:
        """Sets tensors of the model, by their slots' names."""
        with torch.no_grad():
            for name, value in values.items():
                self._slots[name].tensor.copy_(value)

    def own_all(self, task: int) -> None:
        """Gives all free weights to a task, as they are."""
        for name in self.owners:
            self.owners[name] = owned_by(self.owners[name], self.free(name), task)

    def release(self) -> None:
        """Sets the free weights to zero."""
        with torch.no_grad():
            for name, slot in self.shared.items():
                slot.tensor.masked_fill_(self.free(name), 0.0)

    @property
    def owner_bits(self) -> int:
        """The number of bits that tell the owner of one weight."""
        latest = max((int(each.max()) for each in self.owners.values() if each.numel()), default=0)
        return math.ceil(math.log2(latest + 1)) if latest else 0


def _put(model: nn.Module, path: str, module: nn.Module) -> None:
    """Puts a module in the place of another."""
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, module)


def _evaluate(model: nn.Module) -> None:
    for module in model.modules():
        module.training = False


@temporarily
def _run_in_evaluation(
    undo: Undo,
    model: nn.Module,
    inputs: ExampleCall,
    outputs: Mapping[str, list[Any]] | None = None,
) -> Any:
    """The output in evaluation mode; modules append their outputs to the lists at their paths."""
    preserve_(model, undo)
    for path, given in (outputs or {}).items():
        model.get_submodule(path).register_forward_hook(partial(_append, given))
    torch.set_grad_enabled(False)
    _evaluate(model)
    return inputs.map(torch.clone).run(model)


def _append(given: list[Any], _module: nn.Module, _args: Any, output: Any) -> None:
    given.append(output)


def _head_of(model: nn.Module, inputs: ExampleCall, head: str | None) -> str | None:
    """The path of the linear layer whose output is the model's.

    Raises:
        ValueError: If the one that is named is not there, or its output is not the model's.
        UnsupportedModelError: If none is found.
    """
    if head is None:
        return None
    if head != "auto" and head not in dict(model.named_modules()):
        raise ValueError(f"the model has no module {head!r}")
    outputs: dict[str, list[Any]] = {
        path: []
        for path, module in model.named_modules()
        if path and isinstance(module, nn.Linear) and head in {"auto", path}
    }
    result = _run_in_evaluation(model, inputs, outputs)
    found = [path for path, given in outputs.items() if len(given) == 1 and given[0] is result]
    if len(found) == 1:
        return found[0]
    if head != "auto":
        raise ValueError(
            f"{head!r} is no nn.Linear that is called once and gives the model's output"
        )
    raise UnsupportedModelError(
        "no nn.Linear gives the model's output, so there is no head to give each task one of its "
        "own in place of; pass a model that returns features (N, width), with head=None"
    )
