"""A grown model as a checkpoint that the usual loader of its library reads."""

from __future__ import annotations

import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from splitgrow.deploy.deploy_check import held_against
from splitgrow.deploy.merge import merged
from splitgrow.errors import ExportError
from splitgrow.growth.growable_class import original_class
from splitgrow.growth.history import History
from splitgrow.growth.history_lookup import history_of
from splitgrow.pretrained.library_model import LibraryModel
from splitgrow.pretrained.model_form import ModelForm
from splitgrow.pretrained.settings_search import SearchResult, SettingsSearch
from splitgrow.pretrained.timm_models import TimmModel, is_of_timm
from splitgrow.pretrained.torchvision_models import TorchvisionModel, is_of_torchvision
from splitgrow.pretrained.transformers_models import TransformersModel, is_pretrained

_NAMED = 4
"""Tensors and layers that a message names."""


def save_pretrained(
    model: nn.Module,
    directory: str | Path,
    *,
    generation: int | None = None,
    **options: Any,
) -> Any:
    """Saves a grown model so that its library reads it without splitgrow.

    ``from_pretrained`` of transformers does, ``timm.create_model("local-dir:...")``, and
    ``torchvision.models.get_model`` with the name and arguments that lie beside the tensors.

    The model is merged. Its config, or the arguments in its place, get the settings that make the
    merged model anew: the widths, the numbers of heads and blocks, the size of the vocabulary, the
    eps of norms. They are found by making the class from changed settings, on the meta device, and
    comparing shapes. The checkpoint is written beside the directory first, read back by the
    library, and its outputs on the example inputs are compared with the model's. Only then it takes
    its place.

    Args:
        model: A growable model of transformers, timm or torchvision. It is not changed.
        directory: Where to save. It is made; other files in it stay.
        generation: A closed generation, to save the model as it was then; by default as it is.
        options: For the model's own ``save_pretrained``, such as ``max_shard_size``; for timm's
            ``save_for_hf``.

    Returns:
        The config that was saved; the arguments for create_model or get_model.

    Raises:
        ExportError: If no config of the class describes the model, as where one layer of many has
            grown. The message names what differs, and what would fit. Nothing is written.
        TypeError: If the model is of none of these libraries, or an option is not known.
        GenerationError: As `splitgrow.merge`.
        SplitGrowError: If the model was never made growable.

    Example:
        >>> import tempfile, torch, splitgrow
        >>> from transformers import GPT2Config, GPT2LMHeadModel  # doctest: +SKIP
        >>> model = GPT2LMHeadModel(GPT2Config(n_layer=2, n_embd=16, n_head=2))  # doctest: +SKIP
        >>> model = splitgrow.growable(model, torch.zeros(1, 4, dtype=torch.long))  # doctest: +SKIP
        >>> edit = model.insert_layer("transformer.h.0", "block")  # doctest: +SKIP
        >>> splitgrow.save_pretrained(model, "grown").n_layer  # doctest: +SKIP
        3
    """
    history = history_of(model)
    kind = original_class(model)
    if not any(is_of(model) for is_of in _LIBRARIES):
        raise TypeError(
            f"save_pretrained saves models of transformers, timm and torchvision, whose loaders "
            f"make them from settings; {kind.__name__} is none of these. splitgrow.merge makes a "
            f"plain model of it, and splitgrow.save a checkpoint"
        )
    history.model_lock.refuse_if_shown("save_pretrained")
    with history.model_lock.rlock, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of classes that are made from settings that do not fit
        plain: Any = merged(model, history, generation, check=True)
        _refuse_wrappers(plain)
        library = next(make for is_of, make in _LIBRARIES.items() if is_of(model))(plain, kind)
        library.set_(_settings_for(library, kind))
        _write(library, model, history, (generation, Path(directory)), options)
        return library.saved_settings


_LIBRARIES: dict[Callable[[nn.Module], bool], Callable[[Any, Any], LibraryModel]] = {
    is_pretrained: TransformersModel,
    is_of_timm: TimmModel,
    is_of_torchvision: TorchvisionModel,
}
"""The libraries, each by a test for its models."""


def _refuse_wrappers(plain: nn.Module) -> None:
    """Makes sure that a merged model is of its library's classes only.

    Raises:
        ExportError: If something that was inserted has no place in the class.
    """
    left = [
        name
        for name, module in plain.named_modules()
        if type(module).__module__.startswith(("splitgrow.", "torch.fx."))
    ]
    if left:
        raise ExportError(
            f"what was inserted at `{left[0]}` has no place in the model's class, of which "
            f"from_pretrained makes the model: only copies of blocks have, in a list of blocks"
        )


def _settings_for(library: LibraryModel, kind: type[nn.Module]) -> dict[str, Any]:
    """The settings of a merged model that have to change.

    Raises:
        ExportError: If no settings make such a model.
    """
    target = ModelForm.of(library.plain)
    search = SettingsSearch(library.settings(), library.made)
    found = search.find(target)
    name = library.settings_name
    if found is None:
        raise ExportError(f"{kind.__name__} cannot be made from its own {name}")
    if found.left:
        differing, way_out = _differing(found, target), _way_out(search, found, target)
        raise ExportError(f"no {name} describes the model: {differing}; {way_out}")
    if found.odd:
        path, number = found.odd[0]
        keeps = 'Norms keep theirs in a stream that grows by initializer="duplicate"; '
        raise ExportError(
            f"no {name} describes the model: `{path}.{number}` is {target.numbers[path, number]}, "
            f"where it gives {found.form.numbers[path, number]} for all such modules. "
            f"{keeps if 'eps' in number else ''}splitgrow.merge makes a plain model of it, for "
            f"torch.save"
        )
    return dict(found.changes)


def _differing(found: SearchResult, target: ModelForm) -> str:
    """Names tensors that no settings give the shapes that they have."""
    parts = []
    for name in found.left[:_NAMED]:
        here, there = target.shapes.get(name), found.form.shapes.get(name)
        has = f"is {here}" if here is not None else "is missing"
        parts.append(f"`{name}` {has}, where it gives {there if there is not None else 'none'}")
    more = len(found.left) - len(parts)
    return ", ".join(parts) + (f", and {more} more" if more > 0 else "")


def _way_out(search: SettingsSearch, found: SearchResult, target: ModelForm) -> str:
    """What else would have to grow, with a setting that would give some tensors their shapes."""
    near = search.nearest(found, target)
    if near is None:
        return "splitgrow.merge makes a plain model of it, for torch.save"
    (setting, value), names = near
    layers = _listed(dict.fromkeys(name.rpartition(".")[0] for name in names))
    return f"with {setting}={value} it would fit if these had grown alike: {layers}"


def _listed(names: Iterable[str]) -> str:
    found = list(names)
    more = f" and {len(found) - _NAMED} more" if len(found) > _NAMED else ""
    return ", ".join(f"`{name}`" for name in found[:_NAMED]) + more


_NOTHING = "Nothing was written; splitgrow.merge makes a plain model of it, for torch.save"


def _write(
    library: LibraryModel,
    model: nn.Module,
    history: History,
    place: tuple[int | None, Path],
    options: dict[str, Any],
) -> None:
    """Writes a checkpoint, once it is known to be read as the same model.

    Raises:
        ExportError: If it is not.
    """
    (generation, directory), plain = place, library.plain
    directory.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=directory.parent, prefix=f".{directory.name}-") as made_in:
        _save(library, Path(made_in), options)
        try:
            again = library.read(Path(made_in))
        except Exception as error:  # as a library maps the names of older checkpoints, say
            told = f"{type(error).__name__}: {' '.join(str(error).split())}"
            raise ExportError(
                f"{library.loader} does not read what is saved of the model ({told}). {_NOTHING}"
            ) from error
        _lend_buffers_(again, plain)
        verdict = held_against(model, history, generation, again, "save_pretrained", spread=True)
        if verdict.fault:
            raise ExportError(
                f"a {type(plain).__name__} that {library.loader} makes with the grown shapes "
                f"{verdict.fault}{_cause(again, plain)}. {_NOTHING}"
            )
        directory.mkdir(exist_ok=True)
        for file in Path(made_in).iterdir():
            shutil.move(file, directory / file.name)


def _save(library: LibraryModel, directory: Path, options: dict[str, Any]) -> None:
    """Saves a plain model by its library.

    Raises:
        ExportError: If that does not allow such settings.
        TypeError: If an option is not known.
        OSError: If it cannot be written.
        MemoryError: If there is too little memory.
    """
    try:
        library.save(directory, options)
    except (OSError, TypeError, MemoryError):
        raise
    except Exception as error:  # as a library checks its settings
        told = " ".join(str(error).split())
        raise ExportError(
            f"{library.settings_name} does not allow the settings that the grown model has: {told}"
        ) from error


def _lend_buffers_(again: nn.Module, plain: nn.Module) -> None:
    """Gives a model that was read buffers that its class makes anew, where these are as good.

    A model that was cast has them from single precision, say. No checkpoint has them.
    """
    modules = dict(plain.named_modules())
    for path, module in again.named_modules():
        for name in module._non_persistent_buffers_set:  # noqa: SLF001 - torch has no other way
            own = modules[path]._buffers.get(name) if path in modules else None  # noqa: SLF001
            made = module._buffers.get(name)  # noqa: SLF001
            if own is None or made is None or own.shape != made.shape or own.is_meta:
                continue
            if torch.allclose(own.double(), made.double(), rtol=1e-5, atol=1e-7):
                module._buffers[name] = own  # noqa: SLF001


def _cause(again: nn.Module, plain: nn.Module) -> str:
    """What differs in a model that was read: a tensor that its class makes anew, or a number."""
    read = again.state_dict()
    for name, tensor in plain.state_dict().items():
        if name in read and not torch.equal(read[name], tensor):
            return f", since its class makes `{name}` anew when it is read"
    target = ModelForm.of(plain)
    for path, name in ModelForm.of(again).numbers_unlike(target):
        if isinstance(target.numbers[path, name], (int, float)):
            number = target.numbers[path, name]
            return f", maybe since `{path}.{name}` is {number} in the grown model alone"
    return ""
