from __future__ import annotations

import gzip
import io
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from splitgrow.demos import datasets
from splitgrow.demos.rawdata import DatasetError

Arrays = dict[str, np.ndarray]


def _arrays(shape: tuple[int, ...] = (12, 5, 4), classes: int = 3) -> Arrays:
    generator = np.random.default_rng(0)
    return {
        "x_train": generator.integers(0, 256, shape, dtype=np.uint8),
        "y_train": np.arange(shape[0]) % classes,
        "x_test": generator.integers(0, 256, (6, *shape[1:]), dtype=np.uint8),
        "y_test": np.arange(6) % classes,
    }


def _npz(folder: Path, **changed: np.ndarray) -> Path:
    path = folder / "data.npz"
    np.savez(path, **{**_arrays(), **changed})
    return path


# The digits


def test_digits_are_the_default_and_hold_all_ten_classes_in_both_halves() -> None:
    data = datasets.load_dataset(None)
    assert data.name == "digits"
    assert data.x_train.shape == (1437, 1, 8, 8)
    assert data.x_test.shape == (360, 1, 8, 8)
    assert data.classes == tuple("0123456789")
    assert data.y_test.bincount().min() >= 34  # in proportion: 174 to 183 of each in all


def test_images_are_normalised_by_the_training_half() -> None:
    data = datasets.load_dataset(None)
    assert data.x_train.dtype == torch.float32
    assert data.x_train.mean().abs() < 1e-5
    assert (data.x_train.std() - 1).abs() < 1e-3
    assert data.x_test.mean() != 0


def test_the_seed_chooses_the_split_of_the_digits() -> None:
    first, again, other = (datasets.load_dataset(None, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first.x_test, again.x_test)
    assert not torch.equal(first.x_test, other.x_test)


def test_limit_keeps_the_classes_in_proportion_and_the_test_half_whole() -> None:
    data = datasets.load_dataset(None, limit=100)
    assert len(data.x_train) == len(data.y_train) == 100
    assert set(data.y_train.bincount().tolist()) <= {9, 10, 11}
    assert len(data.x_test) == 360


def test_limit_keeps_an_image_of_every_class_however_rare(tmp_path: Path) -> None:
    arrays = _arrays((300, 2, 2))
    arrays["y_train"] = np.where(np.arange(300) < 298, 0, np.arange(300) - 297)
    path = _npz(tmp_path, **arrays)
    assert sorted(datasets.load_dataset(path, limit=3).y_train.tolist()) == [0, 1, 2]


def test_limit_below_the_number_of_classes_is_refused() -> None:
    with pytest.raises(DatasetError, match="--limit 9 is less than its 10 classes"):
        datasets.load_dataset(None, limit=9)


def test_digits_cannot_be_resized() -> None:
    with pytest.raises(ValueError, match="size is for picture files"):
        datasets.load_dataset(None, size=16)


# One .npz file


@pytest.mark.parametrize("channels_first", [True, False])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.float64])
def test_npz_is_read_with_its_channels_on_either_side(
    tmp_path: Path, channels_first: bool, dtype: type
) -> None:
    arrays = _arrays((12, 3, 5, 6))
    expected = torch.from_numpy(arrays["x_train"]).double()
    expected = expected - expected.mean((0, 2, 3), keepdim=True)
    expected /= expected.std((0, 2, 3), keepdim=True, correction=0)
    for name in ("x_train", "x_test"):
        arrays[name] = arrays[name].astype(dtype)
        if not channels_first:
            arrays[name] = np.moveaxis(arrays[name], 1, 3)
    data = datasets.load_dataset(_npz(tmp_path, **arrays))
    assert (data.name, data.channels, data.size) == ("data", 3, (5, 6))
    torch.testing.assert_close(data.x_train.double(), expected, rtol=0, atol=1e-5)


def test_npz_of_grey_images_needs_no_channel_axis(tmp_path: Path) -> None:
    assert datasets.load_dataset(_npz(tmp_path)).x_train.shape == (12, 1, 5, 4)


def test_labels_are_numbered_from_zero_and_keep_their_names(tmp_path: Path) -> None:
    arrays = _arrays()
    path = _npz(tmp_path, y_train=arrays["y_train"] * 10 + 5, y_test=arrays["y_test"] * 10 + 5)
    data = datasets.load_dataset(path)
    assert data.classes == ("5", "15", "25")
    assert data.y_train.tolist() == arrays["y_train"].tolist()
    assert data.y_train.dtype == torch.int64


def test_labels_may_be_a_column(tmp_path: Path) -> None:
    arrays = _arrays()
    data = datasets.load_dataset(_npz(tmp_path, y_train=arrays["y_train"][:, None]))
    assert data.y_train.tolist() == arrays["y_train"].tolist()


def test_a_constant_channel_stays_finite(tmp_path: Path) -> None:
    arrays = _arrays((12, 3, 5, 6))
    arrays["x_train"][:, 1] = arrays["x_test"][:, 1] = 7
    data = datasets.load_dataset(_npz(tmp_path, **arrays))
    assert torch.equal(data.x_test[:, 1], torch.zeros(6, 5, 6))


def _with(name: str, value: float) -> Callable[[Arrays], Arrays]:
    def change(arrays: Arrays) -> Arrays:
        arrays = {key: array.astype(np.float64) for key, array in arrays.items() if "x" in key}
        arrays[name][0, 0, 0] = value
        return arrays

    return change


BAD_ARRAYS: dict[str, tuple[Callable[[Arrays], Arrays], str]] = {
    "not a number": (_with("x_train", np.nan), "not finite, or too large"),
    "infinite in the test half": (_with("x_test", np.inf), "not finite, or too large"),
    "too large for float32": (_with("x_train", 1e300), "not finite, or too large"),
    "lengths differ": (lambda a: {"y_train": a["y_train"][:-1]}, r"12 images but 11 labels"),
    "float labels": (lambda a: {"y_train": a["y_train"] / 2}, r"y_train.*type float64.*integer"),
    "one-hot labels": (lambda a: {"y_test": np.eye(3, dtype=int)[a["y_test"]]}, r"shape \(6, 3\)"),
    "text for pixels": (lambda a: {"x_train": a["x_train"].astype(str)}, "values of type <U"),
    "complex pixels": (lambda a: {"x_test": a["x_test"] * 1j}, "complex128.*uint8 or float"),
    "flat images": (lambda a: {"x_train": a["x_train"].reshape(12, -1)}, r"shape \(12, 20\)"),
    "five axes": (lambda a: {"x_train": a["x_train"][None, None]}, "array of shape"),
    "no channels": (lambda a: {"x_train": np.ones((12, 5, 4, 7))}, "channels nowhere"),
    "two channel axes": (lambda a: {"x_train": np.ones((12, 3, 9, 3))}, "either way round"),
    "sizes differ": (lambda a: {"x_test": np.ones((6, 9, 9))}, r"\(1, 5, 4\), test.*\(1, 9, 9\)"),
    "no images": (lambda a: {"x_train": a["x_train"][:0]}, r"no values \(shape \(0, 5, 4\)\)"),
    "one class": (
        lambda a: {"y_train": a["y_train"] * 0, "y_test": a["y_test"] * 0},
        "all images are of one class",
    ),
    "class only in train": (lambda a: {"y_test": a["y_test"] % 2}, "only in train.*: 2; expected"),
    "class only in test": (lambda a: {"y_test": a["y_test"] + 1}, "only in test: 0, 3; expected"),
}


@pytest.mark.parametrize("case", BAD_ARRAYS)
def test_npz_that_cannot_be_used_is_refused_with_the_reason(tmp_path: Path, case: str) -> None:
    change, message = BAD_ARRAYS[case]
    path = _npz(tmp_path, **change(_arrays()))
    with pytest.raises(DatasetError, match=message) as caught:
        datasets.load_dataset(path)
    assert caught.value.message.startswith(str(path))
    assert "; expected " in caught.value.message
    assert caught.value.exit_code == 1


def test_npz_names_the_arrays_that_it_lacks(tmp_path: Path) -> None:
    np.savez(tmp_path / "half.npz", x_train=np.ones((2, 2, 2)), labels=np.arange(2))
    with pytest.raises(DatasetError, match=r"no y_train, x_test, y_test .*\(x_train, labels\)"):
        datasets.load_dataset(tmp_path / "half.npz")


class _Alarm:
    def __reduce__(self) -> tuple[object, ...]:
        return pytest.fail, ("a data file ran code",)


def test_npz_with_pickles_is_refused_and_they_are_not_run(tmp_path: Path) -> None:
    objects = np.array([_Alarm(), _Alarm()], dtype=object)
    with pytest.raises(DatasetError, match="allow_pickle"):
        datasets.load_dataset(_npz(tmp_path, x_train=objects))


@pytest.mark.parametrize("content", [b"", b"not a zip", b"\x80\x04pickle", b"PK\x03\x04 cut off"])
def test_npz_that_is_no_npz_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "bad.npz"
    path.write_bytes(content)
    with pytest.raises(DatasetError, match=r"cannot be read|is damaged"):
        datasets.load_dataset(path)


def test_npz_that_is_damaged_inside_is_refused(tmp_path: Path) -> None:
    path = _npz(tmp_path)
    content = bytearray(path.read_bytes())
    content[300] ^= 0xFF  # within the pixels of x_train
    path.write_bytes(content)
    with pytest.raises(DatasetError, match="CRC"):
        datasets.load_dataset(path)


def test_npz_that_holds_one_array_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "one.npy", np.ones(3))
    path = (tmp_path / "one.npy").rename(tmp_path / "one.npz")
    with pytest.raises(DatasetError, match="one single array"):
        datasets.load_dataset(path)


# idx files


def _idx_bytes(array: np.ndarray) -> bytes:
    header = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
    return header + array.astype(np.uint8).tobytes()


def _idx_folder(folder: Path, *, zipped: bool = True, separator: str = "-") -> Path:
    arrays = _arrays()
    for role, half in (("train", "train"), ("t10k", "test")):
        for kind, name in (("images", f"x_{half}"), ("labels", f"y_{half}")):
            content = _idx_bytes(arrays[name])
            path = folder / f"{role}-{kind}{separator}idx{3 if kind == 'images' else 1}-ubyte"
            if zipped:
                path.with_name(path.name + ".gz").write_bytes(gzip.compress(content))
            else:
                path.write_bytes(content)
    return folder


@pytest.mark.parametrize(("zipped", "separator"), [(True, "-"), (False, "-"), (False, ".")])
def test_idx_files_hold_what_the_npz_does(tmp_path: Path, zipped: bool, separator: str) -> None:
    data = datasets.load_dataset(_idx_folder(tmp_path, zipped=zipped, separator=separator))
    expected = datasets.load_dataset(_npz(tmp_path))
    assert torch.equal(data.x_train, expected.x_train)
    assert torch.equal(data.x_test, expected.x_test)
    assert torch.equal(data.y_test, expected.y_test)


WHOLE = _idx_bytes(_arrays()["x_train"])
BAD_IDX: dict[str, tuple[bytes, str]] = {
    "gz cut off": (gzip.compress(WHOLE)[:-20], "is damaged"),
    "not gz at all": (WHOLE, "is damaged"),
    "gz with a bit flipped": (
        gzip.compress(WHOLE)[:-8] + b"\0\0\0\0" + gzip.compress(WHOLE)[-4:],
        "is damaged",
    ),
    "no bytes": (gzip.compress(b""), r"starts with the bytes \(none\)"),
    "bad magic": (gzip.compress(b"\x01" + WHOLE[1:]), "starts with the bytes 01 00 08 03"),
    "floats": (gzip.compress(b"\0\0\x0d\x03" + WHOLE[4:]), "expected 00 00 08 03"),
    "header cut off": (gzip.compress(WHOLE[:10]), "ends within its header"),
    "too few values": (gzip.compress(WHOLE[:-1]), r"promises 240 values .* holds only 239"),
    "too many values": (gzip.compress(WHOLE + b"\0"), "holds more"),
    "sizes beyond memory": (
        gzip.compress(WHOLE[:4] + b"\xff" * 12 + WHOLE[16:]),
        "takes 79,228,162,458,924,105,385,300,197,375 bytes .* larger --max-gb",
    ),
    "sizes beyond the file": (
        gzip.compress(WHOLE[:4] + b"\0\0\xff\xff" + WHOLE[8:]),
        "holds only 240",
    ),
    "zero images": (gzip.compress(WHOLE[:4] + bytes(4) + WHOLE[8:16]), "is empty"),
}


@pytest.mark.parametrize("case", BAD_IDX)
def test_idx_file_that_is_damaged_is_refused_by_name(tmp_path: Path, case: str) -> None:
    content, message = BAD_IDX[case]
    name = "train-images-idx3-ubyte.gz"
    (_idx_folder(tmp_path) / name).write_bytes(content)
    with pytest.raises(DatasetError, match=rf"{name}: .*{message}"):
        datasets.load_dataset(tmp_path)


def test_idx_folder_without_one_of_its_files_is_refused(tmp_path: Path) -> None:
    (_idx_folder(tmp_path) / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(DatasetError, match="no t10k-labels-idx1-ubyte file; expected train-images"):
        datasets.load_dataset(tmp_path)


def test_idx_halves_of_different_sizes_are_refused(tmp_path: Path) -> None:
    path = _idx_folder(tmp_path) / "t10k-images-idx3-ubyte.gz"
    path.write_bytes(gzip.compress(_idx_bytes(np.ones((6, 9, 9)))))
    with pytest.raises(DatasetError, match=r"\(5, 4\) and test images of \(9, 9\) pixels"):
        datasets.load_dataset(tmp_path)


# Picture files


def _picture(colour: tuple[int, int, int], size: tuple[int, int] = (6, 5)) -> Image.Image:
    pixels = np.zeros((size[1], size[0], 3), dtype=np.uint8)
    pixels[:] = colour
    pixels[0, 0] = 255 - pixels[0, 0]  # so that no picture is of one colour
    return Image.fromarray(pixels)


COLOURS = {"cat": (200, 30, 60), "dog": (20, 180, 90)}


def _pictures(
    folder: Path, *, test: str = "test", suffix: str = ".png", count: int = 3, mode: str = "RGB"
) -> Path:
    for split in ("train", test):
        for label, (red, green, blue) in COLOURS.items():
            (folder / split / label).mkdir(parents=True)
            for number in range(count):
                path = folder / split / label / f"{number}{suffix}"
                _picture((red, green, blue + number)).convert(mode).save(path)
    return folder


def _zipped(folder: Path, target: Path, top: str = "") -> Path:
    with zipfile.ZipFile(target, "w") as archive:
        for file in sorted(folder.rglob("*")):
            archive.write(file, top + file.relative_to(folder).as_posix())
    return target


@pytest.mark.parametrize("test", ["test", "val"])
@pytest.mark.parametrize("suffix", [".png", ".bmp", ".JPG"])
def test_a_folder_of_pictures_is_read(tmp_path: Path, test: str, suffix: str) -> None:
    data = datasets.load_dataset(_pictures(tmp_path / "pets", test=test, suffix=suffix))
    assert data.name == "pets"
    assert data.classes == ("cat", "dog")
    assert data.x_train.shape == (6, 3, 5, 6)
    assert data.y_train.tolist() == data.y_test.tolist() == [0, 0, 0, 1, 1, 1]
    red, green = data.x_train[:, 0, 2, 2], data.x_train[:, 1, 2, 2]
    assert (red[:3] > red[3:]).all()  # cats are red
    assert (green[:3] < green[3:]).all()  # and dogs are green


def _tasks(folder: Path, count: int = 6) -> Path:
    for at, name in enumerate(("pets/cat", "pets/dog", "wild/dog", "wild/fox")):
        (folder / name).mkdir(parents=True)
        for number in range(count):
            _picture((60 + 30 * at, 9, number)).save(folder / name / f"{number}.png")
    return folder


@pytest.mark.parametrize("zipped", [False, True])
def test_a_folder_of_tasks_is_read_and_a_fifth_of_each_class_is_for_tests(
    tmp_path: Path, zipped: bool
) -> None:
    path = _tasks(tmp_path / "animals")
    path = _zipped(path, tmp_path / "animals.zip") if zipped else path
    data = datasets.load_dataset(path)
    assert data.folders
    assert data.classes == ("pets/cat", "pets/dog", "wild/dog", "wild/fox")
    assert data.superclasses == {"pets": (0, 1), "wild": (2, 3)}
    assert data.y_test.bincount().tolist() == [2, 2, 2, 2]
    assert data.y_train.bincount().tolist() == [4, 4, 4, 4]
    again = datasets.load_dataset(path, seed=5)
    assert torch.equal(again.x_test, data.x_test)  # the same ones, whatever the seed
    seen = {tuple(x.flatten().tolist()) for x in data.x_train}
    assert not any(tuple(x.flatten().tolist()) in seen for x in data.x_test)


def test_folders_of_tasks_that_make_no_sense_are_told(tmp_path: Path) -> None:
    path = _tasks(tmp_path / "animals")
    (path / "wild" / "owl").mkdir()
    with pytest.raises(DatasetError, match=r"owl: the folder is empty"):
        datasets.load_dataset(path)
    _picture((1, 2, 3)).save(path / "wild" / "owl" / "0.png")
    with pytest.raises(DatasetError, match=r"owl: one picture; expected at least two"):
        datasets.load_dataset(path)
    (path / "wild" / "owl" / "1.png").write_bytes(b"no picture")
    with pytest.raises(DatasetError, match=r"the picture cannot be read"):
        datasets.load_dataset(path)


@pytest.mark.parametrize("top", ["", "pets/"])
def test_a_zip_holds_what_its_folder_does(tmp_path: Path, top: str) -> None:
    folder = _pictures(tmp_path / "pets")
    expected = datasets.load_dataset(folder)
    data = datasets.load_dataset(_zipped(folder, tmp_path / "pets.zip", top))
    assert data.classes == expected.classes
    assert torch.equal(data.x_train, expected.x_train)
    assert torch.equal(data.y_test, expected.y_test)


def test_other_files_among_the_pictures_are_passed_over(tmp_path: Path) -> None:
    folder = _pictures(tmp_path / "pets")
    expected = len(datasets.load_dataset(folder).x_train)
    (folder / "README.txt").write_text("pets")
    (folder / "train" / "cat" / "notes.txt").write_text("purrs")
    (folder / "train" / "cat" / "._0.png").write_bytes(b"what a Mac leaves behind")
    (folder / "__MACOSX" / "train" / "cat").mkdir(parents=True)
    (folder / "__MACOSX" / "train" / "cat" / "0.png").write_bytes(b"and in its zips")
    assert len(datasets.load_dataset(folder).x_train) == expected


def test_test_pictures_are_preferred_to_val_pictures(tmp_path: Path) -> None:
    folder = _pictures(tmp_path, test="val", count=2)
    for label, colour in COLOURS.items():
        (folder / "test" / label).mkdir(parents=True)
        _picture(colour).save(folder / "test" / label / "0.png")
    assert len(datasets.load_dataset(folder).x_test) == 2


@pytest.mark.parametrize("mode", ["L", "1"])
def test_grey_pictures_have_one_channel(tmp_path: Path, mode: str) -> None:
    assert datasets.load_dataset(_pictures(tmp_path, mode=mode)).x_train.shape == (6, 1, 5, 6)


def test_one_coloured_picture_among_grey_ones_keeps_its_colours(tmp_path: Path) -> None:
    folder = _pictures(tmp_path, mode="L")
    _picture((200, 0, 0)).save(folder / "test" / "dog" / "2.png")
    assert datasets.load_dataset(folder).channels == 3


@pytest.mark.parametrize(("size", "expected"), [(None, (5, 6)), (9, (9, 9))])
def test_pictures_are_resized_to_the_first_or_to_the_size_given(
    tmp_path: Path, size: int | None, expected: tuple[int, int]
) -> None:
    folder = _pictures(tmp_path)
    _picture((9, 9, 9), size=(20, 30)).save(folder / "train" / "dog" / "2.png")
    assert datasets.load_dataset(folder, size=size).size == expected


def test_only_the_pictures_that_are_kept_are_read(tmp_path: Path) -> None:
    seen: dict[str, list[str]] = {}

    def track(names: list[str], what: str) -> list[str]:
        seen[what] = list(names)
        return names

    datasets.load_dataset(_pictures(tmp_path), limit=2, track=track)
    assert sorted(len(names) for names in seen.values()) == [2, 6]
    assert {Path(name).parent.name for name in seen["Reading train pictures"]} == {"cat", "dog"}


def _break_nothing_but(folder: Path, case: str) -> None:
    broken = folder / "train" / "dog" / "1.png"
    content = broken.read_bytes()
    if case == "cut off":
        broken.write_bytes(content[: len(content) // 2])
    elif case == "no picture":
        broken.write_text("a text")
    elif case == "empty":
        broken.write_bytes(b"")
    elif case == "damaged":
        broken.write_bytes(content[:45] + bytes(8) + content[53:])


@pytest.mark.parametrize("case", ["cut off", "no picture", "empty", "damaged"])
@pytest.mark.parametrize("zipped", [False, True])
def test_a_broken_picture_is_named(tmp_path: Path, case: str, zipped: bool) -> None:
    path = _pictures(tmp_path / "pets")
    _break_nothing_but(path, case)
    if zipped:
        path = _zipped(path, tmp_path / "pets.zip")
    with pytest.raises(DatasetError, match=r"train/dog/1.png: the picture cannot be read"):
        datasets.load_dataset(path)


def _add_escape(path: Path, name: str) -> None:
    buffer = io.BytesIO()
    _picture((1, 2, 3)).save(buffer, "png")
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(name, buffer.getvalue())


@pytest.mark.parametrize(
    "name", ["../train/cat/9.png", "/train/cat/9.png", "train/../../9.png", "C:/9.png", "..\\9.png"]
)
def test_a_zip_that_points_outside_of_itself_is_refused(tmp_path: Path, name: str) -> None:
    path = _zipped(_pictures(tmp_path / "pets"), tmp_path / "pets.zip")
    _add_escape(path, name)
    with pytest.raises(DatasetError, match="points outside of the archive"):
        datasets.load_dataset(path)


@pytest.mark.parametrize("case", ["cut off", "of a later version"])
def test_a_zip_that_cannot_be_opened_is_refused(tmp_path: Path, case: str) -> None:
    path = _zipped(_pictures(tmp_path / "pets"), tmp_path / "pets.zip")
    content = bytearray(path.read_bytes())
    if case == "cut off":
        content = content[:-30]
    else:
        content[content.index(b"PK\x01\x02") + 6] = 250  # the version that reading it needs
    path.write_bytes(content)
    with pytest.raises(DatasetError, match="not a whole zip file"):
        datasets.load_dataset(path)


@pytest.mark.parametrize("missing", ["train", "test"])
def test_pictures_without_one_half_are_refused(tmp_path: Path, missing: str) -> None:
    folder = _pictures(tmp_path)
    (folder / missing).rename(folder / "elsewhere")
    with pytest.raises(DatasetError, match=f"no pictures in a {missing}.* folder; expected"):
        datasets.load_dataset(folder)


def test_pictures_whose_halves_have_different_classes_are_refused(tmp_path: Path) -> None:
    folder = _pictures(tmp_path)
    (folder / "test" / "dog").rename(folder / "test" / "wolf")
    with pytest.raises(DatasetError, match="only in train or only in test: dog, wolf"):
        datasets.load_dataset(folder)


def test_pictures_beyond_memory_are_refused_before_they_are_read(tmp_path: Path) -> None:
    with pytest.raises(
        DatasetError, match=r"30000x30000 pixels.*smaller data, or a larger --max-gb"
    ):
        datasets.load_dataset(_pictures(tmp_path), size=30_000)


# Which reader


@pytest.mark.parametrize("name", ["nowhere", "nowhere.npz", "nowhere.zip"])
def test_a_missing_file_is_named_with_the_kinds_that_can_be_read(tmp_path: Path, name: str) -> None:
    with pytest.raises(DatasetError, match=f"{name}: there is no such file.*npz.*zip.*idx"):
        datasets.load_dataset(tmp_path / name)


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "data.csv").write_text("1,2,3")
    with pytest.raises(DatasetError, match=r"data.csv: it is of no known kind; expected an .npz"):
        datasets.load_dataset(tmp_path / "data.csv")


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="no pictures in a train folder"):
        datasets.load_dataset(tmp_path)


def test_only_picture_files_can_be_resized(tmp_path: Path) -> None:
    for path in (_npz(tmp_path), _idx_folder(tmp_path)):
        with pytest.raises(DatasetError, match="cannot be resized; expected picture files"):
            datasets.load_dataset(path, size=8)
