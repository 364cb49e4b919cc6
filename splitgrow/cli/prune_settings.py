"""The options of `splitgrow prune`.

Free of torch, so that the command can show its defaults without loading it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

CRITERION_NAMES = (
    "group",
    "l1",
    "l2",
    "scale",
    "taylor",
    "fisher",
    "activation",
    "reconstruction",
    "random",
)
DATA_CRITERIA = ("taylor", "fisher", "activation", "reconstruction")
"""Those that look at data."""
TARGET_NAMES = ("macs", "params", "latency")
SCOPE_NAMES = ("global", "layer")


@dataclass(frozen=True, kw_only=True)
class PruneOptions:
    """How a model gets narrower, and how it trains in between.

    Attributes:
        target: How small it becomes: by name a share of today's, or an int.
        amount: The share of the units that goes; None if there is a target.
        criterion: The name of the scores of units.
        scope: Whether the units of all layers are compared.
        steps: The number of steps.
        keep: The share of each layer's units that stays.
        round_to: The number of which widths that stay are multiples.
        only: The layers that may lose units, by name or pattern; empty for all.
        except_: Those that keep theirs.
        refit: Whether the readers of pruned units are fitted; None for what the criterion says.
        give_up: Whether closed generations may lose units.
        batches: The batches of training images that criteria look at.
        epochs: Passes through the training images after each step.
        augment: The kinds of change of images in that training, as flips,crops; empty for none.
        batch_size: Images in a batch.
        learning_rate: At the peak of the one-cycle schedule after each step.
        seed: Of everything that is drawn.
    """

    target: Mapping[str, float] = field(default_factory=dict)
    amount: float | None = None
    criterion: str = "group"
    scope: str = "global"
    steps: int = 1
    keep: float = 0.1
    round_to: int = 1
    only: tuple[str, ...] = ()
    except_: tuple[str, ...] = ()
    refit: bool | None = None
    give_up: bool = False
    batches: int = 8
    epochs: int = 0
    augment: str = ""
    batch_size: int = 64
    learning_rate: float = 0.005
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class PruneFiles:
    """The files that a pruning reads and writes.

    Attributes:
        checkpoint: The weights that it begins with; None for those that the model comes with.
        out: Where the smaller model goes.
        picture: Where a picture of the widths goes.
        force: Whether files that are there may be replaced.
    """

    checkpoint: Path | None = None
    out: Path | None = None
    picture: Path | None = None
    force: bool = False
