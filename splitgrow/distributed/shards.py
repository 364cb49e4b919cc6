"""FSDP2 (`fully_shard`) around a model that changes.

While an edit runs, every sharded parameter is out of its place, and a plain one stands in for it:
of one number and without memory of its own where the edit adds zeros, or with the whole value where
it makes new units of old ones, takes some out, or looks at a parameter of a module that is no
layer.
Afterwards each sharded parameter is back, the same object with the same shard, and the new
parameters join the unit around them: the module that `fully_shard` was called on.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from splitgrow.distributed.units import (
    MARKS,
    MISSING,
    Dress,
    ShardUnit,
    around,
    gathered_of,
    guarded,
    is_spread,
    is_unit,
    spread_like,
    units_of,
)
from splitgrow.errors import UnsupportedModelError
from splitgrow.layers.split_layer import SplitLayer
from splitgrow.layers.tensor_holder import split_in
from splitgrow.layers.types import TensorBlock, layer_type_of


class _Slot:
    """One sharded parameter of a unit, its place, and its stand-in."""

    def __init__(self, unit: ShardUnit, record: Any) -> None:
        info = record._module_info  # noqa: SLF001
        self.unit, self.record, self._info = unit, record, info
        self.places = [(info.module, info.param_name)]
        self.places += zip(info.shared_modules, info.shared_param_names, strict=True)
        self.sharded: Any = record.sharded_param
        self.trains, self.gradient = self.sharded.requires_grad, self.sharded.grad
        self.standing: nn.Parameter = self.sharded
        self._former: Tensor | None = None

    def lift(self, *, values: bool) -> None:
        """Puts a plain parameter in its place."""
        sharded = self.sharded
        data = gathered_of(sharded.detach()) if values else _even(sharded)
        self.standing = nn.Parameter(data, requires_grad=self.trains)
        if values and self.gradient is not None:
            self.standing.grad = gathered_of(self.gradient)
        for hooks in ("_backward_hooks", "_post_accumulate_grad_hooks"):  # seen as on a plain one
            if getattr(sharded, hooks):
                setattr(self.standing, hooks, getattr(sharded, hooks))
        for module, name in self.places:
            module._parameters[name] = self.standing  # noqa: SLF001

    def is_tensor(self) -> bool:
        """Whether a module holds it that is no layer: new parts of it copy its values."""
        owner = self.places[0][0]
        return isinstance(owner, TensorBlock) or layer_type_of(owner) is None

    def block(self) -> nn.Module | None:
        """The block that has it now if it is a module's tensor that has grown."""
        (module, name), *more = self.places
        split = None if more else split_in(module, name)
        return None if split is None else split.original

    @torch.no_grad()
    def rewrite(self) -> None:
        """Gives the sharded one the values of its stand-in."""
        sharded: Any = self.sharded.detach()
        local = sharded.to_local()
        self._former = local.clone()
        spread: Any = spread_like(self.standing.detach(), self.sharded)
        local.copy_(spread.to_local())

    def lower(self) -> None:
        """Puts the sharded one back where nothing else has taken the place since.

        A stand-in that lost channels itself, as those of a model that is being loaded do, stays, to
        be sharded anew.
        """
        if self.standing.shape != self.sharded.shape:
            return
        for module, name in self.places:
            if module._parameters.get(name) is self.standing:  # noqa: SLF001
                module._parameters[name] = self.sharded  # noqa: SLF001
        if self.sharded.requires_grad != self.standing.requires_grad:
            self.sharded.requires_grad_(self.standing.requires_grad)
        if self.standing.grad is None and not self.standing.requires_grad:
            self.sharded.grad = None

    def restore(self) -> None:
        """Puts it back, as it was."""
        self.record._module_info = self._info  # noqa: SLF001
        for module, name in self.places:
            module._parameters[name] = self.sharded  # noqa: SLF001
        self.sharded.requires_grad_(self.trains)
        self.sharded.grad = self.gradient
        if self._former is not None:
            self.sharded.detach().to_local().copy_(self._former)


def _even(sharded: Tensor) -> Tensor:
    """A tensor of one number, at all of its places: such that no run of the model overflows.

    What is seen of an edit by running it is then weaker than with values, but never by chance.
    """
    inputs = sharded.numel() // max(len(sharded), 1) if sharded.dim() > 1 else 2
    one = torch.full((), 1 / max(inputs, 1), dtype=sharded.dtype, device=sharded.device)
    return one.expand(sharded.shape)


class Shards:
    """The sharded parameters of a model and its optimizers, while an edit runs.

    Args:
        model: The module that `fully_shard` was called on last.
        optimizers: The optimizers that train it.

    Raises:
        UnsupportedModelError: If it is sharded in a way that growth cannot follow, or this version
            of torch keeps its state elsewhere.
    """

    def __init__(self, model: nn.Module, optimizers: list[Optimizer]) -> None:
        if MISSING:
            raise UnsupportedModelError(
                f"this version of torch ({torch.__version__}) has no fully_shard that splitgrow "
                f"knows ({MISSING}); use 2.6 or newer, or DistributedDataParallel"
            )
        self._model, self._optimizers = model, optimizers
        self._units = guarded(lambda: units_of(model))
        self._slots = [_Slot(unit, record) for unit in self._units for record in unit.parameters]
        _refuse_unsupported(model, self._units)
        handles = set().union(*(unit.handles for unit in self._units))
        inside = [module for module, _ in around(model, self._units)]
        self._dresses = {module: Dress(module, handles) for module in inside}
        self._lists = [
            (group["params"], list(group["params"]))
            for optimizer in optimizers
            for group in optimizer.param_groups
        ]
        self._states = [(optimizer.state, dict(optimizer.state)) for optimizer in optimizers]

    @property
    def mesh(self) -> Any:
        """The mesh of the ranks that hold the shards."""
        return next(u.groups[0].mesh_info.mesh for u in self._units if u.groups)

    def open(self, *, values: bool) -> None:
        """Makes the model plain; with its values, which takes the memory of the whole model."""
        guarded(lambda: self._open(values=values))

    def _open(self, *, values: bool) -> None:
        for module, dress in self._dresses.items():
            dress.take_off(module)
        for slot in self._slots:
            slot.lift(values=values or slot.is_tensor())
        self._exchange({slot.sharded: slot.standing for slot in self._slots})
        if values:
            self._make_states_whole()

    def _make_states_whole(self) -> None:
        """Gives the optimizers' states of stand-ins whole tensors, to be joined."""
        standing = {id(slot.standing) for slot in self._slots}
        for state, _ in self._states:
            for parameter, own in list(state.items()):
                if id(parameter) in standing:
                    state[parameter] = {
                        key: gathered_of(value) if isinstance(value, Tensor) else value
                        for key, value in own.items()
                    }

    def restore(self) -> None:
        """Makes model and optimizers as they were, once the edit itself is taken back."""
        for unit in self._units:
            unit.restore()
        for module, dress in self._dresses.items():
            dress.restore(module)
        for slot in self._slots:
            slot.restore()
        for parameters, before in self._lists:
            parameters[:] = before
        for state, before_it in self._states:
            state.clear()
            state.update(before_it)

    def settle(self, rewritten: Sequence[Tensor] = ()) -> None:
        """Puts the sharded parameters back and shards the new ones, each in the unit around it.

        Args:
            rewritten: The stand-ins with values that are to stay.
        """
        guarded(lambda: self._settle({id(tensor) for tensor in rewritten}))

    def _settle(self, rewritten: Collection[int]) -> None:
        for module, dress in self._dresses.items():
            dress.put_on(module)
        self._move_tensors()
        for slot in self._slots:
            if id(slot.standing) in rewritten:
                slot.rewrite()
            slot.lower()
        present = {id(module) for module in self._model.modules()}
        replaced = {
            (id(module), name)
            for slot in self._slots
            for module, name in slot.places
            if module._parameters.get(name) is not slot.sharded  # noqa: SLF001
        }
        for unit in self._units:
            unit.forget(lambda m, name: id(m) not in present or (id(m), name) in replaced)
        self._move_units(present)
        joined = self._adopt()
        self._exchange({slot.standing: slot.sharded for slot in self._slots} | joined)
        self._spread_states(joined)
        self._begin_anew()

    def _move_tensors(self) -> None:
        """A module's tensor that has grown is that of its original block."""
        for slot in self._slots:
            block = slot.block()
            if block is not None:
                slot.places = [(block, "value")]
                slot.unit.move_tensor(slot.record, block)

    def _move_units(self, present: set[int]) -> None:
        """A layer that became the original block of a grown one is a unit no more; that one is.

        A grown layer that became plain is a unit no more, either; the plain one is.
        """
        for unit in self._units:
            for module in unit.modules:
                if isinstance(module, SplitLayer) and id(module) not in present:
                    unit.move(module, module.original, self._dresses[module])
        units = {id(module): unit for unit in self._units for module in unit.modules}
        for split in [m for m in self._model.modules() if isinstance(m, SplitLayer)]:
            own = units.get(id(split.original))
            if own is not None and not is_unit(split):
                own.move(split.original, split, self._dresses[split.original])

    def _adopt(self) -> dict[Tensor, Tensor]:
        """Shards the new parameters.

        Returns:
            For each that was plain, the sharded one.

        Raises:
            UnsupportedModelError: If one of them is shared by modules of several units.
        """
        holders: dict[nn.Parameter, list[tuple[nn.Module, ShardUnit, str]]] = {}
        template = next(unit.groups[0] for unit in self._units if unit.groups)
        for module, unit in around(self._model, self._units):
            for mark in MARKS:
                module.__dict__[mark] = True
            for name, parameter in module._parameters.items():  # noqa: SLF001
                if parameter is not None and not is_spread(parameter):
                    holders.setdefault(parameter, []).append((module, unit, name))
        joined: dict[Tensor, Tensor] = {}
        for parameter, found in holders.items():
            module, unit, name = found[0]
            if any(other is not unit for _, other, _ in found):
                raise UnsupportedModelError(
                    f"a new `{name}` is shared by layers that fully_shard has in several units; "
                    f"shard them as one, as FSDP asks for tied weights"
                )
            gradient, parameter.grad = parameter.grad, None
            unit.adopt([(holder, own) for holder, _, own in found], template)
            sharded = module._parameters[name]  # noqa: SLF001
            assert sharded is not None
            if gradient is not None:
                sharded.grad = spread_like(gradient, sharded)
            joined[parameter] = sharded
        return joined

    def _exchange(self, others: Mapping[Tensor, Tensor]) -> None:
        """Has the optimizers train other parameters in the places of these."""
        for optimizer in self._optimizers:
            for group in optimizer.param_groups:
                group["params"][:] = [others.get(p, p) for p in group["params"]]
            exchanged = {others.get(p, p): state for p, state in optimizer.state.items()}
            optimizer.state.clear()
            optimizer.state.update(exchanged)

    def _spread_states(self, joined: Mapping[Tensor, Tensor]) -> None:
        """Gives parameters that were there their own states again, and new ones spread states."""
        kept = [before for _, before in self._states]
        new = {id(parameter) for parameter in joined.values()}
        for (state, _), before in zip(self._states, kept, strict=True):
            for parameter, own in list(state.items()):
                if parameter in before:
                    state[parameter] = before[parameter]
                elif id(parameter) in new:
                    for key, value in own.items():
                        if isinstance(value, Tensor) and value.shape == parameter.shape:
                            own[key] = spread_like(value, parameter)

    def _begin_anew(self) -> None:
        """Has FSDP look once more, in the next forward, at the units that there are."""
        for unit in self._units:
            unit.state._is_root = None  # noqa: SLF001
            unit.state._state_ctx.all_states.clear()  # noqa: SLF001


def _refuse_unsupported(model: nn.Module, units: list[ShardUnit]) -> None:
    """Makes sure that growth can follow how a model is sharded.

    Raises:
        UnsupportedModelError: If it cannot.
    """
    if not any(unit.groups for unit in units):
        kind = type(model).__name__
        raise UnsupportedModelError(
            f"{kind} holds modules of FSDP, but no unit of fully_shard with parameters: pass the "
            f"outermost module that fully_shard was called on; FullyShardedDataParallel (FSDP1) is "
            f"not supported, use fully_shard"
        )
    for unit in units:
        for record in unit.parameters:
            if record.is_dtensor:
                raise UnsupportedModelError(
                    "parameters that were DTensors before fully_shard (tensor parallelism) cannot "
                    "grow; shard with fully_shard alone"
                )
    ignored = [
        f"{type(module).__name__}.{name}"
        for module, _ in around(model, units)
        for name, parameter in module._parameters.items()  # noqa: SLF001
        if parameter is not None and not is_spread(parameter)
    ]
    if ignored:
        raise UnsupportedModelError(
            f"fully_shard(ignored_params=...) leaves {', '.join(ignored[:5])} to every rank; such "
            f"models cannot grow yet: shard all parameters"
        )
