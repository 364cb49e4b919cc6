"""The public names: the list, the documentation with examples, and the page of all calls."""

from __future__ import annotations

import ast
import builtins
import collections.abc
import contextlib
import importlib
import inspect
import operator
import subprocess
import sys
from collections.abc import Iterable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn
from typed.first_lines import grow
from typed.training_lines import edit_as_text, growth_with_schedulers, narrower, summary_of

import splitgrow
import splitgrow.pruning
from splitgrow.growth.insertion.request import INSERTION_KINDS

if TYPE_CHECKING:
    from splitgrow.utils.model_lock import ModelLock
    from splitgrow.utils.rollback import Undo

CALLS = (Path(__file__).parent.parent / "docs" / "api.md").read_text()
FUNCTIONS = ["by_name", "execution", "follow", "fuse", "group_penalty", "growable"]
FUNCTIONS += ["handle", "initializers", "load", "merge", "plain_attention", "save"]
METHODS = [name for name in dir(splitgrow.Handle) if not name.startswith("_")]


def test_the_public_names_are_these() -> None:
    assert splitgrow.__all__ == [
        "All",
        "Budget",
        "CheckpointError",
        "ComputeShares",
        "Cycles",
        "DistributedError",
        "Edit",
        "Every",
        "ExportError",
        "Factor",
        "FadeIn",
        "FadeSchedule",
        "FixedWidthError",
        "FusionError",
        "Gap",
        "GenerationError",
        "Grower",
        "Handle",
        "InexactError",
        "Initializer",
        "InputChange",
        "Insertion",
        "InsertionError",
        "Layer",
        "LayerChange",
        "LayerRun",
        "LayerSummary",
        "Layers",
        "MergeError",
        "MixtureOfExperts",
        "NumberChange",
        "OptimizerError",
        "PlainAttention",
        "Plateau",
        "ProgressiveAutoencoder",
        "ProgressiveDecoder",
        "ProgressiveDiscriminator",
        "ProgressiveEncoder",
        "ProgressiveGenerator",
        "Score",
        "SharedKernelConv1d",
        "SharedKernelConv2d",
        "SharedKernelConv3d",
        "SplitGrowError",
        "SplitGrowWarning",
        "StructureChangedError",
        "Summary",
        "Target",
        "ToWidths",
        "TraceError",
        "UnsupportedLayerError",
        "UnsupportedModelError",
        "by_name",
        "execution",
        "follow",
        "fuse",
        "group_penalty",
        "growable",
        "handle",
        "initializers",
        "load",
        "merge",
        "plain_attention",
        "register_initializer",
        "register_layer",
        "register_op",
        "save",
        "save_pretrained",
        "to_mixture",
        "unregister_layer",
        "unregister_op",
    ]


@pytest.mark.parametrize("name", splitgrow.__all__)
def test_every_public_name_is_documented(name: str) -> None:
    assert inspect.getdoc(getattr(splitgrow, name))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_public_function_has_an_example_and_a_place_on_the_page_of_calls(name: str) -> None:
    function = getattr(splitgrow, name)
    assert ">>>" in (inspect.getdoc(function) or "")
    assert f"splitgrow.{name}(" in CALLS


def calls_without_an_example() -> list[str]:
    """The public calls whose docstring has no session: functions, methods, methods of learning."""
    parts = [splitgrow.distributed, splitgrow.scores, splitgrow.pruning, splitgrow.continual]
    learners = {learner.__name__ for learner in splitgrow.continual.METHODS.values()}
    made = {
        *learners,
        *(type(criterion).__name__ for criterion in splitgrow.pruning.CRITERIA.values()),
    }
    calls = {name: getattr(splitgrow, name) for name in splitgrow.__all__}
    calls |= {f"Handle.{name}": getattr(splitgrow.Handle, name) for name in METHODS}
    calls |= {
        f"{part.__name__}.{name}": getattr(part, name) for part in parts for name in part.__all__
    }
    return [
        name
        for name, call in calls.items()
        if (inspect.isfunction(call) or name.rpartition(".")[2] in made)
        and ">>>" not in (inspect.getdoc(call) or "")
    ]


def test_every_public_call_has_an_example() -> None:
    assert calls_without_an_example() == []


@pytest.mark.parametrize("name", METHODS)
def test_every_method_is_documented_and_on_the_page_of_calls(name: str) -> None:
    assert inspect.getdoc(getattr(splitgrow.Handle, name))
    assert name == "edits" or f"model.{name}" in CALLS


def test_growable_names_all_that_a_model_gains() -> None:
    told = inspect.getdoc(splitgrow.growable) or ""
    assert [name for name in METHODS if f"`{name}`" not in told] == []


def test_an_insertion_names_all_kinds() -> None:
    for documented in (splitgrow.Insertion, splitgrow.Handle.insert_layer):
        told = inspect.getdoc(documented) or ""
        assert [kind for kind in INSERTION_KINDS if f'"{kind}"' not in told] == []


@pytest.mark.parametrize("name", [*FUNCTIONS, *(f"Handle.{name}" for name in METHODS)])
def test_a_docstring_names_each_argument(name: str) -> None:
    function = operator.attrgetter(name)(splitgrow)
    if isinstance(function, property):
        return
    told = inspect.getdoc(function) or ""
    arguments = [
        argument for argument in inspect.signature(function).parameters if argument != "self"
    ]
    assert [one for one in arguments if f"{one.lstrip('*')}: " not in told] == []


PARTS = ("continual", "distributed", "grower", "progressive", "pruning", "scores", "typing")
FOREIGN = {"Any", "Literal", "None", "Optimizer", "Path", "Tensor", "Type", "nn", "os", "torch"}
"""Names of torch and of Python, beside its builtins and the abstract classes of collections."""
VARIABLES = {"Average", "Made"}
"""Type variables: they stand for the type of an argument."""


def names_in(annotation: object) -> set[str]:
    """The names that an annotation consists of."""
    if not isinstance(annotation, str):  # compiled code and data classes of torch have no text
        return set()
    nodes = ast.walk(ast.parse(annotation.strip(), mode="eval"))
    return {node.id for node in nodes if isinstance(node, ast.Name)}


def annotations_of(call: Any) -> Iterator[object]:
    """The annotations of a function, or of what makes an object of a class."""
    try:
        signature = inspect.signature(call)
    except (TypeError, ValueError):
        return
    yield from (argument.annotation for argument in signature.parameters.values())
    yield signature.return_annotation


def names_that_nobody_can_import(calls: Iterable[Any]) -> set[str]:
    """The names in signatures that no public module has."""
    modules = [importlib.import_module(f"splitgrow.{name}") for name in PARTS]
    known = {*splitgrow.__all__, *FOREIGN, *VARIABLES, *dir(builtins), *dir(collections.abc)}
    known.update(dir(contextlib), *(module.__all__ for module in modules))
    return {
        name
        for call in calls
        for annotation in annotations_of(call)
        for name in names_in(annotation)
    } - known


def test_each_name_that_a_signature_mentions_can_be_imported() -> None:
    modules = [importlib.import_module(f"splitgrow.{name}") for name in PARTS if name != "typing"]
    public = [getattr(module, name) for module in modules for name in module.__all__]
    public += [getattr(splitgrow, name) for name in splitgrow.__all__]
    members = [inspect.getattr_static(splitgrow.Handle, name) for name in METHODS]
    public += [getattr(member, "fget", member) for member in members]
    public += [splitgrow.Initializer.apply]
    calls = [each for each in public if callable(each)]
    assert len(calls) > 150
    assert names_that_nobody_can_import(calls) == set()


def test_control_a_name_that_is_nowhere_public_is_found() -> None:
    def hidden(one: Undo, several: list[ModelLock | None]) -> None: ...

    assert names_that_nobody_can_import([hidden]) == {"Undo", "ModelLock"}


def test_no_signature_leaves_arguments_open() -> None:
    """But for those that another call takes: ``**options``, and keys of registries."""
    parts = (splitgrow.distributed, splitgrow.scores, splitgrow.pruning, splitgrow.continual)
    calls = [getattr(part, name) for part in parts for name in part.__all__]
    calls += [getattr(splitgrow, name) for name in splitgrow.__all__]
    calls += [getattr(splitgrow.Handle, name) for name in METHODS]
    open_ones = {
        call.__name__
        for call in calls
        if inspect.isfunction(call) or (inspect.isclass(call) and "__init__" in vars(call))
        for argument in inspect.signature(call).parameters.values()
        if argument.kind is argument.VAR_POSITIONAL or argument.annotation in {"object", object}
    }
    assert open_ones == {"register_op", "unregister_op"}


def test_every_error_is_a_split_grow_error() -> None:
    errors = [getattr(splitgrow, name) for name in splitgrow.__all__ if name.endswith("Error")]
    assert errors
    assert all(issubclass(error, splitgrow.SplitGrowError) for error in errors)


@pytest.mark.parametrize(
    ("code", "needs_torch"),
    [
        ("import splitgrow", False),
        ("import splitgrow.errors", False),
        ("import splitgrow; splitgrow.growable", True),
        ("import splitgrow.handle; assert callable(splitgrow.handle)", True),
        ("from splitgrow import *; growable, Grower, SplitGrowError", True),
        ("import splitgrow.continual; import splitgrow; assert callable(splitgrow.growable)", True),
    ],
)
def test_the_package_needs_torch_once_a_name_is_asked_for(code: str, needs_torch: bool) -> None:
    outcome = subprocess.run(
        [sys.executable, "-c", f"import sys; {code}; sys.exit(10 + ('torch' in sys.modules))"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert outcome.returncode == 10 + needs_torch, outcome.stderr


def test_a_function_that_has_the_name_of_a_module_stays_the_function() -> None:
    modules = {path.stem for path in Path(splitgrow.__file__).parent.glob("*.py")}
    shared = [name for name in splitgrow.__all__ if name in modules]
    assert shared == list(splitgrow._ALSO_MODULES)
    setattr(splitgrow, shared[0], sys.modules[f"splitgrow.{shared[0]}"])  # as an import does
    assert callable(splitgrow.growable)


def test_names_that_do_not_exist_are_refused_and_the_others_are_listed() -> None:
    assert set(splitgrow.__all__) | {"continual", "distributed", "scores", "typing"} <= set(
        dir(splitgrow)
    )
    with pytest.raises(AttributeError, match="no attribute 'growabel'"):
        _ = splitgrow.growabel


def test_the_version_stands_in_one_place() -> None:
    assert version("splitgrow") == "0.1.0"


def test_the_first_lines_that_type_checkers_accept_run() -> None:
    assert grow().shape == (1, 1)


def test_the_lines_of_a_training_script_that_type_checkers_accept_run(tmp_path: Path) -> None:
    edit = growth_with_schedulers(tmp_path / "run.safetensors")
    assert edit_as_text(edit).startswith(str(edit.index))
    network = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 1))
    network = splitgrow.growable(network, torch.ones(1, 2))
    splitgrow.handle(network).expand_layer("0", 8, freeze=False)
    told, training = summary_of(network)
    assert ("0 " in told, training) == (True, 48 + 17)
    assert narrower(network, [(torch.randn(8, 2), torch.randn(8, 1))]) <= (2 * 16 + 16) // 2
