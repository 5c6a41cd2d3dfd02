"""The walk: what counts as an image file, order, links and loops, and what changes the fingerprint."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from timm.data.readers.img_extensions import get_img_extensions
from timm.utils.misc import natural_key as timm_natural_key

from rsbdali.data.names import EXTENSIONS, is_image_name, natural_key
from rsbdali.data.sources import folder
from rsbdali.data.sources.folder import walk


def fill(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x" * len(name))
    return root


def listed(root: Path) -> list[str]:
    return [os.path.join(folder.path, name) for folder in walk(str(root)).folders for name in folder.names]


@given(st.lists(st.text("aAbB019._-n/", max_size=12), max_size=12))
def test_order_is_timms(names: list[str]) -> None:
    ordered = sorted(set(names), key=natural_key)
    # a stable sort by timm's key of the list in name order: the same, ties included
    assert ordered == sorted(sorted(set(names)), key=timm_natural_key)


def test_natural_key_takes_digits_that_are_no_decimals() -> None:
    assert sorted(["a²", "a10", "a9"], key=natural_key) == ["a9", "a10", "a²"]


def test_extensions_are_timms_and_webp() -> None:
    assert set(EXTENSIONS) == {*get_img_extensions(), ".webp"}


def test_names() -> None:
    names = ["a.jpg", "a.JPEG", "a.png", "a.WebP", "a.gif", "a.txt", "jpg", ".jpg", "a.jpg.txt"]
    assert [name for name in names if is_image_name(name)] == ["a.jpg", "a.JPEG", "a.png", "a.WebP"]


def test_walk_lists_all_depths_and_skips_other_files(tmp_path: Path) -> None:
    fill(tmp_path, "b/x.jpg", "b/deep/er/y.png", "a/z.webp", "a/notes.txt", "loose.jpeg", "folder.jpg/inside.jpg")
    assert listed(tmp_path) == ["loose.jpeg", "a/z.webp", "b/x.jpg", "b/deep/er/y.png", "folder.jpg/inside.jpg"]


def test_links_are_followed_and_loops_are_not(tmp_path: Path) -> None:
    elsewhere = fill(tmp_path / "elsewhere", "x.jpg")
    root = fill(tmp_path / "root", "a/1.jpg")
    (root / "b").symlink_to(elsewhere)
    (root / "a" / "2.jpg").symlink_to(elsewhere / "x.jpg")
    (root / "a" / "up").symlink_to(root)
    (root / "a" / "self").symlink_to(root / "a")
    assert listed(root) == ["a/1.jpg", "a/2.jpg", "b/x.jpg"]


def test_a_broken_link_is_named(tmp_path: Path) -> None:
    fill(tmp_path, "a/1.jpg")
    (tmp_path / "a" / "2.jpg").symlink_to(tmp_path / "nowhere.jpg")
    (tmp_path / "a" / "other").symlink_to(tmp_path / "nowhere")
    assert walk(str(tmp_path)).unreadable == [("a/2.jpg", "cannot be read: No such file or directory")]


def test_a_folder_that_cannot_be_listed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path, "a/1.jpg", "b/1.jpg")
    real_open = os.open

    def refuse(path: str, *args: int) -> int:
        if str(path).endswith("/a"):
            raise PermissionError(13, "Permission denied")
        return real_open(path, *args)

    monkeypatch.setattr(folder.os, "open", refuse)
    found = walk(str(tmp_path))
    assert found.unreadable == [("a", "folder cannot be listed: Permission denied")]
    assert [folder.path for folder in found.folders] == ["", "b"]


def fingerprint(root: Path) -> bytes:
    return walk(str(root)).fingerprint()


def test_fingerprint_stays_for_an_unchanged_tree(tmp_path: Path) -> None:
    fill(tmp_path, "a/1.jpg", "b/2.jpg")
    before = fingerprint(tmp_path)
    fill(tmp_path, "a/readme.txt")
    assert fingerprint(tmp_path) == before


@pytest.mark.parametrize("change", ["new", "gone", "renamed", "moved", "longer", "touched", "broken link"])
def test_fingerprint_changes(tmp_path: Path, change: str) -> None:
    fill(tmp_path, "a/1.jpg", "a/2.jpg", "b/3.jpg")
    before = fingerprint(tmp_path)
    first = tmp_path / "a" / "1.jpg"
    status = first.stat()
    if change == "new":
        fill(tmp_path, "b/4.jpg")
    elif change == "gone":
        first.unlink()
    elif change == "renamed":
        first.rename(tmp_path / "a" / "0.jpg")
    elif change == "moved":
        first.rename(tmp_path / "b" / "1.jpg")
    elif change == "longer":  # even with the old time
        first.write_bytes(b"longer than it was")
        os.utime(first, ns=(status.st_atime_ns, status.st_mtime_ns))
    elif change == "touched":
        os.utime(first, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    else:
        (tmp_path / "a" / "9.jpg").symlink_to(tmp_path / "nowhere")
    assert fingerprint(tmp_path) != before
