"""Every form in which a program has its images: the folder's batches byte by byte, also after a resume in mid-epoch."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from timm.data import ImageDataset
from torch.utils.data import Subset, random_split
from torchvision.datasets import ImageFolder

from rsbdali import ImageIndex, create_loader
from rsbdali.errors import DataError
from rsbdali.integrations.tuple_loader import Pair, TupleLoader

SMALL: dict[str, Any] = {
    "input_size": 24,
    "batch_size": 4,
    "device": "cpu",
    "num_workers": 1,
    "auto_augment": "rand-m6-mstd0.5-inc1",
    "interpolation": "random",
}
ODD = ("png", "cmyk", "gray")


def files_of(root: Path) -> list[Path]:
    return sorted(path for path in root.rglob("*") if path.is_file())


def shuffled(root: Path) -> list[tuple[Path, str]]:
    """(path, class name) in an order that is not the folder's."""
    order = np.random.default_rng(3).permutation(len(files_of(root)))
    return [(files_of(root)[i], files_of(root)[i].parent.name) for i in order]


class Archive:
    """A map-style object: its images lie in memory."""

    def __init__(self, root: Path, fingerprint: str | None = None) -> None:
        pairs = shuffled(root)
        self.data = [path.read_bytes() for path, _ in pairs]
        self.names = [str(path.relative_to(root)) for path, _ in pairs]
        self.classes = sorted({name for _, name in pairs})
        self.targets = torch.tensor([self.classes.index(name) for _, name in pairs])
        self.fingerprint, self.reads, self.fails = fingerprint, 0, False

    def __len__(self) -> int:
        return len(self.data)

    def path(self, i: int) -> str:
        return self.names[i]

    def read(self, i: int) -> bytes:
        self.reads += 1
        if self.fails:
            raise KeyError("a mistake of the object's own")
        return self.data[i]


def as_hub(root: Path, folder: Path) -> datasets.Dataset:
    """As `load_dataset` gives it: embedded bytes in an Arrow file, a ClassLabel, rows of a shuffle."""
    classes = sorted(path.name for path in root.iterdir())
    rows = {
        "image": [{"bytes": p.read_bytes(), "path": p.name} for p, _ in shuffled(root)],
        "label": [classes.index(name) for _, name in shuffled(root)],
        "note": ["text"] * len(shuffled(root)),
    }
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=classes), "note": datasets.Value("string")}
    )
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(str(folder))
    return datasets.load_from_disk(str(folder)).shuffle(seed=0)


def columns_of(root: Path) -> tuple[list[str], np.ndarray]:
    classes = sorted(path.name for path in root.iterdir())
    pairs = shuffled(root)
    return [str(path) for path, _ in pairs], np.array([classes.index(name) for _, name in pairs])


FORMS: dict[str, Callable[[Path], Any]] = {
    "pairs": shuffled,
    "columns": columns_of,
    "index": lambda root: ImageIndex.from_lists(*columns_of(root), classes=sorted(os.listdir(root))),
    "torchvision": ImageFolder,
    "timm": lambda root: ImageDataset(str(root)),
    "subset": lambda root: Subset(ImageFolder(root), np.random.default_rng(0).permutation(len(files_of(root)))),
    "subset of a subset": lambda root: Subset(Subset(Archive(root), range(len(files_of(root)))), range(15)),
    "split": lambda root: random_split(ImageFolder(root), [0.7, 0.3], torch.Generator().manual_seed(0))[0],
    "hub": lambda root: as_hub(root, root.parent / "hub"),
    "hub, selected": lambda root: as_hub(root, root.parent / "hub").select(range(12)),
    "object": Archive,
}


def contents(data: Any) -> list[bytes]:
    """The encoded images that a form holds."""
    index = data if isinstance(data, ImageIndex) else ImageIndex.from_dataset(data)
    return sorted(index.read_stored(i) for i in range(len(index)))


@pytest.fixture
def tree(image_tree: Callable[..., Path]) -> Path:
    """18 images of three classes, some of a kind that is read through a copy."""
    return image_tree(classes=3, per_class=5, split="", odd=ODD)


def loader_of(data: Any, **more: Any) -> TupleLoader:
    return create_loader(data, is_training=True, **{**SMALL, **more})


def same(one: list[Pair], other: list[Pair]) -> bool:
    equal = [torch.equal(a, b) for p, q in zip(one, other, strict=True) for a, b in zip(p, q, strict=True)]
    return bool(equal) and all(equal)


@pytest.fixture
def folder_with(tmp_path: Path, tree: Path) -> Iterator[Callable[[list[bytes]], Path]]:
    """`folder_with(contents)`: a folder of just those images of the tree, under the same names."""

    def make(wanted: list[bytes]) -> Path:
        root = tmp_path / "chosen"
        for path in files_of(tree):
            (root / path.parent.name).mkdir(parents=True, exist_ok=True)
            if path.read_bytes() in wanted:
                (root / path.parent.name / path.name).write_bytes(path.read_bytes())
        return root

    return make


# timm's folder reader leaves its files for the garbage collector to close
@pytest.mark.filterwarnings("ignore:Exception ignored in:pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("form", FORMS)
def test_the_folders_batches_also_after_a_resume(
    form: str, tree: Path, folder_with: Callable[[list[bytes]], Path]
) -> None:
    data = FORMS[form](tree)
    with loader_of(folder_with(contents(data))) as folder, loader_of(data) as ours:
        expected = [*folder, *folder]
        assert len(expected) == 2 * (len(folder.loader.index) // 4)
        found = list(ours)
        second = iter(ours)
        found.append(next(second))
        state = ours.state_dict()
        assert same([*found, *second], expected)
    with loader_of(FORMS[form](tree)) as resumed:  # made anew, as a restarted program does
        resumed.load_state_dict(state)
        assert same(list(resumed), expected[len(found) :])


def test_rows_and_evaluation_follow_the_list(tree: Path) -> None:
    pairs = shuffled(tree)
    index = ImageIndex.from_dataset(pairs)
    assert [path for path, _ in index] == [str(path) for path, _ in pairs]
    assert [index.classes[label] for _, label in index] == [name for _, name in pairs]
    assert index.class_to_idx == {"class0": 0, "class1": 1, "class2": 2}
    assert index.targets == [index.class_to_idx[name] for _, name in pairs]
    assert index[-1] == index[17] == (index.path(17), index.targets[17])
    assert index.relative_path(-18) == index.relative_path(0)
    for read in (index.__getitem__, index.path, index.relative_path):
        for wrong in (18, -19):
            with pytest.raises(IndexError, match=f"image {wrong} of 18"):
                read(wrong)
    with pytest.raises(TypeError, match=r"takes one number.*subset takes several"):
        index[0:2]
    # the same images: a state goes from a list to the folder and back
    assert index.digest == ImageIndex.scan(tree).digest
    with create_loader(pairs, **SMALL | {"interpolation": "bilinear", "return_index": True}) as loader:
        batches = list(loader)
    assert torch.cat([targets for _, targets, _ in batches]).tolist() == index.targets
    assert torch.cat([rows for _, _, rows in batches]).tolist() == list(range(18))


def test_what_is_no_image_is_left_out_and_places_stay(tree: Path, write_image: Callable[..., Path]) -> None:
    pairs = shuffled(tree)
    pairs.insert(2, (write_image(tree / "class0" / "text.JPEG", "text"), "class0"))
    pairs.insert(9, (tree / "class1" / "nowhere.JPEG", "class1"))
    weights = np.ones(20)
    weights[5] = 0.0
    with loader_of(pairs, return_index=True, drop_last=False, shuffle=False) as loader:
        assert torch.cat([rows for _, _, rows in loader]).tolist() == [i for i in range(20) if i not in (2, 9)]
        bad = {file.path: file.reason for file in loader.loader.index.bad}
    assert bad[str(tree / "class1" / "nowhere.JPEG")] == "cannot be read: No such file or directory"
    with loader_of(pairs, return_index=True, weights=weights) as loader:
        drawn = torch.cat([rows for _ in range(12) for _, _, rows in loader])
    assert set(drawn.tolist()) == set(range(20)) - {2, 5, 9}
    with loader_of(pairs, return_index=True, sampler=lambda epoch: [19, 9, 0, 1, 3]) as loader:
        assert [rows.tolist() for _, _, rows in loader] == [[19, 0, 1, 3]]
    with pytest.raises(DataError, match=r"weights= of shape \(18,\): expected one for each of 20 images"):
        loader_of(pairs, weights=np.ones(18))


def test_subset_and_split(tree: Path) -> None:
    index = ImageIndex.scan(tree)
    chosen = index.subset([7, 2, 2, -1])
    assert [chosen.path(i) for i in range(4)] == [index.path(i) for i in (7, 2, 2, 17)]
    assert chosen.classes == index.classes
    assert chosen.canonical_N.tolist() == [1, 2, 0, 3]
    assert index.subset(index.label_N == 1).targets == [1] * 5
    again = chosen.subset([0, 3, 1])
    assert [again.path(i) for i in again.canonical_N] == [index.path(i) for i in (2, 7, 17)]
    np.testing.assert_array_equal(again.read_bytes(1), index.read_bytes(17))
    train, val = index.split(0.2, seed=1)
    assert (len(train), len(val)) == (14, 4)
    assert np.bincount(val.label_N).tolist() == [2, 1, 1]  # of 8, 5 and 5
    assert sorted([*train, *val]) == sorted(index)
    # the same images whatever order they are listed in, and others by another seed
    listed = ImageIndex.from_dataset(shuffled(tree))
    assert sorted(listed.split(0.2, seed=1)[1]) == sorted(val)
    assert sorted(index.split(0.2, seed=2)[1]) != sorted(val)
    for rows, message in (
        ([], "one or more"),
        ([18], "row 18 is not there"),
        ([True], "mask of shape"),
        ([0.5], "whole"),
    ):
        with pytest.raises(DataError, match=message):
            index.subset(rows)
    with pytest.raises(DataError, match="leaves one part empty"):
        index.split(0.01)


def test_headers_are_cached_where_the_data_says_what_it_is(tree: Path) -> None:
    named = Archive(tree, fingerprint="archive 1")
    first = ImageIndex.from_dataset(named)
    assert named.reads == 18
    assert list(ImageIndex.from_dataset(named)) == list(first)
    assert named.reads == 18
    changed = Archive(tree, fingerprint="archive 2")
    ImageIndex.from_dataset(changed)
    assert changed.reads == 18
    pairs = shuffled(tree)
    before = ImageIndex.from_dataset(pairs)
    pairs[4][0].write_bytes(pairs[0][0].read_bytes())
    after = ImageIndex.from_dataset(pairs)
    assert (after.width_N[4], after.height_N[4]) == (before.width_N[0], before.height_N[0])


def test_labels_of_lists(tree: Path) -> None:
    paths = [str(path) for path, _ in shuffled(tree)]
    unlabeled = ImageIndex.from_lists(paths, None)
    assert (unlabeled.targets, unlabeled.classes) == ([-1] * 18, ())
    some = ImageIndex.from_lists(paths, [0, 4, -1, None, *[1] * 14])
    assert len(some) == 16  # of the others it is said that they have no label
    assert some.classes == ("0", "1", "2", "3", "4")
    below = [os.path.relpath(path, tree) for path in paths]
    named = ImageIndex.from_lists(below, torch.tensor([1] * 18), classes=["cat", "dog"], root=tree)
    assert named[3] == (paths[3], 1)
    assert named.classes == ("cat", "dog")


class Bare:
    """What has no labels, or gives no bytes."""

    def __init__(self, **attributes: Any) -> None:
        vars(self).update(attributes)

    def __len__(self) -> int:
        return 2

    def read(self, i: int) -> Any:
        return "text"


def hub(**columns: Any) -> datasets.Dataset:
    return datasets.Dataset.from_dict(columns)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (["a.jpg"], "a list that holds 'a.jpg': expected (path, label) pairs"),
        ([], "0 paths and 0 labels"),
        ((["a.jpg"], [0, 1]), "1 path and 2 labels"),
        ((["a.jpg"], [0.5]), "label 0.5 of image 0: expected a number from 0, or a class name"),
        ((["a.jpg"], [10**9]), "is too large"),
        (([("a.jpg", 0)], [0]), "path ('a.jpg', 0): expected text"),
        (("a.jpg", 0), "paths of type str: expected a list or an array"),
        ([("a.jpg", 0)], "no usable images: all 1 fail"),
        (Bare(), "has read(i), and not len() and targets"),
        (Bare(targets=[1]), "2 images and 1 target"),
        (Bare(targets=[0, 0], fingerprint=3), "fingerprint is int: expected text"),
        (Bare(targets=[0, 0], classes=["a", "a"]), "classes: expected names as text, each once"),
        (Bare(targets=[0, 0]), "read(0) gives str: expected the encoded image as bytes"),
        (hub(text=["a"], label=[0]), "0 of them are images: expected one, so use cast_column"),
        (datasets.DatasetDict(), "DatasetDict: give one of its splits, as dataset['train']"),
        (hub(text=["a"]).to_iterable_dataset(), "IterableDataset: it has no order to draw from"),
        (Subset([("a.jpg", 0)], [3]), "a Subset of 1 image has the index 3, which is none of them"),
        (object(), "dataset of type object: expected a location, an ImageIndex"),
    ],
)
def test_what_cannot_be_taken_is_refused_with_a_way_out(data: Any, message: str) -> None:
    with pytest.raises(DataError) as caught:
        loader_of(data)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_hub_columns(tree: Path) -> None:
    whole = as_hub(tree, tree.parent / "hub")
    renamed = whole.rename_columns({"label": "target", "image": "img"}).cast_column("target", datasets.Value("int64"))
    assert ImageIndex.from_dataset(renamed).targets == ImageIndex.from_dataset(whole).targets
    for changed, message in (
        (whole.remove_columns(["label"]), "none of them are labels"),
        (whole.add_column("second", [0] * 18).cast_column("second", datasets.ClassLabel(names=["a"])), "2 of them are"),
    ):
        with pytest.raises(DataError, match=message):
            ImageIndex.from_dataset(changed)
    # rows that name a file hold no bytes
    paths = datasets.Dataset.from_dict(
        {"image": [str(p) for p, _ in shuffled(tree)], "label": [n for _, n in shuffled(tree)]}
    )
    by_path = ImageIndex.from_dataset(paths.cast_column("image", datasets.Image()))
    assert [by_path.read_stored(i) for i in range(18)] == [path.read_bytes() for path, _ in shuffled(tree)]
    assert by_path[0][0] == str(shuffled(tree)[0][0])


def test_an_object_that_fails_later_is_replaced(tree: Path) -> None:
    archive = Archive(tree)
    kept, named = archive.data[3], []
    with loader_of(archive, on_bad=lambda path, reason: named.append((path, reason))) as loader:
        archive.data[3] = b""  # as a file that was emptied
        list(loader)
        archive.data[3] = kept
        archive.fails = True
        with pytest.raises(KeyError, match="a mistake of the object's own"):
            list(loader)
    assert named == [(f"Archive/{archive.names[3]}", "changed since it was indexed: empty file")]
