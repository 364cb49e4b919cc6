"""Units taken out of a copy that nobody else knows of, of which only the sizes count."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from splitgrow.growth.history_lookup import history_of
from splitgrow.growth.planning import find_node
from splitgrow.pruning.shrinking.shrinking import take_out_
from splitgrow.pruning.shrinking.weakest import weakest_channels
from splitgrow.utils.preserve import keep_random_states_
from splitgrow.utils.rollback import Undo, temporarily


@temporarily
def shrink_copy_(
    undo: Undo,
    model: nn.Module,
    request: Mapping[str, int | Sequence[int]] | Mapping[int | str, int | Sequence[int]],
    *,
    give_up: bool = True,
) -> None:
    """Takes channels out of a copy for good; random numbers are as before.

    Args:
        undo: Puts the random numbers back.
        model: The copy. It need not have values.
        request: By layers the channels that go; or how many, the last ones.
        give_up: Whether closed generations may lose channels.
    """
    keep_random_states_(model.modules(), undo)
    history = history_of(model)
    asked: dict[int | str, int | Sequence[int]] = {}
    for name, channels in request.items():
        node = find_node(history.graph, name)
        if isinstance(channels, int):
            last = {
                group: -torch.arange(history.graph.groups.width(group))
                for group in history.graph.growing_groups(node.outs)
            }
            channels = weakest_channels(history.graph, node, channels, last)
        asked[node.name] = list(channels)
    final = Undo()
    take_out_(final, model, history, asked, round_to=1, give_up=give_up, optimizer=[], check=False)
    final.commit()
