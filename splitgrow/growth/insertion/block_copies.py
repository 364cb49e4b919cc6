"""Copies of whole residual blocks that return their input at first, to make a network deeper.

A copy is a block of the same type and shape in which the last layer of each residual branch is zero
(Wu et al. 2024, LLaMA Pro, https://arxiv.org/abs/2401.02415, section 3.1).
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from splitgrow.analysis.ops import Arithmetic, Values, facts_of
from splitgrow.analysis.trace import Ref, Source
from splitgrow.analysis.unsupported_layers import packing_refusal
from splitgrow.errors import InsertionError
from splitgrow.growth.insertion.builders import zeroed
from splitgrow.growth.insertion.sites import Sites
from splitgrow.layers.block_numbers import configs_in, counts_of, lists_of, place_numbers
from splitgrow.layers.containers import CONTAINERS, in_place_of, stock_block
from splitgrow.layers.freezing import held, release_
from splitgrow.layers.insertion_wrapper import first_argument, first_of, with_first_argument
from splitgrow.layers.plain_copy import plain_copy
from splitgrow.layers.split_layer import stock
from splitgrow.layers.types import layer_type_of
from splitgrow.utils.example_call import ExampleCall
from splitgrow.utils.preserve import preserve_
from splitgrow.utils.rollback import Undo, temporarily

Copied = tuple[nn.Module, dict[int, nn.Module]]
"""A copy of a block, and the module that each part of it is a copy of, by the part's id."""


def block_for(
    kind: str,
    model: nn.Module,
    path: str,
    sites: Sites,
    inputs: ExampleCall,
    tried: set[Any],
) -> Copied:
    """The block to insert behind another one.

    Args:
        kind: "block": a copy that returns its input; "stack": a copy as it is; "interpolate": the
            mean of the block and the next one.
        model: The model.
        path: The path of the block.
        sites: The places of the model.
        inputs: Its example inputs.
        tried: As in `copied_block`.

    Raises:
        InsertionError: If there is no such block for that place.
    """
    if kind == "block":
        return copied_block(model, path, sites, inputs, tried)
    _check_shapes(sites, path)
    memo: dict[int, Any] = {}
    original = sites.modules[path]
    block = plain_copy(original, None, memo)
    if kind == "interpolate":
        _refuse_packed(sites, path, "it has no mean with another one")
        _average_(block, path, _next_block(model, path, original))
    let_learn_(block)
    return block, _originals(original, memo)


def _refuse_packed(sites: Sites, path: str, what: str) -> None:
    """Makes sure that no layer of a block is quantized.

    Raises:
        InsertionError: If one is.
    """
    for name, module in sites.modules[path].named_modules():
        packed = packing_refusal(module, what)
        if packed:
            raise InsertionError(f"`{path}.{name}`: {packed}")


def _originals(original: nn.Module, memo: dict[int, Any]) -> dict[int, nn.Module]:
    parts = {id(part): part for part in original.modules()}
    return {id(memo[key]): part for key, part in parts.items() if key in memo}


def _next_block(model: nn.Module, path: str, block: nn.Module) -> nn.Module:
    """The block behind another one in their container.

    Raises:
        InsertionError: If there is none.
    """
    for container in model.modules():
        if isinstance(container, CONTAINERS):
            chains = [list(in_place_of(each)) for each in container]
            place = next((n for n, chain in enumerate(chains) if block in chain), None)
            if place is not None and place + 1 < len(chains):
                return chains[place + 1][0]
    raise InsertionError(
        f"`{path}` is not followed by a block in a list of blocks, so that there is nothing "
        f"between the two; kind='stack' copies it"
    )


@torch.no_grad()
def _average_(block: nn.Module, path: str, other: nn.Module) -> None:
    """Gives a copy of a block the mean of its own and another block's tensors.

    Raises:
        InsertionError: If the two have other tensors.
    """
    theirs = plain_copy(other, None, {}).state_dict()
    own = block.state_dict()
    shapes = [{name: tensor.shape for name, tensor in each.items()} for each in (own, theirs)]
    if shapes[0] != shapes[1]:
        raise InsertionError(
            f"`{path}` and the block behind it have tensors of other shapes, which have no mean; "
            f"kind='stack' copies it"
        )
    for name, tensor in own.items():
        if tensor.is_floating_point():
            tensor.lerp_(theirs[name].to(tensor), 0.5)


def copied_block(
    model: nn.Module, path: str, sites: Sites, inputs: ExampleCall, tried: set[Any]
) -> Copied:
    """A plain copy of a block that returns its input unchanged if that is the block's output.

    Also the module that each part of it is a copy of, by the part's id.

    Args:
        model: The model.
        path: The path of the block.
        sites: The places of the model.
        inputs: Its example inputs.
        tried: The kinds of blocks whose copies have been tried out in values: another one with
            zeros at the same places is believed, and this one is added.

    Raises:
        InsertionError: If the block is not called once with a tensor that it returns in the same
            shape, has no residual branches, or the copy changes the block's output.
    """
    given = _check_shapes(sites, path)
    _refuse_packed(sites, path, "no copy of it can start at zero")
    names = _last_layers(sites, path, given)
    behind = [] if names else _behind_sum(sites, path, given)
    if behind:
        raise InsertionError(
            f"a copy of `{path}` would change what that made, even with the last layers of its "
            f"branches at zero: `{behind[0]}` lies behind the sum, and would work twice; "
            f"kind='residual' is exact there"
        )
    if not names:
        raise InsertionError(
            f"`{path}` has no residual branch: nothing in it is added to what it reads; "
            f"kind='residual' makes one"
        )
    memo: dict[int, Any] = {}
    block = plain_copy(sites.modules[path], None, memo)
    for name in names:
        zeroed(memo[id(sites.modules[name])])
    let_learn_(block)
    kind = type(sites.modules[path]), tuple(name.removeprefix(path) for name in names)
    if kind not in tried:
        _check(model, (path, sites.modules[path]), block, inputs)
        tried.add(kind)
    return block, _originals(sites.modules[path], memo)


def _check_shapes(sites: Sites, path: str) -> Ref:
    """The tensor that a block reads, once it is known to make one of the same shape.

    Raises:
        InsertionError: If it does not.
    """
    call = sites.call_of(path)
    if call.given is None or call.result is None:
        raise InsertionError(f"`{path}` does not read and pass on a tensor")
    shapes = [tuple(sites.example_of(ref).shape) for ref in (call.given, call.result)]
    if shapes[0] != shapes[1]:
        raise InsertionError(
            f"`{path}` makes {shapes[1]} of {shapes[0]}, so that a copy of it cannot follow it; "
            f"name a block that keeps the shape"
        )
    return call.given


def let_learn_(block: nn.Module) -> None:
    """Lets a copy learn, also where the copied block was frozen."""
    for parameter in block.parameters():
        if parameter.is_floating_point():
            parameter.requires_grad_(True)
    for module in block.modules():
        if held(module):
            release_(module, training=block.training)


def _last_layers(sites: Sites, path: str, given: Ref) -> list[str]:
    """The last layers of each residual branch of a block; none if a branch has none.

    The block's result is a sum: of what the block reads, maybe moved to other dimensions on the
    way, and of branches. A branch may be a sum, too, as where attention and MLP read the same.
    """
    call = sites.call_of(path)
    assert call.result is not None
    inside = range(given.step + 1, call.result.step + 1)
    carrying = _carrying(sites, given, inside)
    branches: list[Ref] = []
    pending = [call.result]
    while pending and pending[-1] in carrying:
        operands = carrying[pending.pop()]
        pending += [ref for ref in operands if ref in carrying and ref != given]
        branches += [ref for ref in operands if ref not in carrying]
    layers = [_layers_before(sites, path, ref, inside) for ref in branches]
    if not all(layers):
        return []
    return list(dict.fromkeys(name for found in layers for name in found))[::-1]


def _behind_sum(sites: Sites, path: str, given: Ref) -> list[str]:
    """The modules, or else the op, that reads the last sum of a block, as a norm behind it does."""
    call = sites.call_of(path)
    assert call.result is not None
    inside = range(given.step + 1, call.result.step + 1)
    *_, last = _carrying(sites, given, inside)
    readers = (sites.steps[n] for n in inside if last in sites.steps[n].args)
    return [step.module or step.name for step in readers] if last != given else []


def _carrying(sites: Sites, given: Ref, inside: range) -> dict[Ref, list[Ref]]:
    """The tensors in a block that have what it reads as a summand, with their own summands."""
    found: dict[Ref, list[Ref]] = {given: []}
    for index in inside:
        step = sites.steps[index]
        facts = facts_of(step.target)
        operands = [arg for arg in step.args if isinstance(arg, Ref)]
        carried = [ref for ref in operands if ref in found]
        if facts.arithmetic is Arithmetic.ADDS and len(operands) == 2 and len(carried) == 1:
            found[Ref(index)] = operands
        elif carried == operands[:1] and (facts.values in _PASSING or facts.activation):
            found[Ref(index)] = carried
    return found


_PASSING = (Values.KEPT, Values.MOVED)


def _layers_before(sites: Sites, block: str, ref: Ref, inside: range) -> list[str]:
    """The last layers with parameters on the way to a tensor: each summand's, if it is a sum."""
    while ref.step in inside:
        step = sites.steps[ref.step]
        module = sites.modules.get(step.module or "")
        known = module is not None and layer_type_of(stock(module)) is not None
        if module is not None and known and any(True for _ in module.parameters()):
            return [str(step.module)]
        operands = [arg for arg in step.args if isinstance(arg, Ref)]
        own = [sites.steps[r.step] for r in operands]
        # For a function that gets weights: attention's last weight is its output projection's.
        owners = [s.args[0].removesuffix(".weight") for s in own if s.target is Source.TENSOR]
        owners = [path for path in owners if path in sites.modules and path.startswith(block)]
        if owners:
            return [str(owners[-1])]
        operands = [r for r in operands if sites.steps[r.step].target is not Source.TENSOR]
        if facts_of(step.target).arithmetic is Arithmetic.ADDS and len(operands) > 1:
            summands = [_layers_before(sites, block, each, inside) for each in operands]
            return [name for found in summands for name in found] if all(summands) else []
        if not operands:
            return []
        ref = operands[0]
    return []


def announce_(block: nn.Module, model: nn.Module, host: nn.Module, undo: Undo) -> None:
    """Gives a copy a place of its own in caches, which have one for each block of a container.

    It is the last one, so that the others keep theirs. The model's configurations count the copy,
    and their lists have for it what they have for the block that it is a copy of.

    Args:
        block: The copy.
        model: The model, without the copy.
        host: The block that it is a copy of.
        undo: Takes the change of the configurations back.
    """
    modules = dict(model.named_modules())
    for path, container in modules.items():
        if type(container) not in CONTAINERS:
            continue
        chains = [list(in_place_of(each)) for each in container]
        place = next((n for n, chain in enumerate(chains) if host in chain), None)
        if place is None:
            continue
        blocks = [each for chain in chains for each in chain]
        for number in place_numbers([stock_block(each) for each in container]):
            known = [held for each in blocks if (held := number.of(each)) is not None]
            if number.of(block) is not None:
                number.set_(block, max(known) + 1 - number.first)
        for config in configs_in(modules.values()):
            own = vars(config)
            undo.keep(own)
            counts = list(counts_of(config, len(blocks), path))
            for name in list(lists_of(config, len(blocks))):
                own[name] = type(own[name])((*own[name], own[name][place]))
            own.update(dict.fromkeys(counts, len(blocks) + 1))
        return


@temporarily
def _check(
    undo: Undo,
    model: nn.Module,
    host: tuple[str, nn.Module],
    block: nn.Module,
    inputs: ExampleCall,
) -> None:
    """Makes sure that the copy returns the block's output unchanged, on random input as well.

    Raises:
        InsertionError: If it does not.
    """
    path, original = host
    preserve_(model, undo)
    preserve_(block, undo)
    announce_(block, model, original, undo)  # caches that are among the arguments have room for it
    args, kwargs = captured(model, original, inputs)
    x = first_argument(original, args, kwargs)
    if x.is_meta:
        raise InsertionError(
            f"a copy of `{path}` is tried out on values before it is believed, and the meta device "
            f"has none; insert it where the model has values"
        )
    torch.set_grad_enabled(False)
    generator = torch.Generator(x.device).manual_seed(0)
    for scale in (0.0, 1.0, 10.0):
        noise = torch.randn(x.shape, generator=generator, device=x.device, dtype=x.dtype)
        given = with_first_argument(original, args, kwargs, x if not scale else scale * noise)
        given = copy.deepcopy(given)  # the call fills caches among the arguments
        made = first_of(_in_evaluation(original, *given))
        again = with_first_argument(original, *given, made)
        if not torch.equal(first_of(_in_evaluation(block, *again)), made):
            raise InsertionError(
                f"a copy of `{path}` would change what that made, even with the last layers of "
                f"its branches at zero: something else than adding lies behind them, such as a "
                f"norm; kind='residual' is exact there"
            )


def _in_evaluation(module: nn.Module, args: Any, kwargs: Any) -> Any:
    for part in module.modules():
        part.__dict__["training"] = False
    return module(*args, **kwargs)


class _Captured(Exception):  # noqa: N818
    """The arguments of a call, raised as soon as it is made."""


@temporarily
def captured(
    undo: Undo, model: nn.Module, host: nn.Module, inputs: ExampleCall
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of the call to a module when the model runs on its example inputs.

    Raises:
        InsertionError: If it is not called.
    """

    def capture(*args: Any, **kwargs: Any) -> Any:
        raise _Captured(args, kwargs)

    preserve_(model, undo)
    torch.set_grad_enabled(False)
    for module in model.modules():
        module.__dict__["training"] = False
    host.__dict__["forward"] = capture
    try:
        inputs.map(torch.clone).run(model)
    except _Captured as captured:
        args, kwargs = captured.args
        return args, dict(kwargs)
    raise InsertionError("the example inputs lead to no call of the module that could be seen")
