"""Imports point down, modules stay small, and importing the library is light."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "splitgrow"
FLOORS = (
    {"errors", "axes", "spans", "typed", "undo", "infinities"},
    {"wrapping", "trees"},
    {"groups", "kernels", "whole", "partial"},
    {"silence", "remainders", "layouts", "edits", "kinds", "folding", "execution"}
    | {"holders", "reassigned"}
    | {"outputs", "places", "tracked", "undisturbed", "modes", "births", "eager", "sharedkernel"}
    | {"steadiness"},
    {"steps", "composition", "generations", "fading", "connections", "scalars"},
    {"assembly", "blockwise", "hooks"},
    {"readers"},
    {"removal"},
    {"vanishing"},
    {"multiplied", "normalised", "sources"},
    {"merged", "livetensor"},
    {"running", "standing"},
    {"split", "deepened", "rules", "graph", "passes", "gate"}
    | {"initializers", "attributes", "optimizers", "replacing"},
    {"unwrapping", "unsupported"},
    {"leaves", "results", "planning", "progressive", "states", "choices"}
    | {"listing", "narrowing", "constants", "aliases"},
    {"standins", "plain"},
    {"recorder"},
    {"recording", "history", "refusals", "placing"}
    | {"liveness", "propagation", "output_comparison"},
    {"handled", "locating"},
    {"unchanged", "deployed", "tracing"},
    {"widening", "growth"},
    {"analysis", "consolidation"},
    {"value_trials"},
    {"depth", "inputs"},
    {"handle", "journal"},
    {"growable_class"},
    {"growable", "reporting"},
    {"merging", "checkpoints", "shrinking"},
    {"distributed"},
    {"fusion", "continual"},
    {"cli"},
)
FLOOR_OF = {unit: floor for floor, units in enumerate(FLOORS) for unit in units}
MODULES = sorted(path for path in ROOT.rglob("*.py") if path != ROOT / "__init__.py")


def unit_of(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imported_units(source: str) -> set[str]:
    """The units that a module imports, in whichever way it is written."""
    units = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            units |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module == "splitgrow":
            units |= {f"splitgrow.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            units.add(node.module or "")
    return {name.split(".")[1] for name in units if name.startswith("splitgrow.")}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_down(path: Path) -> None:
    unit = unit_of(path)
    units = {name for name in imported_units(path.read_text()) if name != unit}
    if unit == "cli":
        return_to_api = {name for name in units if name not in FLOOR_OF}
        units -= return_to_api  # public names, from the package itself
    wrong = {name for name in units if FLOOR_OF[name] >= FLOOR_OF[unit]}
    assert not wrong, f"{unit} (floor {FLOOR_OF[unit]}) imports {sorted(wrong)}"


@pytest.mark.parametrize(
    "source",
    [
        "from splitgrow.growth import apply_",
        "from splitgrow import growth",
        "import splitgrow.growth",
    ],
)
def test_the_check_sees_every_way_of_importing(source: str) -> None:
    assert imported_units(source) == {"growth"}


def test_every_unit_has_its_floor() -> None:
    assert {unit_of(path) for path in MODULES} == set(FLOOR_OF)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_modules_stay_small(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 400


def test_importing_is_light() -> None:
    """No CUDA, no logging set up, and none of the command line's packages."""
    code = (
        "import logging, sys, splitgrow, torch;"
        "assert not torch.cuda.is_initialized();"
        "assert not logging.getLogger().handlers;"
        "heavy = {'matplotlib', 'sklearn', 'click', 'rich', 'PIL'} & set(sys.modules);"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)
