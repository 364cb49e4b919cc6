"""Which roles of a model's layers grow, each by itself in a copy: MLP, heads, stream, head."""

from __future__ import annotations

import copy
import re
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

import splitgrow
from benchmarks.coverage.catalogues import Subject
from benchmarks.coverage.findings import VISIBLE, described, tidy
from benchmarks.coverage.outputs import Answer, ask, difference, identical
from benchmarks.coverage.preparing import Prepared
from benchmarks.coverage.values import ids_of, randomise, soften
from splitgrow.growth.layer_list import Layer

ROLES = ("MLP", "heads", "stream", "vocabulary", "head")
"""The roles: hidden units of feed-forward parts, whole heads, the width of the stream between the
blocks, the embedding's rows, and the rows of the final layer."""

RESULTS = {
    "yes": "all its layers can grow, and the laws hold",
    "part": "some of its layers can grow, and the laws hold",
    "no": "no layer of it can grow",
    "wrong": "a law is broken, or splitgrow failed",
    "none": "the model has no such layer",
}

_HEADS = ("num_attention_heads", "num_heads", "n_head", "n_heads", "encoder_attention_heads")
_UNCALLED = "forward does not call it"
_TOKENS = 4
_UNITS = 3
"""Units that a layer gains: one alone may lie behind a ReLU that no input opens."""

Named = dict[str, nn.Module]


@dataclass
class Role:
    """What was found of one role.

    Attributes:
        result: One of `RESULTS`.
        can: How many of its layers can grow.
        there: How many layers it has.
        reason: Why the others cannot, or the law that is broken.
        laws: What was measured, as in `Findings`; "cached" is how far generation with a cache is
            from generation without one, "text" how far from that before growth.
    """

    result: str
    can: int = 0
    there: int = 0
    reason: str = ""
    laws: dict[str, float] = field(default_factory=dict)


def roles_of(subject: Subject, prepared: Prepared, tolerance: float) -> dict[str, dict[str, Any]]:
    """The roles of a model that has not grown yet, as JSON data.

    Args:
        subject: Where the model comes from.
        prepared: The plain model, in real values.
        tolerance: The difference that counts as rounding.
    """
    text = generated(prepared.model, prepared.inputs)
    if text is not None and not _gap(text[True], text[False]) <= tolerance:
        text = None  # the plain model's cache changes its text
    try:
        model = splitgrow.growable(prepared.model, prepared.inputs)
    except splitgrow.SplitGrowError as error:
        return {role: asdict(Role("no", reason=described(error))) for role in ROLES}
    layers = {layer.name: layer for layer in splitgrow.handle(model).layers}
    called = [name for name, layer in layers.items() if _UNCALLED not in layer.reason]
    names = layers_by_role(model, called)
    chosen = {role: [layers[name] for name in names[role] if name in layers] for role in names}
    # A layer in an attention whose units are single channels holds no heads, such as a latent's.
    chosen["heads"] = [layer for layer in chosen["heads"] if layer.step != 1]
    found = {}
    for role, members in chosen.items():
        trial = _Trial(subject, prepared, tolerance, text)
        if role == "vocabulary":
            found[role] = trial.of_vocabulary(model, members)
        else:
            found[role] = trial.of(model, members, _experts(model, called) if role == "MLP" else [])
    return {role: asdict(found[role]) for role in ROLES}


@dataclass
class _Trial:
    """Grows the layers of a role in a copy, and compares."""

    subject: Subject
    prepared: Prepared
    tolerance: float
    text: Mapping[bool, Tensor] | None

    def of(self, model: nn.Module, members: list[Layer], others: list[str]) -> Role:
        """What was found of a role.

        Args:
            model: The growable model.
            members: The layers of the role.
            others: The reasons of further parts of the role, which are no layers.
        """
        able = [layer for layer in members if layer.growable]
        reasons = [*(tidy(layer.reason) for layer in members if not layer.growable), *others]
        role = Role("none", len(able), len(able) + len(reasons))
        if role.there:
            role.result = "no" if not able else "part" if reasons else "yes"
            role.reason = Counter(reasons).most_common(1)[0][0] if reasons else ""
        if able:
            self._hold(role, model, lambda copied: grow(copied, able))
        return role

    def of_vocabulary(self, model: nn.Module, members: list[Layer]) -> Role:
        """What was found of the rows of an embedding, and of the head that scores them."""
        role = Role("none", 0, len(members))
        if not members:
            return role

        def widen(copied: nn.Module) -> None:
            splitgrow.handle(copied).expand_vocabulary(_UNITS, embedding=members[0].name)

        try:
            widen(copy.deepcopy(model))
        except (ValueError, splitgrow.SplitGrowError) as error:
            role.result, role.reason = "no", tidy(str(error))
            return role
        role.result, role.can = "yes", len(members)
        # Rows that no input names change no output.
        self._hold(role, model, widen, seen=False)
        return role

    def _hold(
        self,
        role: Role,
        model: nn.Module,
        change: Callable[[nn.Module], None],
        *,
        seen: bool = True,
    ) -> None:
        """Holds a change of a copy to the laws."""
        try:
            role.laws = self._laws(copy.deepcopy(model), change)
            role.laws |= {} if seen else {"changed": 1.0}
            broken = self._broken(role.laws)
        except Exception as error:  # noqa: BLE001  what goes wrong is what is looked for
            broken = described(error)
        if broken:
            role.result, role.reason = "wrong", broken

    def _laws(self, model: nn.Module, change: Callable[[nn.Module], None]) -> dict[str, float]:
        laws: dict[str, float] = {}
        before, inputs = self.prepared.before, self.prepared.inputs
        old = ids_of(model)
        change(model)
        grown = ask(model, inputs)
        laws["same"] = difference(grown, before)
        wider = any(a.shape != b.shape for a, b in zip(grown.fixed, before.fixed, strict=True))
        if self.text is not None and not wider:
            laws["text"] = self._apart(generated(model, inputs), self.text)
        randomise(model, keep=old)
        soften(model, keep=old)
        now = ask(model, inputs)
        # Rows of the final layer change no output of before, so that their own count.
        laws["changed"] = 1.0 if wider else difference(now, grown)
        with splitgrow.handle(model).at(0):
            laws["past"] = identical(ask(model, inputs), before)
        merged = splitgrow.merge(model)
        laws["merge"] = difference(ask(merged, inputs), now)
        if self.text is not None:
            for name, one in (("cached", model), ("merged cached", merged)):
                text = generated(one, inputs)
                laws[name] = 1.0 if text is None else _gap(text[True], text[False])
        return laws

    def _apart(self, text: Mapping[bool, Tensor] | None, expected: Mapping[bool, Tensor]) -> float:
        if text is None:
            return 1.0
        return max(_gap(text[cached], expected[cached]) for cached in expected)

    def _broken(self, laws: Mapping[str, float]) -> str:
        broken = [
            f"{law}: {laws[law]:.1e}"
            for law in ("same", "merge", "text", "cached", "merged cached")
            if law in laws and not laws[law] <= self.tolerance
        ]
        if not laws["past"]:
            broken.append("the old network did not come back bit for bit")
        if not laws["changed"] > VISIBLE:
            broken.append("the outputs did not change with the new units")
        return "; ".join(broken)


def grow(model: nn.Module, members: Collection[Layer]) -> None:
    """Grows each of these layers: in one edit, or in as many as contradictions ask for."""
    request: dict[str, int] = {}
    for layer in members:
        if not request.keys() & set(layer.group):
            whole = layer.step == layer.width  # copies of all units
            request[layer.name] = layer.step if whole else _UNITS * layer.step
    handle = splitgrow.handle(model)
    apart: dict[str, int] = {}
    while request:
        try:
            handle.expand(dict(request))
            break
        except ValueError as error:
            named = [name for name in re.findall(r"`([^`]+)`", str(error)) if name in request]
            if not named:
                raise
            apart |= {name: request.pop(name) for name in named}
    for name, step in apart.items():
        handle.expand({name: step})


@torch.no_grad()
def generated(model: Any, inputs: tuple[Any, ...]) -> dict[bool, Tensor] | None:
    """The scores of greedy text with and without a cache; None where the model writes none."""
    if not hasattr(model, "can_generate") or not model.can_generate():
        return None
    options: dict[str, Any] = {"max_new_tokens": _TOKENS, "min_new_tokens": _TOKENS}
    told = {"output_logits": True, "return_dict_in_generate": True, "pad_token_id": 0}
    if model.config.is_encoder_decoder:
        told["decoder_start_token_id"] = 1
    try:
        texts = {
            cached: torch.stack(
                model.generate(
                    inputs[0], **options, **told, do_sample=False, use_cache=cached
                ).logits
            )
            for cached in (True, False)
        }
    except Exception:  # noqa: BLE001  some only write with arguments of their own
        return None
    return texts


def _gap(one: Tensor, other: Tensor) -> float:
    return difference(Answer([one], []), Answer([other], []))


# -- finding the layers ---------------------------------------------------------------------------


def layers_by_role(model: Any, called: Sequence[str]) -> dict[str, list[str]]:
    """The names of an ungrown model's layers by role, found by widths and by owners.

    A feed-forward part is a layer that leaves the stream's width and one behind it in the same
    block that reads it, or one of its halves, and comes back to that width. The layers of an
    attention but its last one make heads.

    Args:
        model: A model of transformers.
        called: The layers that it calls, in that order.
    """
    modules = dict(model.named_modules())
    layers = [name for name in called if name in modules]
    dense = {name: modules[name] for name in layers if _sizes(modules[name]) is not None}
    attentions = _attentions(modules)
    inside = {name for owner in attentions for name in dense if name.startswith(f"{owner}.")}
    final = _final(model, modules, dense)
    outside = {n: module for n, module in dense.items() if n not in inside and n not in final}
    tables = [name for name, module in modules.items() if _rows(module) == _vocabulary(model)]
    return {
        "MLP": [*_hidden(outside), *(name for name in called if _owner(modules, name) is not None)],
        "heads": _projections(dense, attentions) if _counts_heads(model) else [],
        "stream": tables[:1] or _patches(model, dense),
        "vocabulary": tables[:1],
        "head": final,
    }


def _sizes(module: nn.Module) -> tuple[int, int] | None:
    """How many channels a linear layer reads and makes, whatever its class; else None."""
    if isinstance(module, nn.modules.conv._ConvNd):  # noqa: SLF001
        return module.in_channels, module.out_channels
    weight: Any = getattr(module, "weight", None)
    if not isinstance(weight, nn.Parameter) or weight.dim() != 2 or _rows(module) is not None:
        return None
    sizes = tuple(int(size) for size in weight.shape)
    return sizes if type(module).__name__ == "Conv1D" else sizes[::-1]  # type: ignore[return-value]


def _rows(module: nn.Module) -> int | None:
    return module.num_embeddings if isinstance(module, nn.Embedding) else None


def _vocabulary(model: Any) -> int:
    return int(getattr(model.config, "vocab_size", 0) or 0)


def _counts_heads(model: Any) -> bool:
    return any(getattr(model.config, name, None) for name in _HEADS)


def _attentions(modules: Named) -> list[str]:
    """The outermost modules whose class calls itself an attention."""
    found: list[str] = []
    for name, module in modules.items():
        kind = type(module).__name__.lower()
        inside = any(name.startswith(f"{other}.") for other in found)
        if name and not inside and ("attention" in kind or "attn" in kind):
            found.append(name)
    return found


def _projections(dense: Named, attentions: list[str]) -> list[str]:
    return [
        name
        for owner in attentions
        for name in [name for name in dense if name.startswith(f"{owner}.")][:-1]
    ]


def _hidden(dense: Named) -> list[str]:
    names, found = list(dense), []
    for index, name in enumerate(names):
        reads, makes = _sizes(dense[name]) or (0, 0)
        for other in names[index + 1 :] if reads != makes else ():
            closes = _sizes(dense[other]) in ((makes, reads), (makes // 2, reads))
            if closes and _are_near(name, other):
                found.append(name)
                break
    return found


def _owner(modules: Named, name: str) -> nn.Module | None:
    """The module of experts that holds a matrix of this name; None for others."""
    owner = None if name in modules else modules.get(name.rpartition(".")[0])
    return owner if owner is not None and "Experts" in type(owner).__name__ else None


def _experts(model: nn.Module, called: Sequence[str]) -> list[str]:
    """For each mixture of experts in Parameters of their own that cannot grow, why."""
    modules = dict(model.named_modules())
    able = {id(_owner(modules, name)) for name in called}
    owners = (module for module in modules.values() if list(module.parameters(recurse=False)))
    mixtures = [owner for owner in owners if "Experts" in type(owner).__name__]
    fixed = [owner for owner in mixtures if id(owner) not in able]
    return ["its experts are plain Parameters"] * len(fixed)


def _are_near(one: str, other: str) -> bool:
    """Whether two layers are in the same block: of one module, or of two parts of one."""
    (*ours, _), (*theirs, _) = one.split("."), other.split(".")
    if ours == theirs:
        return True
    in_a_list = ours[-1:] and theirs[-1:] and ours[-1].isdigit() and theirs[-1].isdigit()
    return not in_a_list and ours[:-1] == theirs[:-1]


def _patches(model: Any, dense: Named) -> list[str]:
    width = getattr(model.config, "hidden_size", None)
    fitting = [name for name in dense if (_sizes(dense[name]) or (0, 0))[1] == width]
    return (fitting or list(dense))[:1]


def _final(model: Any, modules: Named, dense: Named) -> list[str]:
    """The layer that makes the logits."""
    output = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    if output is not None:
        return [name for name, module in modules.items() if module is output][:1]
    labels = getattr(model.config, "num_labels", None) or 3
    fitting = [name for name in dense if (_sizes(dense[name]) or (0, 0))[1] == labels]
    return fitting[-1:] if "For" in type(model).__name__ else []
