"""The place at which two runs of a model first differ in their values."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from splitgrow.analysis.leaf_modules import is_leaf
from splitgrow.analysis.output_comparison import difference
from splitgrow.layers.split_layer import stock
from splitgrow.layers.tensor_holder import SplitTensor
from splitgrow.utils.source_lines import place_of_caller

Value = tuple[str, str, Tensor | None]
"""The op that made a value, its place, and the value; None for a result that is no tensor."""


class ValueWatch(TorchFunctionMode):
    """Notes the results of leaf modules and functions, in the order in which they run.

    Args:
        model: The model that is about to run. Its hooks must be restored afterwards, which
            `outputs_of` does.
        seen: Is given each value.
    """

    def __init__(self, model: nn.Module, seen: Callable[[Value], None]) -> None:
        super().__init__()
        self._model, self._seen = model, seen
        self._inside = 0

    def __enter__(self) -> ValueWatch:
        """Watches the leaf modules as well."""
        for name, module in self._model.named_modules():
            if name and is_leaf(module):
                self._watch(name, module)
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def _watch(self, name: str, module: nn.Module) -> None:
        own, call = vars(module), module.forward

        def forward(*args: Any, **kwargs: Any) -> Any:
            self._inside += 1
            try:
                result = call(*args, **kwargs)
            finally:
                self._inside -= 1
            if not self._inside and not isinstance(module, SplitTensor):  # no op before growth
                self._take(f"`{name}` ({type(stock(module)).__name__})", result)
            return result

        own["forward"] = forward

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        result = func(*args, **(kwargs or {}))
        if not self._inside:
            name = getattr(func, "__name__", str(func))
            self._take(f"`{name.strip('_') or name}`", result)
        return result

    def _take(self, name: str, result: Any) -> None:
        inside, self._inside = self._inside, 1
        for part in result if isinstance(result, (tuple, list)) else (result,):
            kept = part.detach().clone() if isinstance(part, Tensor) else None
            self._seen((name, place_of_caller(), kept))
        self._inside = inside


def first_difference(
    run: Callable[[Callable[[Value], None]], Any], before: list[Value], tolerance: float
) -> str:
    """Where a run first gives other values than one before; empty if that cannot be told.

    Values of other shapes are passed over: these have grown.

    Args:
        run: Runs the model, and gives each value to the function that it is given.
        before: The values of the run before.
        tolerance: The largest difference that is rounding.
    """
    found: list[str] = []
    earlier = iter(before)

    def compare(value: Value) -> None:
        other = next(earlier, None)
        if found or other is None:
            return
        if value[0] != other[0]:
            found.append(f"something else runs from {value[1]} on")
        elif _differ(value[2], other[2], tolerance):
            found.append(f"values first differ in {value[0]} at {value[1]}")

    run(compare)
    return found[0] if found else ""


def _differ(one: Tensor | None, other: Tensor | None, tolerance: float) -> bool:
    if one is None or other is None or one.shape != other.shape:
        return False
    return difference([one], [other]) > tolerance
