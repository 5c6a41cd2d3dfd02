"""Seekable JPEGs in object stores and in DALI's graph: fewer bytes, and the pixels of whole images to the bit."""

import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from io import BytesIO
from itertools import pairwise
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import torch
from fsspec.implementations.memory import MemoryFileSystem
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from helpers.jpegs import Memory, jpeg, pixels
from rsbdali.data.index import ImageIndex
from rsbdali.data.intervals import find_intervals
from rsbdali.data.sources import object_store, registry
from rsbdali.data.sources.base import ByteRange
from rsbdali.data.sources.object_store import RemoteBlob
from rsbdali.data.sources.storage import joined
from rsbdali.data.splits import find_split
from rsbdali.errors import SourceError
from rsbdali.loader import EvalLoader, TrainLoader
from rsbdali.pipelines.host.executor import HostExecutor
from rsbdali.pipelines.train import GraphExecutor
from rsbdali.plan.planner import Planner
from rsbdali.recipe import Recipe
from rsbdali.tools.pack import PackOptions, pack

CPU = torch.device("cpu")
SMALL: dict[str, Any] = {"img_size": 32, "global_batch_size": 8, "mix_groups": 2, "aa": "rand-m6-mstd0.5-inc1"}
FORMS = {"shards": 2, "folder": None}
Windows = list[tuple[int, int, int, int]]


@pytest.fixture(autouse=True, scope="module")
def no_copies() -> Iterator[None]:
    """What DALI does not decode is decoded from Pillow's copy, which would hide a wrong window."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ImageIndex, "read_copy", lambda *_: pytest.fail("a window did not decode"))
        yield


@pytest.fixture
def originals(tmp_path: Path, image_tree: Callable[..., Path]) -> Path:
    """Images large enough that a window leaves some of them out, and some that are not written again."""
    root = image_tree(classes=2, per_class=2, odd=("png", "progressive"))
    for i in range(12):
        path = root / f"class{i % 2}" / f"large{i}.JPEG"
        path.write_bytes(jpeg(300 + 10 * i, 420 - 7 * i, i, quality=90))
    return root.parent


@pytest.fixture(params=list(FORMS))
def packed(request: pytest.FixtureRequest, originals: Path, tmp_path: Path) -> Path:
    """The same, packed to be read in part: as shards, or as a folder."""
    pack(PackOptions(originals, tmp_path / "packed", FORMS[request.param], seekable=True))
    return tmp_path / "packed"


@pytest.fixture
def url(packed: Path) -> Iterator[str]:
    """The packed files in a store."""
    fs = fsspec.filesystem("memory")
    for path in packed.rglob("*"):
        if path.is_file():
            fs.pipe_file(f"/bucket/{path.relative_to(packed)}", path.read_bytes())
    yield "memory://bucket"
    MemoryFileSystem.store.clear()


class Fetched:
    """What is asked of a store: name and bytes of each read."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.reads: list[tuple[str, int]] = []
        pread = RemoteBlob.pread

        def noted(blob: RemoteBlob, count: int, at: int) -> bytes:
            found = pread(blob, count, at)
            self.reads.append((blob._path, len(found)))
            return found

        monkeypatch.setattr(RemoteBlob, "pread", noted)

    @property
    def nbytes(self) -> int:
        return sum(nbytes for _, nbytes in self.reads)


@pytest.fixture
def fetched(monkeypatch: pytest.MonkeyPatch) -> Fetched:
    return Fetched(monkeypatch)


def batches(index: ImageIndex, decode: str, **recipe: Any) -> list[torch.Tensor]:
    loader = TrainLoader(index, Recipe.load("a3", SMALL | recipe), device="cpu", decode=decode, num_threads=2)
    try:
        return [batch.images for batch in loader]
    finally:
        loader.close()


def assert_same(ours: list[torch.Tensor], theirs: list[torch.Tensor]) -> None:
    for mine, its in zip(ours, theirs, strict=True):
        assert torch.equal(mine, its)


@pytest.mark.parametrize("decode", ["cpu", "graph"])
def test_a_store_gives_the_batches_of_the_originals(url: str, packed: Path, originals: Path, decode: str) -> None:
    index, local = ImageIndex.load(find_split(url, "train")), ImageIndex.load(find_split(packed, "train"))
    assert index.intervals is not None
    assert local.intervals is not None
    np.testing.assert_array_equal(index.intervals.count_N, local.intervals.count_N)
    assert (index.intervals.file_N >= 0).sum() >= 12
    ours = batches(index, decode)
    for other in (replace(index, intervals=None), local, ImageIndex.load(originals / "train")):
        assert_same(ours, batches(other, decode))


@pytest.mark.parametrize("kind", [GraphExecutor, HostExecutor])
def test_only_what_is_needed_is_fetched(url: str, fetched: Fetched, kind: Any) -> None:
    """Of windows in the upper part nothing below them; an image is one request all the same, since the gap is small."""
    index = ImageIndex.load(find_split(url, "train"))
    large_M = [i for i in range(len(index)) if "large" in index.path(i)]
    found, counts = [], []
    for each in (index.subset(large_M), replace(index, intervals=None).subset(large_M)):
        plan = planned(each, [(10, 30, 25, 40)] * len(large_M))
        options = {"roi": True} if kind is GraphExecutor else {"augment": False}
        executor = kind(each, Recipe.load("a3", SMALL), rows=len(plan), device=CPU, num_threads=2, **options)
        fetched.reads.clear()
        executor.submit(plan)
        found.append(executor.collect().images_NHWC.clone())
        counts.append((len(fetched.reads), fetched.nbytes))
        executor.close()
    (ours, nbytes), (theirs, all_bytes) = counts
    assert ours == theirs == len(large_M)
    assert all_bytes == index.nbytes_N[large_M].sum()
    assert nbytes < 0.5 * all_bytes
    assert torch.equal(*found)


def test_the_next_plans_parts_are_fetched_ahead_and_nothing_else(
    url: str, fetched: Fetched, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = ImageIndex.load(find_split(url, "train"))
    monkeypatch.setattr(index.reader, "_fetch", lambda request: pytest.fail(f"not fetched ahead: {request}"))
    real, reader = type(index.reader)._fetch, index.reader
    ahead = reader.fetch_ahead

    def fetch_ahead(requests: Any) -> None:
        """What is submitted here may fetch; what is asked for later must have been."""
        with monkeypatch.context() as patch:
            patch.setattr(reader, "_fetch", lambda request: real(reader, request))
            ahead(requests)

    monkeypatch.setattr(reader, "fetch_ahead", fetch_ahead)
    for decode in ("cpu", "graph"):
        assert len(batches(index, decode)) > 2


@pytest.mark.parametrize(("gap_bytes", "requests"), [(0, 2), (1 << 20, 1)])
def test_near_parts_are_one_request(
    url: str, fetched: Fetched, monkeypatch: pytest.MonkeyPatch, gap_bytes: int, requests: int
) -> None:
    monkeypatch.setattr(registry, "GAP_BYTES", gap_bytes)
    index = ImageIndex.load(find_split(url, "train"))
    i = next(i for i in range(len(index)) if "large" in index.path(i))
    stored, parts = index.read_stored(i), (ByteRange(0, 700), ByteRange(9000, 500))
    out_B = np.empty(1200, np.uint8)
    fetched.reads.clear()
    index.read_parts(i, parts, out_B)
    assert out_B.tobytes() == stored[:700] + stored[9000:9500]
    assert len(fetched.reads) == requests
    assert fetched.nbytes == (1200 if requests == 2 else 9500)


@given(starts=st.lists(st.integers(0, 400), unique=True, max_size=8), gap_bytes=st.integers(0, 100), data=st.data())
def test_joined_parts_are_the_parts(starts: list[int], gap_bytes: int, data: st.DataObject) -> None:
    starts.sort()
    ends = [*starts[1:], 500] if starts else []
    parts = [ByteRange(a, data.draw(st.integers(1, b - a))) for a, b in zip(starts, ends, strict=True)]
    groups = list(joined(parts, gap_bytes))
    assert [part for group in groups for part in group] == parts
    gaps = [b.start - a.start - a.nbytes for a, b in pairwise(parts)]
    assert len(groups) == (1 + sum(gap > gap_bytes for gap in gaps) if parts else 0)


def interval_reads(fetched: Fetched) -> list[str]:
    return sorted({name for name, _ in fetched.reads if name.endswith("intervals.npy")})


def test_where_intervals_are_is_copied_once_a_version(url: str, fetched: Fetched, tmp_path: Path) -> None:
    where, cache = find_split(url, "train"), tmp_path / "cache"
    index = ImageIndex.load(where, cache_dir=cache)
    first = interval_reads(fetched)
    assert first
    assert len(list((cache / "intervals").iterdir())) == len(first)
    fetched.reads.clear()
    for check in (True, False):
        again = ImageIndex.load(where, cache_dir=cache, check=check)
        assert again.intervals is not None
        assert again.intervals is not None
        np.testing.assert_array_equal(again.intervals.start_N, index.intervals.start_N)
    assert interval_reads(fetched) == []
    fs = fsspec.filesystem("memory")
    fs.pipe_file(first[0], fs.cat_file(first[0]))  # written again: another time
    ImageIndex.load(where, cache_dir=cache)
    assert interval_reads(fetched) == first[:1]
    for name in first:
        fs.rm_file(name)
    assert ImageIndex.load(where, cache_dir=cache).intervals is None


def test_a_store_that_fails_and_a_cache_that_cannot_be_written(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    where = find_split(url, "train")
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache/intervals").write_text("a file, and no folder")
    assert ImageIndex.load(where, cache_dir=tmp_path / "cache").intervals is None
    assert "cannot be copied" in caplog.text
    read = MemoryFileSystem.cat_file

    def fails(fs: MemoryFileSystem, path: str, **options: Any) -> bytes:
        if path.endswith("intervals.npy"):
            raise OSError("down")
        return bytes(read(fs, path, **options))

    monkeypatch.setattr(MemoryFileSystem, "cat_file", fails)
    monkeypatch.setattr(object_store, "RETRY_WAITS_S", (0.0,))
    with pytest.raises(SourceError, match="the store fails"):
        ImageIndex.load(where, cache_dir=tmp_path / "other")


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> tuple[ImageIndex, ImageIndex]:
    """Photographs' sizes with every kind of MCU; read in part, and as a whole."""
    root = tmp_path_factory.mktemp("seekable")
    for i in range(12):
        path = root / f"in/train/class{i % 2}/{i:02d}.JPEG"
        path.parent.mkdir(parents=True, exist_ok=True)
        options = {"mode": "L"} if i % 4 == 3 else {"subsampling": i % 4}
        path.write_bytes(jpeg(90 + 17 * i, 260 - 13 * i, i, **options))
    pack(PackOptions(root / "in", root / "out", None, seekable=True))
    index = ImageIndex.scan(root / "out/train")
    assert index.intervals is not None
    assert (index.intervals.file_N >= 0).all()
    return index, replace(index, intervals=None)


GRAPHS = {"region": (True, 1), "whole": (False, 1), "shared": (True, 3), "shared whole": (False, 3)}


@pytest.fixture(scope="module", params=list(GRAPHS))
def graphs(request: pytest.FixtureRequest, two: tuple[ImageIndex, ImageIndex]) -> Iterator[list[GraphExecutor]]:
    """An executor that reads in part and one that does not; decoding all or the region, for one row or several."""
    roi, repeats = GRAPHS[request.param]
    mode = {"aug_repeats": repeats, "aug_repeats_mode": "decode_once"} if repeats > 1 else {"aug_repeats": 0}
    recipe = Recipe.load("a3", SMALL | mode)
    made = [GraphExecutor(index, recipe, rows=24, device=CPU, num_threads=2, roi=roi) for index in two]
    yield made
    for executor in made:
        executor.close()


def planned(index: ImageIndex, windows: Windows) -> Any:
    """A plan whose rows are these windows, each given by shares of the image's sides, of all images in turn."""
    recipe = Recipe.load("a3", {"img_size": 32, "global_batch_size": len(index), "mix_groups": 1, "aug_repeats": 0})
    plan = Planner(index.width_N, index.height_N, recipe).batch(0, 0)
    rows = np.arange(len(windows)) % len(index)
    plan = plan.rows(rows)
    height_N, width_N = index.height_N[plan.sample_N], index.width_N[plan.sample_N]
    share_N4 = np.array(windows)
    start_N2 = share_N4[:, :2] * np.stack([height_N, width_N], 1) // 100
    room_N2 = np.stack([height_N, width_N], 1) - start_N2
    size_N2 = np.maximum(1, share_N4[:, 2:] * room_N2 // 100)
    return replace(plan, crop_N4=np.concatenate([start_N2, size_N2], 1).astype(np.int32))


SHARE = st.integers(0, 99)
WINDOWS = st.lists(st.tuples(SHARE, SHARE, st.integers(1, 100), st.integers(1, 100)), min_size=1, max_size=24)


@given(windows=WINDOWS)
@settings(max_examples=25)
def test_the_graph_makes_the_same_batch_of_a_part(
    two: tuple[ImageIndex, ImageIndex], graphs: list[GraphExecutor], windows: Windows
) -> None:
    plan = planned(two[0], windows)
    for executor in graphs:
        executor.submit(plan)
    ours, theirs = (executor.collect() for executor in graphs)
    assert ours.bad == theirs.bad == {}
    assert torch.equal(ours.images_NHWC, theirs.images_NHWC)


@pytest.mark.parametrize("roi", [True, False])
def test_the_graph_is_given_small_images(
    two: tuple[ImageIndex, ImageIndex], monkeypatch: pytest.MonkeyPatch, roi: bool
) -> None:
    """Fewer bytes go into DALI, and the window moves with them."""
    index, _ = two
    plan = planned(index, [(40, 40, 20, 20)] * 12)
    executor = GraphExecutor(index, Recipe.load("a3", SMALL), rows=12, device=CPU, num_threads=1, roi=roi)
    given_fields: list[Any] = []
    schedule = executor._queue._schedule
    monkeypatch.setattr(executor._queue, "_schedule", lambda job: (given_fields.append(job.fields), schedule(job)))
    executor.submit(plan)
    executor.collect()
    executor.close()
    ((images, start_N2, shape_N2, *_),) = given_fields
    for row, i in enumerate(plan.sample_N.tolist()):
        y, x, h, w = plan.crop_N4[row].tolist()
        small_HWC, whole_HWC = pixels(images[row].tobytes()), pixels(index.read_stored(i))
        assert len(images[row]) < 0.6 * index.nbytes_N[i]
        top, left = start_N2[row].tolist()
        assert shape_N2[row].tolist() == [h, w]
        np.testing.assert_array_equal(small_HWC[top : top + h, left : left + w], whole_HWC[y : y + h, x : x + w])


class Damaged(Memory):
    """An image whose parts parse and do not decode; as a whole it does by Pillow."""

    def read_parts(self, i: int, parts: Any, out_B: np.ndarray) -> None:
        super().read_parts(i, parts, out_B)
        table = out_B.tobytes().index(b"\xff\xc4") + 5
        out_B[table : table + 16] = 255  # more codes than any tree has

    def read_copy(self, _: int) -> np.ndarray:
        out = BytesIO()
        Image.open(BytesIO(self._encoded)).convert("RGB").save(out, "PNG")
        return np.frombuffer(out.getvalue(), np.uint8)


@pytest.mark.parametrize("roi", [True, False])
def test_pillows_copy_of_a_part_has_the_images_own_window(roi: bool) -> None:
    encoded = jpeg(200, 220, 0, restart_marker_blocks=2)
    window_N4 = np.array([[90, 100, 32, 32], [0, 0, 200, 220]], np.int32)  # the second is read as a whole, and is good
    image = Damaged(encoded, find_intervals(encoded))
    recipe = Recipe.load("a3", SMALL | {"aug_repeats": 0, "global_batch_size": 2, "mix_groups": 1})
    plan = Planner(np.full(2, 220), np.full(2, 200), recipe).batch(0, 0)
    plan = replace(plan, sample_N=np.zeros_like(plan.sample_N), crop_N4=window_N4)
    found = []
    for each in (image, Memory(encoded, None)):
        executor = GraphExecutor(each, recipe, rows=2, device=CPU, num_threads=1, roi=roi)
        executor.submit(plan)
        found.append(executor.collect())
        executor.close()
    assert image.parts_read == 1
    assert found[0].bad == found[1].bad == {}
    assert torch.equal(found[0].images_NHWC, found[1].images_NHWC)


def test_evaluation_reads_whole_images_of_the_same_pixels(packed: Path, originals: Path) -> None:
    recipe = Recipe.load("a3", SMALL | {"test_img_size": 32})
    before, after = (ImageIndex.load(find_split(root, "train")) for root in (originals, packed))
    for decode in ("cpu", "graph"):
        ours, theirs = (
            [batch.images for batch in EvalLoader(index, recipe, device="cpu", decode=decode, batch_size=8)]
            for index in (after, before)
        )
        assert_same(ours, theirs)


def test_packed_files_are_read_in_part_from_the_disk_too(
    packed: Path, originals: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    read = ImageIndex.read_parts

    def noted(self: ImageIndex, i: int, parts: Any, out_B: np.ndarray) -> None:
        asked.append(i)
        read(self, i, parts, out_B)

    monkeypatch.setattr(ImageIndex, "read_parts", noted)
    index = ImageIndex.load(find_split(packed, "train"))
    for recipe in ({}, {"aug_repeats": 3, "aug_repeats_mode": "decode_once"}):
        asked.clear()
        ours = batches(index, "graph", **recipe)
        assert asked
        assert_same(ours, batches(ImageIndex.load(os.path.join(originals, "train")), "graph", **recipe))
