"""Growth in loops of accelerate: `pip install splitgrow[accelerate]`."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

import torch
from accelerate.utils import MODEL_NAME, SAFE_MODEL_NAME
from safetensors.torch import load_model
from torch import nn

from splitgrow.integrations.growable_part import find_growable

Model = TypeVar("Model", bound=nn.Module)


def grow_as_saved(model: Model, folder: str | Path, *, index: int = 0) -> Model:
    """Grows a fresh model to the one that ``Accelerator.save_state`` saved, before ``prepare``.

    In several processes ``load_state`` comes too late for that: `prepare` has wrapped the model in
    DistributedDataParallel by then, which lists the parameters when it is made. In one process it
    makes no difference. Every process calls this, then `prepare`, then ``load_state``, which loads
    the optimizers (by name: `splitgrow.by_name`), the schedulers and the rest.

    Args:
        model: The model as it was before it grew, growable, not yet prepared.
        folder: The folder of the saved state.
        index: Which of the prepared models it is, in the order of `prepare`.

    Returns:
        The same model, grown, with the saved values.

    Raises:
        FileNotFoundError: If the folder has no such model.
        UnsupportedModelError: If no part of the model is growable.
        CheckpointError: If what was saved does not fit the model, which then stays as it is.

    Example:
        >>> import tempfile, torch, splitgrow
        >>> from accelerate import Accelerator
        >>> def made():
        ...     net = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Linear(3, 1))
        ...     return splitgrow.growable(net, torch.ones(1, 2))
        >>> accelerator = Accelerator(cpu=True)
        >>> model = accelerator.prepare(made())
        >>> edit = accelerator.unwrap_model(model).expand_layer("0", 2)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = accelerator.save_state(folder)
        ...     fresh = grow_as_saved(made(), folder)
        >>> fresh.layers["0"].width
        5
    """
    find_growable(model)
    tail = f"_{index}" if index else ""
    safe = Path(folder) / f"{SAFE_MODEL_NAME}{tail}.safetensors"
    pickled = Path(folder) / f"{MODEL_NAME}{tail}.bin"
    if safe.is_file():
        load_model(model, safe)
    elif pickled.is_file():
        model.load_state_dict(torch.load(pickled, map_location="cpu", weights_only=True))
    else:
        raise FileNotFoundError(
            f"there is no {safe.name} or {pickled.name} in {folder}: pass the folder that "
            f"Accelerator.save_state returned"
        )
    return model
