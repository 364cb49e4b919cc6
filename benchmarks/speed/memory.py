"""Peak memory: of this process, or what is allocated on the device."""

from __future__ import annotations

import gc
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

MIB = 2**20
_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@dataclass
class Peak:
    """The most memory that was in use inside a block, in MiB; known after the block.

    Attributes:
        before: What was in use when it began.
        most: The most that was in use.
    """

    before: float
    most: float = 0.0

    @property
    def extra(self) -> float:
        """What came on top of what was in use before."""
        return self.most - self.before


@contextmanager
def peak(device: str) -> Iterator[Peak]:
    """Measures the peak inside a ``with`` block.

    On Linux the kernel's own high-water mark of the process is set back first. Where that is not
    possible the mark of the whole life of the process is taken, which is never too low.
    """
    gc.collect()
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        found = Peak(in_use(device))
        yield found
        torch.cuda.synchronize()
        found.most = torch.cuda.max_memory_allocated() / MIB
        return
    found = Peak(in_use(device))
    if _RESET.exists():
        _RESET.write_text("5")
    yield found
    found.most = max(_high_water(), found.before)


def in_use(device: str) -> float:
    """MiB in use now."""
    if device == "cuda":
        return torch.cuda.memory_allocated() / MIB
    return _status("VmRSS:") if _STATUS.exists() else _high_water()


def _high_water() -> float:
    if _STATUS.exists():
        return _status("VmHWM:")
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most / MIB if sys.platform == "darwin" else most / 1024


def _status(name: str) -> float:
    lines = _STATUS.read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) / 1024
