"""The text form of a model's factory: `mymodels.resnet:make` or `timm:create_model("resnet18")`."""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass, field
from typing import Any

_FORM = re.compile(r"(?P<module>[^(]+):(?P<name>[^\W\d]\w*(?:\.\w+)*)(?P<call>\(.*\))?", re.DOTALL)


@dataclass(frozen=True)
class Factory:
    """A factory, and the arguments that it is called with.

    Attributes:
        module: The module that it lies in, or the path of a .py file.
        name: Its name there; with dots for one in a class.
        args: Its arguments by place.
        kwargs: Those by name.
        called: Whether arguments were written, be they none.
    """

    module: str
    name: str
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    called: bool = False


def parse_factory(text: str) -> Factory | None:
    """The factory that a text stands for; None if it has another form.

    Raises:
        ValueError: If its arguments are no plain values.

    Example:
        >>> parse_factory("mymodels.resnet:make").name
        'make'
        >>> parse_factory("timm:create_model('resnet18', num_classes=10)").kwargs
        {'num_classes': 10}
    """
    found = _FORM.fullmatch(text)
    if found is None:
        return None
    module, name, call = found["module"], found["name"], found["call"]
    if call is None:
        return Factory(module, name)
    try:
        tree = ast.parse(f"f{call}", mode="eval").body
        if not isinstance(tree, ast.Call) or not isinstance(tree.func, ast.Name):
            raise ValueError(call)
        args = tuple(ast.literal_eval(each) for each in tree.args)
        kwargs = {str(each.arg): ast.literal_eval(each.value) for each in tree.keywords if each.arg}
        if len(kwargs) < len(tree.keywords):
            raise ValueError(call)
    except (ValueError, SyntaxError, RecursionError, MemoryError) as error:
        raise ValueError(
            f"{call} in {text!r} are no arguments of plain values, such as ('resnet18', classes=10)"
        ) from error
    return Factory(module, name, args, kwargs, called=True)
