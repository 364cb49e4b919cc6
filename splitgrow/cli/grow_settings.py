"""The options of `splitgrow grow`.

Free of torch, so that the command can show its defaults without loading it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from splitgrow.cli.continual_settings import BACKBONE_NAMES
from splitgrow.cli.settings import suited_epochs

RESIDUAL = "resnet"
NETWORK_NAMES = (RESIDUAL, *BACKBONE_NAMES)
INITIALIZER_NAMES = (
    "zero",
    "kaiming",
    "orthogonal",
    "copy_statistics",
    "pair",
    "net2net",
    "average",
    "duplicate",
    "variance_transfer",
    "gradient",
    "gradmax",
    "tiny",
    "fisher",
)
SCORE_NAMES = ("gain", "natural", "gradient", "rank", "dead")
ARMS = 3  # the networks that are trained and compared
_SHARES = (0.2, 0.5)  # of the arithmetic, at the first growth and at the last


@dataclass(frozen=True, kw_only=True)
class GrowSettings:
    """How a network grows while it trains, and how it and those that it is compared with train.

    Attributes:
        network: A name, or MODULE:FACTORY.
        width: A factor for the widths of a network that is given by name.
        factor: How many times the widths it grows to; None if it grows to a budget.
        params: The largest number of parameters in the end.
        macs: The largest number of multiply-adds of a forward pass for one image in the end.
        steps: The number of growths.
        every: The training steps between growths; None if something else says when.
        shares: The shares of the arithmetic at which it grows; empty if something else says when.
        plateau: The epochs without a lower validation loss after which it grows, or None.
        init: The initializer of new units.
        only: The layers that may grow, by name or pattern; empty for all.
        except_: Those that keep their widths.
        score: The score that chooses layers at each growth; empty for all.
        share: The share of the layers that it chooses.
        round_to: The number of which widths are multiples.
        freeze: Whether all that exists is frozen by the first growth.
        lr_scale: The learning rate of new parameters, relative to that of the others.
        warmup: The training steps over which it rises to that.
        epochs: Passes of the large network through the data; all networks train for its arithmetic.
        augment: The kinds of change of training images, as flips,crops; empty for none.
        batch_size: Images in a training step.
        learning_rate: At the peak of the one-cycle schedule.
        seed: Of everything that is drawn.
    """

    network: str = RESIDUAL
    width: float = 1.0
    factor: float | None = 2.0
    params: float | None = None
    macs: float | None = None
    steps: int = 3
    every: int | None = None
    shares: tuple[float, ...] = (0.2, 0.35, 0.5)
    plateau: int | None = None
    init: str = "zero"
    only: tuple[str, ...] = ()
    except_: tuple[str, ...] = ()
    score: str = ""
    share: float = 0.5
    round_to: int = 1
    freeze: bool = False
    lr_scale: float = 1.0
    warmup: int = 0
    augment: str = ""
    epochs: int
    batch_size: int = 64
    learning_rate: float = 0.005
    seed: int = 0

    @classmethod
    def suited_to(cls, images: int, *, epochs: int | None, **chosen: Any) -> GrowSettings:
        """Settings with which some number of images take minutes at most, if images are small.

        >>> GrowSettings.suited_to(1437, epochs=None).epochs
        14
        """
        return cls(epochs=epochs or suited_epochs(images, ARMS), **chosen)


def usual_shares(steps: int) -> tuple[float, ...]:
    """The shares of the arithmetic at which a network grows so many times, if nothing else says.

    >>> usual_shares(3), usual_shares(1)
    ((0.2, 0.35, 0.5), (0.2,))
    """
    first, last = _SHARES
    return tuple(
        round(first + (last - first) * at / max(steps - 1, 1), 6) for at in range(max(steps, 1))
    )
