"""Making mixtures of experts of a dense model's MLPs, so that it computes the same at first."""

from __future__ import annotations

import copy
import fnmatch
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from splitgrow.analysis.output_comparison import difference, fitting, has_values, outputs_of
from splitgrow.deploy.merge import merge
from splitgrow.errors import InexactError, UnsupportedLayerError, UnsupportedModelError
from splitgrow.growth.history_lookup import HISTORY, history_of
from splitgrow.layers.mixture_of_experts import MixtureOfExperts, check_counts
from splitgrow.layers.types import layer_type_of
from splitgrow.pretrained.mixture_classes import as_mixture_class, tolerance_of
from splitgrow.pretrained.transformers_models import is_pretrained
from splitgrow.utils.example_call import ExampleCall, ExampleInputs, example_call
from splitgrow.utils.preserve import preserve_
from splitgrow.utils.rollback import Undo, temporarily


def to_mixture(
    model: nn.Module,
    mlp: str | Sequence[str],
    *,
    experts: int,
    top_k: int = 2,
    example_inputs: ExampleInputs | None = None,
) -> nn.Module:
    """A new model in which MLPs are mixtures of experts, and that computes the same at first.

    Each expert is a copy of its MLP. The router is random, and the weights of the chosen experts
    add up to one, so that its choice makes no difference until experts differ. That was compared
    in values before the model is returned.

    A model of transformers whose MLPs all become mixtures gets the class of its library that has
    such mixtures, where there is one (of Llama and Mistral a Mixtral, of Qwen3 a Qwen3Moe): its
    `save_pretrained` and all tools for the class work. Any other model keeps its class, and has
    `MixtureOfExperts` at those paths. `expand_experts` adds experts to either, once the model is
    growable.

    Args:
        model: Any module. It is not changed. Of a growable one the result is what
            `splitgrow.merge` makes of it, with mixtures.
        mlp: The path of an MLP, or a pattern such as ``"model.layers.*.mlp"``, or several of these.
        experts: The number of experts of each mixture.
        top_k: How many of them are chosen for each token.
        example_inputs: Inputs for the model, as in `splitgrow.growable`, to compare outputs; by
            default those of a growable model. Without any only the mixtures are compared.

    Returns:
        The new model, in the training mode of the old one.

    Raises:
        TypeError: If an argument is of another type.
        ValueError: If no module has such a path, or the numbers do not fit.
        UnsupportedLayerError: If a module does not work on each token by itself.
        UnsupportedModelError: If the model has no values.
        InexactError: If outputs on the example inputs would change.

    Example:
        >>> import torch, splitgrow
        >>> from torch import nn
        >>> mlp = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8))
        >>> net = nn.Sequential(nn.Linear(3, 8), mlp, nn.Linear(8, 2))
        >>> sparse = splitgrow.to_mixture(net, "1", experts=4, top_k=2)
        >>> type(sparse[1]).__name__, len(sparse[1].experts)
        ('MixtureOfExperts', 4)
        >>> x = torch.randn(5, 3)
        >>> torch.allclose(sparse(x), net(x), atol=1e-6)
        True
    """
    check_counts(experts, top_k)
    call = _example_call(model, example_inputs)
    plain = merge(model) if hasattr(model, HISTORY) else copy.deepcopy(model)
    paths = list(_paths(plain, mlp))
    if any(tensor.is_meta for tensor in (*plain.parameters(), *plain.buffers())):
        raise UnsupportedModelError(
            "a mixture is compared with its MLP in values, and on the meta device there are none"
        )
    made: nn.Module | None = None
    if is_pretrained(plain):
        made = as_mixture_class(plain, paths, (experts, top_k), call)
    if made is None:
        made = _with_mixtures(plain, paths, experts, top_k)
    if call is not None:
        _check(model, made, call)
    return made


def _example_call(model: nn.Module, given: object) -> ExampleCall | None:
    if given is not None:
        return example_call(given)
    return history_of(model).inputs if hasattr(model, HISTORY) else None


def _paths(model: nn.Module, mlp: object) -> Iterator[str]:
    """The paths of the modules that are meant.

    Raises:
        TypeError: If they are no texts.
        ValueError: If there is none of a path or pattern.
    """
    wanted = [mlp] if isinstance(mlp, str) else mlp
    if not isinstance(wanted, (list, tuple)) or not all(isinstance(one, str) for one in wanted):
        raise TypeError(f"mlp is the path of a module, a pattern, or several, got {mlp!r}")
    if not wanted:
        raise ValueError("mlp names no module")
    known = [name for name, _ in model.named_modules() if name]
    found: dict[str, None] = {}
    for one in wanted:
        own = [name for name in known if _matches(name, one)]
        if not own:
            raise ValueError(f"no module has the path {one!r}; see named_modules()")
        found.update(dict.fromkeys(own))
    inner = [name for name in found if any(name.startswith(f"{other}.") for other in found)]
    if inner:
        raise ValueError(f"`{inner[0]}` is part of another module that becomes a mixture")
    yield from (name for name in known if name in found)


def _matches(name: str, pattern: str) -> bool:
    """Whether a path fits a pattern, part by part: a star stands for no dots."""
    parts, wanted = name.split("."), pattern.split(".")
    return len(parts) == len(wanted) and all(map(fnmatch.fnmatchcase, parts, wanted))


def _with_mixtures(plain: nn.Module, paths: Sequence[str], experts: int, top_k: int) -> nn.Module:
    for path in paths:
        parent, _, name = path.rpartition(".")
        mlp = plain.get_submodule(path)
        mixture = MixtureOfExperts(mlp, features=_features(path, mlp), experts=experts, top_k=top_k)
        _check_alike(path, mlp, mixture)
        holder = plain.get_submodule(parent)
        if name not in holder._modules:  # noqa: SLF001
            raise ValueError(f"`{path}` is reached by no name of its parent")
        holder._modules[name] = mixture  # noqa: SLF001
    return plain


def _features(path: str, mlp: nn.Module) -> int:
    """The number of features that an MLP reads, by its first layer.

    Raises:
        UnsupportedLayerError: If it has no layer of a known type.
    """
    for module in mlp.modules():
        entry = layer_type_of(module)
        if entry is not None and entry.sized and not entry.looks_up:
            return entry.sizes(module)[0]
    raise UnsupportedLayerError(
        f"`{path}` has no layer of a known type, by which to tell how many features a token has"
    )


@temporarily
def _check_alike(undo: Undo, path: str, mlp: nn.Module, mixture: nn.Module) -> None:
    """Makes sure that a mixture computes what its MLP does, also for tokens by themselves.

    Raises:
        UnsupportedLayerError: If it does not.
    """
    for module in (mlp, mixture):
        preserve_(module, undo)
        for part in module.modules():
            part.__dict__["training"] = False
    torch.set_grad_enabled(False)
    like = next(p for p in mlp.parameters() if p.is_floating_point())
    generator = torch.Generator(like.device).manual_seed(0)
    size = (2, 3, _features(path, mlp))
    x = torch.randn(size, generator=generator, device=like.device, dtype=like.dtype)
    try:
        before, now = mlp(x.clone()), mixture(x.clone())
        alone = torch.cat([mlp(token.unsqueeze(0)) for token in x.flatten(0, 1)])
    except Exception as error:
        raise UnsupportedLayerError(
            f"`{path}` does not work on tokens (..., features) by themselves: "
            f"{type(error).__name__}: {error}"
        ) from error
    if not isinstance(before, Tensor) or before.shape != now.shape:
        raise UnsupportedLayerError(f"`{path}` does not return one tensor for each token")
    found = difference([now, alone.view_as(before)], [before, before])
    if not found <= tolerance_of(before):
        raise UnsupportedLayerError(
            f"`{path}` does not work on each token by itself: what it makes of one depends on "
            f"others, or on chance"
        )


def _check(model: nn.Module, made: nn.Module, call: ExampleCall) -> None:
    """Makes sure that outputs are as before.

    Raises:
        InexactError: If they are not.
    """
    if not has_values(model, call):
        return
    inputs = fitting(model, call)
    before, now = outputs_of(model, inputs), outputs_of(made, inputs)
    found, allowed = difference(now[:1], before[:1]), tolerance_of(before[0])
    if not found <= allowed:
        raise InexactError(
            f"with mixtures in place of its MLPs the model would change what it computes, by "
            f"{found:.1e} of the largest output, where {allowed:.0e} is rounding"
        )
