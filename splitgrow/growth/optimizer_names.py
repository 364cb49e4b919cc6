"""Optimizer states that are saved and loaded by the names of parameters, instead of by position.

Torch numbers an optimizer's parameters in the order of its groups. The order and the groups of a
grown model are those of its history, which an optimizer that is made anew does not know.
"""

from __future__ import annotations

from functools import partial
from typing import Any, TypeVar
from weakref import ref

from torch import nn
from torch.optim import Optimizer

from splitgrow.errors import OptimizerError
from splitgrow.growth.optimizer_fitting import (
    NAMED,
    check_positions,
    matched,
    named_by_all_paths,
    names_and_shapes,
    regroup_,
    saved_groups,
)
from splitgrow.growth.optimizers import unwrapped

Made = TypeVar("Made", bound=Optimizer)


def by_name(optimizer: Made, model: nn.Module) -> Made:
    """Has an optimizer's state_dict go by the names of a model's parameters.

    Any trainer that saves and loads ``optimizer.state_dict()`` then resumes a grown model as if it
    had never stopped: Lightning, Hugging Face's Trainer, accelerate, timm. Load the model's own
    state first; then the optimizer gets the groups that were saved, with their options, and every
    parameter its own state, also if the optimizer was made of the parameters in another order, in
    other groups, or before the model grew.

    The state_dict keeps torch's form; the names and shapes lie beside it, under ``"by_name"``. One
    that has torch's ``param_names`` instead is matched by these, and one without names by position,
    if the shapes allow it. Steps are as before, and cost nothing more.

    Parameters that are not the model's, such as those of a loss, go by their order in their group.
    Copies and pickles of an optimizer leave hooks behind, as torch has it: call this again.

    Args:
        optimizer: The optimizer; also one that a trainer has wrapped.
        model: The model, or a module around it.

    Returns:
        The optimizer.

    Raises:
        TypeError: If the arguments are of other types.
        OptimizerError: If the optimizer's class saves or loads in a way that ignores torch's hooks.
            Later, from ``load_state_dict``: if a saved state does not fit the model; names and
            shapes are in the message, and the optimizer is as before.

    Example:
        >>> import torch, splitgrow
        >>> def made():
        ...     net = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Linear(3, 1))
        ...     net = splitgrow.growable(net, torch.ones(1, 2))
        ...     return net, splitgrow.by_name(torch.optim.AdamW(net.parameters()), net)
        >>> net, optimizer = made()
        >>> edit = net.expand_layer("0", 2, optimizer=optimizer)
        >>> net(torch.ones(1, 2)).sum().backward()
        >>> optimizer.step()
        >>> fresh, resumed = made()
        >>> keys = fresh.load_state_dict(net.state_dict())
        >>> resumed.load_state_dict(optimizer.state_dict())
        >>> [tuple(p.shape) for p in resumed.param_groups[0]["params"]]
        [(3, 2), (3,), (2, 2), (2,), (1, 3), (1,), (1, 2)]
    """
    if not isinstance(optimizer, Optimizer):
        raise TypeError(f"optimizer must be a torch.optim.Optimizer, got {optimizer!r}")
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    inner = unwrapped(optimizer)
    hooks = _Hooks.of(inner)
    if hooks is None:
        hooks = _Hooks(model)
        hooks.put_on(inner)
    hooks.model = ref(model)
    return optimizer


class _Hooks:
    """The hooks of one optimizer.

    Attributes:
        model: The model whose names count.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = ref(model)

    @classmethod
    def of(cls, optimizer: Optimizer) -> _Hooks | None:
        """Those that an optimizer has already."""
        known = getattr(optimizer, "_optimizer_state_dict_post_hooks", {}).values()
        owners = (getattr(hook, "__self__", None) for hook in known)
        return next((owner for owner in owners if isinstance(owner, cls)), None)

    def put_on(self, optimizer: Optimizer) -> None:
        """Registers the hooks with an optimizer.

        Raises:
            OptimizerError: If its class ignores them.
        """
        _try_hooks(optimizer)
        optimizer.register_state_dict_post_hook(self.name)
        optimizer.register_load_state_dict_pre_hook(self.match)

    def name(self, optimizer: Optimizer, state_dict: dict[str, Any]) -> None:
        """Adds names and shapes to a state_dict that was made."""
        state_dict[NAMED] = names_and_shapes(optimizer, self._model())

    def match(self, optimizer: Optimizer, state_dict: dict[str, Any]) -> dict[str, Any]:
        """Gives the optimizer the groups of a state_dict, which then fits it by position."""
        named = named_by_all_paths(self._model())
        saved = saved_groups(state_dict, named)
        if saved is None:
            check_positions(optimizer, state_dict, named)
        else:
            regroup_(optimizer, matched(optimizer, saved, named), named)
        return {key: value for key, value in state_dict.items() if key != NAMED}

    def _model(self) -> nn.Module:
        model = self.model()
        if model is None:
            raise OptimizerError(
                "the model whose names this optimizer goes by is gone; call "
                "splitgrow.by_name(optimizer, model) with the present one"
            )
        return model


class _SeenError(Exception):
    """Raised by a hook, to show that it ran."""


def _try_hooks(optimizer: Optimizer) -> None:
    """Makes sure that an optimizer runs the hooks that torch has for saving and loading.

    Loading is tried on an empty state_dict, by a twin that shares the optimizer's attributes.

    Raises:
        OptimizerError: If it does not.
    """

    def seen(*_: Any) -> None:
        raise _SeenError

    empty: dict[str, Any] = {"state": {}, "param_groups": []}
    twin = object.__new__(type(optimizer))
    twin.__dict__.update(vars(optimizer))
    for register, call in (
        ("register_state_dict_post_hook", optimizer.state_dict),
        ("register_load_state_dict_pre_hook", partial(twin.load_state_dict, empty)),
    ):
        reason = ""
        try:
            with getattr(optimizer, register)(seen):
                call()
        except _SeenError:
            continue
        except Exception as error:  # noqa: BLE001 - of any optimizer's own code
            reason = f" ({type(error).__name__}: {error})"
        what = register.removeprefix("register_").rpartition("_dict")[0] + "_dict"
        raise OptimizerError(
            f"the `{what}` of {type(optimizer).__name__} does not run torch's hooks{reason}, so it "
            f"cannot go by name; save and load it with splitgrow.save and splitgrow.load, which "
            f"go by name for every optimizer"
        )
