"""Growing and shrinking a model that several processes train, on torch.distributed as it is."""

from splitgrow.distributed.joint_methods import absorb, consolidate, next_generation, unfreeze
from splitgrow.distributed.loading import load
from splitgrow.distributed.methods import (
    expand,
    expand_experts,
    expand_input,
    expand_layer,
    expand_vocabulary,
    gathered,
    insert_layer,
)
from splitgrow.distributed.prune_methods import prune
from splitgrow.distributed.saving import save
from splitgrow.distributed.shrink_methods import remove_layer, shrink, shrink_layer
from splitgrow.errors import DistributedError

__all__ = [
    "DistributedError",
    "absorb",
    "consolidate",
    "expand",
    "expand_experts",
    "expand_input",
    "expand_layer",
    "expand_vocabulary",
    "gathered",
    "insert_layer",
    "load",
    "next_generation",
    "prune",
    "remove_layer",
    "save",
    "shrink",
    "shrink_layer",
    "unfreeze",
]
