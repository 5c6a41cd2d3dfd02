"""What once gave wrong labels without a word: tables, label files, class maps, hidden files, damaged tar files."""

import os
import shutil
import tarfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest

from helpers.cli import call
from rsbdali.data.index import ImageIndex
from rsbdali.data.labels import read_class_map, read_labels
from rsbdali.errors import DataError

ImageTree = Callable[..., Path]
WriteImage = Callable[..., Path]


@pytest.fixture
def six(tmp_path: Path, write_image: WriteImage) -> Path:
    for i in range(6):
        write_image(tmp_path / f"{i}.jpg", width=20, height=20)
    return tmp_path


def labels_in(index: ImageIndex) -> dict[str, int]:
    return {index.relative_path(i): int(index.label_N[i]) for i in range(len(index))}


def table(folder: Path, labels: list[str], head: str = "path,label\n") -> ImageIndex:
    rows = "".join(f"{i}.jpg,{label}\n" for i, label in enumerate(labels))
    (folder / "t.csv").write_text(head + rows)
    return ImageIndex.load(folder / "t.csv")


@pytest.mark.parametrize("missing", ["", "nan", "-1", "NaN", " "])
def test_unlabeled_rows_are_skipped_and_counted(missing: str, six: Path) -> None:
    index = table(six, ["0", "1", "2", "0", missing, "2"])
    assert labels_in(index) == {"0.jpg": 0, "3.jpg": 0, "1.jpg": 1, "2.jpg": 2, "5.jpg": 2}
    assert index.classes == ("0", "1", "2")
    assert "1 image without a label is left out" in index.notes


@pytest.mark.parametrize("head", ["img,target\n", "filepath,labels\n", "id,class\n", ""])
def test_numbers_keep_their_gaps_whatever_the_header(head: str, six: Path) -> None:
    labels = ["0", "2", "5.0", "0", "2", "5"] if head != "id,class\n" else ["a", "b", "c", "a", "b", "c"]
    index = table(six, labels, head)
    expected = [0, 0, 2, 2, 5, 5] if head != "id,class\n" else [0, 0, 1, 1, 2, 2]
    assert index.label_N.tolist() == expected
    assert any("3 of 6 classes have no usable images, 1 the first" in note for note in index.notes) == (
        "id" not in head
    )


@pytest.mark.parametrize(
    ("labels", "head", "message"),
    [
        (["0", "cat"], "path,label\n", "line 3 has a class name and line 2 a number"),
        (["0", "1.5"], "", r"line 2: label '1\.5' is not a whole number"),
        (["0", "2000000000"], "", "line 2: label 2000000000 is too large"),
        (["0", "1"], "picture,kind\n", "line 1: 'picture,kind' names no column of paths"),
        (['"0', "1"], "", "line 2: unexpected end of data"),
    ],
)
def test_tables_that_are_refused(labels: list[str], head: str, message: str, six: Path) -> None:
    with pytest.raises(DataError, match=message):
        table(six, labels, head)


def test_labels_that_may_not_be_meant_are_said(six: Path) -> None:
    assert "labels run from 1 to 2: numbers count from 0, so class 0 has no images" in table(six, list("121212")).notes
    assert any("class of its own" in note for note in table(six, list("abcdef")).notes)


@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("form", ["{} {}", "{}\t{}", '"{}",{}', '"{}" "{}"'])
def test_label_files_as_editors_write_them(mark: str, end: str, form: str, tmp_path: Path) -> None:
    names, classes = ("v 1.jpg", "v2.jpg"), ("great", "great white shark")
    if form == '"{}" "{}"':
        form = '"{}" {}'
    text = mark + form.format("v 1.jpg", classes[1]) + end + form.format("v2.jpg", classes[0]) + end
    for encoding in ("utf-8", "utf-16") if not mark else ("utf-8",):
        (tmp_path / "l.txt").write_bytes(text.encode(encoding))
        np.testing.assert_array_equal(read_labels(tmp_path / "l.txt", names, classes), [1, 0])


def test_a_part_of_imagenets_list_is_refused(tmp_path: Path) -> None:
    (tmp_path / "l.txt").write_text("490\n361\n171\n")
    with pytest.raises(DataError, match="labels run from 171 to 490, none is 0"):
        read_labels(tmp_path / "l.txt", ("a", "b", "c"), [f"n{i}" for i in range(1000)])
    (tmp_path / "l.txt").write_text("a n1\nb n2\na n2\n")
    with pytest.raises(DataError, match="line 3: a is listed with two labels"):
        read_labels(tmp_path / "l.txt", ("a", "b"), ("n1", "n2"))


@pytest.mark.parametrize(
    ("text", "known", "names"),
    [
        ("a 1\nb 0\n", ("a 1", "b 0"), ("a 1", "b 0")),  # as timm
        ("level 1\nlevel 0\n", ("level 0", "level 1"), ("level 1", "level 0")),
        ("a 1\nb 0\n", ("a", "b"), ("b", "a")),
        ("\ufeffn01 tench\nn02 gold fish\n", ("n02", "n01"), ("n01", "n02")),
    ],
)
def test_class_maps(text: str, known: tuple[str, ...], names: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / "map.txt").write_text(text, encoding="utf-8")
    assert read_class_map(tmp_path / "map.txt", known) == names


def test_an_empty_line_would_shift_a_class_map(tmp_path: Path) -> None:
    (tmp_path / "map.txt").write_text("a\n\nb\n")
    with pytest.raises(DataError, match="line 2 is empty"):
        read_class_map(tmp_path / "map.txt")


HIDDEN = ("__MACOSX/a/1.jpg", "a/._0.jpg", ".ipynb_checkpoints/x.jpg", "b/@eaDir/0.jpg", "b/.hidden.jpg")


def test_hidden_files_are_neither_classes_nor_images(tmp_path: Path, write_image: WriteImage) -> None:
    root = tmp_path / "root"
    shown = ["a/0.jpg", "b/0.jpg"]
    for name in (*HIDDEN, *shown):
        write_image(root / name)
    (root / "c").mkdir()
    (root / "c" / "0.BMP").write_bytes(b"BM")
    os.mkfifo(root / "a" / "pipe.jpg")
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        for name in (*HIDDEN, *shown, "c/0.BMP"):
            archive.add(root / name, name)
    (tmp_path / "t.csv").write_text("".join(f"{name},{name[0]}\n" for name in (*HIDDEN, *shown)))
    for source, image_root in ((root, None), (tmp_path / "x.tar", None), (tmp_path / "t.csv", root)):
        index = ImageIndex.load(source, image_root=image_root)
        assert labels_in(index) == {"a/0.jpg": 0, "b/0.jpg": 1}
        assert index.classes == ("a", "b")
        assert any("hidden" in note for note in index.notes)
        assert any("skipped by its extension (.bmp)" in note for note in index.notes) == (image_root is None)
        assert ImageIndex.load(source, image_root=image_root).notes == index.notes, "kept in the cache"
    found = ImageIndex.load(root)
    assert [bad.reason for bad in found.bad] == ["is no regular file"]
    assert any("1 folder without images is no class, 'c' the first" in note for note in found.notes)


def test_a_class_that_loses_its_images_is_named(image_tree: ImageTree, write_image: WriteImage) -> None:
    root = image_tree(classes=2)
    write_image(root / "class2" / "x.jpg", "text")
    assert any("1 of 3 classes has no usable images, 'class2' the first" in n for n in ImageIndex.scan(root).notes)


def a_tar(path: Path, jpeg: bytes, names: list[str]) -> list[int]:
    """Write it; returns where each header is."""
    with tarfile.open(path, "w") as archive:
        for name in names:
            info = tarfile.TarInfo(name)
            info.size = len(jpeg)
            archive.addfile(info, BytesIO(jpeg))
    with tarfile.open(path) as archive:
        return [member.offset for member in archive.getmembers()]


@pytest.mark.parametrize("damage", ["bit", "cut", "negative"])
def test_a_damaged_tar_file_is_named(damage: str, tmp_path: Path, write_image: WriteImage) -> None:
    jpeg = write_image(tmp_path / "x.jpg").read_bytes()
    path = tmp_path / "x.tar"
    at = a_tar(path, jpeg, [f"{c}/{k}.jpg" for c in "ab" for k in range(6)])[7]
    data = bytearray(path.read_bytes())
    if damage == "bit":
        data[at + 10] ^= 1
    elif damage == "cut":
        del data[at:]
    else:
        info = tarfile.TarInfo("neg.jpg")
        info.size = -512
        data[at : at + 512] = info.tobuf(tarfile.GNU_FORMAT)
    path.write_bytes(data)
    index = ImageIndex.load(path)
    assert len(index) == 7
    (bad,) = index.bad
    assert bad.path == str(path)
    count = 8 if damage == "negative" else 7
    assert f"at byte {at}, behind {min(count, 7)} members" in bad.reason


def test_a_key_that_is_there_twice(tmp_path: Path, write_image: WriteImage) -> None:
    a_tar(tmp_path / "x.tar", write_image(tmp_path / "x.jpg").read_bytes(), ["a/1.jpg", "a/2.jpg", "a/1.jpg"])
    with pytest.raises(DataError, match=r"a/1\.jpg is there twice"):
        ImageIndex.scan(tmp_path / "x.tar")


def test_one_level_too_high(image_tree: ImageTree) -> None:
    root = image_tree(classes=3)
    (root.parent / "up").mkdir()
    root.rename(root.parent / "up" / "imagenet")
    with pytest.raises(DataError, match=r"in 3 folders \(class0, class1, class2\): one level too high"):
        ImageIndex.scan(root.parent / "up")
    shutil.copytree(root.parent / "up/imagenet/class0", root.parent / "up/imagenet/class3")
    with pytest.raises(DataError, match=r"in 4 folders \(class0, class1, class2, \.\.\.\): one level too high"):
        ImageIndex.scan(root.parent / "up")
    (root.parent / "up" / "imagenet").rename(root.parent / "up" / "train")
    (root.parent / "up" / "val" / "class0").mkdir(parents=True)
    (root.parent / "up" / "train" / "class0" / "0.JPEG").rename(root.parent / "up" / "val" / "class0" / "0.JPEG")
    with pytest.raises(DataError, match=r"splits \(train, val\), not classes"):
        ImageIndex.scan(root.parent / "up")


def test_index_refuses_what_train_refuses(image_tree: ImageTree, write_image: WriteImage, tmp_path: Path) -> None:
    root = image_tree(classes=2).parent
    write_image(root / "val" / "v1.jpg")
    flat = call("index", root)
    assert flat.returncode == 2
    assert "no class folders" in flat.stderr
    (tmp_path / "l.txt").write_text("v1.jpg class1\n")
    labeled = call("index", root, "--val-labels", tmp_path / "l.txt")
    assert (labeled.returncode, "images    1 " in labeled.stdout) == (0, True), labeled.stderr
    write_image(root / "val" / "other" / "v2.jpg")
    other = call("index", root)
    assert other.returncode == 2
    assert "'other'" in other.stderr
    assert "Traceback" not in other.stderr
