"""The arguments of learners: checked, and as plain data."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from splitgrow.continual.tasks import Task
from splitgrow.utils.example_call import ExampleCall, example_call


def checked_inputs(model: Any, example_inputs: Any) -> ExampleCall:
    """The example call of a learner's model.

    Raises:
        TypeError: If it is not one with positional arguments, or the model is no module.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    if not isinstance(example_inputs, (Tensor, tuple)):
        kind = type(example_inputs).__name__
        raise TypeError(
            f"example_inputs must be a tensor or a tuple, got {kind}: a learner calls the model "
            f"with the inputs of a task, by position"
        )
    return example_call(example_inputs)


def check_settings(decide_on: Any, validation_share: Any, seed: Any) -> None:
    """Makes sure that the arguments of every learner are in range.

    Raises:
        TypeError: If the seed is no int.
        ValueError: If another one is out of range.
    """
    if decide_on not in {"validation", "test"}:
        raise ValueError(f'decide_on must be "validation" or "test", got {decide_on!r}')
    if not 0 < validation_share < 1:
        raise ValueError(f"validation_share must lie between 0 and 1, got {validation_share!r}")
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise TypeError(f"seed must be an int, got {seed!r}")


def checked_goal(name: str, goal: Any) -> float | dict[str, float] | None:
    """An accuracy for all tasks, or one by task name, or None.

    Raises:
        ValueError: If it is something else.
    """
    goals = goal.values() if isinstance(goal, Mapping) else () if goal is None else (goal,)
    if not all(isinstance(each, (int, float)) and 0 <= each <= 1 for each in goals):
        raise ValueError(f"a {name} must lie between 0 and 1, got {goal!r}")
    return dict(goal) if isinstance(goal, Mapping) else goal


def goal_for(task: Task, name: str, goal: float | Mapping[str, float] | None) -> float | None:
    """The accuracy that is given for a task.

    Raises:
        ValueError: If there is one for other tasks only, or it is no better than guessing, which
            any network reaches: it would never grow, and lose all of its weights.
    """
    if isinstance(goal, Mapping) and task.name not in goal:
        raise ValueError(f"no {name} is given for task {task.name!r}")
    found = goal[task.name] if isinstance(goal, Mapping) else goal
    if found is not None and task.classes > 1 and found <= 1 / task.classes:
        raise ValueError(
            f"the {name} of task {task.name!r} is {found:g}; guessing among its {task.classes} "
            f"classes reaches {1 / task.classes:.3g}, so give more than that"
        )
    return None if found is None else float(found)


def plain_data(value: Any) -> Any:
    """A setting in the form that JSON returns."""
    return json.loads(json.dumps(value))
