"""The first lines that a user writes, as type checkers see them: `.ci/run` has two check this."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import splitgrow


def grow() -> Tensor:
    """Grows, trains by a policy, looks back, and deploys."""
    network = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
    model = splitgrow.growable(network, torch.ones(1, 2))
    optimizer = torch.optim.AdamW(model.parameters())
    model.expand_layer("0", 4, optimizer=optimizer)

    handle: splitgrow.Handle = splitgrow.handle(model)
    edit: splitgrow.Edit = handle.expand_layer("0", 4, optimizer=[optimizer])
    hidden: splitgrow.Layers = handle.layers.where(kind="Linear", output=False)
    handle.expand({layer.name: layer.width // 4 for layer in hidden}, optimizer=optimizer)
    assert handle.layers["0"].width == hidden[0].width + hidden[0].width // 4
    assert edit.parameters > 0

    grower = splitgrow.Grower(
        model, optimizer, to=splitgrow.Factor(2.0), when=splitgrow.Every(10), absorb=False
    )
    grown: splitgrow.Edit | None = grower.step()
    assert grown is None

    with handle.at(0) as before:
        before(torch.ones(1, 2))
    deployed: nn.Module = splitgrow.fuse(model)
    output: Tensor = deployed(torch.ones(1, 2))
    return output
