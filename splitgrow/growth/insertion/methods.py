"""The methods of a growable model that make it deeper."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn
from torch.optim import Optimizer

from splitgrow.growth.edits import Edit
from splitgrow.growth.growing import GrowingBase
from splitgrow.growth.insertion.insertion import insert_, plan_insertion
from splitgrow.growth.insertion.request import AnyAfter, Wanted
from splitgrow.growth.rates import Rates
from splitgrow.utils.schedulers import Schedulers


class DepthMethods(GrowingBase):
    """Inserting layers."""

    def insert_layer(  # noqa: PLR0913
        self,
        after: AnyAfter,
        kind: str = "residual",
        *,
        module: nn.Module | None = None,
        form: str = "plain",
        kernel_size: int = 3,
        activation: nn.Module | None = None,
        freeze: bool = True,
        optimizer: Optimizer | Sequence[Optimizer] | None = None,
        lr_scale: float = 1.0,
        warmup: int = 0,
        scheduler: Schedulers | None = None,
        check: bool = True,
    ) -> Edit:
        """Inserts a layer, or several, that change nothing until they learn, but for two kinds.

        It grows like any other layer, in width and in depth. In evaluation mode the outputs are as
        before. In training mode an identity with a batch norm is nearly exact, and all other
        insertions are exact (where the edit freezes nothing, see `expand_layer`).

        Args:
            after: A layer's index or name, for the place behind it, its norm and its activation (if
                that is a function whose result no module reads, for the place before it); the path
                of another module, such as a whole block, for the place behind that; or an edge, as
                (layer, module that reads it), for that reader alone, also with functions between
                them. A list of these is for one insertion at each, in one edit: the model is
                analysed once.
            kind: "identity": a layer that returns its input, with a norm and an activation as in
                front of it (a Linear has the identity matrix, a convolution the Dirac kernel); only
                where the activation leaves its own results alone, as ReLU does. "residual": x +
                f(x), the last layer of f zero. "gate": x * g(x), the weight of g zero and its bias
                one. "block": a copy of the residual block `after`, with the last layer of each of
                its branches zero. Two kinds change the function, and a warning tells how far:
                "stack": a copy of the block as it is (G_stack, Du et al. 2024,
                https://arxiv.org/abs/2405.15319); "interpolate": the mean of the block and the next
                one (as LESA, Yang et al. 2025, https://arxiv.org/abs/2502.13794, predicts blocks
                from their neighbours). "fade": any `module` that keeps the shape, in a `FadeIn`
                with alpha 0; a `FadeSchedule` of the model takes it to 1. "replacement": the same
                for a `module` that takes the place of `after`.
            module: The branch f of a residual, whose last layer is set to zero; or the module to
                fade in.
            form: The form of a branch that is made here. "plain": two layers of the width at that
                place; "bottleneck": a quarter of it inside.
            kernel_size: The kernel size of convolutions that are made here; odd.
            activation: The activation of layers that are made here; None for the one in front of
                the place.
            freeze: Whether the first edit closes generation 0, as in `expand_layer`.
            optimizer: One or several optimizers. New parameters join the param group of the module
                next to them.
            lr_scale: As in `expand_layer`, like `warmup`.
            warmup: The steps over which the rates of new parameters rise.
            scheduler: As in `expand_layer`.
            check: Whether to compare the outputs before and after, as in `expand_layer`.

        Returns:
            The edit; ``edit.inserted[0].name`` is the path of the new module.

        Raises:
            TypeError: If an argument is of another type.
            ValueError: If there is no such module or kind, or options exclude each other.
            InsertionError: If no insertion of this kind there keeps the function; the error names
                the possible ones.
            OptimizerError: If the optimizer does not train the module next to it.
            InexactError: If `check` finds that the model would compute another function.
            StructureChangedError: If the model was changed by hand since it was analysed.

        In all these cases model and optimizer are as before.

        Example:
            >>> import torch, splitgrow
            >>> from torch import nn
            >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
            >>> x = torch.randn(1, 3, 8, 8)
            >>> net = splitgrow.growable(net, x)
            >>> before = net(x)
            >>> edit = net.insert_layer("0", "identity")
            >>> edit.inserted[0].name, edit.inserted[0].type
            ('1.inserted1', 'Conv2d + ReLU')
            >>> torch.allclose(net(x), before, atol=1e-5)
            True
        """
        wanted = Wanted(kind, module, form, kernel_size, activation)
        return self._growth(
            "insert a layer",
            insert_,
            after,
            wanted,
            freeze=freeze,
            optimizer=optimizer,
            rates=Rates.of(lr_scale, warmup, scheduler),
            check=check,
        )

    def plan_insertion(
        self,
        after: AnyAfter,
        kind: str = "residual",
        *,
        freeze: bool = True,
        **options: Any,
    ) -> Edit:
        """The edit that `insert_layer` would apply, not applied; print it to see it.

        Args:
            after: As in `insert_layer`.
            kind: As in `insert_layer`.
            freeze: As in `insert_layer`.
            options: As in `insert_layer`.

        Raises:
            InsertionError: If it cannot go there, or would not be exact.
            ValueError: If there is no such kind, form or layer.

        Example:
            >>> import torch, splitgrow
            >>> net = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Linear(3, 1))
            >>> net = splitgrow.growable(net, torch.ones(1, 2))
            >>> edit = net.plan_insertion("0", "residual")
            >>> [each.name for each in edit.inserted], len(net.layers)
            (['0.inserted1'], 2)
        """
        wanted = Wanted.of(kind, **options)
        return self._operation("plan an insertion", plan_insertion, after, wanted, freeze=freeze)
