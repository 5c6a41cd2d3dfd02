"""Data sources: one set of images in every form gives the same index and the same batches; what is wrong is said."""

import dataclasses
import json
import os
import tarfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch

from rsbdali.data.header import ImageFlags
from rsbdali.data.index import ImageIndex
from rsbdali.data.sources import parquet
from rsbdali.data.sources.base import Reader, ReadRequest, StoredImage
from rsbdali.data.sources.location import Location, expand_braces
from rsbdali.data.sources.storage import LocalStorage
from rsbdali.data.splits import find_images, find_parts, find_split
from rsbdali.errors import DataError, UnreadableImage
from rsbdali.loader import EvalLoader, TrainLoader
from rsbdali.recipe import Recipe

ImageTree = Callable[..., Path]
WriteImage = Callable[..., Path]
SAME = ("label_N", "width_N", "height_N", "nbytes_N", "format_N", "flags_N", "path_bytes", "path_end_N")
SMALL = {
    "img_size": 32,
    "test_img_size": 32,
    "global_batch_size": 8,
    "mix_groups": 2,
    "aa": "rand-m6-mstd0.5-inc1",
}
ODD = ("cmyk", "ycck", "grey16", "png", "gray", "exif", "no_eoi")


def files_of(root: Path) -> list[Path]:
    return sorted(path for path in root.rglob("*") if path.is_file())


def add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    archive.addfile(info, BytesIO(data))


def as_tar(root: Path, out: Path) -> Path:
    with tarfile.open(out, "w") as archive:
        for path in reversed(files_of(root)):  # the order of members must not matter
            add(archive, f"./{path.relative_to(root)}", path.read_bytes())
    return out


def as_class_tars(root: Path, out: Path) -> Path:
    """A tar file a class, members without a folder, as ImageNet's training set comes."""
    out.mkdir()
    for folder in root.iterdir():
        with tarfile.open(out / f"{folder.name}.tar", "w") as archive:
            for path in files_of(folder):
                add(archive, path.name, path.read_bytes())
    return out


def as_nested_tar(root: Path, out: Path) -> Path:
    with tarfile.open(out, "w") as archive:
        for path in files_of(as_class_tars(root, out.with_name("inner"))):
            add(archive, path.name, path.read_bytes())
    return out


def as_webdataset(root: Path, out: Path, shards: int = 3) -> Path:
    out.mkdir()
    classes = sorted(folder.name for folder in root.iterdir())
    for shard in range(shards):
        with tarfile.open(out / f"train-{shard:06d}.tar", "w", format=tarfile.PAX_FORMAT) as archive:
            for i, path in enumerate(files_of(root)[shard::shards]):
                name = path.relative_to(root)
                content = {"path": str(name), "class": name.parts[0], "label": classes.index(name.parts[0])}
                add(archive, f"{shard}{i:08d}.jpg", path.read_bytes())
                add(archive, f"{shard}{i:08d}.cls", str(content["label"]).encode())
                add(archive, f"{shard}{i:08d}.json", json.dumps(content).encode())
    return out


def as_table(root: Path, out: Path) -> Path:
    rows = [f"{os.path.relpath(path, out.parent)},{path.relative_to(root).parts[0]}" for path in files_of(root)]
    out.write_text("path,label\n" + "\n".join(rows) + "\n")
    return out


def as_parquet(root: Path, out: Path, files: int = 2, rows: int = 5) -> Path:
    import pyarrow
    import pyarrow.parquet

    out.mkdir()
    classes = sorted(folder.name for folder in root.iterdir())
    feature = {"image": {"_type": "Image"}, "label": {"names": classes, "_type": "ClassLabel"}}
    metadata = {"huggingface": json.dumps({"info": {"features": feature}})}
    all_files = files_of(root)
    for i in range(files):
        part = all_files[i::files]
        table = pyarrow.table(
            {
                "image": [{"bytes": p.read_bytes(), "path": str(p.relative_to(root))} for p in part],
                "label": pyarrow.array([classes.index(p.relative_to(root).parts[0]) for p in part], pyarrow.int64()),
            }
        ).replace_schema_metadata(metadata)
        pyarrow.parquet.write_table(table, out / f"train-{i:05d}-of-{files:05d}.parquet", row_group_size=rows)
    return out


MAKERS: dict[str, Callable[[Path, Path], Path]] = {
    "tar": lambda root, out: as_tar(root, out / "train.tar"),
    "class tars": lambda root, out: as_class_tars(root, out / "tars"),
    "nested tar": lambda root, out: as_nested_tar(root, out / "all.tar"),
    "webdataset": lambda root, out: as_webdataset(root, out / "wds"),
    "table": lambda root, out: as_table(root, out / "train.csv"),
    "parquet": lambda root, out: as_parquet(root, out / "hub"),
}


def index_paths(index: ImageIndex) -> list[str]:
    return [index.relative_path(i) for i in range(len(index))]


def assert_same_images(found: ImageIndex, folder: ImageIndex, *, skip: tuple[str, ...] = ()) -> None:
    assert found.classes == folder.classes
    for name in SAME:
        if name not in skip:
            np.testing.assert_array_equal(getattr(found, name), getattr(folder, name), err_msg=name)
            assert getattr(found, name).dtype == getattr(folder, name).dtype
    for i in range(len(folder)):
        np.testing.assert_array_equal(found.read_bytes(i), folder.read_bytes(i))


def batches(index: ImageIndex, decode: str = "cpu", **options: object) -> Iterator[torch.Tensor]:
    loader = TrainLoader(index, Recipe.load("a3", SMALL), device="cpu", decode=decode, num_threads=2, **options)  # type: ignore[arg-type]
    try:
        for epoch in range(2):
            loader.set_epoch(epoch)
            yield from (batch.images for batch in loader)
    finally:
        loader.close()


@pytest.fixture
def tree(image_tree: ImageTree) -> Path:
    return image_tree(classes=3, per_class=11, odd=ODD)


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    folder = tmp_path / "shards"
    folder.mkdir()
    return folder


@pytest.mark.parametrize("form", MAKERS)
def test_the_index_is_the_folders(form: str, tree: Path, shards: Path) -> None:
    folder = ImageIndex.scan(tree)
    location = MAKERS[form](tree, shards)
    index = ImageIndex.load(location)
    # a shard's members are named .jpg, whatever they are; a table's paths start elsewhere
    skip = {"webdataset": (), "table": ("path_bytes", "path_end_N")}.get(form, ())
    assert_same_images(index, folder, skip=skip)
    assert (index.digest == folder.digest) == (not skip)
    cached = ImageIndex.load(location)
    unchecked = ImageIndex.load(location, check=False)
    for other in (cached, unchecked):
        assert_same_images(other, folder, skip=skip)
        assert (other.shards, other.name, other.path(3)) == (index.shards, index.name, index.path(3))


def test_batches_are_the_folders_byte_by_byte(tree: Path, shards: Path) -> None:
    expected = torch.stack(list(batches(ImageIndex.scan(tree))))
    assert len(expected) == 2 * 5 * 2  # epochs, steps, groups
    for form, make in MAKERS.items():
        found = torch.stack(list(batches(ImageIndex.scan(make(tree, shards)))))
        assert torch.equal(found, expected), form


def test_the_graph_reads_bytes_too(tree: Path, shards: Path) -> None:
    folder, other = ImageIndex.scan(tree), ImageIndex.scan(as_webdataset(tree, shards / "wds"))
    recipe = Recipe.load("a3", SMALL)
    expected, found = ([b.images for b in EvalLoader(i, recipe, device="cpu", batch_size=8)] for i in (folder, other))
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.equal(ours, theirs)
    for ours, theirs in zip(batches(other, "graph"), batches(folder, "graph"), strict=True):
        assert torch.equal(ours, theirs)


class Spy:
    """A reader that notes what it is told and asked."""

    def __init__(self, reader: Reader) -> None:
        self.reader = reader
        self.told: set[ReadRequest] = set()
        self.early: list[StoredImage] = []

    def fetch_ahead(self, requests: Iterable[ReadRequest]) -> None:
        self.told.update(requests)

    def read(self, image: StoredImage) -> bytes:
        if ReadRequest(image) not in self.told:
            self.early.append(image)
        return self.reader.read(image)

    def close(self) -> None:
        self.reader.close()


@pytest.mark.parametrize("decode", ["cpu", "graph"])
def test_readers_are_told_of_plans_ahead(decode: str, image_tree: ImageTree, shards: Path) -> None:
    index = ImageIndex.scan(as_tar(image_tree(classes=2, per_class=16), shards / "train.tar"))
    spy = Spy(index.reader)
    loader = TrainLoader(
        dataclasses.replace(index, reader=spy),
        Recipe.load("a3", SMALL),
        device="cpu",
        decode=decode,
        num_threads=2,
        prefetch=3,
    )
    next(iter(loader))
    loader.close()
    assert not spy.early
    # one batch is taken and three are in flight: the four mix groups of two steps
    planned = {int(i) for step in (0, 1) for i in loader.planner.batch(0, step).sample_N}
    assert spy.told == {ReadRequest(index._stored_image(i)) for i in planned}


@pytest.mark.parametrize("decode", ["cpu", "graph"])
def test_broken_images_in_shards_are_replaced(
    decode: str, image_tree: ImageTree, write_image: WriteImage, shards: Path
) -> None:
    root = image_tree(classes=2, per_class=8)
    write_image(root / "class0" / "cut.JPEG", "truncated", width=150, height=150)
    last = write_image(root / "class1" / "zz.JPEG", width=150, height=150)
    as_tar(root, shards / "a.tar")
    with tarfile.open(shards / "b.tar", "w") as archive:
        add(archive, "class1/zzz.JPEG", last.read_bytes())
    index = ImageIndex.load(shards)
    (shards / "b.tar").unlink()  # a shard that vanishes after it was indexed
    named: dict[str, str] = {}
    taken = list(batches(index, decode, on_bad=named.__setitem__))
    assert len(taken) == 2 * 2 * 2
    assert all(torch.isfinite(images).all() for images in taken)
    gone = f"{shards}/b.tar::class1/zzz.JPEG"
    assert "No such file" in named.pop(gone)
    assert set(named) == {f"{shards}/a.tar::class0/cut.JPEG"}
    plain = list(batches(ImageIndex.load(root), decode, on_bad=lambda path, reason: None))
    assert len(plain) == len(taken)


def test_a_cut_tar_file_gives_what_is_whole(tree: Path, shards: Path) -> None:
    path = as_tar(tree, shards / "train.tar")
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    index = ImageIndex.load(path)
    assert 0 < len(index) < len(ImageIndex.scan(tree))
    reasons = [bad.reason for bad in index.bad]
    assert any("cannot be read to its end" in reason for reason in reasons)
    path.write_bytes(data[: int(index.offset_N.min()) + 10])  # cut once more, behind the index's back
    with pytest.raises(UnreadableImage, match=r"train\.tar is cut short: \d+ of \d+ bytes are there"):
        index.read_bytes(int(index.offset_N.argmin()))


def test_a_changed_shard_is_indexed_again(tree: Path, shards: Path, write_image: WriteImage, tmp_path: Path) -> None:
    as_tar(tree, shards / "train.tar")
    before = ImageIndex.load(shards)
    with tarfile.open(shards / "more.tar", "w") as archive:
        add(archive, "class1/new.jpg", write_image(tmp_path / "new.jpg").read_bytes())
    assert len(ImageIndex.load(shards)) == len(before) + 1


def test_long_and_odd_names(write_image: WriteImage, tmp_path: Path, shards: Path) -> None:
    data = write_image(tmp_path / "x.jpg").read_bytes()
    long = ["class ä/" + "n" * 150 + ".jpg", "class ä/b/" + "m" * 90 + "/" + "k" * 99 + ".PNG"]
    names = [*long, "c/1.webp", "c/10.jpeg"]
    for kind in (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT):
        with tarfile.open(shards / "x.tar", "w", format=kind) as archive:
            for name in ["notes.txt", *names]:
                add(archive, name, data)
        index = ImageIndex.scan(shards)
        assert index.classes == ("c", "class ä")
        assert sorted(index_paths(index)) == sorted(names)
        assert all(index.read_bytes(i).tobytes() == data for i in range(4))
        assert np.count_nonzero(index.flags_N == ImageFlags.OTHER_FORMAT) == 2


def test_a_folder_that_repeats_the_tar_file(tree: Path, shards: Path) -> None:
    with tarfile.open(shards / "train.tar", "w") as archive:
        archive.add(tree, "train")
    assert_same_images(ImageIndex.scan(shards / "train.tar"), ImageIndex.scan(tree))


def test_numbers_alone(write_image: WriteImage, tmp_path: Path, shards: Path) -> None:
    data = write_image(tmp_path / "x.jpg").read_bytes()
    with tarfile.open(shards / "a-0.tar", "w") as archive:
        for i in range(12):
            add(archive, f"s{i}.jpg", data)
            add(archive, f"s{i}.cls", str(i % 3 + 1).encode())
    index = ImageIndex.scan(shards)
    assert index.classes == ("0", "1", "2", "3")
    assert index_paths(index)[:4] == ["s0.jpg", "s3.jpg", "s6.jpg", "s9.jpg"]
    assert index.label_N.tolist() == [1] * 4 + [2] * 4 + [3] * 4
    names = ("a", "b", "c", "d")
    assert ImageIndex.scan(shards, classes=names).classes == names
    (tmp_path / "map.txt").write_text("a\nb\nc\nd\n")
    assert ImageIndex.scan(shards, class_map=tmp_path / "map.txt").classes == names
    with pytest.raises(DataError, match="label 3 is out of range: there are 2 classes"):
        ImageIndex.scan(shards, classes=("a", "b"))


def test_a_class_map_orders_a_folder(tree: Path, tmp_path: Path) -> None:
    (tmp_path / "map.txt").write_text("class2 0\nclass0 1\nclass1 2\n")
    index = ImageIndex.scan(tree, class_map=tmp_path / "map.txt")
    assert index.classes == ("class2", "class0", "class1")
    number_of = {"class2": 0, "class0": 1, "class1": 2}
    assert index.label_N.tolist() == [number_of[path.split("/")[0]] for path in index_paths(index)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a\nb\na\n", "class 'a' is there twice"),
        ("class0 0\nclass1 2\n", "must be 0 to 1, each once"),
        ("\n", "no class names"),
        (None, "cannot be read"),
    ],
)
def test_a_class_map_that_is_none(text: str | None, message: str, tree: Path, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "map.txt").write_text(text)
    with pytest.raises(DataError, match=message):
        ImageIndex.scan(tree, class_map=tmp_path / "map.txt")


@pytest.mark.parametrize(
    ("sidecars", "message"),
    [
        ({"a.json": b"{", "a.jpg": None}, "not JSON"),
        ({"a.json": b'{"class": "x", "label": 1}', "b.json": b'{"class": "y", "label": 1}'}, "contradict each other"),
        ({"a.cls": b"0", "a.mask.png": None}, "belong to one sample"),
    ],
)
def test_shards_that_contradict_themselves(
    sidecars: dict[str, bytes | None], message: str, write_image: WriteImage, tmp_path: Path, shards: Path
) -> None:
    data = write_image(tmp_path / "x.jpg").read_bytes()
    with tarfile.open(shards / "x.tar", "w") as archive:
        for name, content in {"a.jpg": None, "b.jpg": None, **sidecars}.items():
            add(archive, name, data if content is None else content)
    with pytest.raises(DataError, match=message):
        ImageIndex.scan(shards)


def test_what_cannot_be_read_is_refused(tree: Path, shards: Path) -> None:
    with tarfile.open(shards / "train.tar.gz", "w:gz") as archive:
        archive.add(tree, "train")
    with pytest.raises(DataError, match="compressed by gzip"):
        ImageIndex.scan(shards / "train.tar.gz")
    with pytest.raises(DataError, match="compressed by gzip"):
        ImageIndex.scan(shards)
    with pytest.raises(DataError, match="no such file"):
        ImageIndex.scan(shards / "none.tar")
    (shards / "train.tar.gz").unlink()
    (shards / "empty.tar").write_bytes(b"")
    with pytest.raises(DataError, match="no images in 1 tar file"):
        ImageIndex.scan(shards)
    (shards / "x.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError, match=r"holds both \.tar and \.parquet"):
        ImageIndex.scan(shards)
    with pytest.raises(DataError, match="cannot be read"):
        ImageIndex.scan(shards / "*.parquet")


def test_patterns(tree: Path, shards: Path) -> None:
    as_webdataset(tree, shards / "w", shards=4)
    assert expand_braces("a-{08..10}.{x,y}") == [f"a-{n}.{e}" for n in ("08", "09", "10") for e in "xy"]
    every = ImageIndex.scan(shards / "w")
    for pattern in ("train-{000000..000003}.tar", "train-*.tar", "train-00000[0123].tar"):
        found = ImageIndex.load(shards / "w" / pattern)
        assert index_paths(found) == index_paths(every)
        np.testing.assert_array_equal(found.label_N, every.label_N)
    assert len(ImageIndex.scan(shards / "w" / "train-{000000..000001}.tar")) < len(every)
    with pytest.raises(DataError, match=r"train-000004\.tar: no such file"):
        ImageIndex.scan(shards / "w" / "train-{000000..000004}.tar")


def test_splits_in_every_form(tree: Path, tmp_path: Path) -> None:
    wds = as_webdataset(tree, tmp_path / "wds")
    hub = tmp_path / "hf"
    hub.mkdir()
    as_parquet(tree, hub / "data")
    assert find_split(wds, "train") == wds / "train-*.tar"
    assert find_split(hub, "train") == hub / "data" / "train-*.parquet"
    assert find_images(hub) == hub / "data" / "train-*.parquet"
    assert find_images(wds / "train-*.tar") == wds / "train-*.tar"
    assert find_parts(wds) == [("train", wds / "train-*.tar")]
    (tmp_path / "validation-00.tar").write_bytes(b"")
    (tmp_path / "train.csv").write_text("x")
    assert find_split(tmp_path, "val") == tmp_path / "validation-*.tar"
    assert find_split(tmp_path, "train") == tmp_path / "train.csv"
    with pytest.raises(DataError, match="no val folder"):
        find_split(wds, "val")


def test_locations(tmp_path: Path) -> None:
    for given in ("s3://bucket/some/train", Path("s3://bucket/some/train")):  # a Path makes one slash of two
        location = Location.parse(given)
        assert (location.text, location.base, location.pattern, location.is_url) == (
            "s3://bucket/some/train",
            "s3://bucket/some/train",
            None,
            True,
        )
    location = Location.parse("gs://b/x/train-{0..2}.tar")
    assert (location.base, location.pattern) == ("gs://b/x", "train-{0..2}.tar")
    assert Location.parse(f"file://{tmp_path}").base == str(tmp_path)
    (tmp_path / "odd{1}").mkdir()
    assert Location.parse(tmp_path / "odd{1}").pattern is None


TABLES = {
    "header": "label\tpath\n3\tclass0/0.JPEG\n0\tclass1/1.JPEG\n",
    "no header": "class0/0.JPEG,3\nclass1/1.JPEG,0\n",
    "both": 'class,label,file\n"b, c",1,class0/0.JPEG\na,0,class1/1.JPEG\n',
    "names": "class0/0.JPEG,dog\nclass1/1.JPEG,cat\n",
}
LABELS = {
    "header": (("0", "1", "2", "3"), [0, 3]),
    "no header": (("0", "1", "2", "3"), [0, 3]),
    "both": (("a", "b, c"), [0, 1]),
    "names": (("cat", "dog"), [0, 1]),
}


@pytest.mark.parametrize("kind", TABLES)
def test_tables(kind: str, tree: Path, tmp_path: Path) -> None:
    table = tmp_path / ("t.tsv" if kind == "header" else "t.csv")
    table.write_text(TABLES[kind])
    index = ImageIndex.load(table, image_root=tree)
    assert (index.classes, index.label_N.tolist()) == LABELS[kind]
    assert index_paths(index) == ["class1/1.JPEG", "class0/0.JPEG"]
    assert index.path(0) == str(tree / "class1" / "1.JPEG")
    table.write_text(TABLES[kind].replace("class0/0.JPEG", "class0/2.JPEG"))
    assert index_paths(ImageIndex.load(table, image_root=tree)) == ["class1/1.JPEG", "class0/2.JPEG"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no rows"),
        ("path,size\na.jpg,3\n", "no column of labels"),
        ("a.jpg\n", "line 1: expected at least 2 columns"),
        ("path,label\nclass0/0.JPEG,1\nclass0/0.JPEG,2\n", "listed with two labels"),
        ("path,label,class\nclass0/0.JPEG,x,2\n", "line 2: label 'x'"),
        ("gone.jpg,1\n", "all 1 fail, .*gone.jpg: cannot be read: No such file"),
    ],
)
def test_tables_that_are_wrong(text: str, message: str, tree: Path, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(DataError, match=message):
        ImageIndex.scan(tmp_path / "t.csv", image_root=tree)
    with pytest.raises(DataError, match="an image root is for a table"):
        ImageIndex.scan(tree, image_root=tree)


def test_parquet_as_the_hub_has_it(tree: Path, tmp_path: Path) -> None:
    """Names without folders, wordy class names that are not in order, rows without a label or an image."""
    import pyarrow
    import pyarrow.parquet

    files = [tree / "class1" / "3.JPEG", tree / "class0" / "10.JPEG", tree / "class0" / "2.JPEG"]
    rows = [{"bytes": path.read_bytes(), "path": path.name} for path in files]
    rows += [{"bytes": None, "path": "lost.JPEG"}, {"bytes": b"no image", "path": None}]
    names = {"0": "zebra, a horse", "1": "ant"}
    metadata = {"huggingface": json.dumps({"info": {"features": {"label": {"names": names}}}})}
    table = pyarrow.table({"image": rows, "label": [1, 0, 0, 1, 0]}).replace_schema_metadata(metadata)
    pyarrow.parquet.write_table(table, tmp_path / "x.parquet", row_group_size=2)
    index = ImageIndex.load(tmp_path / "x.parquet")
    assert index.classes == ("zebra, a horse", "ant")
    assert index_paths(index) == ["2.JPEG", "10.JPEG", "3.JPEG"]
    assert index.label_N.tolist() == [0, 0, 1]
    assert {bad.path.rpartition("::")[2]: bad.reason for bad in index.bad} == {
        "lost.JPEG": "no bytes in its row",
        "x.parquet-000000004": "not an image",
    }
    table = table.set_column(1, "label", pyarrow.array([-1] * 5))
    pyarrow.parquet.write_table(table, tmp_path / "x.parquet")
    assert ImageIndex.load(tmp_path / "x.parquet", need_classes=False).classes == ()
    with pytest.raises(DataError, match="no class folders"):
        ImageIndex.load(tmp_path / "x.parquet")
    pyarrow.parquet.write_table(pyarrow.table({"pixels": [1]}), tmp_path / "y.parquet")
    with pytest.raises(DataError, match="has columns pixels: expected image"):
        ImageIndex.load(tmp_path / "y.parquet")


def test_row_groups_are_kept_within_a_bound(tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index = ImageIndex.load(as_parquet(tree, tmp_path / "hub", files=2, rows=4))
    images = [index._stored_image(i) for i in range(len(index))]
    decoded: list[tuple[str, int]] = []
    real = parquet._File.images

    def noted(self: parquet._File, group: int) -> object:
        decoded.append((self.name, group))
        return real(self, group)

    monkeypatch.setattr(parquet._File, "images", noted)
    everything = parquet.ParquetReader(LocalStorage(str(index.root)), index.shards)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(everything.read, images * 3))
    assert found == [index.read_stored(i) for i in range(len(index))] * 3
    groups = 2 * -(-len(index) // 2 // 4)
    in_reader, decoded[:] = decoded[:groups], []
    assert len(set(in_reader)) == groups, "each row group is decoded once, whoever asks first"
    tight = parquet.ParquetReader(LocalStorage(str(index.root)), index.shards, cache_bytes=1)
    assert [tight.read(image) for image in images] == found[: len(images)]
    assert len(tight._groups) == 1
    assert len(decoded) > groups
    decoded.clear()
    ahead = parquet.ParquetReader(LocalStorage(str(index.root)), index.shards)
    ahead.fetch_ahead(map(ReadRequest, images[:3]))
    ahead.close()  # waits for what has begun
    before = len(decoded)
    assert 0 < before <= 3
