"""Fusing without torch.fx: the merged model itself, of the user's class, with its norms folded."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from splitgrow.analysis.output_comparison import fitting
from splitgrow.analysis.trial_runs import culprits_in
from splitgrow.deploy.deploy_check import Verdict, held_against
from splitgrow.deploy.merge import merged
from splitgrow.deploy.trace_folding import FoldPlan, fold_plan, fold_planned_
from splitgrow.errors import FusionError
from splitgrow.growth.history import History
from splitgrow.layers.insertion_wrapper import InsertionWrapper
from splitgrow.utils.source_lines import levels_to_caller


def fused_in_its_class(
    model: nn.Module, history: History, generation: int | None, reason: str, *, check: bool
) -> nn.Module:
    """The merged model with all norms folded that can be; it keeps its class and its forward.

    Args:
        model: The model.
        history: Its history.
        generation: The generation to recover; None for today.
        reason: Why there is no graph of it, for the warning.
        check: Whether the two are compared. Norms whose folding changes the outputs then stay.

    Raises:
        MergeError: If the merged model, whose norms are not folded, computes something different.
        FusionError: If no choice of norms gives the model's outputs.
    """
    work = _Work(model, history, generation, check=check)
    plain = work.merged()
    inputs = fitting(model, history.inputs_at(history.view_of(generation)))
    plan = fold_plan(plain, inputs)
    found: dict[str, Any] = {}
    if plan.folds:
        plain, plan, verdict = work.folded(plain, plan)
        if verdict is not None and verdict.compared:
            found["largest_difference"] = verdict.difference
    warnings.warn(f"{_told(plan)}: {reason}{_told_of_kept(plan)}", stacklevel=levels_to_caller())
    found |= {"way": "own class", "reason": reason, "folded": dict(plan.folds)}
    if not hasattr(plain, "meta"):
        vars(plain)["meta"] = found | {"kept": dict(plan.kept)}
    return plain


def _told(plan: FoldPlan) -> str:
    if not plan.folds:
        return "the model is merged, not fused"
    norms = len(plan.folds) + len(plan.kept)
    return (
        f"the model is merged, with {len(plan.folds)} of its {norms} batch norms folded, and is no "
        f"torch.fx graph"
    )


def _told_of_kept(plan: FoldPlan) -> str:
    if not plan.kept:
        return ""
    (name, why), *others = plan.kept.items()
    more = f", and {len(others)} others" if others else ""
    return f"; the norm `{name}`{more} could not be folded ({why})"


class _Work:
    """Makes merged models of one model, and folds norms in them.

    Args:
        model: The model.
        history: Its history.
        generation: The generation to recover; None for today.
        check: Whether results are compared with the model.
    """

    def __init__(
        self, model: nn.Module, history: History, generation: int | None, *, check: bool
    ) -> None:
        self._of = model, history, generation
        self._check = check

    def merged(self) -> nn.Module:
        """A merged model in evaluation mode."""
        return merged(*self._of, check=self._check).eval()

    def folded(
        self, plain: nn.Module, plan: FoldPlan
    ) -> tuple[nn.Module, FoldPlan, Verdict | None]:
        """A merged model with its norms folded, those that can be, and how it compares.

        Raises:
            FusionError: If no choice of norms gives the model's outputs.
        """
        fold_planned_(plain, plan.folds)
        if not self._check:
            return plain, plan, None
        verdict = self._verdict(plain)
        if not verdict.fault:
            return plain, plan, verdict
        plan = self._without_culprits(plan)
        plain = self.merged()
        fold_planned_(plain, plan.folds)
        verdict = self._verdict(plain)
        if verdict.fault:
            raise FusionError(f"the fused model {verdict.fault}; please report this")
        return plain, plan, verdict

    def _without_culprits(self, plan: FoldPlan) -> FoldPlan:
        """The plan without the norms whose folding changes the outputs."""
        names = list(plan.folds)

        def difference(indices: Sequence[int]) -> str:
            plain = self.merged()
            fold_planned_(plain, {names[index]: plan.folds[names[index]] for index in indices})
            return self._verdict(plain).fault

        culprits: Mapping[int, str] = culprits_in(range(len(names)), difference)
        wrong = {names[index]: f"the folded model {why}" for index, why in culprits.items()}
        folds = {name: layer for name, layer in plan.folds.items() if name not in wrong}
        return FoldPlan(folds, {**plan.kept, **wrong})

    def _verdict(self, plain: nn.Module) -> Verdict:
        model, _, _ = self._of
        spread = any(isinstance(module, InsertionWrapper) for module in model.modules())
        with torch.inference_mode(mode=False):
            return held_against(*self._of, plain, "fuse", spread=spread)
