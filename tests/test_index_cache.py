"""The cache: used while the tree is unchanged, never trusted when stale or damaged, never fatal."""

import logging
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from rsbdali import atomic
from rsbdali.data import cache
from rsbdali.data.index import ImageIndex
from rsbdali.data.sources import folder as folder_module

ImageTree = Callable[..., Path]
WriteImage = Callable[..., Path]


@pytest.fixture
def scans(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Folders scanned so far."""
    done: list[Path] = []
    real = folder_module.scan_tree

    def counted(root: Path, *args: object) -> object:
        done.append(root)
        return real(root, *args)

    monkeypatch.setattr(folder_module, "scan_tree", counted)
    return done


def only_file(folder: Path) -> Path:
    (file,) = (folder / "rsbdali" / "index").iterdir()
    return file


def assert_same(a: ImageIndex, b: ImageIndex) -> None:
    assert (a.root, a.classes, a.bad) == (b.root, b.classes, b.bad)
    for name, value in vars(a).items():
        if isinstance(value, np.ndarray):
            np.testing.assert_array_equal(value, getattr(b, name))
            assert value.dtype == getattr(b, name).dtype


def test_an_unchanged_tree_is_not_scanned_again(image_tree: ImageTree, scans: list[Path]) -> None:
    root = image_tree(odd=("empty", "cmyk", "no_eoi"))
    first, second = ImageIndex.load(root), ImageIndex.load(root)
    assert scans == [root]
    assert_same(first, second)
    assert_same(first, ImageIndex.scan(root))


def test_the_cache_goes_by_the_real_path(image_tree: ImageTree, tmp_path: Path, scans: list[Path]) -> None:
    root = image_tree()
    (tmp_path / "link").symlink_to(root)
    ImageIndex.load(root)
    index = ImageIndex.load(tmp_path / "link")
    assert len(scans) == 1
    assert index.path(0).startswith(str(tmp_path / "link"))


def test_a_changed_tree_is_scanned_again(image_tree: ImageTree, write_image: WriteImage, scans: list[Path]) -> None:
    root = image_tree(classes=2, per_class=2)
    ImageIndex.load(root)
    write_image(root / "class1" / "new.jpg", width=33, height=44)
    index = ImageIndex.load(root)
    assert len(index) == 5
    assert (index.width_N[-1], index.height_N[-1]) == (33, 44)
    write_image(root / "class1" / "new.jpg", width=55, height=66)  # overwritten in place
    index = ImageIndex.load(root)
    assert (index.width_N[-1], index.height_N[-1]) == (55, 66)
    (root / "class1" / "new.jpg").unlink()
    assert len(ImageIndex.load(root)) == 4
    assert len(scans) == 4
    ImageIndex.load(root)
    assert len(scans) == 4


def test_without_the_check_a_cache_is_taken_as_it_is(
    image_tree: ImageTree, write_image: WriteImage, scans: list[Path]
) -> None:
    root = image_tree(classes=2, per_class=2)
    assert len(ImageIndex.load(root, check=False)) == 4  # none there yet: scanned
    write_image(root / "class1" / "new.jpg")
    assert len(ImageIndex.load(root, check=False)) == 4
    assert len(scans) == 1
    assert len(ImageIndex.load(root)) == 5
    assert len(ImageIndex.load(root, check=False)) == 5


def test_rebuild(image_tree: ImageTree, scans: list[Path]) -> None:
    root = image_tree()
    ImageIndex.load(root)
    ImageIndex.load(root, rebuild=True)
    ImageIndex.load(root)
    assert len(scans) == 2


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "text", "version", "texts", "width_N", "array"])
def test_a_damaged_cache_is_replaced(image_tree: ImageTree, cache_home: Path, scans: list[Path], damage: str) -> None:
    root = image_tree()
    expected = ImageIndex.load(root)
    file = only_file(cache_home)
    content = bytearray(file.read_bytes())
    if damage == "cut":
        file.write_bytes(content[: len(content) // 2])
    elif damage == "flipped":
        content[content.index(b"class0/0.JPEG")] ^= 1
        file.write_bytes(content)
    elif damage == "empty":
        file.write_bytes(b"")
    elif damage == "text":
        file.write_text("not a cache")
    else:
        with np.load(file) as archive:
            columns = dict(archive)
        if damage == "version":
            columns["version"] = np.array(0)
        elif damage != "array":
            del columns[damage]
        with file.open("wb") as stream:
            if damage == "array":
                np.save(stream, np.arange(3))
            else:
                np.savez(stream, **columns)
    assert_same(ImageIndex.load(root), expected)
    assert len(scans) == 2
    assert_same(ImageIndex.load(root), expected)
    assert len(scans) == 2


def test_a_cache_folder_of_ones_own(image_tree: ImageTree, tmp_path: Path, cache_home: Path) -> None:
    root = image_tree(odd=("cmyk",))
    index = ImageIndex.load(root, cache_dir=tmp_path / "mine")
    assert len(list((tmp_path / "mine" / "index").iterdir())) == 1
    assert not (cache_home / "rsbdali" / "index").exists()
    converted = next(i for i in range(len(index)) if index.flags_N[i])
    index.read_bytes(converted)
    assert len(list((tmp_path / "mine" / "rgb").iterdir())) == 1


def test_a_cache_folder_that_cannot_be_written(
    image_tree: ImageTree, tmp_path: Path, scans: list[Path], caplog: pytest.LogCaptureFixture
) -> None:
    root = image_tree()
    (tmp_path / "occupied").write_bytes(b"")
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert len(ImageIndex.load(root, cache_dir=tmp_path / "occupied")) == 12
    assert len(scans) == 2
    assert "cannot be cached" in caplog.text


def test_default_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert cache.default_folder() == Path("/somewhere/rsbdali")
    for value in ("", "relative/path"):
        monkeypatch.setenv("XDG_CACHE_HOME", value)
        assert cache.default_folder() == tmp_path / ".cache" / "rsbdali"


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def fail(_: object) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        atomic.write_atomically(path, fail)
    assert os.listdir(tmp_path) == ["file"]
    assert path.read_bytes() == b"old"
