"""The class of transformers that is a dense model's, but for mixtures of experts in place of MLPs.

It is found among the classes for the same task: by the settings of their configs that speak of
experts, by the shapes of their tensors, and by their outputs. No model is named here.
"""

from __future__ import annotations

import copy
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations, product
from typing import Any

import torch
from torch import Tensor, nn

from splitgrow.analysis.output_comparison import (
    NotRunnableError,
    difference,
    fitting,
    outputs_of,
)
from splitgrow.growth.experts.mixtures import Mixture, find_mixtures
from splitgrow.layers.expert_sets import entry_tensor, tensors_of_experts
from splitgrow.pretrained.transformers_models import made_from
from splitgrow.utils.example_call import ExampleCall, example_call
from splitgrow.utils.output_tensors import tensors_in
from splitgrow.utils.preserve import preserve_
from splitgrow.utils.rollback import Undo, temporarily

_CHOSEN = re.compile(r"experts_per_tok|top_?k_experts|moe_top_?k|moe_k$|num_selected_experts")
_SHARED = re.compile(r"shared")
_EXPERTS = re.compile(r"^(num|n|moe_num)_(local_|routed_)?experts$")
_WIDTH = re.compile(r"(moe|expert).*(intermediate|ffn).*size")
_FIXED: dict[str, Any] = {
    "norm_topk_prob": True,
    "first_k_dense_replace": 0,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "moe_layer_start_index": 0,
    "moe_layer_end_index": -1,
    "moe_layer_interval": 1,
    "moe_layer_freq": 1,
    "interleave_moe_layer_step": 1,
    "n_group": 1,
    "topk_group": 1,
    "routed_scaling_factor": 1.0,
}
"""Settings of configs with experts, for mixtures in every block that weigh by shares."""
_OWN = frozenset(("model_type", "architectures", "transformers_version", "dtype", "torch_dtype"))
_LARGE = 2 * 10**8
"""A number of elements above which models are compared in their own dtype, to save memory."""
_SAME = {torch.float64: 1e-5, torch.float32: 1e-5}
"""The largest difference of equal models, of which routers compute shares in single precision."""
_ROUGH = 3e-2
_ALIKE = {torch.float64: 1e-5, torch.float32: 1e-4}


def tolerance_of(output: Tensor) -> float:
    """The largest difference of a mixture's output from that of its MLP, relative to the largest.

    Routers compute shares in single precision, which then add up to one with such an error.
    """
    return _ALIKE.get(output.dtype, _ROUGH)


def as_mixture_class(
    plain: Any, paths: Sequence[str], counts: tuple[int, int], call: ExampleCall | None
) -> nn.Module | None:
    """The same model of its library's class with mixtures of experts; None if there is none.

    Args:
        plain: A model of transformers. It is not changed.
        paths: The paths of the MLPs that become mixtures.
        counts: The number of experts, and how many are chosen.
        call: A call of the model; None for the library's own example.
    """
    call = call or example_call(dict(plain.dummy_inputs))
    for kind, config_class in _classes_beside(plain):
        try:
            config = config_class(**_settings(plain.config, config_class, counts))
            form = made_from(kind, config, {})
        except Exception:  # noqa: BLE001 - a class that does not take such settings
            continue
        if _fits(form, plain, paths):
            try:
                made = _filled(kind, config, plain, (paths, counts), call)
            except Exception:  # noqa: BLE001 - a class that lacks a way to run, such as a kernel
                continue
            if made is not None:
                return made
    return None


def _classes_beside(plain: Any) -> Iterator[tuple[Any, Any]]:
    """Classes for the same task whose configs speak of experts, with these.

    First those of the model's own kind, then those that the library has for most tasks.
    """
    from transformers.models.auto import configuration_auto, modeling_auto  # noqa: PLC0415

    own_type, own_class = plain.config.model_type, type(plain).__name__
    found: dict[str, str] = {}
    tasks: Counter[str] = Counter()
    for name, names in vars(modeling_auto).items():
        if name.endswith("_MAPPING_NAMES"):
            tasks.update(names.keys())
            if names.get(own_type) == own_class:
                found.update((key, c) for key, c in names.items() if isinstance(c, str))
    ranked = []
    for model_type, name in found.items():
        try:
            config_class = configuration_auto.CONFIG_MAPPING[model_type]
        except Exception:  # noqa: BLE001 - needs something that is not installed
            continue
        fields = _fields(config_class)
        if any(_EXPERTS.search(field) for field in fields):
            more = fields - _fields(type(plain.config))
            known = model_type.startswith(f"{own_type}_"), tasks[model_type]
            ranked.append(((not known[0], -known[1], len(more)), config_class, name))
    import transformers  # noqa: PLC0415

    for _, config_class, name in sorted(ranked, key=lambda each: each[0]):
        kind = getattr(transformers, name, None)
        if kind is not None:
            yield kind, config_class


def _fields(config_class: Any) -> set[str]:
    """The names of a config class's settings."""
    own = {name for part in config_class.__mro__ for name in getattr(part, "__annotations__", ())}
    return {name for name in own if not name.startswith("_")}


def _settings(config: Any, config_class: Any, counts: tuple[int, int]) -> dict[str, Any]:
    """The settings of a config with experts for a dense model."""
    experts, chosen = counts
    known = _fields(config_class)
    held = {name: value for name, value in config.to_dict().items() if name not in _OWN}
    made = {name: value for name, value in held.items() if name in known}
    width = held.get("intermediate_size")
    for name in known:
        if name in _FIXED:
            made[name] = _FIXED[name]
        elif _SHARED.search(name) and "expert" in name:
            made[name] = 0
        elif _CHOSEN.search(name):
            made[name] = chosen
        elif _EXPERTS.search(name):
            made[name] = experts
        elif _WIDTH.search(name) and width is not None:
            made[name] = width
    return made


def _fits(form: nn.Module, plain: nn.Module, paths: Sequence[str]) -> bool:
    """Whether a class has all tensors of a model but those of its MLPs, and others beside these."""
    shapes = [{n: t.shape for n, t in each.state_dict().items()} for each in (form, plain)]
    theirs, ours = shapes
    kept = {n: s for n, s in ours.items() if not _below(n, paths)}
    parents = [path.rpartition(".")[0] for path in paths]
    others = [name for name in theirs if name not in kept]
    return all(theirs.get(name) == shape for name, shape in kept.items()) and all(
        _below(name, parents) for name in others
    )


def _below(name: str, paths: Sequence[str]) -> bool:
    return any(name.startswith(f"{path}.") for path in paths)


def _filled(
    kind: Any,
    config: Any,
    plain: Any,
    wanted: tuple[Sequence[str], tuple[int, int]],
    call: ExampleCall,
) -> nn.Module | None:
    """A model of a class with experts that computes what a dense one does; None if it cannot."""
    paths, counts = wanted
    like = next(p for p in plain.parameters() if p.is_floating_point())
    attention = plain.config._attn_implementation  # noqa: SLF001 - as the library passes it on
    made = kind._from_config(config, dtype=like.dtype, attn_implementation=attention)  # noqa: SLF001
    made.to(like.device)
    kept = {n: t for n, t in plain.state_dict().items() if not _below(n, paths)}
    made.load_state_dict(kept, strict=False)
    _take_buffers_(made, plain)
    made.eval()
    try:
        mixtures = find_mixtures(made, call)
    except NotRunnableError:
        return None
    if len(mixtures) != len(paths) or {(m.count, m.chosen) for m in mixtures} != {counts}:
        return None
    if any(mixture.index is None for mixture in mixtures):
        return None
    fillings: list[_Filling] = []
    for mixture, path in zip(mixtures, paths, strict=True):
        if not _fill_(
            made.get_submodule(mixture.path), plain.get_submodule(path), mixture, fillings
        ):
            return None
    if _gap(plain, made, call) > _SAME.get(like.dtype, _ROUGH):
        return None
    if hasattr(plain, "generation_config"):
        made.generation_config = plain.generation_config
    train: nn.Module = made.train(plain.training)
    return train


def _gap(plain: Any, made: Any, call: ExampleCall) -> float:
    """The largest difference of two models' outputs, relative to the largest, as far as it is seen.

    It is measured in double precision where there is the memory, so that rounding hides nothing.
    """
    if sum(p.numel() for p in made.parameters()) < _LARGE:
        plain, made = (copy.deepcopy(each).double().eval() for each in (plain, made))
        # The library's faster ways to run experts know no double precision.
        made.config._experts_implementation = "eager"  # noqa: SLF001
        call = fitting(plain, call)
    return difference(outputs_of(made, call)[:1], outputs_of(plain, call)[:1])


def _take_buffers_(made: nn.Module, plain: nn.Module) -> None:
    """Gives a model the buffers of another that no checkpoint has, such as rotary frequencies."""
    modules = dict(plain.named_modules())
    for path, module in made.named_modules():
        for name in module._non_persistent_buffers_set:  # noqa: SLF001 - torch has no other way
            own = modules[path]._buffers.get(name) if path in modules else None  # noqa: SLF001
            theirs = module._buffers.get(name)  # noqa: SLF001
            if own is not None and theirs is not None and own.shape == theirs.shape:
                module._buffers[name] = own.clone()  # noqa: SLF001


# -- the experts' tensors -------------------------------------------------------------------------


@dataclass(frozen=True)
class _Filling:
    """How tensors of an expert are made of those of an MLP: by name the parts and the way."""

    ways: Mapping[str, tuple[tuple[str, ...], str]]


_JOINS: dict[str, Callable[..., Tensor]] = {
    "as it is": lambda one: one,
    "turned": lambda one: one.t(),
    "joined": lambda *parts: torch.cat(parts),
    "joined and turned": lambda *parts: torch.cat(parts).t(),
    "in turns": lambda *parts: torch.stack(parts, 1).flatten(0, 1),
    "in turns and turned": lambda *parts: torch.stack(parts, 1).flatten(0, 1).t(),
}
"""The ways in which an expert's tensor is made of one of an MLP's, or of two."""


@temporarily
def _fill_(
    undo: Undo, block: nn.Module, mlp: nn.Module, mixture: Mixture, known: list[_Filling]
) -> bool:
    """Gives the experts of a mixture the tensors of an MLP; returns whether it computes the same.

    Args:
        undo: Restores all that runs disturb.
        block: The module that has the mixture.
        mlp: The MLP.
        mixture: The mixture.
        known: The ways that fitted other mixtures, which are tried first; gets the one that fits.
    """
    for module in (block, mlp):
        preserve_(module, undo)
    torch.set_grad_enabled(False)
    path = mixture.experts[len(mixture.path) + 1 :]
    experts = block.get_submodule(path)
    names = tensors_of_experts(experts, mixture.count)
    tensors = {name: tensor.detach() for name, tensor in mlp.named_parameters()}
    like = next(iter(tensors.values()))
    width = _width_read(block, experts, names)
    _silence_(block, path, width)
    generator = torch.Generator(like.device).manual_seed(0)
    x = torch.randn(2, 3, width, generator=generator, device=like.device, dtype=like.dtype)
    try:
        target = mlp(x)
    except RuntimeError:  # its tokens are of another size
        return False
    choices = [
        [(name, *way) for way in _ways(entry_tensor(experts, name), tensors)] for name in names
    ]
    tries = (_Filling({name: way for name, *way in each}) for each in product(*choices))  # type: ignore[misc]
    for filling in (*known, *tries):
        for name, (parts, way) in filling.ways.items():
            entry_tensor(experts, name).copy_(_JOINS[way](*(tensors[part] for part in parts)))
        made = tensors_in(block(x))[0]
        gap = (made - target).abs().max() if made.shape == target.shape else torch.inf
        if gap <= tolerance_of(target) * target.abs().max():
            known[:] = [filling]
            return True
    return False


def _width_read(block: nn.Module, experts: nn.Module, names: Sequence[str]) -> int:
    """The number of features of a token: the length that the scores and the experts share."""
    inside = {id(tensor) for tensor in experts.parameters()}
    sizes = [set(entry_tensor(experts, name).shape[1:]) for name in names]
    common = set.intersection(*(each for each in sizes if len(each) > 1)) if sizes else set()
    read = {p.shape[-1] for p in block.parameters() if p.dim() == 2 and id(p) not in inside}
    return int(next(iter((common & read) or common or read), 1))


def _silence_(block: nn.Module, path: str, width: int) -> None:
    """Sets the last matrix to zero of each part that all tokens use beside the chosen experts.

    So it adds nothing at first, and learns.

    Args:
        block: The module that has the mixture.
        path: The path of its experts.
        width: The number of features of a token.
    """
    last: dict[str, nn.Parameter] = {}
    for name, parameter in block.named_parameters():
        apart = not name.startswith(f"{path}.") and parameter.dim() == 2
        if apart and parameter.shape[0] == width:
            last[name.partition(".")[0]] = parameter
    for parameter in last.values():
        parameter.zero_()


def _ways(tensor: Tensor, tensors: Mapping[str, Tensor]) -> Iterator[tuple[tuple[str, ...], str]]:
    """The ways to make a tensor of an expert of those of an MLP, by shapes."""
    for count in (1, 2):
        for names in permutations(tensors, count):
            parts = [tensors[name] for name in names]
            if len({part.shape for part in parts}) > 1:
                continue
            for way, join in _JOINS.items():
                single = way in ("as it is", "turned")
                if single == (count == 1) and parts[0].dim() == tensor.dim() - 1:
                    turned = "turned" in way and parts[0].dim() != 2
                    if not turned and join(*parts).shape == tensor.shape[1:]:
                        yield names, way
