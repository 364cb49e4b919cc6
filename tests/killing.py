"""A process that is killed at a random moment, never too late on a machine of any speed.

A moment is a number of optimizer steps and some milliseconds after them: time alone would kill
a run on a slow machine before it has begun, and on a fast one when it is over.
"""

from __future__ import annotations

import os
import signal
import threading
import time

from torch.optim.optimizer import register_optimizer_step_post_hook

ENVIRONMENT = "KILLED_AFTER"


def steps_and_seconds(steps: int, seconds: float) -> dict[str, str]:
    """What the process's environment says, so that it is killed then."""
    return {ENVIRONMENT: f"{steps} {seconds}"}


class Steps:
    """Counts the steps of all optimizers, and kills this process when it was told to.

    Used in a ``with`` block, which is never left if the process is to be killed.

    Attributes:
        taken: How many steps were taken.
    """

    def __init__(self) -> None:
        self.taken = 0
        steps, seconds = os.environ.get(ENVIRONMENT, "-1 0").split()
        self._last, self._seconds = int(steps), float(seconds)

    def __enter__(self) -> Steps:
        self._handle = register_optimizer_step_post_hook(self._count)
        return self

    def __exit__(self, *_: object) -> None:
        self._handle.remove()
        if 0 <= self._last <= self.taken:
            time.sleep(60)

    def _count(self, *_: object) -> None:
        self.taken += 1
        if self.taken == self._last:
            threading.Thread(target=self._die, daemon=True).start()

    def _die(self) -> None:
        time.sleep(self._seconds)
        os.kill(os.getpid(), signal.SIGKILL)
