"""The method of a growable model that gives its mixtures further experts."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn
from torch.optim import Optimizer

from splitgrow.growth.edits import Edit
from splitgrow.growth.experts.expansion import expand_experts_
from splitgrow.growth.experts.expert_plans import mixtures_in, planned_experts
from splitgrow.growth.experts.mixtures import Mixture
from splitgrow.growth.growing import GrowingBase
from splitgrow.growth.history import History, check_structure
from splitgrow.growth.rates import Rates
from splitgrow.utils.rollback import Undo
from splitgrow.utils.schedulers import Schedulers


class ExpertMethods(GrowingBase):
    """Further experts for mixtures."""

    def mixtures(self) -> tuple[Mixture, ...]:
        """The mixtures of experts in the model, in order of execution.

        They are found by a run on the example inputs, as `expand_experts` says.

        Returns:
            For each its ``path``, the path of its ``experts``, their ``count`` and how many are
            ``chosen`` for each token.

        Raises:
            UnsupportedLayerError: If the model has no values, or does not run on its example
                inputs.
            StructureChangedError: If the model was changed by hand since it was analysed.

        Example:
            >>> import torch, splitgrow
            >>> net = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Linear(16, 8))
            >>> net = torch.nn.Sequential(net)
            >>> x = torch.randn(5, 8)
            >>> net = splitgrow.to_mixture(net, "0", experts=4, top_k=2, example_inputs=x)
            >>> net = splitgrow.growable(net, x)
            >>> [(each.count, each.chosen) for each in net.mixtures()]
            [(4, 2)]
        """

        def found(undo: Undo, model: nn.Module, history: History) -> tuple[Mixture, ...]:
            del undo
            check_structure(model, history)
            return tuple(mixtures_in(model, history))

        return self._operation("look for mixtures", found)

    def expand_experts(  # noqa: PLR0913
        self,
        n: int,
        mixture: str | None = None,
        *,
        noise: float = 0.01,
        freeze: bool = True,
        optimizer: Optimizer | Sequence[Optimizer] | None = None,
        lr_scale: float = 1.0,
        warmup: int = 0,
        scheduler: Schedulers | None = None,
        check: bool = True,
    ) -> Edit:
        """Adds n experts to each mixture of experts, or to one, as copies of those that it has.

        With m of each expert the model chooses m times as many for each token, so that outputs are
        unchanged, up to rounding: twins are chosen together, and their weights add up to that of
        the one. That holds where weights are shares of all scores (a softmax before the choice),
        and where they are made to add up to one; other routers are refused. So a token costs m
        times as much in the experts, until you lower the number that is chosen.

        The mixtures are found by running the model on its example inputs: an op that chooses the
        largest of as many scores as a list has modules, or as the tensors of a module have entries
        that is called with indices and weights, as the experts of transformers are. The numbers
        that follow (of experts, of chosen ones, of groups of experts) are found by trial on a copy
        of the mixture with other values. Numbers of these names elsewhere in the model, for a loss
        that balances experts, and in its configuration follow, too, if all mixtures grow.

        Args:
            n: The number of experts that each mixture gains: a multiple of those that it has.
            mixture: The path of the module that has the mixture, or of its experts; None for all.
            noise: Twins that train would get the same gradients and stay alike. So they start
                apart by random values of this size, relative to the deviation of a tensor's values,
                in the tensors in which an expert's output is linear, and these add up to zero. Of
                the old experts, values change only where these train, which is without freezing.
                0 for copies as they are.
            freeze: Whether the first edit closes generation 0, as in `expand_layer`.
            optimizer: One or several optimizers. New parameters join the param groups of those that
                they are copies of.
            lr_scale: As in `expand_layer`, like `warmup`.
            warmup: The steps over which the rates of new parameters rise.
            scheduler: As in `expand_layer`.
            check: Whether to compare the outputs before and after, as in `expand_layer`, except
                single numbers among them: a loss that balances experts depends on their number.

        Returns:
            The edit; ``edit.inserted`` names the modules of the further experts.

        Raises:
            TypeError: If an argument is of another type.
            ValueError: If there is no such mixture, or n is no multiple of the number of experts;
                the error names the nearest numbers.
            UnsupportedLayerError: If there is no mixture, or one cannot have its experts twice.
            OptimizerError: If the optimizer does not train the experts.
            InexactError: If `check` finds that the model would compute another function.
            StructureChangedError: If the model was changed by hand since it was analysed.

        In all these cases model and optimizer are as before.

        Example:
            >>> import torch, splitgrow
            >>> from torch import nn
            >>> class Mixture(nn.Module):
            ...     def __init__(self):
            ...         super().__init__()
            ...         self.router, self.top_k = nn.Linear(8, 4), 2
            ...         self.experts = nn.ModuleList(nn.Linear(8, 8) for _ in range(4))
            ...     def forward(self, x):
            ...         weights, chosen = self.router(x).softmax(-1).topk(self.top_k)
            ...         made = torch.stack([expert(x) for expert in self.experts], -2)
            ...         index = chosen.unsqueeze(-1).expand(*chosen.shape, 8)
            ...         return (made.gather(-2, index) * weights.unsqueeze(-1)).sum(-2)
            >>> x = torch.randn(5, 8)
            >>> net = splitgrow.growable(nn.Sequential(Mixture()), x)
            >>> before = net(x)
            >>> edit = net.expand_experts(4)
            >>> len(net[0].experts), net[0].top_k
            (8, 4)
            >>> torch.allclose(net(x), before, atol=1e-5)
            True
        """
        return self._growth(
            "add experts",
            expand_experts_,
            n,
            mixture=mixture,
            noise=noise,
            freeze=freeze,
            optimizer=optimizer,
            rates=Rates.of(lr_scale, warmup, scheduler),
            check=check,
        )

    def plan_experts(self, n: int, mixture: str | None = None, *, freeze: bool = True) -> Edit:
        """The edit that `expand_experts` would apply, not applied; print it to see it.

        Args:
            n: As in `expand_experts`.
            mixture: As in `expand_experts`.
            freeze: As in `expand_experts`.

        Raises:
            ValueError: If there is no such mixture, or n is no multiple of the number of experts.
            UnsupportedLayerError: If there is no mixture, or one cannot have its experts twice.

        Example:
            >>> import torch, splitgrow
            >>> net = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Linear(16, 8))
            >>> net = torch.nn.Sequential(net)
            >>> x = torch.randn(5, 8)
            >>> net = splitgrow.to_mixture(net, "0", experts=4, top_k=2, example_inputs=x)
            >>> net = splitgrow.growable(net, x)
            >>> edit = net.plan_experts(4)
            >>> net.mixtures()[0].count
            4
        """

        def plan(undo: Undo, model: nn.Module, history: History) -> Edit:
            edit, _ = planned_experts(model, history, n, mixture, freeze=freeze)
            undo.take_back()
            return edit

        return self._operation("plan further experts", plan)
