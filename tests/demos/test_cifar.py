from __future__ import annotations

import io
import os
import pickle
import struct
import subprocess
import sys
import tarfile
import tracemalloc
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from splitgrow.demos import cifar, datasets, pickles
from splitgrow.demos.rawdata import DatasetError

# Pickles as Python 2 wrote them: protocol 2, texts as byte strings, arrays by `_reconstruct`.


class _Raw(bytes):
    """Steps of a pickle, to be written as they are."""


def _step(value: Any) -> bytes:
    if isinstance(value, _Raw):
        return value
    if isinstance(value, bytes):
        short = len(value) < 256
        return (
            b"U" + bytes([len(value)]) if short else b"T" + struct.pack("<i", len(value))
        ) + value
    if isinstance(value, bool):
        return b"\x88" if value else b"\x89"
    if isinstance(value, int):
        short = 0 <= value < 256
        return b"K" + bytes([value]) if short else b"J" + struct.pack("<i", value)
    if isinstance(value, list):
        return b"](" + b"".join(map(_step, value)) + b"e"
    if isinstance(value, tuple):
        return b"(" + b"".join(map(_step, value)) + b"t"
    if isinstance(value, dict):
        return b"}(" + b"".join(_step(key) + _step(item) for key, item in value.items()) + b"u"
    return _array(value)


DTYPE = b"cnumpy\ndtype\nq\x09U\x02u1q\x0aK\x00K\x01\x87q\x0bRq\x0c"
DTYPE_STATE = b"(K\x03U\x01|q\x0dNNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tq\x0eb"
NEW_ARRAY = (
    b"cnumpy.core.multiarray\n_reconstruct\nq\x02cnumpy\nndarray\nq\x03K\x00\x85q\x04U\x01bq\x05"
)
NEW_ARRAY += b"\x87q\x06Rq\x07"


def _array(
    values: np.ndarray, *, shape: tuple[int, ...] | None = None, dtype: bytes = DTYPE + DTYPE_STATE
) -> _Raw:
    by_columns = not values.flags.c_contiguous
    raw = values.tobytes(order="F" if by_columns else "C")
    state = _step(values.shape if shape is None else shape) + dtype + _step(by_columns) + _step(raw)
    return _Raw(NEW_ARRAY + b"(K\x01" + state + b"tq\x10b")


def _python2(fields: Any) -> bytes:
    return b"\x80\x02" + _step(fields) + b"."


# Small data in the official layouts

TEN = [f"kind {number}".encode() for number in range(10)]
FINE = [f"fine {number}".encode() for number in range(6)]
COARSE = [b"animals", b"plants", b"things"]


def _pixels(count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 3072), dtype=np.uint8)


def _pieces(hundred: bool) -> dict[str, tuple[np.ndarray, list[int]]]:
    """The pixels and fine labels in each file, by the name that it has in the python version."""
    if hundred:
        counts = {"train": 12, "test": 6}
        return {
            name: (_pixels(count, count), [(number * 5) % 6 for number in range(count)])
            for name, count in counts.items()
        }
    names = [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]
    return {
        name: (_pixels(10, seed), [(number + seed) % 10 for number in range(10)])
        for seed, name in enumerate(names)
    }


def _coarse(fine: list[int]) -> list[int]:
    return [(2 - label // 2) for label in fine]  # 0, 1 are things; 2, 3 plants; 4, 5 animals


def _python(folder: Path, hundred: bool) -> Path:
    folder.mkdir()
    for name, (pixels, labels) in _pieces(hundred).items():
        fields: dict[bytes, Any] = {b"batch_label": b"a batch", b"data": pixels}
        if hundred:
            fields |= {b"fine_labels": labels, b"coarse_labels": _coarse(labels)}
        else:
            fields |= {b"labels": labels}
        fields[b"filenames"] = [b"picture_%d.png" % number for number in range(len(labels))]
        (folder / name).write_bytes(_python2(fields))
    meta = (
        {b"fine_label_names": FINE, b"coarse_label_names": COARSE}
        if hundred
        else {b"num_cases_per_batch": 10000, b"label_names": TEN, b"num_vis": 3072}
    )
    (folder / ("meta" if hundred else "batches.meta")).write_bytes(_python2(meta))
    return folder


def _binary(folder: Path, hundred: bool) -> Path:
    folder.mkdir()
    for name, (pixels, labels) in _pieces(hundred).items():
        columns = (_coarse(labels), labels) if hundred else (labels,)
        records = np.concatenate([np.array(columns, dtype=np.uint8).T, pixels], axis=1)
        (folder / f"{name}.bin").write_bytes(records.tobytes())
    texts = (
        {"fine_label_names.txt": FINE, "coarse_label_names.txt": COARSE}
        if hundred
        else {"batches.meta.txt": TEN}
    )
    for name, lines in texts.items():
        (folder / name).write_bytes(b"\n".join(lines) + b"\n\n")  # the official one ends so
    return folder


WRITERS: dict[str, tuple[Callable[[Path, bool], Path], bool]] = {
    "cifar-10-batches-py": (_python, False),
    "cifar-10-batches-bin": (_binary, False),
    "cifar-100-python": (_python, True),
    "cifar-100-binary": (_binary, True),
}


def _written(folder: Path, name: str) -> Path:
    write, hundred = WRITERS[name]
    return write(folder / name, hundred)


def _archived(folder: Path, suffix: str = ".tar.gz") -> Path:
    target = folder.with_name(folder.name + suffix)
    with tarfile.open(target, "w" if suffix == ".tar" else "w:gz") as archive:
        archive.add(folder, folder.name)
    return target


# What is read


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("suffix", ["", ".tar.gz", ".tgz", ".tar"])
def test_every_layout_is_read_as_a_folder_and_as_an_archive(
    tmp_path: Path, name: str, suffix: str
) -> None:
    folder = _written(tmp_path, name)
    path = _archived(folder, suffix) if suffix else folder
    raw = cifar.read(path)
    pieces = _pieces("100" in name)
    *train, (test_pixels, test_labels) = pieces.values()
    expected = np.concatenate([pixels for pixels, _ in train]).reshape(-1, 3, 32, 32)
    everything = np.arange(len(expected))
    assert np.array_equal(raw.train.images(everything), expected)
    assert raw.train.labels.tolist() == [label for _, labels in train for label in labels]
    found = raw.test.images(np.arange(len(test_labels)))
    assert np.array_equal(found, test_pixels.reshape(-1, 3, 32, 32))
    assert raw.test.labels.tolist() == test_labels


@pytest.mark.parametrize("name", WRITERS)
def test_a_data_set_of_it_has_the_names_of_classes_and_superclasses(
    tmp_path: Path, name: str
) -> None:
    data = datasets.load_dataset(_archived(_written(tmp_path, name)))
    assert (data.name, data.size, data.channels) == (name, (32, 32), 3)
    assert data.x_train.mean().abs() < 1e-5
    if "100" in name:
        assert data.classes == tuple(text.decode() for text in FINE)
        assert data.superclasses == {"animals": (4, 5), "plants": (2, 3), "things": (0, 1)}
    else:
        assert data.classes == tuple(text.decode() for text in TEN)
        assert data.superclasses == {}


def test_the_python_and_the_binary_version_are_the_same_data(tmp_path: Path) -> None:
    one, other = (
        datasets.load_dataset(_written(tmp_path, f"cifar-100-{v}")) for v in ("python", "binary")
    )
    assert torch.equal(one.x_train, other.x_train)
    assert torch.equal(one.y_test, other.y_test)
    assert one.superclasses == other.superclasses


def test_classes_without_pictures_are_left_out_and_the_others_keep_their_names(
    tmp_path: Path,
) -> None:
    folder = _written(tmp_path, "cifar-100-binary")
    for name in ("train.bin", "test.bin"):
        records = np.frombuffer((folder / name).read_bytes(), dtype=np.uint8).reshape(-1, 3074)
        (folder / name).write_bytes(records[~np.isin(records[:, 1], [0, 1, 4])].tobytes())
    data = datasets.load_dataset(folder)
    assert data.classes == ("fine 2", "fine 3", "fine 5")
    assert data.superclasses == {"animals": (2,), "plants": (0, 1)}


def test_limit_and_seed_choose_training_pictures(tmp_path: Path) -> None:
    folder = _written(tmp_path, "cifar-10-batches-py")
    first, again, other = (datasets.load_dataset(folder, limit=20, seed=seed) for seed in (1, 1, 2))
    assert first.y_train.bincount().tolist() == [2] * 10
    assert torch.equal(first.x_train, again.x_train)
    assert not torch.equal(first.x_train, other.x_train)


def test_they_cannot_be_resized(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="cannot be resized"):
        datasets.load_dataset(_written(tmp_path, "cifar-100-binary"), size=8)


def test_an_array_by_columns_is_read_as_what_it_is() -> None:
    rows = np.asfortranarray(_pixels(4, 0))
    found = pickles.read(_python2({b"data": rows}))
    assert np.array_equal(pickles.pixels(found["data"]), rows)


@pytest.mark.parametrize("name", ["cifar-10-batches-py", "cifar-100-python"])
def test_the_files_of_these_tests_are_pickles_to_python_as_well(tmp_path: Path, name: str) -> None:
    for path in _written(tmp_path, name).iterdir():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # numpy's module had another name in those days
            expected = pickle.loads(path.read_bytes(), encoding="bytes")
        found = pickles.read(path.read_bytes())
        assert [key.decode() for key in expected] == list(found)
        if "data" in found:
            found["data"] = pickles.pixels(found["data"])
        for one, other in zip(expected.values(), found.values(), strict=True):
            assert np.array_equal(one, other)


# Pickles that are not to be believed


def _global(name: str) -> _Raw:
    return _Raw(b"c" + name.replace(" ", "\n").encode() + b"\n")


HUGE = 2**31 - 1
CALLS: dict[str, tuple[bytes, str]] = {
    "the shell": (b"\x80\x02cos\nsystem\nU\x05false\x85R.", "the name 'os system'"),
    "a function among the labels": (
        _python2({b"labels": [_Raw(b"c_pytest.outcomes\nfail\n)R")]}),
        "the name '_pytest.outcomes fail'",
    ),
    "the same by names on the stack": (pickle.dumps(os.system, 4), "the step FRAME"),
    "eval": (b"\x80\x02c__builtin__\neval\nU\x011\x85R.", "the name '__builtin__ eval'"),
    "getattr": (b"\x80\x02cbuiltins\ngetattr\n.", "the name 'builtins getattr'"),
    "another function of numpy": (b"\x80\x02cnumpy\nfromfile\n.", "the name 'numpy fromfile'"),
    "an attribute of an allowed name": (b"\x80\x02cnumpy\nndarray.fill\n.", "the name 'numpy nda"),
    "a codec": (b"\x80\x02c_codecs\nencode\n.", "the name '_codecs encode'"),
    "an instance as of old": (b"(ios\nsystem\n.", "the step INST"),
    "an object as of old": (b"(cnumpy\nndarray\no.", "the step OBJ"),
    "a new object": (b"\x80\x02cnumpy\nndarray\n)\x81.", "the step NEWOBJ"),
    "an extension": (b"\x80\x02\x82\x01.", "the step EXT1"),
    "a persistent id": (b"\x80\x02U\x01aQ.", "the step BINPERSID"),
    "a number": (b"\x80\x02K\x01)R.", "not callable"),
    "arguments that are bytes": (b"\x80\x02cnumpy\nndarray\nU\x01aR.", "must be a tuple"),
    "a state for a list": (b"\x80\x02]}(U\x01aK\x01ub.", "no attribute"),
    "a state for a name": (b"\x80\x02cnumpy\nndarray\n}(U\x01aK\x01ub.", "missing 1 required"),
    "items for a list": (b"\x80\x02](U\x01aK\x01u.", "indices must be integers"),
    "items for an array": (b"\x80\x02" + NEW_ARRAY + b"(K\x01e.", "no attribute 'append'"),
    "a key that is a list": (b"\x80\x02}(]K\x01u.", "unhashable"),
    "a key that is a number": (_python2({7: []}), "no dictionary"),
    "a list and nothing else": (_python2([1, 2]), "no dictionary"),
    "a list that holds itself": (b"\x80\x02]q\0(h\0e.", "no dictionary"),
    "an array and nothing else": (_python2(_array(_pixels(1, 0))), "no dictionary"),
}
LARGE: dict[str, tuple[bytes, str]] = {
    "memory cells far out": (b"\x80\x02}r\xff\xff\xff\x7f.", "an object number 2,147,483,647"),
    "endless steps": (b"\x80\x02" + b"]" * 500_001 + b".", "more steps than a file of CIFAR"),
    "tuples in tuples": (b"\x80\x02}()" + b"\x85" * 300_000 + b"Nu.", "more steps than"),
    "a number of many digits": (b"\x80\x02\x8a\xff" + b"\xff" * 255 + b".", "the step LONG1"),
    "a promise of 2 GiB": (b"\x80\x02T\xff\xff\xff\x7fabc.", "only 4 remain"),
    "a promise of 2**63 bytes": (b"\x80\x04\x8e" + b"\xff" * 7 + b"\x7fabc.", "bytes"),
    "negative bytes": (b"\x80\x02T\xff\xff\xff\xffabc.", "byte count < 0"),
}
DAMAGED: dict[str, tuple[bytes, str]] = {
    "cut off": (_python2({b"labels": [1, 2, 3]})[:-3], "exhausted before"),
    "no bytes": (b"", "exhausted before"),
    "a text": (b"hello", "the step LIST"),
    "a text with odd backslashes that ends early": (b"S'\\e'\n", "the step STRING"),
    "a step that does not exist": (b"\x80\x02\xff.", "unknown"),
    "a protocol that does not exist": (b"\x80\x06}.", "unsupported pickle protocol"),
    "nothing": (b"\x80\x02.", "underflow"),
    "items without a mark": (b"\x80\x02}U\x01au.", "could not find MARK"),
    "a key without its value": (b"\x80\x02}(U\x01au.", "odd number of items"),
    "an append to nothing": (b"\x80\x02K\x01a.", "underflow"),
    "memory that was not written": (b"\x80\x02h\x05.", "Memo value not found"),
    "a tuple of too much": (b"\x80\x02K\x01\x87.", "underflow"),
}
HOSTILE = CALLS | LARGE | DAMAGED


@pytest.mark.parametrize("case", HOSTILE)
def test_a_pickle_of_anything_but_data_is_refused_and_nothing_of_it_is_run(
    tmp_path: Path, case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "system", pytest.fail)
    content, message = HOSTILE[case]
    folder = _written(tmp_path, "cifar-10-batches-py")
    (folder / "data_batch_2").write_bytes(content)
    (folder / "batches.meta").write_bytes(content[:60_000])
    for name in ("batches.meta", "data_batch_2"):
        with pytest.raises(
            DatasetError, match=rf"{name}: .*damaged, or .*no data \(.*\); expected a file of CIFAR"
        ):
            datasets.load_dataset(folder)
        (folder / "batches.meta").write_bytes(_python2({b"label_names": TEN}))
    with pytest.raises(ValueError, match=message):
        pickles.read(content)


def test_the_alarms_of_these_tests_would_go_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pickles._Unpickler, "find_class", pickle.Unpickler.find_class)
    with pytest.raises(pytest.fail.Exception, match=r"^$"):
        pickles.read(CALLS["a function among the labels"][0])


def test_every_allowed_name_is_a_record_and_no_function() -> None:
    names = b"".join(_global(name) for name in pickles._NAMES)
    found = pickles.read(b"\x80\x02}(U\x01a](" + names + b"eu.")["a"]
    assert found == [pickles._Call] * 3
    assert vars(pickles._Call).keys().isdisjoint({"__call__", "__reduce__"})


def test_a_pickle_that_is_cut_off_anywhere_is_refused() -> None:
    content = _python2({b"data": _pixels(1, 0)[:, :30], b"labels": [1], b"names": TEN})
    assert pickles.read(content)
    for end in range(len(content)):
        with pytest.raises(ValueError, match=r"."):
            pickles.read(content[:end])


def test_a_pickle_with_any_bits_flipped_gives_data_or_is_refused() -> None:
    content = _python2({b"data": _pixels(1, 0)[:, :30], b"labels": [1], b"names": TEN})
    generator = np.random.default_rng(0)
    refused = 0
    for _ in range(3000):
        changed = bytearray(content)
        for at in generator.integers(0, len(content), 2):
            changed[at] = generator.integers(0, 256)
        try:
            found = pickles.read(bytes(changed))
            pickles.pixels(found.get("data"))
        except ValueError:
            refused += 1
        else:
            assert all(type(key) is str for key in found)
    assert 500 < refused < 3000


def _peak(read: str, content: bytes) -> int:
    """The most address space that a process has had after it read a file, in bytes."""
    folder = str(Path(pickles.__file__).parent)
    code = (
        f"import sys; sys.path[0] = {folder!r}; import pickle, pickles\n"
        f"try: {read}(sys.stdin.buffer.read())\n"
        "except ValueError: pass\n"
        "print(*[line for line in open('/proc/self/status') if line.startswith('VmPeak')])"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], check=True, input=content, capture_output=True
    )
    return 1024 * int(run.stdout.split()[1])


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="there is no /proc")
def test_a_hostile_pickle_takes_neither_memory_nor_stack() -> None:
    usual = _peak("pickles.read", b"")
    peaks = {case: _peak("pickles.read", content) - usual for case, (content, _) in LARGE.items()}
    assert {case: peak for case, peak in peaks.items() if peak > 1 << 26} == {}
    far_out = b"\x80\x02}r\xff\xff\xff\x00."
    assert _peak("pickle.loads", far_out) - usual > 1 << 26  # the control


# Files that do not fit


def _changed(name: bytes, value: Any) -> bytes:
    pixels, labels = _pieces(False)["data_batch_2"]
    return _python2({b"data": pixels, b"labels": labels, name: value})


NO_ARRAY = "its data are no array of bytes in rows"
OTHER_DTYPE = DTYPE.replace(b"u1", b"i1") + DTYPE_STATE
BAD_BATCHES: dict[str, tuple[bytes, str]] = {
    "a label too few": (_changed(b"labels", [0] * 9), "10 images but 9 labels"),
    "a label too many": (_changed(b"labels", [0] * 11), "10 images but 11 labels"),
    "no labels": (_changed(b"labels", []), "labels are no list of numbers"),
    "labels as text": (_changed(b"labels", [b"cat"] * 10), "labels are no list of numbers"),
    "labels that are true": (_changed(b"labels", [True] * 10), "labels are no list of numbers"),
    "a label beyond the names": (_changed(b"labels", [10] * 10), "without a name; expected 0 to 9"),
    "a negative label": (_changed(b"labels", [-1] * 10), "without a name; expected 0 to 9"),
    "pictures of another size": (
        _changed(b"data", _pixels(10, 0)[:, :-1].copy()),
        r"shape \(10, 3071\)",
    ),
    "flat pictures": (_changed(b"data", _pixels(10, 0).reshape(-1)), NO_ARRAY),
    "pictures in four axes": (_changed(b"data", _pixels(10, 0).reshape(10, 3, 32, 32)), NO_ARRAY),
    "one pixel": (_changed(b"data", np.array(7, dtype=np.uint8)), NO_ARRAY),
    "no rows": (_changed(b"data", _pixels(0, 0)), NO_ARRAY),
    "more than there is": (_changed(b"data", _array(_pixels(1, 0), shape=(HUGE, HUGE))), NO_ARRAY),
    "less than there is": (_changed(b"data", _array(_pixels(1, 0), shape=(1, 3071))), NO_ARRAY),
    "negative sizes": (_changed(b"data", _array(_pixels(1, 0), shape=(-1, -3072))), NO_ARRAY),
    "many axes": (_changed(b"data", _array(_pixels(1, 0), shape=(1,) * 70 + (3072,))), NO_ARRAY),
    "an array of many elements": (
        _changed(b"data", _Raw(NEW_ARRAY.replace(b"K\0\x85", b"J\xff\xff\xff\x7f\x85"))),
        NO_ARRAY,
    ),
    "an array that is never filled": (_changed(b"data", _Raw(NEW_ARRAY)), NO_ARRAY),
    "a dtype and no array": (_changed(b"data", _Raw(DTYPE + DTYPE_STATE)), NO_ARRAY),
    "attributes for an array": (_changed(b"data", _Raw(NEW_ARRAY + b"}b")), NO_ARRAY),
    "another dtype": (_changed(b"data", _array(_pixels(10, 0), dtype=OTHER_DTYPE)), NO_ARRAY),
    "no dtype": (_changed(b"data", _array(_pixels(10, 0), dtype=b"N")), NO_ARRAY),
    "pictures as bytes": (_changed(b"data", b"abc"), NO_ARRAY),
    "no pictures": (_python2({b"labels": [1]}), "no 'data'"),
    "labels of another name": (
        _python2({b"data": _pixels(1, 0), b"fine_labels": [1]}),
        "no 'labels'",
    ),
}


@pytest.mark.parametrize("case", BAD_BATCHES)
def test_a_batch_that_is_not_what_it_must_be_is_refused_by_name(tmp_path: Path, case: str) -> None:
    content, message = BAD_BATCHES[case]
    folder = _written(tmp_path, "cifar-10-batches-py")
    (folder / "data_batch_2").write_bytes(content)
    for path in (folder, _archived(folder)):
        with pytest.raises(DatasetError, match=rf"data_batch_2: .*{message}"):
            datasets.load_dataset(path)


@pytest.mark.parametrize("change", [-1, 1, -3074])
def test_a_binary_file_of_another_length_is_refused(tmp_path: Path, change: int) -> None:
    path = _written(tmp_path, "cifar-100-binary") / "test.bin"
    content = path.read_bytes()
    path.write_bytes(content[:change] if change == -1 else content + b"\0" if change == 1 else b"")
    with pytest.raises(
        DatasetError, match=r"test.bin: it has [\d,]+ bytes; expected 3,074 for each"
    ):
        datasets.load_dataset(path.parent)


def test_a_binary_label_without_a_name_is_refused(tmp_path: Path) -> None:
    path = _written(tmp_path, "cifar-100-binary") / "train.bin"
    content = bytearray(path.read_bytes())
    for at, count in ((0, 3), (1, 6)):
        path.write_bytes(bytes(content[:at] + bytes([count]) + content[at + 1 :]))
        with pytest.raises(
            DatasetError, match=f"train.bin: .*without a name; expected 0 to {count - 1}"
        ):
            datasets.load_dataset(path.parent)


def test_a_class_in_two_superclasses_is_refused(tmp_path: Path) -> None:
    path = _written(tmp_path, "cifar-100-binary") / "train.bin"
    content = bytearray(path.read_bytes())
    content[0] = 1 - content[0] if content[0] < 2 else 0
    path.write_bytes(bytes(content))
    with pytest.raises(DatasetError, match=r"class 'fine 0' is in several superclasses"):
        datasets.load_dataset(path.parent)


BAD_NAMES = {
    "twice the same": [b"cat", b"cat"],
    "none": [],
    "empty": [b"", b"dog"],
    "no text": [b"\xff\xfe", b"dog"],
    "control characters": [b"\x1b[2J", b"dog"],
    "very long": [b"a" * 101, b"dog"],
}


@pytest.mark.parametrize("case", BAD_NAMES)
def test_names_that_cannot_be_shown_are_refused(tmp_path: Path, case: str) -> None:
    folder = _written(tmp_path, "cifar-10-batches-py")
    (folder / "batches.meta").write_bytes(_python2({b"label_names": BAD_NAMES[case]}))
    with pytest.raises(DatasetError, match=r"batches.meta: its names are not texts that differ"):
        datasets.load_dataset(folder)


def test_names_that_are_no_list_or_no_texts_or_too_many_are_refused(tmp_path: Path) -> None:
    folder = _written(tmp_path, "cifar-10-batches-py")
    for content, message in (
        (_python2({b"label_names": 3}), "not texts that differ"),
        (_python2({b"label_names": [1, 2]}), "not texts that differ"),
        (_python2({b"names": TEN}), "no 'label_names'"),
        (bytes(1 << 17), "131,072 bytes; expected some short names"),
    ):
        (folder / "batches.meta").write_bytes(content)
        with pytest.raises(DatasetError, match=f"batches.meta: .*{message}"):
            datasets.load_dataset(folder)


@pytest.mark.parametrize("name", WRITERS)
def test_a_missing_file_is_named(tmp_path: Path, name: str) -> None:
    folder = _written(tmp_path, name)
    for file in sorted(folder.iterdir()):
        content = file.read_bytes()
        file.unlink()
        for path in (folder, _archived(folder)):
            with pytest.raises(DatasetError, match=rf": no {file.name}; expected .*{file.name}"):
                datasets.load_dataset(path)
        file.write_bytes(content)


def test_two_data_sets_in_one_folder_are_refused(tmp_path: Path) -> None:
    folder = _written(tmp_path, "cifar-10-batches-py")
    for file in _written(tmp_path, "cifar-10-batches-bin").iterdir():
        file.rename(folder / file.name)
    with pytest.raises(DatasetError, match="batches of several data sets"):
        datasets.load_dataset(folder)


# Archives


def _archive(path: Path, *members: tuple[str, bytes], **header: Any) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            for key, value in header.items():
                setattr(info, key, value)
            archive.addfile(info, io.BytesIO(content))
    return path


def test_what_else_is_in_an_archive_is_passed_over_and_nothing_is_extracted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = _written(tmp_path / "", "cifar-100-python")
    members = [(f"cifar/{file.name}", file.read_bytes()) for file in folder.iterdir()]
    others = [("../../escaped", b"x"), ("/escaped", b"x"), ("cifar/._train", b"what a Mac leaves")]
    empty = tmp_path / "empty"
    empty.mkdir()
    monkeypatch.chdir(empty)
    data = datasets.load_dataset(_archive(tmp_path / "data.tar.gz", *others, *members))
    assert (data.name, len(data.x_train)) == ("data", 12)
    assert not list(empty.iterdir())
    assert not (tmp_path.parent / "escaped").exists()


def test_an_archive_with_a_file_twice_is_refused(tmp_path: Path) -> None:
    path = _archive(tmp_path / "data.tgz", ("a/train.bin", b"x"), ("b/train.bin", b"y"))
    with pytest.raises(DatasetError, match=r"two files train\.bin; expected one"):
        datasets.load_dataset(path)


@pytest.mark.parametrize(
    "kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE]
)
def test_links_and_devices_in_an_archive_are_not_followed(tmp_path: Path, kind: bytes) -> None:
    header = {"type": kind, "linkname": "/etc/hostname"}
    path = _archive(tmp_path / "data.tgz", ("a/train.bin", b""), ("a/test.bin", b""), **header)
    with pytest.raises(DatasetError, match="no batches of pictures; expected the files of CIFAR"):
        datasets.load_dataset(path)


def test_an_archive_of_something_else_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="no batches of pictures"):
        datasets.load_dataset(_archive(tmp_path / "data.tar.gz", ("notes.txt", b"hello")))


@pytest.mark.parametrize("content", [b"", b"no tar", b"\x1f\x8b\x08\0", b"\x1f\x8b" + b"x" * 600])
def test_an_archive_that_is_none_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "data.tar.gz"
    path.write_bytes(content)
    with pytest.raises(DatasetError, match=r"data.tar.gz: it is damaged \(.*whole tar archive"):
        datasets.load_dataset(path)


def test_an_archive_that_is_cut_off_is_refused(tmp_path: Path) -> None:
    path = _archived(_written(tmp_path, "cifar-10-batches-bin"))
    content = path.read_bytes()
    for share in (0.1, 0.5, 0.9):
        path.write_bytes(content[: int(share * len(content))])
        with pytest.raises(DatasetError, match="is damaged"):
            datasets.load_dataset(path)


@pytest.mark.parametrize("size", [1 << 28, (1 << 28) + 1, 1 << 32, 1 << 40])
def test_an_archive_that_promises_too_much_is_refused_without_taking_memory(
    tmp_path: Path, size: int
) -> None:
    info = tarfile.TarInfo("a/train.bin")
    info.size = size
    path = tmp_path / "data.tar"
    path.write_bytes(info.tobuf() + b"x" * 2000)
    tracemalloc.start()
    try:
        with pytest.raises(DatasetError, match=r"too large|is damaged"):
            datasets.load_dataset(path)
        assert tracemalloc.get_traced_memory()[1] < 10_000_000
    finally:
        tracemalloc.stop()


def test_a_header_of_an_archive_that_takes_much_memory_is_refused(tmp_path: Path) -> None:
    info = tarfile.TarInfo("a")
    info.type, info.size = tarfile.XHDTYPE, 100_000_000
    path = _archive(tmp_path / "data.tar.gz", ("a", bytes(info.size)), type=tarfile.XHDTYPE)
    tracemalloc.start()
    try:
        with pytest.raises(DatasetError, match="asks for more bytes than such data have"):
            datasets.load_dataset(path)
        assert tracemalloc.get_traced_memory()[1] < 10_000_000
    finally:
        tracemalloc.stop()


# Which folder is CIFAR


def test_a_folder_of_pictures_with_a_file_of_such_a_name_stays_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "train").mkdir()
    (tmp_path / "test").write_text("a note")
    assert not cifar.holds_cifar(tmp_path)
    with pytest.raises(DatasetError, match="no pictures in a train folder"):
        datasets.load_dataset(tmp_path)
    (tmp_path / "train").rmdir()
    assert cifar.holds_cifar(tmp_path)  # the control


def test_cifar_is_among_the_formats_that_an_error_names(tmp_path: Path) -> None:
    (tmp_path / "data.csv").write_text("1,2")
    with pytest.raises(
        DatasetError, match=r"known kind; expected .*\.tar\.gz of CIFAR-10 or CIFAR-100"
    ):
        datasets.load_dataset(tmp_path / "data.csv")
