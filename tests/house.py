"""The plan of the library, read from its imports: rooms, floors, arrows, circles.

`python tests/house.py` prints the picture and the table that ARCHITECTURE.md has, and the counts.

A room is a package, or a module at the root. A room stands on the floor above all that it imports.
"""

from __future__ import annotations

import ast
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parent.parent / "splitgrow"
Arrows = Mapping[str, set[str]]


def module_names(root: Path = ROOT) -> dict[str, Path]:
    """Each module by its dotted name below the library; a package is its ``__init__``."""
    names = {}
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        names[".".join(parts).removesuffix(".__init__")] = path
    return names


def imported(source: str, modules: Mapping[str, object], library: str = "splitgrow") -> set[str]:
    """The modules of the library that a source imports, in whichever way it is written."""
    return {
        found
        for name in _mentioned(source)
        if (name == library or name.startswith(f"{library}."))
        and (found := _module_of(name.removeprefix(library).removeprefix("."), modules))
    }


def _mentioned(source: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _module_of(name: str, modules: Mapping[str, object]) -> str:
    """The module that has a name, which may be that of something in it."""
    while name and name not in modules:
        name = name.rpartition(".")[0]
    return name or "__init__"


@cache
def module_arrows() -> Arrows:
    """Which modules each module imports."""
    modules = module_names()
    return {name: imported(path.read_text(), modules) - {name} for name, path in modules.items()}


def room_of(module: str) -> str:
    """The package of a module; a module at the root is a room by itself."""
    return module.partition(".")[0]


def room_arrows(arrows: Arrows | None = None) -> dict[str, set[str]]:
    """Which rooms each room imports."""
    found: dict[str, set[str]] = defaultdict(set)
    for module, others in (arrows or module_arrows()).items():
        room = room_of(module)
        found[room] |= {room_of(other) for other in others} - {room}
    return dict(found)


def circles(arrows: Arrows) -> list[list[str]]:
    """What imports itself by way of others: each such group once."""
    below = {name: _reached(name, arrows) for name in arrows}
    groups = {
        tuple(sorted(other for other in below if other in below[name] and name in below[other]))
        for name in below
        if name in below[name]
    }
    return [list(group) for group in sorted(groups)]


def _reached(start: str, arrows: Arrows) -> set[str]:
    seen: set[str] = set()
    left = [start]
    while left:
        new = arrows.get(left.pop(), set()) - seen
        seen |= new
        left += new
    return seen


def floors(arrows: Arrows) -> dict[str, int]:
    """The floor of each room, the lowest being 1. There must be no circle."""
    found: dict[str, int] = {}

    def floor(name: str) -> int:
        if name not in found:
            found[name] = 1 + max(map(floor, arrows.get(name, ())), default=0)
        return found[name]

    for name in arrows:
        floor(name)
    return found


def table() -> str:
    """The rooms from the top floor down, with what each is for and what it imports."""
    arrows = room_arrows()
    rows = ["| floor | room | for | imports |", "|---|---|---|---|"]
    for room, floor in sorted(floors(arrows).items(), key=lambda item: (-item[1], item[0])):
        if room != "__init__":
            others = ", ".join(f"`{other}`" for other in sorted(arrows[room]))
            rows.append(f"| {floor} | `{room}` | {_purpose(room)} | {others} |")
    return "\n".join(rows)


def picture() -> str:
    """The rooms as a Mermaid diagram, without arrows that follow from others."""
    arrows = {room: others - {"__init__"} for room, others in room_arrows().items()}
    arrows.pop("__init__", None)
    lines = ["flowchart TD"]
    height = floors(arrows)
    for room in sorted(arrows, key=lambda room: (-height[room], room)):
        for other in sorted(arrows[room]):
            if not any(other in _reached(between, arrows) for between in arrows[room]):
                lines.append(f"    {room} --> {other}")
    return "\n".join(lines)


def _paths(room: str) -> list[Path]:
    folder = ROOT / room
    return sorted(folder.rglob("*.py")) if folder.is_dir() else [ROOT / f"{room}.py"]


def _purpose(room: str) -> str:
    """The first line of its docstring."""
    module = ast.parse(_paths(room)[0].read_text())
    return (ast.get_docstring(module) or "").partition("\n")[0].rstrip(".")


def main() -> int:
    """Prints the picture, the table and the counts; exit code 1 if there are circles."""
    rooms, modules = room_arrows(), module_arrows()
    found = circles(rooms) + circles(modules)
    if not found:
        sys.stdout.write(f"{picture()}\n\n{table()}\n\n{max(floors(rooms).values())} floors\n")
    sys.stdout.write(
        f"{len(rooms)} rooms, {sum(map(len, rooms.values()))} arrows, "
        f"{len(found)} circles {found or ''}\n"
        f"{len(modules)} modules, {sum(map(len, modules.values()))} arrows between them\n"
    )
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
