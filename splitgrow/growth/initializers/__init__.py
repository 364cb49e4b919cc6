"""The first values of new units: one class for each method; each gets a whole prepared edit."""

from splitgrow.growth.initializers.applying import initialise_, quiet_added_, refuse_unfit
from splitgrow.growth.initializers.initializer import Initializer
from splitgrow.growth.initializers.registry import (
    chosen_initializer,
    initializers,
    register_initializer,
)
from splitgrow.growth.initializers.silent_helpers import Average, Duplicate, Stirred, Zero

__all__ = [
    "Average",
    "Duplicate",
    "Initializer",
    "Stirred",
    "Zero",
    "chosen_initializer",
    "initialise_",
    "initializers",
    "quiet_added_",
    "refuse_unfit",
    "register_initializer",
]
