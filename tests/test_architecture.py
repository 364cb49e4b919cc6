"""Imports point down, nothing goes round in circles, modules stay small, importing is light."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path

import house
import pytest
from house import ROOT, circles, floors, imported, module_arrows, module_names, room_arrows

MODULES = sorted(module_names().values())
path = pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
WRITTEN = (ROOT.parent / "ARCHITECTURE.md").read_text()
THIN = {"errors": set(), "utils": {"errors"}, "layers": {"errors", "utils"}}
"""What the lowest rooms may know, whatever else moves."""


def test_no_room_imports_itself_by_way_of_others() -> None:
    assert circles(room_arrows()) == []


def test_no_module_imports_itself_by_way_of_others() -> None:
    assert circles(module_arrows()) == []


@pytest.mark.parametrize("shown", [house.picture, house.table])
def test_architecture_md_shows_what_the_imports_say(shown: Callable[[], str]) -> None:
    assert shown() in WRITTEN, "put what `python tests/house.py` prints into ARCHITECTURE.md"


def test_architecture_md_is_read_at_one_sitting() -> None:
    assert len(WRITTEN.splitlines()) <= 300


@pytest.mark.parametrize("room", THIN)
def test_the_lowest_rooms_know_nothing_above(room: str) -> None:
    assert room_arrows()[room] <= THIN[room]


def test_there_are_few_rooms() -> None:
    rooms = room_arrows()
    assert len(rooms) <= 24
    assert max(floors(rooms).values()) <= 14


@pytest.mark.parametrize(
    "source",
    [
        "from splitgrow.growth.apply import apply_",
        "from splitgrow.growth import apply",
        "import splitgrow.growth.apply",
        "def late():\n    from splitgrow.growth.apply import apply_",
    ],
)
def test_every_way_of_importing_is_seen(source: str) -> None:
    assert imported(source, module_names()) == {"growth.apply"}


def test_control_a_circle_is_found() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == [["a", "b", "c"]]
    assert floors({"a": {"b"}, "b": set(), "c": {"a", "b"}}) == {"b": 1, "a": 2, "c": 3}


SAME_THING = {"load", "save", "plain_data"}
"""Calls that do the same for several processes, or for other data."""


def test_a_public_name_means_one_thing() -> None:
    rooms: dict[str, set[str]] = defaultdict(set)
    for module, source in module_names().items():
        if not module.startswith("analysis.ops."):  # a rule has the name of its op
            for name in _defined(ast.parse(source.read_text())):
                rooms[name].add(house.room_of(module))
    twice = {name for name, where in rooms.items() if len(where) > 1} - SAME_THING
    assert twice == set()


def _defined(module: ast.Module) -> Iterator[str]:
    for node in module.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            names = [node.name]
        else:
            targets = getattr(node, "targets", [getattr(node, "target", None)])
            names = [target.id for target in targets if isinstance(target, ast.Name)]
        yield from (name for name in names if not name.startswith("_"))


@path
def test_modules_stay_small(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 400


@path
def test_every_module_says_what_it_is_for(path: Path) -> None:
    assert ast.get_docstring(ast.parse(path.read_text()))


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
