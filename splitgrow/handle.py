"""What can be done with one growable model: the methods that it gains."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn
from torch.optim import Optimizer

from splitgrow.growth.absorption import absorb_
from splitgrow.growth.consolidation import consolidate_
from splitgrow.growth.edits import Edit
from splitgrow.growth.experts.methods import ExpertMethods
from splitgrow.growth.generation_methods import GenerationMethods
from splitgrow.growth.history import structure
from splitgrow.growth.insertion.methods import DepthMethods
from splitgrow.growth.layer_list import Layers, layers_of
from splitgrow.growth.summary import Summary, summary_of
from splitgrow.growth.width_methods import WidthMethods
from splitgrow.layers.dispatch import LayerRun
from splitgrow.layers.split_layer import SplitLayer
from splitgrow.pruning.methods import PruneMethods


class Handle(WidthMethods, DepthMethods, PruneMethods, ExpertMethods, GenerationMethods):
    """All operations of splitgrow on one growable model.

    They are also methods of the model itself, except where the model uses the name itself.

    Example:
        >>> import torch, splitgrow
        >>> net = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Linear(3, 1))
        >>> net = splitgrow.growable(net, torch.ones(1, 2))
        >>> splitgrow.handle(net).layers[0].readers
        ('1',)
    """

    @property
    def layers(self) -> Layers:
        """The layers whose width you can ask for, in order of execution.

        They can be looked up by index or name, and chosen: `layers.where(output=False)`.

        Example:
            >>> import torch, splitgrow
            >>> net = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Linear(3, 1))
            >>> net = splitgrow.growable(net, torch.ones(1, 2))
            >>> net.layers["0"].width, [layer.name for layer in net.layers.where(output=False)]
            (3, ['0'])
        """
        return layers_of(self._history.graph, structure(self._model))

    @property
    def edits(self) -> tuple[Edit, ...]:
        """The edits so far, oldest first: growths, insertions, shrinks, and joins of blocks.

        Example:
            >>> import torch, splitgrow
            >>> net = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Linear(3, 1))
            >>> net = splitgrow.growable(net, torch.ones(1, 2))
            >>> edit = net.expand_layer("0", 2)
            >>> [dict(each.request) for each in splitgrow.handle(net).edits]
            [{'0': 2}]
        """
        return tuple(self._history.edits)

    def summary(self) -> Summary:
        """The layers as they began and as they are, with their blocks and parameters, as a table.

        Example:
            >>> import torch, splitgrow
            >>> net = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Linear(3, 1))
            >>> net = splitgrow.growable(net, torch.ones(1, 2))
            >>> edit = net.expand_layer("0", 2)
            >>> net.summary()
            Sequential: generation 1, 1 edit, 21 parameters of which 8 train
              layer  type    units   blocks  parameters  that train
              0      Linear  3 -> 5  2       15          6
              1      Linear  1       2       6           2
        """
        return summary_of(self._model, self._history)

    @property
    def runs(self) -> dict[str, LayerRun]:
        """How each grown layer ran in its last call, by name, if it has run since it grew.

        Example:
            >>> import torch, splitgrow
            >>> net = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Linear(3, 1))
            >>> net = splitgrow.growable(net, torch.ones(1, 2))
            >>> edit = net.expand_layer("0", 2)
            >>> output = net(torch.ones(4, 2))
            >>> splitgrow.handle(net).runs["0"].way
            'merged'
        """
        named = self._model.named_modules()
        splits = {name: module for name, module in named if isinstance(module, SplitLayer)}
        return {name: split.ran for name, split in splits.items() if split.ran is not None}

    def consolidate(
        self, *, optimizer: Optimizer | Sequence[Optimizer] | None = None, check: bool = True
    ) -> Edit | None:
        """Joins a layer's blocks from several growths in the open generation to one of each role.

        A layer that grew often has many small parameters, and each takes time in the optimizer and
        in autograd at every step. Afterwards it has only those of a helper and of a new block, as
        after one growth. The model computes the same, up to rounding. Closed generations keep their
        blocks, and so do layers with blocks that differ (frozen by hand, with hooks), and layer
        types whose blocks cannot be joined, such as convolutions with a standardised weight.

        Unlike growth, this replaces Parameters: those of the open generation.

        Args:
            optimizer: One or several optimizers. The new parameters take the places of the old,
                with the state of parameters that were there from the start and got no gradient
                before the old ones existed. Leave it out if you make a new optimizer afterwards.
            check: As in `expand_layer`.

        Returns:
            The edit; None if there was nothing to join.

        Raises:
            TypeError: If `optimizer` is of another type.
            OptimizerError: If parts of one new parameter are in different param groups, or have
                state of other shapes than theirs (Adafactor's rows and columns).
            StructureChangedError: If the model was changed by hand since it was analysed.

        In all these cases model and optimizer are as before.

        Example:
            >>> import torch, splitgrow
            >>> net = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Linear(3, 1))
            >>> net = splitgrow.growable(net, torch.ones(1, 2))
            >>> for _ in range(10):
            ...     edit = net.expand_layer("0", 1)
            >>> len(net[0]), len(net[1])
            (11, 11)
            >>> print(net.consolidate())
            Edit 11 (generation 1): joins what 10 edits added to 2 layers
            >>> len(net[0]), len(net[1])
            (2, 2)
        """
        return self._growth("consolidate", consolidate_, optimizer=optimizer, check=check)

    def absorb(
        self, *, optimizer: Optimizer | Sequence[Optimizer] | None = None, check: bool = True
    ) -> Edit | None:
        """Makes every grown layer plain, in place: the network then trains as one made so wide.

        That is for a network that grew to learn and need not go back. Each grown layer becomes the
        stock layer again that it was before it grew, with one Parameter for each tensor, at its own
        path; a tensor of a module that has grown is its plain tensor again. The model computes the
        same, up to rounding, in both modes. All parameters train, as after `unfreeze`, and closed
        generations can no longer be shown. Inserted layers and further experts stay where they are;
        those of their layers that have grown become plain. Growth can go on as ever. The names in
        the state_dict are those of a network that never grew, beside the journal.

        Grown layers whose weight is computed at each call (weight norm, standardised convolutions)
        keep their blocks, as do those with blocks that one plain layer cannot stand for (Parameters
        with hooks or of different dtypes); a warning names them. Hooks of a grown layer move to the
        plain one.

        The optimizer's state is laid side by side like the values. So SGD, also with momentum, goes
        on as it would have with blocks. Adam and its like count steps for each parameter, and the
        plain one has the largest count of its blocks: they go on the same where all blocks were
        born before the first step, and otherwise correct the moments of younger blocks less. A norm
        over all channels, whose weight was rescaled by c when zeros or means joined, has first
        moments over c and second ones over its square, for the optimizers of torch; its steps are
        then those of a plain layer.

        Args:
            optimizer: One or several optimizers. The new parameters take the places of the old, in
                the order of a plain model's. Leave it out if you make a new optimizer afterwards.
            check: As in `expand_layer`.

        Returns:
            The edit, of the open generation, to which all parameters that it made belong; None if
            there was nothing to make plain.

        Raises:
            TypeError: If `optimizer` is of another type.
            OptimizerError: If parts of one new parameter are in different param groups, or have
                state of other shapes than theirs (Adafactor's rows and columns).
            UnsupportedModelError: If some blocks of one tensor were fixed by hand and others train,
                or a single block has hooks of its own.
            InexactError: If the model would compute something different.
            StructureChangedError: If the model was changed by hand since it was analysed.

        In all these cases model and optimizer are as before.

        Example:
            >>> import torch, splitgrow
            >>> net = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Linear(3, 1))
            >>> net = splitgrow.growable(net, torch.ones(1, 2))
            >>> optimizer = torch.optim.AdamW(net.parameters())
            >>> for _ in range(3):
            ...     edit = net.expand_layer("0", 2, freeze=False, optimizer=optimizer)
            >>> print(net.absorb(optimizer=optimizer))
            Edit 4 (generation 0): makes 2 layers plain
            >>> net[0], list(net.state_dict())[:2]
            (Linear(in_features=2, out_features=9, bias=True), ['0.weight', '0.bias'])
        """
        return self._growth("absorb", absorb_, optimizer=optimizer, check=check)


def handle(model: nn.Module | Handle) -> Handle:
    """The operations on a growable model, under names that never clash with the model's own.

    Args:
        model: A growable model, grown or not; or its handle, which is returned.

    Raises:
        SplitGrowError: If the model was never made growable.

    Example:
        >>> import torch, splitgrow
        >>> net = splitgrow.growable(torch.nn.Sequential(torch.nn.Linear(2, 3)), torch.ones(1, 2))
        >>> splitgrow.handle(net).generation
        0
    """
    return model if isinstance(model, Handle) else Handle(model)
