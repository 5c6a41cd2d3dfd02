"""The index: columns, order, labels, splits, and what a user's mistakes get."""

import logging
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from timm.data.readers.reader_image_folder import find_images_and_targets

from rsbdali.data.header import Format, ImageFlags
from rsbdali.data.index import ImageIndex
from rsbdali.data.splits import find_images, find_split
from rsbdali.errors import DataError

ImageTree = Callable[..., Path]
WriteImage = Callable[..., Path]


def paths(index: ImageIndex) -> list[str]:
    return [index.path(i) for i in range(len(index))]


def test_columns_agree_with_pillow_and_timm(image_tree: ImageTree) -> None:
    root = image_tree(classes=12, per_class=11)
    index = ImageIndex.scan(root)
    samples, class_to_idx = find_images_and_targets(str(root))
    assert paths(index) == [path for path, _ in samples]
    assert index.label_N.tolist() == [label for _, label in samples]
    assert {name: i for i, name in enumerate(index.classes)} == class_to_idx
    assert index.num_classes == 12
    for i in range(len(index)):
        with Image.open(index.path(i)) as image:
            assert image.size == (index.width_N[i], index.height_N[i])
        assert os.path.getsize(index.path(i)) == index.nbytes_N[i]
        assert index.read_bytes(i).tobytes() == Path(index.path(i)).read_bytes()
    dtypes = {
        name: getattr(index, name).dtype.name for name in ("label_N", "width_N", "height_N", "nbytes_N", "flags_N")
    }
    assert dtypes == {
        "label_N": "int32",
        "width_N": "int32",
        "height_N": "int32",
        "nbytes_N": "int64",
        "flags_N": "uint8",
    }
    assert not index.bad


def test_the_first_folder_is_the_class(tmp_path: Path, write_image: WriteImage) -> None:
    for name in ("n2/b/x.jpg", "n2/a.jpg", "n10/deep/er/y.jpg"):
        write_image(tmp_path / name)
    index = ImageIndex.scan(tmp_path)
    assert index.classes == ("n2", "n10")
    assert [index.relative_path(i) for i in range(3)] == ["n2/a.jpg", "n2/b/x.jpg", "n10/deep/er/y.jpg"]
    assert index.label_N.tolist() == [0, 0, 1]


@pytest.mark.parametrize("threads", [1, 2, 7])
def test_threads_and_chunks_change_nothing(
    image_tree: ImageTree, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = image_tree(odd=("empty", "png"))
    expected = ImageIndex.scan(root)
    monkeypatch.setattr("rsbdali.data.sources.folder.CHUNK", 3)
    seen: list[tuple[int, int]] = []
    found = ImageIndex.scan(root, threads=threads, progress=lambda done, total: seen.append((done, total)))
    assert paths(found) == paths(expected)
    np.testing.assert_array_equal(found.width_N, expected.width_N)
    assert found.bad == expected.bad
    assert seen == [(3, 14), (6, 14), (9, 14), (12, 14), (14, 14)]


def test_bad_files_are_named_and_left_out(image_tree: ImageTree) -> None:
    odd = ("truncated", "empty", "text", "cut_header", "gray", "cmyk", "png")
    root = image_tree(classes=2, per_class=2, odd=odd)
    (root / "class1" / "broken.jpg").symlink_to(root / "nowhere.jpg")
    index = ImageIndex.scan(root)
    assert len(index) == 4 + 4
    reasons = {Path(bad.path).name: bad.reason for bad in index.bad}
    assert reasons == {
        "broken.jpg": "cannot be read: No such file or directory",
        "odd_empty.JPEG": "empty file",
        "odd_text.JPEG": "not an image",
        "odd_cut_header.JPEG": "header cannot be read: Truncated File Read",
    }
    assert all(os.path.isabs(bad.path) for bad in index.bad)
    care = {Path(index.path(i)).name: ImageFlags(int(index.flags_N[i])) for i in np.flatnonzero(index.flags_N).tolist()}
    assert care == {
        "odd_truncated.JPEG": ImageFlags.NO_EOI,
        "odd_cmyk.JPEG": ImageFlags.CMYK | ImageFlags.CONVERT,
        "odd_png.JPEG": ImageFlags.OTHER_FORMAT,
    }
    assert (index.format_N == Format.PNG).sum() == 1


def test_memory_an_image(tmp_path: Path, write_image: WriteImage) -> None:
    first = write_image(tmp_path / "n01440764" / "n01440764_10026.JPEG", width=20, height=20)
    for i in range(2000):
        os.link(first, first.with_name(f"n01440764_{i:05d}_.JPEG"))
    index = ImageIndex.scan(tmp_path)
    assert index.memory_bytes / len(index) < 80
    arrays = [value for value in vars(index).values() if isinstance(value, np.ndarray)]
    assert sum(array.nbytes for array in arrays) == index.memory_bytes


def test_file_names_that_are_no_text(tmp_path: Path, write_image: WriteImage) -> None:
    name = os.fsdecode(b"caf\xe9 \xff\n.jpg")
    write_image(tmp_path / "ä" / name)
    for index in (ImageIndex.scan(tmp_path), ImageIndex.load(tmp_path), ImageIndex.load(tmp_path)):
        assert index.path(0) == str(tmp_path / "ä" / name)
        assert index.read_bytes(0).tobytes() == (tmp_path / "ä" / name).read_bytes()


def test_paths_at_the_edges(image_tree: ImageTree) -> None:
    index = ImageIndex.scan(image_tree())
    assert index.path(-1) == index.path(len(index) - 1)
    with pytest.raises(IndexError):
        index.path(len(index))


def test_a_relative_root(image_tree: ImageTree, monkeypatch: pytest.MonkeyPatch) -> None:
    root = image_tree()
    monkeypatch.chdir(root.parent)
    index = ImageIndex.scan("train")
    monkeypatch.chdir("/")
    assert os.path.isfile(index.path(0))


def test_validation_labels_follow_the_training_classes(image_tree: ImageTree, caplog: pytest.LogCaptureFixture) -> None:
    train = ImageIndex.scan(image_tree(classes=4))
    val_root = image_tree(classes=4, split="val")
    os.rename(val_root / "class0", val_root.parent / "class0")
    with caplog.at_level(logging.WARNING):
        val = ImageIndex.load(val_root, classes=train.classes)
    assert val.classes == train.classes
    assert sorted(set(val.label_N.tolist())) == [1, 2, 3]
    assert "3 of 4 classes" in caplog.text


def test_unknown_validation_classes(image_tree: ImageTree) -> None:
    root = image_tree(classes=3, split="val")
    with pytest.raises(DataError, match=r"'class2' .* none of the 2 training classes .* expected the same class names"):
        ImageIndex.scan(root, classes=("class0", "class1"))


def test_a_flat_folder_with_a_label_file(tmp_path: Path, write_image: WriteImage) -> None:
    for i in (1, 2, 10):
        write_image(tmp_path / "val" / f"v{i}.JPEG")
    write_image(tmp_path / "val" / "v3.JPEG", "empty")
    (tmp_path / "labels.txt").write_text("b\na\na\nb\n")  # v3 has its line too
    arguments = {"classes": ("a", "b"), "labels": tmp_path / "labels.txt"}
    for index in (ImageIndex.scan(tmp_path / "val", **arguments), ImageIndex.load(tmp_path / "val", **arguments)):
        assert [index.relative_path(i) for i in range(3)] == ["v1.JPEG", "v2.JPEG", "v10.JPEG"]
        assert index.label_N.tolist() == [1, 0, 1]
        assert index.classes == ("a", "b")
    with pytest.raises(DataError, match="needs class names"):
        ImageIndex.scan(tmp_path / "val", labels=tmp_path / "labels.txt")


def test_a_flat_folder_without_labels(tmp_path: Path, write_image: WriteImage) -> None:
    write_image(tmp_path / "a.jpg")
    index = ImageIndex.scan(tmp_path, need_classes=False)
    assert index.label_N.tolist() == [-1]
    assert index.num_classes == 0
    with pytest.raises(DataError, match=f"{tmp_path}: no class folders: expected {tmp_path}/<class>/<image>"):
        ImageIndex.scan(tmp_path)


def test_class_folders_go_before_a_label_file(image_tree: ImageTree, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        index = ImageIndex.scan(image_tree(classes=2), classes=("class0", "class1"), labels=Path("labels.txt"))
    assert index.label_N.tolist() == [0] * 4 + [1] * 4
    assert "labels.txt is not used" in caplog.text


def test_images_beside_class_folders_are_left_out(
    image_tree: ImageTree, write_image: WriteImage, caplog: pytest.LogCaptureFixture
) -> None:
    root = image_tree(classes=2, per_class=2)
    write_image(root / "loose.jpg")
    with caplog.at_level(logging.WARNING):
        assert len(ImageIndex.scan(root)) == 4
    assert "1 image beside the class folders is left out" in caplog.text


def test_mistakes_are_one_line(tmp_path: Path, write_image: WriteImage) -> None:
    (tmp_path / "nothing").mkdir()
    (tmp_path / "file").write_text("x")
    write_image(tmp_path / "useless" / "a" / "x.jpg", "text")
    for name, message in (
        ("gone", "no such folder: expected a folder of class folders"),
        ("file", "not a folder"),
        ("nothing", "no images: expected files named .jpeg, .jpg, .png, .webp"),
        ("useless", "no usable images: all 1 fail"),
    ):
        for make in (ImageIndex.scan, ImageIndex.load):
            with pytest.raises(DataError) as caught:
                make(tmp_path / name)
            assert str(caught.value).startswith(f"{tmp_path / name}: {message}")
            assert "\n" not in str(caught.value)


def test_find_split(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such folder"):
        find_split(tmp_path / "gone", "train")
    with pytest.raises(DataError, match=f"no val folder: expected {tmp_path}/val or {tmp_path}/validation/<class>"):
        find_split(tmp_path, "val")
    (tmp_path / "train").mkdir()
    (tmp_path / "validation").mkdir()
    assert find_split(tmp_path, "train") == tmp_path / "train"
    assert find_split(tmp_path, "val") == tmp_path / "validation"
    (tmp_path / "val").mkdir()
    assert find_split(tmp_path, "val") == tmp_path / "val"


def test_find_images(tmp_path: Path) -> None:
    assert find_images(tmp_path) == tmp_path
    (tmp_path / "train").mkdir()
    assert find_images(tmp_path) == tmp_path / "train"
    with pytest.raises(DataError, match="no such folder"):
        find_images(tmp_path / "gone")
