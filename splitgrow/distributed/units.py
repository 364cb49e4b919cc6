"""The units of FSDP2: the modules that `fully_shard` was called on.

The only module that touches torch's private state of FSDP. Where another version of torch keeps
that state elsewhere, `guarded` raises an error that says so.
"""

# ruff: noqa: SLF001

from __future__ import annotations

import weakref
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, NoReturn, TypeVar

import torch
from torch import Tensor, nn

from splitgrow.errors import UnsupportedModelError
from splitgrow.utils.wrappers import plain_type

try:
    from torch.distributed import _composable_state
    from torch.distributed._composable.contract import REGISTRY_KEY, STATE_KEY
    from torch.distributed.fsdp import FSDPModule
    from torch.distributed.fsdp._fully_shard._fsdp_param import FSDPParam, ParamModuleInfo
    from torch.distributed.fsdp._fully_shard._fsdp_param_group import FSDPParamGroup
    from torch.distributed.fsdp._fully_shard._fully_shard import cls_to_fsdp_cls
    from torch.distributed.tensor import DTensor, distribute_tensor
except ImportError as error:  # pragma: no cover - depends on the torch that is installed
    MISSING = str(error)
else:
    MISSING = ""

_HOOKS = tuple(
    name for name, value in vars(nn.Module()).items() if "hook" in name and isinstance(value, dict)
)
MARKS = ("_is_fsdp_managed_module", "_fsdp_use_orig_params")
"""The attributes that `fully_shard` sets on every module whose parameters it manages."""
_Made = TypeVar("_Made")


def guarded(step: Callable[[], _Made]) -> _Made:
    """Does something with FSDP's own state.

    Raises:
        UnsupportedModelError: If this version of torch keeps that otherwise.
    """
    try:
        return step()
    except (AttributeError, KeyError, TypeError) as error:
        raise UnsupportedModelError(
            f"this version of torch ({torch.__version__}) keeps FSDP's state in a way that "
            f"splitgrow does not know ({type(error).__name__}: {error}); it is tested with 2.13"
        ) from error


def is_unit(module: nn.Module) -> bool:
    """Whether `fully_shard` was called on a module."""
    return not MISSING and isinstance(module, FSDPModule)


def is_spread(tensor: Tensor) -> bool:
    """Whether a tensor is spread over the ranks."""
    return isinstance(tensor, DTensor)


def gathered_of(tensor: Tensor) -> Tensor:
    """All of a tensor that is spread over the ranks; a collective, unless it is not."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def spread_like(tensor: Tensor, like: Tensor) -> Tensor:
    """A tensor spread over the ranks as another one is; every rank takes its part of its own."""
    assert isinstance(like, DTensor)
    local = tensor.to(like.device)
    spread: Tensor = distribute_tensor(local, like.device_mesh, like.placements, src_data_rank=None)
    return spread


class ShardUnit:
    """The result of one call of `fully_shard`, and its state before the edit."""

    def __init__(self, state: Any) -> None:
        self.state = state
        self.groups = _groups_of(state)
        for group in self.groups:
            group._to_sharded()
        self._before = _copied(state), _copied(state._state_ctx)
        self._groups = [(group, _copied(group)) for group in self.groups]
        self.modules: tuple[nn.Module, ...] = tuple(state._modules)
        self._known = [(m, _composable_state._module_state_mapping[m]) for m in self.modules]

    @property
    def parameters(self) -> list[Any]:
        """FSDP's records of its parameters."""
        return [record for group in self.groups for record in group.fsdp_params]

    @property
    def handles(self) -> set[int]:
        """The ids of the hooks that it has registered on modules."""
        state = self.state
        found = [state._pre_forward_hook_handle, state._post_forward_hook_handle]
        found += [record._post_load_hook_handle for record in self.parameters]
        for group in self.groups:
            found += group._module_to_pre_save_state_dict_hook_handle.values()
            found += group._module_to_pre_load_state_dict_hook_handle.values()
        several = [getattr(handle, "handles", (handle,)) for handle in found]
        return {handle.id for handles in several for handle in handles}

    def restore(self) -> None:
        """Makes everything as it was."""
        for group, before in self._groups:
            _put_back(group, before)
        _put_back(self.state, self._before[0])
        _put_back(self.state._state_ctx, self._before[1])
        _composable_state._module_state_mapping.update(self._known)

    def move(self, old: nn.Module, new: nn.Module, dress: Dress) -> None:
        """Has it be about another module, which holds the old one.

        Args:
            old: The module that it is about.
            new: The other one.
            dress: The additions of FSDP to the old one.

        Raises:
            UnsupportedModelError: If it is about several modules.
        """
        state: Any = self.state
        if len(self.modules) > 1:
            raise UnsupportedModelError(
                f"a {type(old).__name__} that is sharded together with other modules, by "
                f"fully_shard([...]), cannot grow; call fully_shard on it alone"
            )
        for key in (STATE_KEY, REGISTRY_KEY):
            new.__dict__[key] = old.__dict__.pop(key)
        for handle in (state._pre_forward_hook_handle, state._post_forward_hook_handle):
            handle.remove()
            for name in _HOOKS:  # the handle knows the dictionaries that went to the new one
                old.__dict__[name].pop(handle.id, None)
        old.__class__ = dress.plain_class
        del _composable_state._module_state_mapping[old]
        _composable_state._module_state_mapping[new] = weakref.ref(state)
        self.modules = state._modules = (new,)
        for group in self.groups:
            group.modules = (new,)
        state._pre_forward_hook_handle = new.register_forward_pre_hook(
            state._pre_forward,
            prepend=True,
            with_kwargs=True,
        )
        state._post_forward_hook_handle = new.register_forward_hook(state._post_forward)
        new.__class__ = _sharded_class(type(new))

    def adopt(self, holders: Sequence[tuple[nn.Module, str]], template: Any) -> None:
        """Shards a new parameter, which joins this unit.

        Args:
            holders: The modules that have it, with its name there.
            template: A group of another unit of the model, if this unit has no parameters yet.

        Raises:
            UnsupportedModelError: If the unit has groups of parameters on meshes of their own.
        """
        (module, name), *others = holders
        parameter = module._parameters[name]
        assert parameter is not None
        if len(self.groups) > 1:
            raise UnsupportedModelError(
                "a unit whose parameters are on several meshes (shard_placement_fn) cannot grow"
            )
        like = self.groups[0] if self.groups else template
        parameter.data = parameter.data.to(like.device)
        if not self.groups:
            self._found_group([parameter], like)
            return
        known = like.fsdp_params[0] if like.fsdp_params else like
        record = FSDPParam(
            param=parameter,
            module_info=ParamModuleInfo(
                module, name, [other for other, _ in others], [own for _, own in others]
            ),
            mesh_info=like.mesh_info,
            post_forward_mesh_info=known.post_forward_mesh_info,
            device=like.device,
            shard_placement_fn=None,
            mp_policy=like.mp_policy,
            offload_policy=like.offload_policy,
        )
        record.init_dtype_attrs(like.mp_policy)
        like.fsdp_params = [*like.fsdp_params, record]
        for holder, _ in holders:
            self._follow_state_dict(like, holder)

    def _found_group(self, parameters: list[nn.Parameter], like: Any) -> None:
        state = self.state
        group = FSDPParamGroup(
            parameters,
            state._modules,
            like.mesh_info,
            like.post_forward_mesh_info,
            like.device,
            None,
            like.mp_policy,
            like.offload_policy,
        )
        if hasattr(state, "_fsdp_param_groups"):
            state._fsdp_param_groups = [group]
        else:
            state._fsdp_param_group = group
        self.groups = [group]

    def _follow_state_dict(self, group: Any, module: nn.Module) -> None:
        """Has a new module's parameters be the sharded ones whenever its state_dict is asked for.

        FSDP does that in its first forward for the modules that there are.
        """
        saving = group._module_to_pre_save_state_dict_hook_handle
        loading = group._module_to_pre_load_state_dict_hook_handle
        if not saving or module in saving:
            return

        def to_sharded(*_: Any, **__: Any) -> None:
            group._to_sharded()

        hooked: Any = module
        saving[module] = hooked.register_state_dict_pre_hook(to_sharded)
        loading[module] = hooked._register_load_state_dict_pre_hook(to_sharded)

    def move_tensor(self, record: Any, block: nn.Module) -> None:
        """Has a record be about a tensor that has become the block of a grown one."""
        record._module_info = ParamModuleInfo(block, "value")
        for group in self.groups:
            if record in group.fsdp_params:
                self._follow_state_dict(group, block)

    def forget(self, gone: Callable[[nn.Module, str], bool]) -> None:
        """Lets go of parameters that are no longer there, by their modules and names."""
        for group in self.groups:
            kept = []
            for record in group.fsdp_params:
                place = record._module_info
                if not gone(place.module, place.param_name):
                    kept.append(record)
                    continue
                # Or it would take the module's next parameter for its own, after a load. The handle
                # itself may know the dictionary of a module whose place this one took.
                key = record._post_load_hook_handle.id
                vars(place.module)["_load_state_dict_post_hooks"].pop(key, None)
            group.fsdp_params = kept


class Dress:
    """The additions of FSDP to one module, which can be taken off: a class, marks, state, hooks.

    Args:
        module: A module of a unit.
        handles: The ids of all hooks that FSDP has registered.
    """

    def __init__(self, module: nn.Module, handles: Collection[int]) -> None:
        own = module.__dict__
        self._class = type(module)
        self._marks = {key: own[key] for key in (STATE_KEY, REGISTRY_KEY, *MARKS) if key in own}
        self._hooks = {name: list(own[name].items()) for name in _HOOKS}
        self._handles = handles

    @property
    def plain_class(self) -> type[nn.Module]:
        """The module's class without the additions of `fully_shard`."""
        return plain_type(self._class)

    def take_off(self, module: nn.Module) -> None:
        """Makes the module plain."""
        module.__class__ = self.plain_class
        for key in self._marks:
            module.__dict__.pop(key, None)
        for name, hooks in self._hooks.items():
            for key, _ in hooks:
                if key in self._handles:
                    module.__dict__[name].pop(key, None)

    def put_on(self, module: nn.Module) -> None:
        """Takes that back; hooks that came or went since are left alone."""
        now: Any = type(module)
        if now is self.plain_class:
            now = self._class
        elif self._class is not self.plain_class:  # it holds a grown tensor, by a class for that
            now = _sharded_class(now)
        module.__class__ = now
        module.__dict__.update(self._marks)
        for name, before in self._hooks.items():
            hooks = module.__dict__[name]
            there = dict(hooks)
            kept = [(key, hook) for key, hook in before if key in there or key in self._handles]
            hooks.clear()
            hooks.update({**dict(kept), **there})

    def restore(self, module: nn.Module) -> None:
        """Makes the module as it was."""
        module.__class__ = self._class
        module.__dict__.update(self._marks)
        for name, hooks in self._hooks.items():
            module.__dict__[name].clear()
            module.__dict__[name].update(hooks)


def _sharded_class(cls: type[nn.Module]) -> type[nn.Module]:
    if cls not in cls_to_fsdp_cls:

        def refuse(*_: Any, **__: Any) -> NoReturn:
            raise AssertionError("FSDP does not support deepcopy. Please use state dict instead.")

        name = f"FSDP{cls.__name__}"
        cls_to_fsdp_cls[cls] = type(name, (FSDPModule, cls), {"__deepcopy__": refuse})
    return cls_to_fsdp_cls[cls]


def _groups_of(state: Any) -> list[Any]:
    """A unit's groups of parameters; older versions of torch know one."""
    if hasattr(state, "_fsdp_param_groups"):
        return list(state._fsdp_param_groups)
    return [state._fsdp_param_group] if state._fsdp_param_group is not None else []


def _copied(item: Any) -> dict[str, Any]:
    """An object's attributes, its lists and dictionaries with copies of their content."""
    return {
        name: (value, value.copy()) if isinstance(value, (list, dict)) else (value, None)
        for name, value in vars(item).items()
    }


def _put_back(item: Any, before: Mapping[str, tuple[Any, Any]]) -> None:
    for name, (value, content) in before.items():
        vars(item)[name] = value
        if isinstance(value, list):
            value[:] = content
        elif isinstance(value, dict):
            value.clear()
            value.update(content)


def units_of(model: nn.Module) -> list[ShardUnit]:
    """The units in a model."""
    states: dict[int, Any] = {}
    for module in model.modules():
        if isinstance(module, FSDPModule):
            state = module._get_fsdp_state()
            states.setdefault(id(state), state)
    return [ShardUnit(state) for state in states.values()]


def around(model: nn.Module, units: list[ShardUnit]) -> Iterator[tuple[nn.Module, ShardUnit]]:
    """The modules inside units, each with the innermost one around it."""
    by_state = {id(unit.state): unit for unit in units}
    seen: set[int] = set()

    def visit(module: nn.Module, unit: ShardUnit | None) -> Iterator[tuple[nn.Module, ShardUnit]]:
        if id(module) in seen:
            return
        seen.add(id(module))
        if isinstance(module, FSDPModule):
            unit = by_state[id(module._get_fsdp_state())]
        if unit is not None:
            yield module, unit
        for child in module._modules.values():
            if child is not None:
                yield from visit(child, unit)

    yield from visit(model, None)
