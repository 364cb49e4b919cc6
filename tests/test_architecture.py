"""Imports point down, none form a circle, modules stay small, and importing is light."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import house
import pytest
from house import ROOT, circles, floors, imported, module_arrows, module_names, room_arrows

MODULES = sorted(module_names().values())
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


SAME_THING = {"load", "save", "prune", "plain_data"}
"""Calls that do the same for several processes, or for other data."""


def test_a_public_name_means_one_thing() -> None:
    rooms: dict[str, set[str]] = defaultdict(set)
    for module, source in module_names().items():
        if not module.startswith("analysis.ops."):  # a rule has the name of its op
            for name in _defined(ast.parse(source.read_text())):
                rooms[name].add(house.room_of(module))
    twice = {name for name, where in rooms.items() if len(where) > 1} - SAME_THING
    assert twice == set()


FIELDS_WORD = {
    "birth": "created, edit",
    "silence": "zero channels",
    "namesake": "size attribute",
    "undisturb": "preserve",
    "multiplied": "merged matmul",
    "normalised": "merged batch norm",
    "deepened": "insertion wrapper",
    "vanish": "identity removal",
    "liveness": "dead unit",
    "interval": "value range",
    "recording": "trace",
    "meanwhile": "temporarily",
    "handled": "handle",
    "kind_of": "layer type",
}
"""Words of our own that no public name and no module has, with the word that the field has."""


def own_words(names: Iterable[str]) -> set[str]:
    """The names that have a word of our own in them."""
    plain = {name: re.sub("(?<=[a-z])(?=[A-Z])", "_", name).lower() for name in names}
    return {name for name, text in plain.items() if any(word in text for word in FIELDS_WORD)}


def test_names_have_the_fields_words() -> None:
    names = set(module_names())
    for source in module_names().values():
        names.update(_defined(ast.parse(source.read_text())))
    assert len(names) > 1000
    assert own_words(names) == set()


def test_control_a_word_of_our_own_is_found() -> None:
    names = {"Births", "growth.births", "drop_vanished", "LayerType", "kind_of", "Trace", "Handle"}
    assert own_words(names) == {"Births", "growth.births", "drop_vanished", "kind_of"}


def _defined(module: ast.Module) -> Iterator[str]:
    for node in module.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            names = [node.name]
        else:
            targets = getattr(node, "targets", [getattr(node, "target", None)])
            names = [target.id for target in targets if isinstance(target, ast.Name)]
        yield from (name for name in names if not name.startswith("_"))


def test_modules_stay_small() -> None:
    lengths = {path: len(path.read_text().splitlines()) for path in MODULES}
    assert {path: length for path, length in lengths.items() if length > 400} == {}


def test_every_module_says_what_it_is_for() -> None:
    assert [path for path in MODULES if not ast.get_docstring(ast.parse(path.read_text()))] == []


TESTS = Path(__file__).parent
OF_ALL = {
    "api": "the public names",
    "architecture": "the plan of the library, and of its tests",
    "breaks": "the places where the library is broken to see that a test notices",
    "bad_input": "every mistake that a user can make, in whichever method",
    "browser": "pages in a real browser",
    "calls": "how many calls an operation makes",
    "faults": "a fault in every line of every operation",
    "habits": "the habits of PyTorch users, before a growth and after one",
    "hostile_files": "files that mean harm, whoever reads them",
    "kernels": "the kernels of the tests themselves (tests/kernels.py)",
    "laws": "the laws of growth over the table of models",
    "laws_compiled": "the laws in code that torch's compiler makes",
    "long_runs": "what is left of hundreds of growths",
    "op_list": "torch's own list of ops",
    "machine": "a model's whole life, step by step",
    "memory_formats": "channels last and bf16, over the table of models",
    "random_networks": "the laws over random networks",
    "pages": "the code on the pages of the site, and the examples",
    "readme": "the README, and the prose and links of the pages",
    "signatures": "forwards that take their arguments in other ways",
    "strange_models": "models that are written strangely",
    "trainers": "whole runs in the tools that people train with",
    "wild_programs": "random programs",
    "zoo": "real architectures, wider",
    "zoo_deeper": "real architectures, deeper",
}
"""The test files at the root that belong to no module, with what each is about."""


def misplaced(file: Path) -> bool:
    """Whether no module, and no package, is what a test file's place and name say."""
    name = file.stem.removeprefix("test_")
    folder = file.parent
    if folder == Path() and name in OF_ALL:
        return False
    package = ROOT / folder if folder.parts[:1] != ("benchmarks",) else ROOT.parent / folder
    if not (package / "__init__.py").exists():
        return True
    modules = {path.stem for path in package.glob("[!_]*.py")}
    starts = "_" + name + "_"
    return not any(starts.startswith(f"_{module}_") for module in {*modules, package.name})


def test_the_tests_mirror_the_packages() -> None:
    files = [path.relative_to(TESTS) for path in TESTS.rglob("test_*.py")]
    assert [str(file) for file in files if misplaced(file)] == []
    assert {f"test_{name}.py" for name in OF_ALL} <= {str(file) for file in files}


def test_control_a_test_file_without_its_module_is_found() -> None:
    right = [
        "test_laws.py",
        "layers/test_fade.py",
        "layers/test_fade_ends.py",
        "layers/test_layers.py",
    ]
    wrong = [
        "test_fade.py",
        "test_layers.py",
        "layers/test_fading.py",
        "layers/test_laws.py",
        "nowhere/test_fade.py",
    ]
    assert [file for file in right + wrong if misplaced(Path(file))] == wrong


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
