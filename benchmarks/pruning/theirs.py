"""torch-pruning: the same share of every layer by its pruner, with what its examples tell it."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import torch
import torch_pruning as tp
from torch import nn

from benchmarks.coverage.catalogues import Subject
from benchmarks.coverage.outputs import Answer, OutputsDifferError, ask, difference, identical
from benchmarks.coverage.peers import TINY, at_most, with_history
from benchmarks.coverage.preparing import Prepared, build
from benchmarks.pruning.helps import Helps, helps_for, mend_, script_ignores
from benchmarks.pruning.ours import OtherError
from benchmarks.pruning.records import Outcome, Record
from benchmarks.pruning.steps import (
    SHARE,
    count,
    normalises_across,
    ran,
    timed,
    train,
    widths_of,
)

SECONDS = 40.0
"""How long one attempt may take."""
TINY_SECONDS = 10.0
"""The same for a model of under a million parameters: there its search takes milliseconds, or does
not end."""
EQUAL = 1e-3
"""The largest relative difference that counts as rounding, in single precision."""
_STEPS = ("", "analysis", "pruning", "forward", "training", "reload")


@dataclass(frozen=True)
class Attempt:
    """A way to ask it.

    Attributes:
        name: What is told beside the plain call.
        whole_heads: Whether whole heads go, instead of a part of each.
        stuck: Whether the layers stay, too, whose width splitgrow cannot change.
        heads: Whether heads may lose anything.
        script: Whether the layers stay that its script for torchvision leaves alone.
        unfused: Whether attention is computed without a fused kernel.
    """

    name: str
    whole_heads: bool = False
    stuck: bool = False
    heads: bool = True
    script: bool = False
    unfused: bool = False


ATTEMPTS = (
    Attempt(""),
    Attempt("what splitgrow cannot shrink stays", stuck=True),
    Attempt("its script's layers stay", script=True),
    Attempt("whole heads", whole_heads=True),
    Attempt("unfused attention", unfused=True),
    Attempt("unfused attention, whole heads", whole_heads=True, unfused=True),
    Attempt("heads stay", heads=False),
)


def prune(
    subject: Subject, prepared: Prepared, used: frozenset[str] | None, record: Record
) -> None:
    """Tries each way until one works; the record has that, or the one that came furthest.

    Args:
        subject: Where the model comes from.
        prepared: How the model is fed, and what it answers.
        used: The parameters that train before pruning.
        record: Is filled in.
    """
    best: Outcome | None = None
    for attempt in ATTEMPTS:
        if (attempt.stuck and not record.stuck) or not _applies(attempt, prepared.model):
            continue
        found = Outcome()
        stay = record.outputs + record.stuck * attempt.stuck
        trial = _Trial(subject, prepared, stay, attempt, found)
        try:
            with at_most(SECONDS if count(prepared.model) >= TINY else TINY_SECONDS):
                trial.run(used)
        except TimeoutError as error:
            found.conclude("timeout", f"in {found.step}: {error}")
        except Exception as error:  # noqa: BLE001  what goes wrong is what is looked for
            found.conclude("fails", f"in {found.step}: {type(error).__name__}: {error}")
        if best is None or rank(found) > rank(best):
            best = found
        if found.status == "works":
            break
    assert best is not None
    record.peer = best


def _applies(attempt: Attempt, model: nn.Module) -> bool:
    if attempt.script:
        return bool(script_ignores(model))
    plain = attempt.heads and not (attempt.whole_heads or attempt.unfused)
    return plain or bool(helps_for(model, []).num_heads)


def rank(found: Outcome) -> tuple[int, int]:
    """How far an attempt came, to compare with others."""
    order = ("timeout", "fails", "other", "nothing", "works")
    return order.index(found.status), _STEPS.index(found.step)


@dataclass
class _Trial:
    subject: Subject
    prepared: Prepared
    outputs: list[str]
    attempt: Attempt
    found: Outcome
    given: str = ""

    def run(self, used: frozenset[str] | None) -> None:
        """Prunes a fresh model, runs it, trains it, and reads it back."""
        found, subject, inputs = self.found, self.subject, self.prepared.inputs
        model = self._model()
        widths = widths_of(model)
        with timed(found, "analysis"):
            self._graph(model)
        model = self._model()
        with timed(found, "pruning"):
            pruner, helps = self._pruner(model)
            pruner.step()
            mend_(model, helps)
        now = widths_of(model)
        found.pruned = sum(now[name] < width for name, width in widths.items())
        found.parameters = count(model)
        found.help = ", ".join(filter(None, (self.given, self.attempt.name)))
        with timed(found, "forward"):
            answer = ran(model, inputs, self.prepared.before, detects=subject.detects)
        with timed(found, "training"):
            train(model, inputs, used, detects=subject.detects)
        with timed(found, "reload"):
            found.help = ", ".join(filter(None, (found.help, self._read_back(model))))
        found.equal = self._compared(answer)
        if found.equal == "no":
            found.conclude("other", "it is not the model without those channels")
        else:
            found.conclude("works" if found.pruned else "nothing")

    def _model(self) -> nn.Module:
        model = copy.deepcopy(self.prepared.model).eval()
        for parameter in model.parameters():
            if parameter.is_floating_point():
                parameter.requires_grad_(True)
        if self.attempt.unfused:
            unfuse_(model)
        return model

    def _graph(self, model: nn.Module) -> None:
        tp.DependencyGraph().build_dependency(
            model,
            example_inputs=self.prepared.inputs,
            output_transform=with_history,
            verbose=False,
        )

    def _pruner(self, model: nn.Module) -> tuple[Any, Helps]:
        helps = helps_for(model, self.outputs)
        self.given = helps.names()  # it adds to what it is given
        if not self.attempt.heads:
            helps.ignored += helps.num_heads
            helps.num_heads.clear()
        if self.attempt.script:
            helps.ignored += script_ignores(model)
        options: dict[str, Any] = {}
        if self.attempt.whole_heads:
            options = {
                "prune_num_heads": True,
                "prune_head_dims": False,
                "head_pruning_ratio": 1 / SHARE,
            }
        pruner = tp.pruner.MetaPruner(
            model,
            example_inputs=self.prepared.inputs,
            importance=tp.importance.GroupMagnitudeImportance(p=2),
            pruning_ratio=1 / SHARE,
            ignored_layers=helps.ignored,
            num_heads=helps.num_heads,
            in_channel_groups={},  # its default is one dict for all calls
            out_channel_groups=helps.out_channel_groups,
            round_to=helps.round_to,
            output_transform=with_history,
            **options,
        )
        return pruner, helps

    def _read_back(self, model: nn.Module) -> str:
        """How a pruned model can be saved: its state into a fresh model, or only as a pickle."""
        inputs, detects = self.prepared.inputs, self.subject.detects
        expected = ask(model.eval(), inputs, detects=detects)
        try:
            fresh = build(self.subject, self.prepared.dtype)
            tp.load_state_dict(fresh, _through_file(tp.state_dict(model)))
            if identical(ask(fresh.eval(), inputs, detects=detects), expected):
                return ""
        except Exception:  # noqa: BLE001  the other way may do
            pass
        whole = _through_file(model)
        if not identical(ask(whole.eval(), inputs, detects=detects), expected):
            raise OtherError("the model that was read back answers otherwise")
        return "saved as a pickled model only"

    def _compared(self, answer: Answer) -> str:
        """Whether the pruned model answers as the whole one does without those channels."""
        model = self._model()
        if normalises_across(model):
            return "norms across channels"
        if self.subject.detects:
            return "boxes"
        pruner = self._pruner(model)[0]
        readers = []
        for group in pruner.step(interactive=True):
            for dep, idxs in group:
                layer = dep.target.module
                if pruner.DG.is_in_channel_pruning_fn(dep.handler) and _reads(layer):
                    if getattr(layer, "groups", 1) > 1:
                        return "grouped convolutions"
                    readers.append((layer, idxs))
        with torch.no_grad():
            for layer, idxs in readers:
                dim = 0 if getattr(layer, "transposed", False) else 1
                layer.weight.index_fill_(dim, torch.tensor([*idxs]), 0.0)
        try:
            far = difference(answer, ask(model.eval(), self.prepared.inputs))
        except OutputsDifferError as error:
            return str(error)
        return "yes" if far <= EQUAL else "no"


def _reads(layer: Any) -> bool:
    if isinstance(layer, nn.modules.conv._ConvNd):  # noqa: SLF001
        return not (layer.groups > 1 and layer.groups == layer.out_channels)
    return isinstance(layer, nn.Linear)


def _through_file(value: Any) -> Any:
    file = BytesIO()
    torch.save(value, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def unfuse_(model: nn.Module) -> None:
    """Attention without a fused kernel, by timm's and by transformers' own setting."""
    for module in model.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = False
    set_: Any = getattr(model, "set_attn_implementation", None)
    if set_ is not None:
        set_("eager")
