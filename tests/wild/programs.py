"""Programs drawn by a seed: their source, their inputs and modules made of it."""

from __future__ import annotations

import importlib
import linecache
import logging
import random
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import CodeType
from typing import Any

import torch
from helpers import randomise
from torch import Tensor, nn

from wild.drafts import BATCH, FAMILIES, Argument, Draft
from wild.pieces_layers import write_layer

for name in ("shapes", "mixing", "space", "numbers", "state", "control", "torch"):
    importlib.import_module(f"wild.pieces_{name}")

TRIES = 40
"""Pieces that may be drawn for each that fits."""
STARTS = {
    "rows": ((5,), 1),
    "tokens": ((4, 5), 2),
    "line": ((3, 6), 1),
    "map": ((3, 4, 4), 1),
    "volume": ((2, 3, 3, 3), 1),
}
RESULTS = (
    ("return h", 12),
    ("return {'logits': h, 'half': h * 0.5}", 2),
    ("return h, h.mean()", 1),
    ("return (h, [h * 2])", 2),
    ("return h, x1", 1),
    ("return h if h.dim() > 0 else (h,)", 1),
)


@dataclass(frozen=True)
class Program:
    """A module's source, and what it is called with.

    Attributes:
        seed: What it was drawn by.
        source: Its module's source; the class is ``Program``.
        arguments: Those of forward.
        pieces: What it was put together from.
        coarse: How far rounding may go beyond that of float64.
    """

    seed: int
    source: str
    arguments: tuple[Argument, ...]
    pieces: tuple[str, ...] = ()
    coarse: float = 0.0

    @property
    def filename(self) -> str:
        """What its lines are called in reasons."""
        return f"program_{self.seed}.py"

    def code(self) -> CodeType:
        """Compiled, with its lines where tracebacks find them."""
        lines = self.source.splitlines(keepends=True)
        for name in [name for name in linecache.cache if name.startswith("program_")]:
            del linecache.cache[name]
        linecache.cache[self.filename] = (len(self.source), None, lines, self.filename)
        return compile(self.source, self.filename, "exec")

    def make(self, code: CodeType | None = None) -> nn.Module:
        """A fresh module with values that a formula could not hide behind; always the same."""
        names: dict[str, Any] = {"__name__": f"program_{self.seed}"}
        torch.default_generator.manual_seed(self.seed)
        exec(self.code() if code is None else code, names)
        model: nn.Module = names["Program"]().double()
        return randomise(model).eval()

    def inputs(self, which: int = 0) -> tuple[Tensor, ...]:
        """Fresh example inputs, or others: of other values for 1, another batch size for 2."""
        made = torch.Generator().manual_seed(self.seed * 8 + which)
        rows = BATCH + 1 if which == 2 else BATCH
        found = []
        for argument in self.arguments:
            sizes = (rows, *argument.sizes)
            if argument.indices:
                found.append(torch.randint(argument.indices, sizes, generator=made))
            else:
                found.append(torch.randn(sizes, generator=made))
        return tuple(found)


@contextmanager
def surroundings() -> Iterator[None]:
    """Float64 throughout and not a word, of torch's logs neither; the rest is put back."""
    fake = logging.getLogger("torch._subclasses.fake_tensor")
    silent, fake.disabled = fake.disabled, True
    dtype, state = torch.get_default_dtype(), torch.get_rng_state()
    torch.set_default_dtype(torch.float64)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        fake.disabled = silent
        torch.set_default_dtype(dtype)
        torch.set_rng_state(state)
        torch.set_grad_enabled(True)


def draw(seed: int) -> Program:
    """The program of a seed."""
    with surroundings():
        for attempt in range(TRIES):
            program = _drawn(seed, random.Random(f"program {seed} {attempt}"))
            if program is not None:
                return program
    raise LookupError(f"no program for seed {seed}")


def _drawn(seed: int, rng: random.Random) -> Program | None:
    draft = Draft(rng)
    _start(draft)
    write_layer(draft)
    if not _runs(draft, seed):
        return None
    wanted = rng.randint(2, 6)
    for _ in range(TRIES):
        if len(draft.pieces) >= wanted:
            break
        _write_piece(draft, seed)
    _end(draft)
    if not _runs(draft, seed):
        return None
    results, weights = zip(*RESULTS, strict=True)
    return _program(draft, seed, rng.choices(results, weights)[0])


def _start(draft: Draft) -> None:
    if draft.rng.random() < 0.1:
        name = draft.argument((4,), indices=7)
        layer = draft.fresh("m")
        draft.init.append(f"self.{layer} = nn.Embedding(7, 6)")
        draft.body.append(f"h = self.{layer}({name})")
        draft.shape, draft.channel = (BATCH, 4, 6), 2
        return
    sizes, draft.channel = draft.rng.choice(list(STARTS.values())[:4] * 3 + [STARTS["volume"]])
    draft.shape = (BATCH, *sizes)
    draft.body.append(f"h = {draft.argument(sizes)}")


def _write_piece(draft: Draft, seed: int) -> None:
    before = draft.state()
    family = "layers" if draft.rng.random() < 0.25 else draft.rng.choice(list(FAMILIES))
    fitting = [piece for piece in FAMILIES[family] if draft.meets(piece.when)]
    if not fitting:
        return
    piece = draft.rng.choice(fitting)
    try:
        piece.write(draft)
        fine = _runs(draft, seed)
    except (LookupError, ValueError, ZeroDivisionError):
        fine = False
    if not fine:
        rng = draft.rng
        draft.restore(before)
        draft.rng = rng
        return
    draft.pieces.append(f"{piece.family}: {piece.name}")


def _end(draft: Draft) -> None:
    """A layer that reads all, mostly."""
    if draft.dims > 2 and draft.rng.random() < 0.4:
        draft.body.append("h = h.flatten(1)")
        size = 1
        for one in draft.shape[1:]:
            size *= one
        draft.shape, draft.channel = (draft.shape[0], size), 1
    if draft.rng.random() < 0.1 or draft.dims < 2:
        return
    before = draft.state()
    try:
        write_layer(draft)
    except LookupError:
        draft.restore(before)


def _program(draft: Draft, seed: int, result: str = "return h") -> Program:
    return Program(
        seed, draft.source(result), tuple(draft.arguments), tuple(draft.pieces), draft.coarse
    )


LARGEST = 400
"""Values of a row; programs are kept small."""


def _runs(draft: Draft, seed: int) -> bool:
    """Whether it runs as it stands, in both modes, to finite values; sees what `h` is then."""
    program = _program(draft, seed)
    try:
        model = program.make()
        with torch.no_grad():
            model.train()(*program.inputs(1))
            out = model.eval()(*program.inputs())
    except Exception:  # noqa: BLE001 - whatever it is, it is no program
        return False
    if not isinstance(out, Tensor) or out.dtype != torch.float64 or out.dim() not in range(2, 6):
        return False
    if not (out.isfinite().all() and out.numel() and out.numel() <= LARGEST * BATCH):
        return False
    if out.abs().max() > 1e6:
        return False
    draft.shape = tuple(out.shape)
    draft.channel = min(draft.channel % draft.dims if draft.channel < 0 else draft.channel,
                        draft.dims - 1)  # fmt: skip
    return True
