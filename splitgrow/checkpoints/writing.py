"""Writing archives: aside, down to the disk, then renamed, so that no moment has half a file."""

from __future__ import annotations

import json
import os
import re
import secrets
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from splitgrow.checkpoints.archives import COMPLEX, DIGEST, SHARDS, Shard, shards_in
from splitgrow.checkpoints.asides import alone, clear_, place_aside, sync_directory
from splitgrow.checkpoints.files import (
    LARGEST_HEADER,
    NO_DIGEST,
    STORED_DTYPES,
    TensorFile,
    check_regular,
    hashed,
    opened_file,
    refused,
)
from splitgrow.checkpoints.rotation import check_older, drop_older_, rotate_
from splitgrow.errors import CheckpointError
from splitgrow.utils.json_records import written

_KNOWN = frozenset(STORED_DTYPES.values())


def write_archive(
    path: Path,
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str],
    *,
    keep: int,
    largest: int,
) -> None:
    """Writes tensors and texts to a file, whole or not at all.

    Args:
        path: The file. One that is there is replaced at the end, in one step.
        tensors: The tensors. No two of them may be one.
        metadata: The texts.
        keep: How many files are kept: this one, and those that were there before.
        largest: The number of bytes of tensors in one file; more bytes go to further files.

    Raises:
        CheckpointError: If it cannot be written. An existing file is untouched.
    """
    path = Path(os.path.realpath(path))
    for name, tensor in tensors.items():
        _check_plain(name, tensor)
    with refused(f"cannot save {path}"):
        check_regular(path)
        check_older(path, keep)
    parts = _parts(tensors, largest)
    texts = {**metadata, COMPLEX: json.dumps(_complex(tensors))}
    with refused(f"cannot save {path}"), alone(path):
        clear_(path)
        with _written(path, parts[1:]) as shards:
            texts[SHARDS] = json.dumps(written(shards))
            with place_aside(path) as aside:
                _write(aside, parts[0], texts)
                rotate_(path, keep)
                aside.replace(path)
                sync_directory(path.parent)
        with suppress(OSError, CheckpointError):  # the new file is there already
            drop_older_(path, keep)
            _remove_unused(path)


def write_plain(path: Path, tensors: Mapping[str, Any], metadata: Mapping[str, str]) -> None:
    """Writes a state_dict to one file of safetensors, as others read it.

    Raises:
        CheckpointError: If it cannot be written, or has something else than tensors.
    """
    others = [name for name, value in tensors.items() if not isinstance(value, Tensor)]
    if others:
        raise CheckpointError(f"{', '.join(others[:3])} of the state_dict are no tensors")
    write_archive(path, tensors, metadata, keep=1, largest=sys.maxsize)


def _check_plain(name: str, tensor: Tensor) -> None:
    """Makes sure that a tensor can be written.

    Raises:
        CheckpointError: If it cannot.
    """
    if hasattr(tensor, "placements"):
        raise CheckpointError(
            f"`{name}` is spread over several processes; use splitgrow.distributed.save"
        )
    if tensor.is_meta:
        raise CheckpointError(f"`{name}` lies on the meta device: it has no values to save")
    known = tensor.dtype in _KNOWN or tensor.dtype is torch.complex128
    if not known or tensor.layout is not torch.strided or tensor.is_quantized:
        raise CheckpointError(
            f"`{name}` is a {tensor.layout} tensor of {tensor.dtype}: no checkpoint can hold that"
        )


def _complex(tensors: Mapping[str, Tensor]) -> list[str]:
    return [name for name, tensor in tensors.items() if tensor.dtype is torch.complex128]


def _parts(tensors: Mapping[str, Tensor], largest: int) -> list[dict[str, Tensor]]:
    """The tensors of each file; all in the first if they fit, otherwise none."""
    if sum(tensor.nbytes for tensor in tensors.values()) <= largest:
        return [dict(tensors)]
    parts: list[dict[str, Tensor]] = [{}, {}]
    size = 0
    for name, tensor in tensors.items():
        if size and size + tensor.nbytes > largest:
            parts.append({})
            size = 0
        parts[-1][name] = tensor
        size += tensor.nbytes
    return parts


@contextmanager
def _written(path: Path, parts: list[dict[str, Tensor]]) -> Iterator[list[Shard]]:
    """Further files of an archive; they go again if the block fails to name them."""
    token, shards = secrets.token_hex(4), []
    try:
        for index, part in enumerate(parts, 1):
            name = f"{path.stem}-{token}-{index:05d}-of-{len(parts):05d}.safetensors"
            with place_aside(path) as aside:
                shards.append(Shard(name, _write(aside, part, {})))
                aside.replace(path.with_name(name))
        if parts:
            sync_directory(path.parent)
        yield shards
    except BaseException:
        with suppress(OSError, CheckpointError):
            _remove_unused(path)
        raise


def _write(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    """Writes one file down to the disk; returns its checksum.

    Raises:
        CheckpointError: If there is more text in it than a file can hold.
    """
    dense: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in tensors.items():
        plain = _dense(tensor)
        dense[name] = plain.clone() if plain.numel() and plain.data_ptr() in seen else plain
        seen.add(plain.data_ptr())
    path.touch()
    mode = path.stat().st_mode  # as the user wants files to be; the library makes its own
    save_file(dense, path, {**metadata, DIGEST: NO_DIGEST})
    del dense
    path.chmod(mode)
    with path.open("r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > LARGEST_HEADER:
            raise CheckpointError(
                f"a file cannot hold {length:,} bytes of text; put long lists into tensors"
            )
        file.seek(0)
        head = file.read(8 + length)
        place = head.index(f'"{DIGEST}":"{NO_DIGEST}"'.encode()) + len(DIGEST) + 4
        digest = hashed(head, file, ())[-1].hexdigest()
        file.seek(place)
        file.write(digest.encode())
        file.flush()
        os.fsync(file.fileno())
    return digest


def _dense(tensor: Tensor) -> Tensor:
    """A tensor's values on the CPU, in storage of their own."""
    tensor = tensor.detach().resolve_conj().resolve_neg()
    if tensor.dtype is torch.complex128:
        tensor = torch.view_as_real(tensor)
    plain = tensor.as_subclass(Tensor).cpu().contiguous()
    return plain if plain.untyped_storage().nbytes() == plain.nbytes else plain.clone()


def _remove_unused(path: Path) -> None:
    """Removes further files of earlier archives that no file that is kept names."""
    pattern = re.compile(rf"{re.escape(path.stem)}-[0-9a-f]{{8}}-\d{{5}}-of-\d{{5}}\.safetensors")
    further = [each for each in path.parent.iterdir() if pattern.fullmatch(each.name)]
    if not further:
        return
    used: set[str] = set()
    mains = re.compile(rf"{re.escape(path.stem)}(\.\d+)?{re.escape(path.suffix)}")
    for main in path.parent.iterdir():
        if mains.fullmatch(main.name) and main.is_file():
            with opened_file(main) as file:
                metadata = TensorFile(file, main).metadata
            used |= {shard.name for shard in shards_in(metadata, main)}
    for each in further:
        if each.name not in used:
            each.unlink()
