"""The public names: what there is, documented, with examples, and on the page of all calls."""

from __future__ import annotations

import inspect
from importlib.metadata import version
from pathlib import Path

import pytest

import splitgrow

CALLS = (Path(__file__).parent.parent / "docs" / "api.md").read_text()
FUNCTIONS = ["execution", "fuse", "growable", "handle", "load", "merge", "save"]
METHODS = [name for name in dir(splitgrow.Handle) if not name.startswith("_")]


def test_the_public_names_are_these() -> None:
    assert splitgrow.__all__ == [
        "CheckpointError",
        "DistributedError",
        "Edit",
        "FadeIn",
        "FadeSchedule",
        "FixedWidthError",
        "FusionError",
        "GenerationError",
        "Handle",
        "InexactError",
        "InputChange",
        "Insertion",
        "InsertionError",
        "Layer",
        "LayerChange",
        "LayerRun",
        "MergeError",
        "NumberChange",
        "OptimizerError",
        "ProgressiveAutoencoder",
        "ProgressiveDecoder",
        "ProgressiveDiscriminator",
        "ProgressiveEncoder",
        "ProgressiveGenerator",
        "SharedKernelConv1d",
        "SharedKernelConv2d",
        "SharedKernelConv3d",
        "SplitGrowError",
        "StructureChangedError",
        "TraceError",
        "UnsupportedLayerError",
        "UnsupportedModelError",
        "execution",
        "fuse",
        "growable",
        "handle",
        "load",
        "merge",
        "register_layer",
        "register_op",
        "save",
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


@pytest.mark.parametrize("name", METHODS)
def test_every_method_is_documented_and_on_the_page_of_calls(name: str) -> None:
    assert inspect.getdoc(getattr(splitgrow.Handle, name))
    assert name == "edits" or f"model.{name}" in CALLS


def test_every_error_is_a_split_grow_error() -> None:
    errors = [getattr(splitgrow, name) for name in splitgrow.__all__ if name.endswith("Error")]
    assert errors
    assert all(issubclass(error, splitgrow.SplitGrowError) for error in errors)


def test_the_version_stands_in_one_place() -> None:
    assert version("splitgrow") == "0.1.0"
