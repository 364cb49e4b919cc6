"""The methods of a growable model that make it wider."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from splitgrow.growth.apply import expand_, plan
from splitgrow.growth.edits import Edit
from splitgrow.growth.growing import GrowingBase
from splitgrow.growth.growth_options import GrowthOptions
from splitgrow.growth.initializers import Initializer, chosen_initializer
from splitgrow.growth.input_channels import expand_input_
from splitgrow.growth.vocabulary import expand_vocabulary_
from splitgrow.utils.preserve import keep_modes_
from splitgrow.utils.rollback import Undo, temporarily
from splitgrow.utils.schedulers import Schedulers


class WidthMethods(GrowingBase):
    """Adding units, channels of the input, and rows of a vocabulary."""

    def expand_layer(  # noqa: PLR0913
        self,
        layer: int | str,
        n: int,
        *,
        round_to: int = 1,
        initializer: str | Initializer = "zero",
        freeze: bool = True,
        optimizer: Optimizer | Sequence[Optimizer] | None = None,
        lr_scale: float = 1.0,
        warmup: int = 0,
        scheduler: Schedulers | None = None,
        loss: Callable[[], Tensor] | None = None,
        check: bool = True,
    ) -> Edit:
        """Adds units to a layer and to all layers tied to it, and helpers to all their readers.

        In evaluation mode the old outputs are unchanged, up to rounding: a wider matrix may be
        multiplied by another kernel. If the layer makes the model's output, the old outputs lead.
        In training mode that holds with ``freeze=False``; after a growth that freezes, existing
        norms use their running statistics in training, too, so outputs change by the difference
        between these and the batch's statistics.

        Args:
            layer: Its index or name in `layers`.
            n: The number of units that it gains. A layer tied to it may gain another number, such
                as three times as many if it holds queries, keys and values: the edit shows it.
            round_to: Raises n until the layer's new width is a multiple of this and fits the layers
                tied to it, such as 8 for tensor cores.
            initializer: How new blocks get their values: "zero" sets helpers to zero and new units
                as torch initialises a layer of their shape. The name of another, or an
                `Initializer`: see `splitgrow.register_initializer`.
            freeze: Whether the first growth closes generation 0, which freezes every parameter and
                running statistic that exists.
            optimizer: One or several optimizers. New parameters join the param group of the
                original weight (or bias) of their layer; existing state is kept.
            lr_scale: The learning rate of the new parameters at every step of the optimizer,
                relative to that of their group, whichever scheduler sets that. All other options
                are the group's. Schedulers and checkpoints find no further group: the parameters
                are apart only during a step.
            warmup: The number of optimizer steps over which their rate rises to that, linearly,
                the first at 1/`warmup` of it.
            scheduler: One or several learning rate schedulers of the optimizer. They go on without
                being told, since new parameters join groups that exist; so this may be left out.
            loss: A closure that runs the model on data and returns a loss, for initializers that
                need it. Gradients, buffers and random numbers stay as they are.
            check: Whether to run the model on its example inputs before and after, in evaluation
                mode, and to take the edit back if its outputs have changed by more than rounding:
                two forward passes, in which its hooks run. A model on the meta device, or sharded
                by FSDP, has no values to compare.

        Returns:
            The edit.

        Raises:
            TypeError: If an argument is of another type.
            ValueError: If there is no such layer, or n is not positive or does not fit; the error
                names the nearest widths that do.
            UnsupportedLayerError: If the module has no width of its own.
            FixedWidthError: If the layer is tied to something that cannot grow.
            OptimizerError: If the optimizer does not train the layer.
            InexactError: If `check` finds that the model would compute another function; the error
                names the first layer or op that does.
            StructureChangedError: If the model was changed by hand since it was analysed.

        In all these cases model and optimizer are as before.

        Example:
            >>> import torch, splitgrow
            >>> net = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Linear(3, 1))
            >>> x = torch.randn(4, 2)
            >>> before = net(x)
            >>> net = splitgrow.growable(net, x)
            >>> optimizer = torch.optim.AdamW(net.parameters())
            >>> edit = net.expand_layer("0", 2, freeze=False, optimizer=optimizer)
            >>> net.layers[0].width, torch.allclose(net(x), before, atol=1e-6)
            (5, True)
        """
        return self.expand(
            {layer: n},
            round_to=round_to,
            initializer=initializer,
            freeze=freeze,
            optimizer=optimizer,
            lr_scale=lr_scale,
            warmup=warmup,
            scheduler=scheduler,
            loss=loss,
            check=check,
        )

    def expand(  # noqa: PLR0913
        self,
        request: Mapping[int | str, int],
        *,
        round_to: int = 1,
        initializer: str | Initializer = "zero",
        freeze: bool = True,
        optimizer: Optimizer | Sequence[Optimizer] | None = None,
        lr_scale: float = 1.0,
        warmup: int = 0,
        scheduler: Schedulers | None = None,
        loss: Callable[[], Tensor] | None = None,
        check: bool = True,
    ) -> Edit:
        """Adds units to several layers in one edit; otherwise as `expand_layer`.

        Layers that are tied to each other grow once, to meet all their requests.

        Args:
            request: The number of new units for each layer, by name or index.
            round_to: As in `expand_layer`.
            initializer: As in `expand_layer`.
            freeze: As in `expand_layer`.
            optimizer: As in `expand_layer`.
            lr_scale: As in `expand_layer`, like `warmup` and `loss`.
            warmup: The steps over which the rates of new parameters rise.
            scheduler: As in `expand_layer`.
            loss: A closure that returns a loss.
            check: As in `expand_layer`.

        Returns:
            The edit.

        Raises:
            FixedWidthError: If layers cannot grow; all of them are named.
            ValueError: If numbers do not fit each other; all of them are named, with those that do.
            InexactError: If outputs would change. Also the errors of `expand_layer`.

        Example:
            >>> import torch, splitgrow
            >>> net = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Linear(3, 1))
            >>> net = splitgrow.growable(net, torch.ones(1, 2))
            >>> edit = net.expand({"0": 4, "1": 2})
            >>> [layer.width for layer in net.layers]
            [7, 3]
        """
        rates = (lr_scale, warmup, scheduler)
        options = GrowthOptions.of(initializer, loss, *rates, check=check)
        return self._growth(
            "grow",
            expand_,
            request,
            freeze=freeze,
            round_to=round_to,
            options=options,
            optimizer=optimizer,
        )

    def expand_input(  # noqa: PLR0913
        self,
        n: int,
        *,
        name: str | None = None,
        initializer: str | Initializer = "zero",
        freeze: bool = True,
        optimizer: Optimizer | Sequence[Optimizer] | None = None,
        lr_scale: float = 1.0,
        warmup: int = 0,
        scheduler: Schedulers | None = None,
        loss: Callable[[], Tensor] | None = None,
        check: bool = True,
    ) -> Edit:
        """Adds n channels to the model's input: grey to colour, colour to depth.

        They come after the existing ones. The layers that read the input get helpers, so the
        outputs are unchanged for any values of the new channels. Inside `at` of an earlier
        generation the model reads inputs of the old width.

        Args:
            n: The number of channels that the input gains.
            name: The name of forward's argument, or the path to a tensor in it, such as
                ``"batch['image']"``; by default the first tensor.
            initializer: As in `expand_layer`, like `freeze` and `optimizer`.
            freeze: Whether the first edit closes generation 0.
            optimizer: One or several optimizers.
            lr_scale: As in `expand_layer`, like `warmup` and `loss`.
            warmup: The steps over which the rates of new parameters rise.
            scheduler: As in `expand_layer`.
            loss: A closure that returns a loss.
            check: As in `expand_layer`.

        Returns:
            The edit.

        Raises:
            ValueError: If there is no such argument, or n is not positive or does not fit.
            FixedWidthError: If it is tied to something that cannot grow, or no layer reads it.

        Otherwise as `expand_layer`; in all cases model and optimizer are as before.

        Example:
            >>> import torch, splitgrow
            >>> net = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.ReLU())
            >>> net = splitgrow.growable(net, torch.ones(1, 1, 8, 8))
            >>> edit = net.expand_input(2)
            >>> net(torch.ones(1, 3, 8, 8)).shape
            torch.Size([1, 4, 6, 6])
        """
        rates = (lr_scale, warmup, scheduler)
        options = GrowthOptions.of(initializer, loss, *rates, check=check)
        return self._growth(
            "grow",
            expand_input_,
            n,
            name=name,
            options=options,
            freeze=freeze,
            optimizer=optimizer,
        )

    def expand_vocabulary(  # noqa: PLR0913
        self,
        n: int,
        embedding: int | str | None = None,
        *,
        head: int | str | None = None,
        round_to: int = 1,
        initializer: str | Initializer = "average",
        freeze: bool = True,
        optimizer: Optimizer | Sequence[Optimizer] | None = None,
        lr_scale: float = 1.0,
        warmup: int = 0,
        scheduler: Schedulers | None = None,
        loss: Callable[[], Tensor] | None = None,
        check: bool = True,
    ) -> Edit:
        """Adds rows to an embedding, and units to the head that scores them.

        The old rows stay as they are, in a block of their own, so that they can stay frozen while
        the new ones train. The old scores lead in the output, and are unchanged. A head that has
        the embedding's weight keeps it; another one gets as many units.

        Args:
            n: The number of rows.
            embedding: The embedding, by index or name; None for that of the model's input
                embeddings, of a tied head, or the only one.
            head: The layer that makes the scores; None for the one with the embedding's weight, or
                that of the model's output embeddings, or the only one whose units are the model's
                output and as many as there are rows.
            round_to: Raises n until the number of rows is a multiple of this.
            initializer: As in `expand_layer`. By "average" new rows are the mean of the old ones,
                and so are the head's new units; other initializers make a head's units, and with
                these the rows of an embedding that is tied to it.
            freeze: As in `expand_layer`.
            optimizer: As in `expand_layer`.
            lr_scale: As in `expand_layer`, like `warmup` and `loss`.
            warmup: The steps over which the rates of new parameters rise.
            scheduler: As in `expand_layer`.
            loss: A closure that returns a loss.
            check: As in `expand_layer`.

        Returns:
            The edit.

        Raises:
            TypeError: If an argument is of another type.
            ValueError: If there is no such layer, or it cannot be told which is meant, or n is not
                positive.
            FixedWidthError: If the vocabulary cannot grow.
            OptimizerError: As in `expand_layer`, like `InexactError` and `StructureChangedError`.

        Example:
            >>> import torch, splitgrow
            >>> net = torch.nn.Sequential(torch.nn.Embedding(7, 4), torch.nn.Linear(4, 7))
            >>> net = splitgrow.growable(net, torch.arange(5))
            >>> edit = net.expand_vocabulary(2)
            >>> net(torch.tensor([0, 8])).shape
            torch.Size([2, 9])
        """
        rates = (lr_scale, warmup, scheduler)
        options = GrowthOptions.of(initializer, loss, *rates, check=check)
        return self._growth(
            "grow",
            expand_vocabulary_,
            n,
            embedding=embedding,
            head=head,
            round_to=round_to,
            options=options,
            freeze=freeze,
            optimizer=optimizer,
        )

    def plan(
        self,
        request: Mapping[int | str, int],
        *,
        initializer: str | Initializer = "zero",
        round_to: int = 1,
        freeze: bool = True,
    ) -> Edit:
        """The edit that `expand` would apply, not applied; print it to see the changes.

        Args:
            request: The number of new units for each layer, by name or index.
            initializer: As in `expand_layer`.
            round_to: As in `expand_layer`.
            freeze: As in `expand_layer`.

        Raises:
            FixedWidthError: If layers cannot grow; all of them are named.
            ValueError: If numbers do not fit each other; all of them are named, with those that do.
                Or if the initializer's way to grow a stream is not exact here.

        Example:
            >>> import torch, splitgrow
            >>> net = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Linear(3, 1))
            >>> net = splitgrow.growable(net, torch.ones(1, 2))
            >>> print(net.plan({"0": 2}))
            Edit 1 (generation 1, closes generation 0): 0 +2
            ...
            >>> net.layers[0].width
            3
        """
        model_lock = self._history.model_lock
        model_lock.refuse_if_shown("plan a growth")
        with model_lock.rlock:
            options = {
                "round_to": round_to,
                "freeze": freeze,
                "initializer": chosen_initializer(initializer),
            }
            return temporarily(self._planned)(request, options)

    def _planned(
        self, undo: Undo, request: Mapping[int | str, int], options: Mapping[str, Any]
    ) -> Edit:
        keep_modes_(undo)
        return plan(self._model, self._history, request, **options)
