"""Files that somebody broke, by accident or on purpose: each a pure function of its number.

Most are *sealed*: their checksum is made right again, as an attacker would do, so that the code
behind the checksum is reached.
"""

from __future__ import annotations

import copy
import hashlib
import json
import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

Special = Literal["directory", "fifo", "loop"]
Files = dict[str, "bytes | Special"]
"""What lies in a directory, by name."""

DEEP = "@deep@"
"""Stands for lists in lists, deeper than Python's json would write them."""


@dataclass(frozen=True)
class Original:
    """A checkpoint that is whole.

    Attributes:
        main: The name of its first file.
        files: Its files by name.
    """

    main: str
    files: dict[str, bytes]


@dataclass(frozen=True)
class Mutant:
    """A broken checkpoint.

    Attributes:
        kind: What was done to it.
        sealed: Whether its checksums are right.
        main: The name of its first file.
        files: What lies in its directory.
    """

    kind: str
    sealed: bool
    main: str
    files: Files

    @property
    def size(self) -> int:
        """The bytes of all its files."""
        return sum(len(file) for file in self.files.values() if isinstance(file, bytes))


# -- the parts of a file -------------------------------------------------------------------------


def taken_apart(raw: bytes) -> tuple[dict[str, Any], bytes]:
    """The header and the tensors' bytes."""
    end = 8 + int.from_bytes(raw[:8], "little")
    return json.loads(raw[8:end]), raw[end:]


def put_together(header: Any, data: bytes) -> bytes:
    """A file of a header and the tensors' bytes."""
    text = header if isinstance(header, bytes) else as_text(header).encode("utf-8", "surrogatepass")
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + data


def as_text(tree: Any) -> str:
    """JSON as safetensors writes it, without spaces."""
    text = json.dumps(tree, separators=(",", ":"), ensure_ascii=False)
    return re.sub(f'"{DEEP}(\\d+)"', lambda found: _nested(int(found[1])), text)


def _nested(depth: int) -> str:
    return "[" * depth + "]" * depth


def seal(raw: bytes) -> bytes:
    """The file with the checksum that belongs to it, if it has a place for one."""
    found = re.search(rb'"sha256":"([0-9a-f]{64})"', raw)
    if found is None:
        return raw
    start, end = found.span(1)
    digest = hashlib.sha256(raw[:start] + b"0" * 64 + raw[end:]).hexdigest().encode()
    return raw[:start] + digest + raw[end:]


def digest_in(raw: bytes) -> str:
    """The checksum that a file has."""
    found = re.search(rb'"sha256":"([0-9a-f]{64})"', raw)
    return found[1].decode() if found else ""


def with_contents(raw: bytes, change: Callable[[dict[str, Any]], Any]) -> bytes:
    """A file with other contents, sealed. `change` works in place, or returns the new ones."""
    header, data = taken_apart(raw)
    contents = json.loads(header["__metadata__"]["splitgrow"])
    made = change(contents)
    header["__metadata__"]["splitgrow"] = as_text(contents if made is None else made)
    return seal(put_together(header, data))


def with_header(raw: bytes, change: Callable[[dict[str, Any]], Any]) -> bytes:
    """A file with another header, sealed."""
    header, data = taken_apart(raw)
    made = change(header)
    return seal(put_together(header if made is None else made, data))


# -- bytes ---------------------------------------------------------------------------------------


def _flipped(raw: bytes, draw: random.Random) -> bytes:
    made = bytearray(raw)
    for _ in range(draw.choice((1, 1, 1, 2, 16))):
        made[draw.randrange(len(made))] ^= 1 << draw.randrange(8)
    return bytes(made)


def _flipped_in_header(raw: bytes, draw: random.Random) -> bytes:
    made = bytearray(raw)
    made[draw.randrange(8 + int.from_bytes(raw[:8], "little"))] ^= 1 << draw.randrange(8)
    return bytes(made)


def _truncated(raw: bytes, draw: random.Random) -> bytes:
    end = 8 + int.from_bytes(raw[:8], "little")
    places = (0, 1, 7, 8, 9, end - 1, end, end + 1, len(raw) - 1, draw.randrange(len(raw)))
    return raw[: draw.choice(places)]


def _inserted(raw: bytes, draw: random.Random) -> bytes:
    place = draw.randrange(len(raw) + 1)
    return raw[:place] + draw.randbytes(draw.choice((1, 8, 1000))) + raw[place:]


def _deleted(raw: bytes, draw: random.Random) -> bytes:
    place = draw.randrange(len(raw))
    return raw[:place] + raw[place + draw.choice((1, 8, 1000)) :]


def _another_length(raw: bytes, draw: random.Random) -> bytes:
    length = int.from_bytes(raw[:8], "little")
    lies = (0, 1, length - 1, length + 1, length + 8, len(raw) - 8, 10**8, 2**31, 2**63, 2**64 - 1)
    return draw.choice(lies).to_bytes(8, "little") + raw[8:]


BYTES: dict[str, Callable[[bytes, random.Random], bytes]] = {
    "bits flipped": _flipped,
    "bit of the header flipped": _flipped_in_header,
    "cut short": _truncated,
    "bytes inserted": _inserted,
    "bytes left out": _deleted,
    "header of another length": _another_length,
}


# -- trees ---------------------------------------------------------------------------------------

VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2, 7, 1000, 2**31, 2**40, 2**53, 2**63, 2**64, 10**30, -(2**63)),
    *(10**400, 0.0, -0.5, 1.5, 1e308, float("nan"), float("inf"), float("-inf")),
    *(
        "",
        "x",
        "0",
        "-1",
        "x" * 100_000,
        "../../x",
        "/etc/passwd",
        "\0",
        "\ud800",
        "é",
        "__class__",
    ),
    *("__dict__", "load_state_dict", "step", "optimizer", "cuda:0", "meta", "float64", "Conv2d"),
    *("MultiheadAttention", "stem", "block", "", "block.conv1.0.weight", "head", "again"),
    *([], {}, [[]], [0], [1, 1], [None], {"": 0}, {"tensor": "model.stem.0.weight"}, [0] * 2000),
    *({"tensor": "x"}, {"object": "x"}, {"dict": []}, {"tuple": []}, {"float": "nan"}, {"x": 1}),
    *(
        {"device": "cuda:99999999999"},
        {"dtype": []},
        {"bytes": 3},
        {"complex": [1]},
        {"dict": [[]]},
    ),
    *(
        f"{DEEP}30",
        f"{DEEP}400",
        f"{DEEP}900",
        f"{DEEP}20000",
        {"float": []},
        {"dict": [[1, 2]] * 9},
    ),
)

Node = tuple[Any, Any]
"""A place in a tree: the list or dict, and the index or key."""


def nodes_in(tree: Any) -> list[Node]:
    """All places in a tree but its root."""
    return [*_nodes(tree)]


def _nodes(tree: Any) -> Iterator[Node]:
    keys = tree.keys() if isinstance(tree, dict) else range(len(tree))
    for key in [*keys]:
        yield tree, key
        if isinstance(tree[key], (dict, list)):
            yield from _nodes(tree[key])


def _near(value: Any, draw: random.Random) -> Any:
    """A value like another."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, (int, float)):
        other = f"{value:.3g}" if isinstance(value, float) else value + 0.5 if value < 2**53 else 1
        return draw.choice((value + 1, value - 1, -value, value * 2, other, str(value)))
    if isinstance(value, str):
        return draw.choice((value + "0", value[:-1], value.upper(), value + ".0", value * 2))
    if isinstance(value, list):
        return draw.choice((value[::-1], value + value, value[:-1], value[1:], value * 100))
    return draw.choice(VALUES)


def change_(tree: Any, draw: random.Random, others: Any = None) -> str:
    """Changes something in a tree, in place; returns what."""
    places = nodes_in(tree)
    if not places:
        return "nothing"
    holder, key = draw.choice(places)
    way = draw.choice(("replaced", "replaced", "near", "near", "left out", "twice", "swapped"))
    if way == "replaced":
        holder[key] = copy.deepcopy(draw.choice(VALUES))
    elif way == "near":
        holder[key] = _near(holder[key], draw)
    elif way == "left out":
        del holder[key]
    elif way == "twice" and isinstance(holder, list):
        holder[key:key] = [copy.deepcopy(holder[key])] * draw.choice((1, 1, 1, 300))
    elif way == "twice":
        holder[draw.choice((f"{key}0", "x", "name", "step"))] = copy.deepcopy(holder[key])
    else:
        found = nodes_in(others) if others is not None and draw.random() < 0.3 else places
        other, place = draw.choice(found or places)
        holder[key], other[place] = copy.deepcopy(other[place]), copy.deepcopy(holder[key])
    return way


# -- what is broken ------------------------------------------------------------------------------

Broken = tuple[bool, Files]
"""Whether the checksums are right, and what lies in the directory."""


def _bytes(original: Original, others: list[Original], draw: random.Random) -> Broken:
    files: Files = {**original.files}
    name = draw.choice([*original.files])
    raw = BYTES[draw.choice([*BYTES])](original.files[name], draw)
    if draw.random() < 0.3:
        return False, {**files, name: raw}
    return True, _sealed({**files, name: raw}, original.main)


def _spliced(original: Original, others: list[Original], draw: random.Random) -> Broken:
    one = original.files[original.main]
    other = draw.choice([file for each in others for file in each.files.values()])
    place = draw.randrange(len(one))
    there = draw.choice((place, draw.randrange(len(other))))
    raw = one[:place] + other[there:]
    header = taken_apart(one)[0]
    if draw.random() < 0.3:
        raw = put_together(header, taken_apart(other)[1])
    sealed = draw.random() < 0.8
    return sealed, {**original.files, original.main: seal(raw) if sealed else raw}


def _header(original: Original, others: list[Original], draw: random.Random) -> Broken:
    def change(header: dict[str, Any]) -> None:
        tree = header["__metadata__"] if draw.random() < 0.3 else header
        for _ in range(draw.choice((1, 1, 2))):
            change_(tree, draw)

    name = draw.choice([*original.files])
    return True, _sealed(
        {**original.files, name: with_header(original.files[name], change)}, original.main
    )


def _tensor(original: Original, others: list[Original], draw: random.Random) -> Broken:
    """The dtype, the shape or the place of a tensor, by itself or so that its bytes still fit."""

    def change(header: dict[str, Any]) -> None:
        name = draw.choice([name for name in header if name != "__metadata__"] or ["__metadata__"])
        entry = header[name]
        way = draw.randrange(6)
        if way == 0 and "shape" in entry:
            entry["shape"] = [*entry["shape"][::-1], 1]
        elif way == 1 and entry.get("dtype") == "F32":
            entry["dtype"] = draw.choice(("I32", "U32"))
        elif way == 2 and entry.get("dtype") == "F64":
            entry["dtype"] = draw.choice(("I64", "C64", "U64"))
        elif way == 3:
            header[f"{name}x"] = header.pop(name)
        elif way == 4:
            another = draw.choice([*header])
            header[name], header[another] = header[another], header[name]
        else:
            change_(entry, draw)

    name = draw.choice([*original.files])
    return True, _sealed(
        {**original.files, name: with_header(original.files[name], change)}, original.main
    )


def _contents(original: Original, others: list[Original], draw: random.Random) -> Broken:
    def change(contents: dict[str, Any]) -> None:
        other = taken_apart(others[0].files[others[0].main])[0]["__metadata__"]["splitgrow"]
        for _ in range(draw.choice((1, 1, 1, 2, 4))):
            section = draw.choice([*contents] or [""])
            tree = contents.get(section)
            deep = isinstance(tree, (dict, list)) and tree and draw.random() < 0.9
            change_(tree if deep else contents, draw, json.loads(other))

    raw = with_contents(original.files[original.main], change)
    return True, {**original.files, original.main: raw}


def _journal(original: Original, others: list[Original], draw: random.Random) -> Broken:
    def change(contents: dict[str, Any]) -> None:
        change_journal_(contents["journal"], draw)

    raw = with_contents(original.files[original.main], change)
    return True, {**original.files, original.main: raw}


def change_journal_(journal: dict[str, Any], draw: random.Random) -> None:
    """Changes something in a journal: anywhere, or of one edit, or what two edits say."""
    for _ in range(draw.choice((1, 1, 1, 2, 4))):
        edits = journal.get("edits")
        if isinstance(edits, list) and len(edits) > 1 and draw.random() < 0.8:
            one, other = draw.choice(edits), draw.choice(edits)
            if isinstance(one, dict) and one:
                change_(one, draw, other if isinstance(other, (dict, list)) else None)
                continue
        change_(journal, draw)


def _doubled(original: Original, others: list[Original], draw: random.Random) -> Broken:
    """A JSON key that is there twice."""
    raw = original.files[original.main]
    header, data = taken_apart(raw)
    where = header if draw.random() < 0.5 else header["__metadata__"]
    key = draw.choice([*where])
    one = f"{as_text(key)}:{as_text(where[key])}"
    other = f"{as_text(key)}:{as_text(draw.choice((where[key], 'x', [], {}, *where.values())))}"
    text = as_text(header).replace(one, draw.choice((f"{one},{other}", f"{other},{one}")), 1)
    return True, {
        **original.files,
        original.main: seal(put_together(text.encode("utf-8", "surrogatepass"), data)),
    }


def _shards(original: Original, others: list[Original], draw: random.Random) -> Broken:
    """Further files that are missing, others, elsewhere, or no files."""
    files: Files = {**original.files}
    further = [name for name in files if name != original.main] or [original.main]
    one = draw.choice(further)
    way = draw.randrange(6)
    if way == 0:
        del files[one]
    elif way == 1:
        files[one] = draw.choice([*original.files.values()])
    elif way == 2:
        specials: tuple[Special, ...] = ("directory", "fifo", "loop")
        files[one] = draw.choice(specials)
    else:

        def change(header: dict[str, Any]) -> None:
            shards = json.loads(header["__metadata__"]["shards"])
            lies = ("../x", f"../{one}", f"/tmp/{one}", f"./{one}", one.upper(), "", ".", "..", "x")
            if way == 3 and shards:
                draw.choice(shards)["name"] = draw.choice((*lies, *original.files))
            elif way == 4:
                shards += shards[:1] * draw.choice((1, 1000))
            else:
                change_({"": shards}, draw)
            header["__metadata__"]["shards"] = as_text(shards)

        files[original.main] = with_header(original.files[original.main], change)
        return True, files
    return way != 1, files


def _sealed(files: Files, main: str) -> Files:
    """Files with right checksums, also where the first one has those of the others."""
    made: Files = {n: seal(raw) if isinstance(raw, bytes) else raw for n, raw in files.items()}
    first = made[main]
    try:
        header, data = taken_apart(first)  # type: ignore[arg-type]
        shards = json.loads(header["__metadata__"]["shards"])
        for shard in shards:
            shard["sha256"] = digest_in(made[shard["name"]])  # type: ignore[arg-type]
    except (AttributeError, LookupError, RecursionError, TypeError, ValueError):
        return made
    header["__metadata__"]["shards"] = as_text(shards)
    return {**made, main: seal(put_together(header, data))}


KINDS: dict[str, tuple[int, Callable[[Original, list[Original], random.Random], Broken]]] = {
    "bytes": (4, _bytes),
    "two files": (1, _spliced),
    "header": (3, _header),
    "tensor": (3, _tensor),
    "contents": (4, _contents),
    "journal": (5, _journal),
    "keys twice": (1, _doubled),
    "further files": (2, _shards),
}
"""What can be broken, and how often it is."""


def mutant(originals: list[Original], number: int) -> Mutant:
    """The broken checkpoint of a number."""
    draw = random.Random(number)
    kind = draw.choices([*KINDS], [weight for weight, _ in KINDS.values()])[0]
    fitting = [each for each in originals if kind != "further files" or len(each.files) > 1]
    original = draw.choice(fitting)
    sealed, files = KINDS[kind][1](original, originals, draw)
    return Mutant(kind, sealed, original.main, files)
