"""Files that promise or unpack to any size take no more memory than a data set may."""

from __future__ import annotations

import gzip
import io
import struct
import tracemalloc
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from click.testing import CliRunner
from PIL import Image

from splitgrow.cli.main import main
from splitgrow.demos import datasets
from splitgrow.demos.rawdata import DatasetError, Room

BOMB = 40_000_000
"""Bytes of a bomb, which are zeros and take some thousand in the file."""
LIMIT = 1e-3
"""The gigabytes that the tests allow: a million bytes."""
SLACK = 4_000_000
"""What reading itself takes: one chunk, buffers, a decoder."""


@contextmanager
def little_memory() -> Iterator[None]:
    """Makes sure that a ``with`` block takes no more than the limit, and some slack."""
    tracemalloc.start()
    try:
        yield
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < LIMIT * 1e9 + SLACK


def npy(shape: tuple[int, ...], content: bytes, dtype: str = "|u1") -> bytes:
    """A file of one array whose header promises a shape."""
    header = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}".encode()
    header += b" " * (-(len(header) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + content


def bundle(path: Path, members: dict[str, bytes], packing: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", packing) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def arrays(**changed: bytes) -> dict[str, bytes]:
    """The members of a sound .npz, some of them replaced."""
    images, labels = bytes(range(72)), b"\0\1\0\1\0\1\0\1"
    made = {"x_train": npy((8, 3, 3), images), "y_train": npy((8,), labels)}
    made |= {"x_test": npy((4, 3, 3), images[:36]), "y_test": npy((4,), labels[:4])}
    return {f"{name}.npy": content for name, content in (made | changed).items()}


def lying(path: Path, name: str, size: int) -> Path:
    """A zip file with another uncompressed size in both entries of a member."""
    content = bytearray(path.read_bytes())
    for mark, at_name, at_size in ((b"PK\3\4", 30, 22), (b"PK\1\2", 46, 24)):
        start = content.find(mark)
        while content[start + at_name : start + at_name + len(name)] != name.encode():
            start = content.find(mark, start + 4)
        content[start + at_size : start + at_size + 4] = struct.pack("<I", size)
    path.write_bytes(content)
    return path


def picture(size: tuple[int, int] = (6, 5)) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", size, (200, 30, 60)).save(stream, "png")
    return stream.getvalue()


def pictures() -> dict[str, bytes]:
    made = {
        f"{split}/{label}/1.png": picture() for split in ("train", "test") for label in ("a", "b")
    }
    return made | {"train/b/2.png": picture()}


def idx(folder: Path, images: bytes, *, packed: bool = True) -> Path:
    folder.mkdir(exist_ok=True)
    labels = struct.pack(">BBBBI", 0, 0, 8, 1, 2) + b"\0\1"
    sound = struct.pack(">BBBB3I", 0, 0, 8, 3, 2, 3, 3) + bytes(range(18))
    for name, content in {
        "train-images-idx3": images,
        "train-labels-idx1": labels,
        "t10k-images-idx3": sound,
        "t10k-labels-idx1": labels,
    }.items():
        end = "-ubyte.gz" if packed else "-ubyte"
        (folder / f"{name}{end}").write_bytes(gzip.compress(content) if packed else content)
    return folder


def header(*sizes: int) -> bytes:
    return struct.pack(f">BBBB{len(sizes)}I", 0, 0, 8, len(sizes), *sizes)


ZEROS = bytes(BOMB)
HOSTILE: dict[str, tuple[Callable[[Path], Path], str]] = {
    "npz, zeros": (
        lambda p: bundle(p / "d.npz", arrays(x_train=npy((10_000, 4000), ZEROS))),
        r"d.npz \(x_train\): it takes 40,000,128 bytes of memory, and 1,000,000 are left of the "
        r"0.001 GB .* larger --max-gb",
    ),
    "npz, a header that promises": (
        lambda p: bundle(p / "d.npz", arrays(x_train=npy((1 << 40, 3, 3), b"\0"))),
        r"\(x_train\): it takes 9,895,604,649,984 bytes",
    ),
    "npz, a wider type that promises": (
        lambda p: bundle(p / "d.npz", arrays(x_train=npy((1 << 40, 3, 3), b"\0", "<f8"))),
        r"\(x_train\): it takes 79,164,837,199,872 bytes",
    ),
    "npz, longer than its header says": (
        lambda p: bundle(p / "d.npz", arrays(x_train=npy((8, 3, 3), ZEROS))),
        r"\(x_train\): it takes 40,000,128 bytes",
    ),
    "npz, longer than its entry says": (
        lambda p: lying(
            bundle(p / "d.npz", arrays(x_train=npy((8, 3, 3), ZEROS))), "x_train.npy", 200
        ),
        "it is damaged|holds more than its array|cannot be read",
    ),
    "npz, labels": (
        lambda p: bundle(p / "d.npz", arrays(y_test=npy((BOMB,), ZEROS))),
        r"\(y_test\): it takes 40,000,128 bytes of memory, and 999,\d\d\d are left",
    ),
    "npz, many arrays": (
        lambda p: bundle(
            p / "d.npz",
            arrays(**{k: npy((600, 1000), bytes(600_000)) for k in ("x_train", "x_test")}),
        ),
        r"\(x_test\): it takes 600,128 bytes of memory, and 399,\d\d\d are left",
    ),
    "npz, bzip2": (
        lambda p: bundle(p / "d.npz", arrays(x_train=npy((8,), ZEROS)), zipfile.ZIP_BZIP2),
        r"it is packed by method 12; expected deflated or stored files",
    ),
    "npz, lzma": (
        lambda p: bundle(p / "d.npz", arrays(x_train=npy((8,), ZEROS)), zipfile.ZIP_LZMA),
        r"it is packed by method 14; expected deflated or stored files",
    ),
    "npz, cut off": (
        lambda p: bundle(p / "d.npz", arrays(x_train=npy((9, 3, 3), bytes(72)))),
        r"cannot be read",
    ),
    "npz, a negative size": (
        lambda p: bundle(p / "d.npz", arrays(x_train=npy((-9, 3, 3), bytes(72)))),
        r"cannot be read",
    ),
    "one array that promises": (
        lambda p: (p / "d.npz", (p / "d.npz").write_bytes(npy((1 << 40,), b"")))[0],
        "it holds one single array",
    ),
    "idx, zeros": (
        lambda p: idx(p / "d", header(4000, 100, 100) + ZEROS),
        r"train-images-idx3-ubyte.gz: it takes 40,000,000 bytes of memory, .* larger --max-gb",
    ),
    "idx, longer than its header says": (
        lambda p: idx(p / "d", header(2, 3, 3) + ZEROS),
        r"promises 18 values .* it holds more",
    ),
    "idx, plain": (
        lambda p: idx(p / "d", header(4000, 100, 100) + ZEROS, packed=False),
        r"train-images-idx3-ubyte: it takes 40,000,000 bytes",
    ),
    "zip, a picture of zeros": (
        lambda p: bundle(p / "d.zip", pictures() | {"train/b/2.png": ZEROS}),
        r"d.zip/train/b/2.png: it takes 40,000,000 bytes .* larger --max-gb",
    ),
    "zip, a picture that is longer than its entry says": (
        lambda p: lying(
            bundle(p / "d.zip", pictures() | {"train/b/2.png": ZEROS}), "train/b/2.png", 100
        ),
        r"d.zip/train/b/2.png: the picture cannot be read",
    ),
    "zip, a picture of many pixels": (
        lambda p: bundle(p / "d.zip", pictures() | {"train/b/2.png": picture((5000, 4000))}),
        r"d.zip/train/b/2.png: it takes 160,000,000 bytes .* larger --max-gb",
    ),
    "zip, a first picture of many pixels": (
        lambda p: bundle(p / "d.zip", pictures() | {"train/a/1.png": picture((5000, 4000))}),
        r"d.zip/train/a/1.png: it takes 160,000,000 bytes",
    ),
    "zip, bzip2": (
        lambda p: bundle(p / "d.zip", pictures(), zipfile.ZIP_BZIP2),
        r"d.zip/train/a/1.png: it is packed by method 12",
    ),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_file_is_refused_within_the_limit(case: str, tmp_path: Path) -> None:
    make, message = HOSTILE[case]
    path = make(tmp_path)
    with little_memory(), pytest.raises(DatasetError, match=message):
        datasets.load_dataset(path, max_gb=LIMIT)


@pytest.mark.parametrize("kind", ["npz", "idx", "zip", "folder"])
def test_sound_data_within_the_limit_are_read(kind: str, tmp_path: Path) -> None:
    """The control: nothing is refused, and memory is measured."""
    if kind == "npz":
        path = bundle(tmp_path / "d.npz", arrays())
    elif kind == "idx":
        path = idx(tmp_path / "d", header(2, 3, 3) + bytes(range(18)))
    else:
        path = bundle(tmp_path / "d.zip", pictures())
        if kind == "folder":
            zipfile.ZipFile(path).extractall(tmp_path / "d")
            path = tmp_path / "d"
    data = datasets.load_dataset(path, max_gb=LIMIT)
    assert len(data.classes) == 2
    with pytest.raises(DatasetError, match="larger --max-gb"):
        datasets.load_dataset(path, max_gb=1e-8)


def test_larger_data_are_read_with_a_larger_limit_and_take_more_memory(tmp_path: Path) -> None:
    x = npy((8, 1000, 1000), bytes(8_000_000))
    path = bundle(
        tmp_path / "d.npz", arrays(x_train=x, x_test=npy((4, 1000, 1000), bytes(4_000_000)))
    )
    with pytest.raises(DatasetError, match="8,000,128 bytes"):
        datasets.load_dataset(path, max_gb=LIMIT)
    with pytest.raises(AssertionError), little_memory():
        assert datasets.load_dataset(path, max_gb=0.02).size == (1000, 1000)


def test_a_picture_in_a_folder_that_is_too_large_is_named(tmp_path: Path) -> None:
    for name, content in pictures().items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    (tmp_path / "train/b/2.png").write_bytes(ZEROS)
    with (
        little_memory(),
        pytest.raises(DatasetError, match=r"train/b/2.png: it takes 40,000,000 b"),
    ):
        datasets.load_dataset(tmp_path, max_gb=LIMIT)


@pytest.mark.parametrize("command", [["demo"], ["continual", "--method", "packnet"]])
def test_the_commands_have_the_option(command: list[str], tmp_path: Path) -> None:
    path = bundle(tmp_path / "d.npz", arrays())
    out = ["--out", str(tmp_path / "out"), "--data", str(path)]
    result = CliRunner().invoke(main, [*command, *out, "--max-gb", "1e-8"])
    assert result.exit_code == 1
    assert "of the 1e-08 GB that a data set may take" in result.output
    result = CliRunner().invoke(main, [*command, *out, "--max-gb", "nan"])
    assert result.exit_code == 2


def test_room_is_counted() -> None:
    room = Room(1e-8)
    room.take("a", 6)
    room.check("b", 4)
    assert room.read("c", io.BytesIO(b"1234")) == b"1234"
    with pytest.raises(DatasetError, match="d: it takes 5 bytes of memory, and 4 are left"):
        room.read("d", io.BytesIO(b"12345678"))
    room.take("e", 4)
    with pytest.raises(DatasetError, match="f: it takes 1 bytes"):
        room.take("f", 1)


# A folder for each task


def tasks(tmp_path: Path, tops: dict[str, tuple[str, ...]]) -> Path:
    return bundle(
        tmp_path / "d.zip",
        {
            f"{top}{'/' if top else ''}{split}/{label}/1.png": picture()
            for top, labels in tops.items()
            for split in ("train", "test")
            for label in labels
        },
    )


def test_classes_of_one_name_in_two_folders_are_two_and_each_folder_is_a_superclass(
    tmp_path: Path,
) -> None:
    data = datasets.load_dataset(tasks(tmp_path, {"one": ("cat", "dog"), "two": ("cat", "ant")}))
    assert data.classes == ("one/cat", "one/dog", "two/ant", "two/cat")
    assert data.superclasses == {"one": (0, 1), "two": (2, 3)}
    assert data.y_train.tolist() == [0, 1, 2, 3]


def test_one_folder_in_between_changes_no_names(tmp_path: Path) -> None:
    data = datasets.load_dataset(tasks(tmp_path, {"one": ("cat", "dog")}))
    assert data.classes == ("cat", "dog")
    assert data.superclasses == {}


def test_splits_at_the_root_and_in_a_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="a split at its root and one in two; expected one of"):
        datasets.load_dataset(tasks(tmp_path, {"": ("cat", "dog"), "two": ("cat", "ant")}))


def test_a_folder_for_each_split_of_a_task_is_refused(tmp_path: Path) -> None:
    made = {f"a/train/{c}/1.png": picture() for c in "xy"}
    made |= {f"b/test/{c}/1.png": picture() for c in "xy"}
    with pytest.raises(DatasetError, match="only in train or only in test: a/x, a/y, b/x, b/y"):
        datasets.load_dataset(bundle(tmp_path / "d.zip", made))
