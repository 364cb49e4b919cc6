"""The methods of a growable model that make it narrower."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from torch import nn
from torch.optim import Optimizer

from splitgrow.growth.edits import Edit
from splitgrow.growth.growing import GrowingBase
from splitgrow.pruning.choosing import PruneScope
from splitgrow.pruning.criteria.criterion import Criterion
from splitgrow.pruning.prune import make_prune_plan, prune_settings, prune_step_
from splitgrow.pruning.removing.removing import remove_layer_
from splitgrow.pruning.shrinking.shrinking import plan_shrinking, take_out_
from splitgrow.pruning.target import Target


class PruneMethods(GrowingBase):
    """Taking units out."""

    def shrink_layer(
        self,
        layer: int | str,
        channels: int | Sequence[int],
        *,
        round_to: int = 1,
        give_up: bool = False,
        optimizer: Optimizer | Sequence[Optimizer] | None = None,
        check: bool = True,
    ) -> Edit:
        """Takes output channels out of a layer, and out of all layers that are tied to it.

        See `shrink`.

        Args:
            layer: The layer's index or name.
            channels: The channels that go, counted from 0; or how many, the weakest.
            round_to: As in `shrink`.
            give_up: As in `shrink`.
            optimizer: As in `shrink`.
            check: As in `shrink`.

        Returns:
            The edit.

        Raises:
            SplitGrowError: As `shrink`, which also raises TypeError and ValueError.

        Example:
            >>> import torch, splitgrow
            >>> from torch import nn
            >>> net = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 1))
            >>> net = splitgrow.growable(net, torch.ones(1, 2))
            >>> _ = nn.init.zeros_(net[2].weight[:, 1:2].detach())
            >>> print(net.shrink_layer("0", [1]))
            Edit 1 (generation 0): 0 -1
            takes 4 parameters from 2 layers
              layer  type    inputs  units   parameters
              0      Linear  2       4 -> 3  -3
              2      Linear  4 -> 3  1       -1
        """
        return self.shrink(
            {layer: channels},
            round_to=round_to,
            give_up=give_up,
            optimizer=optimizer,
            check=check,
        )

    def shrink(
        self,
        request: Mapping[int | str, int | Sequence[int]],
        *,
        round_to: int = 1,
        give_up: bool = False,
        optimizer: Optimizer | Sequence[Optimizer] | None = None,
        check: bool = True,
    ) -> Edit:
        """Takes output channels out of several layers at once, all or nothing.

        The layers have then the tensors of a plain model, without those channels: in every layer
        that makes them, that is tied to these, or that reads them. The optimizers keep the state of
        all that stays. A norm over all channels makes up for those that had joined it, as long as
        they are there. Closed generations stay as they are, bit for bit, if only newer channels go.

        Channels that nothing reads go without a change of the function. So do, in evaluation mode,
        channels with the same value for every input: those of zero weights, of a norm's zero scale,
        and those made of such channels alone. The biases that read them take their part over
        (`folded`). Only a Linear can, or a convolution that pads with no zeros, with a bias that no
        closed generation shows; in training mode a batch norm or a dropout on the way may differ.
        For other channels the edit says how far the outputs on the example inputs have moved,
        relative to the largest (`moved`).

        Args:
            request: By layers' names or indices the channels that go, counted from 0; or how many,
                the weakest: those whose weights, in all layers that make or read them, have the
                smallest sum of squares. Heads and other units of several channels go whole.
            round_to: The number of which a width that stays is a multiple, where a number of
                channels is given; then more of them go.
            give_up: Whether closed generations may lose channels; they can no longer be recovered
                then.
            optimizer: One or several optimizers. Parameters that get smaller are others, in the
                same places of their groups, with the same part of the state.
            check: Whether to compare the outputs with those of the model while nothing reads the
                channels, and with those before if all that go are constant. Where a norm over all
                channels, or a function, reads them, only their shapes are compared.

        Returns:
            The edit.

        Raises:
            TypeError: If an argument is of another type.
            ValueError: If there is no such layer or channel, only a part of a unit would go, or all
                units of a layer.
            FixedWidthError: If a layer's width is fixed.
            UnsupportedLayerError: If a parametrization computes a layer's weight of parts that do
                not make a part of it, or a tensor has hooks. Weight norm can lose channels.
            GenerationError: If closed generations would lose channels without `give_up`.
            OptimizerError: If an optimizer's state lies in a way that is not known.
            InexactError: If `check` finds that more than those channels would change.
            StructureChangedError: If the model was changed by hand since it was analysed.

        In all these cases model and optimizer are as before.

        Example:
            >>> import torch, splitgrow
            >>> from torch import nn
            >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
            >>> net = splitgrow.growable(net, torch.randn(1, 3, 8, 8))
            >>> edit = net.shrink({"0": 2, "2": [3]})
            >>> [layer.width for layer in net.layers]
            [6, 3]
        """
        return self._growth(
            "take channels out",
            take_out_,
            request,
            round_to=round_to,
            give_up=give_up,
            optimizer=optimizer,
            check=check,
        )

    def plan_shrinking(
        self,
        request: Mapping[int | str, int | Sequence[int]],
        *,
        round_to: int = 1,
        give_up: bool = False,
    ) -> Edit:
        """The edit that `shrink` would apply, not applied; print it to see it.

        Args:
            request: As in `shrink`.
            round_to: As in `shrink`.
            give_up: As in `shrink`.

        Raises:
            SplitGrowError: As `shrink`, which also raises TypeError and ValueError.

        Example:
            >>> import torch, splitgrow
            >>> net = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Linear(3, 1))
            >>> net = splitgrow.growable(net, torch.ones(1, 2))
            >>> edit = net.plan_shrinking({"0": [1]})
            >>> net.layers[0].width
            3
        """
        return self._operation(
            "plan to take channels out",
            plan_shrinking,
            request,
            round_to=round_to,
            give_up=give_up,
        )

    def prune(  # noqa: PLR0913
        self,
        amount: float | None = None,
        *,
        target: Target | None = None,
        criterion: str | Criterion = "group",
        scope: PruneScope = "global",
        steps: int = 1,
        recover: Callable[[Edit], object] | None = None,
        layers: Iterable[int | str] | None = None,
        ignore: Iterable[int | str] = (),
        keep: float = 0.1,
        refit: bool | None = None,
        loss: Callable[[nn.Module, Any], Any] | None = None,
        batches: Iterable[Any] = (),
        round_to: int = 1,
        give_up: bool = False,
        optimizer: Optimizer | Sequence[Optimizer] | None = None,
        check: bool = True,
    ) -> Edit | None:
        """Takes out the units that count least, until a share of them is gone or a target is met.

        Units of layers that are tied to each other go together and have one score. The model's
        outputs keep their widths, unless they are named. Each step is an edit of its own, all or
        nothing, as in `shrink`; if a later one fails, or `recover` raises, the earlier ones stay.

        Args:
            amount: The share of the units that goes, of those that have scores: of all together, or
                of each layer's (`scope`). Units that go together count as one.
            target: How small the model must become, instead. The smallest amount is searched for.
            criterion: The scores of units, by name or as an object. By weights: "group" (all
                weights that make or read a unit), "l1", "l2" (those that make it), "scale" (the
                norm's factor). By `loss` and `batches`: "taylor", "fisher". By `batches`:
                "activation", "reconstruction". And "random". See `splitgrow.pruning`. Layers for
                whose units it has no scores, such as those without a norm for "scale", stay as they
                are; it is an error if they are named in `layers`.
            scope: "global" to compare the units of all layers, "layer" to take the same share of
                each.
            steps: The number of steps, in equal parts of the first numbers; units are scored anew
                in each. A step in which no whole unit would go makes no edit.
            recover: Called with the edit after each step, to train the model.
            layers: The layers whose units may go, by name or index; None for all but the outputs.
            ignore: The layers whose units stay.
            keep: The share of each layer's units, before the first step, that stays in any case.
            refit: Whether the Linear layers and convolutions that read the units are fitted, by
                least squares over the batches, to compute nearly the same without them. None for
                what the criterion says: only "reconstruction" does. Convolutions in groups, and
                layers that share their weights with others, stay as they are.
            loss: Called as ``loss(model, batch)``, gives the loss as a tensor of one number.
                Criteria of activations use it to run the model; without it, a batch is what the
                model is called with.
            batches: Some batches, which are held at the same time: a list, or a short loader.
                Without `loss`, a batch is what the model is called with: a tensor, a tuple or list
                of arguments, or a mapping of named ones. The model's mode, training or evaluation,
                stays, and so do its buffers and gradients.
            round_to: The number of which widths that stay are multiples, such as 8. A layer stays
                as it is while too few of its units may go for that.
            give_up: As in `shrink`.
            optimizer: As in `shrink`.
            check: As in `shrink`.

        Returns:
            The edit of the last step, with the criterion's name, and the multiply-adds before and
            after it. None if the target is met already.

        Raises:
            TypeError: If an argument is of another type.
            ValueError: If one is out of range; if no unit goes, since the amount is too small; if a
                target cannot be met; or if the criterion needs data that is not given.
            GenerationError: If readers would be fitted while generations are closed; and as
                `shrink`.
            SplitGrowError: As `shrink`.

        Example:
            >>> import torch, splitgrow
            >>> from torch import nn
            >>> net = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 1))
            >>> net = splitgrow.growable(net, torch.ones(1, 2))
            >>> edit = net.prune(target=splitgrow.Target(params=0.5))
            >>> [layer.width for layer in net.layers], edit.macs
            ([3, 1], (24, 9))
        """
        settings = prune_settings(
            criterion=criterion,
            scope=scope,
            layers=layers,
            ignore=ignore,
            keep=keep,
            refit=refit,
            loss=loss,
            batches=batches,
            round_to=round_to,
            give_up=give_up,
        )
        if recover is not None and not callable(recover):
            raise TypeError(f"recover must be a function of an edit, got {recover!r}")
        plan = self._operation("prune", make_prune_plan, settings, amount, target, steps)
        edit = None
        for step in range(1, steps + 1):
            made = self._growth("prune", prune_step_, plan, step, optimizer=optimizer, check=check)
            edit = made or edit
            if made is not None and recover is not None:
                recover(made)
        if edit is None and amount is not None:
            raise ValueError(
                f"amount={amount:g} leaves every layer as it is: no whole unit, or step of units, "
                f"may go from any"
            )
        return edit

    def remove_layer(
        self,
        name: str,
        *,
        give_up: bool = False,
        optimizer: Optimizer | Sequence[Optimizer] | None = None,
        check: bool = True,
    ) -> Edit:
        """Takes a layer out: one that was inserted, or a module that adds nothing.

        What `insert_layer` inserted goes with all that was inserted or has grown in it. The outputs
        stay as they are if it changes nothing now; otherwise the edit says how far those on the
        example inputs have moved, relative to the largest (`moved`). A generation that the
        insertion closed stays closed.

        A module of the model itself can go if it returns the one tensor that it gets, on the
        example inputs and on noisy ones, in both modes: a residual block whose branch ends in
        zeros, for one. An Identity is there then, so that paths and indices stay.

        Args:
            name: The path of the layer: ``edit.inserted[0].name`` of an insertion, or that of a
                module.
            give_up: Whether closed generations may lose it; they can no longer be recovered then.
            optimizer: One or several optimizers, which the parameters leave.
            check: Whether to compare the outputs before and after.

        Returns:
            The edit.

        Raises:
            TypeError: If an argument is of another type.
            ValueError: If there is no such module.
            UnsupportedLayerError: If it cannot go; the error says why.
            GenerationError: If closed generations would lose it without `give_up`.
            InexactError: If the model no longer runs, or `check` finds that a module of its own
                added something.
            StructureChangedError: If the model was changed by hand since it was analysed.

        In all these cases model and optimizer are as before.

        Example:
            >>> import torch, splitgrow
            >>> from torch import nn
            >>> net = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 1))
            >>> net = splitgrow.growable(net, torch.ones(1, 2))
            >>> edit = net.insert_layer("0", "residual")
            >>> edit = net.remove_layer(edit.inserted[0].name)
            >>> edit.removed_layers[0].name, edit.removed_layers[0].parameters, edit.moved
            ('1.inserted1', 40, None)
        """
        return self._growth(
            "take a layer out",
            remove_layer_,
            name,
            give_up=give_up,
            optimizer=optimizer,
            check=check,
        )
