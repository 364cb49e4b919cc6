"""Making the journal of a model."""

from __future__ import annotations

from torch import nn

from splitgrow.growth.history import History
from splitgrow.growth.journal.holding import held_states
from splitgrow.growth.journal.journal import FadeShare, Journal
from splitgrow.layers.freezing import held


def journal_of(model: nn.Module, history: History) -> Journal:
    """The journal of a growable model as it is now."""
    paths = {id(module): path for path, module in model.named_modules()}
    named = list(model.named_parameters(remove_duplicate=False))
    return Journal(
        edits=tuple(history.edits),
        generation=history.generation,
        exact_from=history.exact_from,
        frozen={
            generation: tuple(
                f"{paths[id(module)]}.{name}".removeprefix(".")
                for module, name in owned
                if id(module) in paths and module._parameters.get(name) is not None  # noqa: SLF001
            )
            for generation, owned in history.frozen.items()
        },
        fixed=tuple(name for name, parameter in named if not parameter.requires_grad),
        held=tuple(path for path, module in model.named_modules() if held(module)),
        shares={
            generation: tuple(
                FadeShare(paths[id(fade)], alpha) for fade, alpha in shares if id(fade) in paths
            )
            for generation, shares in history.shares.items()
        },
        states=held_states(model, history),
        broken=dict(history.broken),
    )
