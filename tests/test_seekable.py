"""JPEGs that are read in part: restart markers without loss, windows equal to those of the whole image, to the bit."""

import json
import logging
import sys
from collections.abc import Callable
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from helpers.common import CPU
from helpers.jpegs import Memory, jpeg, pixels
from rsbdali.bench import seekable
from rsbdali.bench.material import enough_images
from rsbdali.cli.main import cli
from rsbdali.data.index import ImageIndex
from rsbdali.data.interval_table import FOLDER_NAME, interval_names
from rsbdali.data.intervals import find_intervals
from rsbdali.data.sources.base import Scan
from rsbdali.data.sources.storage import RangeReader
from rsbdali.data.splits import find_split
from rsbdali.errors import DataError
from rsbdali.pipelines import regions
from rsbdali.pipelines.host import augment_pillow, executor, workers
from rsbdali.pipelines.host.decode import WindowDecoder
from rsbdali.pipelines.host.resize import resize_pillow
from rsbdali.tools import restart_markers
from rsbdali.tools.pack import PackOptions, pack
from rsbdali.tools.pack_seekable import make_seekable
from rsbdali.tools.restart_markers import add_restart_markers, choose_interval, code_lengths

WriteImage = Callable[..., Path]
Window = tuple[int, int, int, int]
# what Pillow writes, and what its MCUs are then said to be
SAMPLINGS = {"4:4:4": (0, None), "4:2:2": (1, None), "4:2:0": (2, None), "4:4:0": (1, 0x12), "4:1:1": (2, 0x41)}


@pytest.fixture(scope="module")
def decoder() -> WindowDecoder:
    return WindowDecoder(31)


def sampled(encoded: bytes, factors: int | None) -> bytes:
    """The same MCUs, arranged otherwise: as many blocks of luma in each, beside instead of below each other or so.

    Pillow writes neither 4:4:0 nor 4:1:1; the picture is another one then, and as good as any.
    """
    if factors is None:
        return encoded
    out, at = bytearray(encoded), encoded.index(b"\xff\xc0")
    height, width = int.from_bytes(out[at + 5 : at + 7], "big"), int.from_bytes(out[at + 7 : at + 9], "big")
    height, width = (2 * height, -(-width // 2)) if factors == 0x12 else (-(-height // 2), 2 * width)
    out[at + 5 : at + 9] = height.to_bytes(2, "big") + width.to_bytes(2, "big")
    out[at + 11] = factors
    return bytes(out)


def assert_windows_equal(decoder: WindowDecoder, encoded: bytes, windows: list[Window]) -> None:
    """Read in part, an image has the windows that it has as a whole, and that Pillow cuts out."""
    intervals = find_intervals(encoded)
    assert intervals is not None
    in_part, whole = Memory(encoded, intervals), Memory(encoded, None)
    window_M4 = np.array(windows, np.int32)
    ours, theirs = (decoder.read(each, [0] * len(windows), window_M4) for each in (in_part, whole))
    assert whole.parts_read == 0
    with Image.open(BytesIO(encoded)) as image:
        rgb_HWC = np.asarray(image.convert("RGB"))
    for (y, x, h, w), mine, its in zip(windows, ours, theirs, strict=True):
        np.testing.assert_array_equal(mine, its, err_msg=str((y, x, h, w)))
        if w > 1:  # of a window of one column, DALI itself interpolates the chroma of column 0 otherwise than Pillow
            np.testing.assert_array_equal(mine, rgb_HWC[y : y + h, x : x + w], err_msg=str((y, x, h, w)))


def draw_windows(data: st.DataObject, height: int, width: int) -> list[Window]:
    windows = [(0, 0, height, width)]
    for _ in range(6):
        y, x = data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - 1))
        windows.append((y, x, data.draw(st.integers(1, height - y)), data.draw(st.integers(1, width - x))))
    return windows


@given(
    data=st.data(),
    height=st.integers(1, 90),
    width=st.integers(1, 150),
    sampling=st.sampled_from(list(SAMPLINGS)),
    quality=st.sampled_from([30, 75, 97]),
    gray=st.booleans(),
    optimize=st.booleans(),
    old=st.integers(0, 9),
    interval_width=st.sampled_from([8, 32, 64]),
)
@settings(max_examples=40)
def test_rewritten_without_loss_and_read_in_part(
    decoder: WindowDecoder,
    data: st.DataObject,
    height: int,
    width: int,
    sampling: str,
    quality: int,
    gray: bool,
    optimize: bool,
    old: int,
    interval_width: int,
) -> None:
    options = {"quality": quality, "optimize": optimize, "restart_marker_blocks": old}
    subsampling, factors = SAMPLINGS[sampling]
    options |= {"mode": "L"} if gray else {"subsampling": subsampling}
    encoded = sampled(jpeg(height, width, height * 1000 + width, **options), None if gray else factors)
    height, width = pixels(encoded).shape[:2]
    written = add_restart_markers(encoded, interval_width)
    assert written is not None
    np.testing.assert_array_equal(pixels(written), pixels(encoded))
    assert_windows_equal(decoder, written, draw_windows(data, height, width))


@pytest.mark.parametrize("sampling", [0, 1, 2])
def test_every_window_of_a_narrow_image(decoder: WindowDecoder, sampling: int) -> None:
    """Where an interval is up to 4 pixels wide, libjpeg-turbo would interpolate otherwise, and beside each seam."""
    encoded = add_restart_markers(jpeg(18, 35, 3, subsampling=sampling), 8)
    assert encoded is not None
    windows = [(y, x, 1, w) for y in (0, 7, 8, 15, 16, 17) for x in range(35) for w in (1, 2) if x + w <= 35]
    for start in range(0, len(windows), 31):
        assert_windows_equal(decoder, encoded, windows[start : start + 31])


def test_markers_of_others_are_used(decoder: WindowDecoder) -> None:
    encoded = jpeg(64, 96, 0, restart_marker_blocks=3)
    assert_windows_equal(decoder, encoded, [(20, 40, 10, 12), (0, 0, 64, 96)])


def test_only_what_is_under_a_window_is_read_and_decoded(decoder: WindowDecoder) -> None:
    encoded = jpeg(256, 256, 0, restart_marker_blocks=2, subsampling=2)
    image = Memory(encoded, find_intervals(encoded))
    (small, other), inside_M4 = regions.RegionReader().read(
        image, [0, 0], np.array([[100, 40, 24, 20], [1, 2, 255, 254]])
    )
    assert image.parts_read == 1  # the other window needs all of the image, and is read as such
    assert pixels(small.tobytes()).shape == (32, 32, 3)
    assert image.bytes_read < len(encoded) // 4
    assert other.tobytes() == encoded
    assert inside_M4.tolist() == [[4, 8, 24, 20], [1, 2, 255, 254]]


@pytest.mark.parametrize("kind", ["progressive", "cmyk", "ycck", "truncated", "png", "webp", "text", "cut_header"])
def test_what_cannot_be_rewritten_stays_as_it_is(tmp_path: Path, write_image: WriteImage, kind: str) -> None:
    encoded = write_image(tmp_path / "x.jpg", kind).read_bytes()
    found = make_seekable(encoded)
    assert (found.encoded, found.intervals) == (encoded, None)
    assert find_intervals(encoded) is None


@pytest.mark.parametrize("kind", ["plain", "gray", "rgb", "s411", "exif", "restart"])
def test_what_decoders_read_survives(tmp_path: Path, write_image: WriteImage, kind: str) -> None:
    """Of Adobe's RGB the marker, which says that it is no YCbCr; EXIF goes, which nobody applies here."""
    encoded = write_image(tmp_path / "x.jpg", kind).read_bytes()
    found = make_seekable(encoded)
    assert found.intervals is not None
    np.testing.assert_array_equal(pixels(found.encoded), pixels(encoded))
    assert b"Exif" not in found.encoded


def test_a_scan_cut_or_damaged_anywhere_is_never_written_otherwise() -> None:
    encoded, rng = jpeg(40, 56, 1, optimize=True), np.random.default_rng(0)
    for _ in range(150):
        damaged = bytearray(encoded)
        for at in rng.integers(20, len(encoded), 3):
            damaged[at] = rng.integers(256)
        damaged = damaged[: rng.integers(100, len(encoded) + 1)] if rng.integers(2) else damaged
        found = make_seekable(bytes(damaged))
        assert found.intervals is None or np.array_equal(pixels(found.encoded), pixels(bytes(damaged)))


def test_intervals_divide_the_line() -> None:
    assert [choose_interval(columns, 2) for columns in (32, 30, 47, 1, 21)] == [2, 2, 1, 1, 3]
    assert [choose_interval(columns, 4) for columns in (32, 30, 47, 34, 21)] == [4, 5, 47, 2, 3]


def test_codes_of_any_counts_fit_into_16_bits() -> None:
    fibonacci = np.zeros(256, np.int64)
    fibonacci[:40] = [1, 1] + [0] * 38
    for v in range(2, 40):
        fibonacci[v] = fibonacci[v - 1] + fibonacci[v - 2]
    flat, one = np.ones(256, np.int64), np.eye(256, dtype=np.int64)[7]
    for count_V in (fibonacci, flat, one):
        lengths = code_lengths(count_V)
        assert set(lengths) == set(np.flatnonzero(count_V))
        assert list(lengths.values()) == sorted(lengths.values())
        assert max(lengths.values()) <= 16
        assert sum(2.0**-length for length in lengths.values()) < 1  # the code of ones alone is left


@pytest.fixture
def data(image_tree: Callable[..., Path]) -> Path:
    """train/ and val/, with images that are written again and others that are not."""
    image_tree(classes=2, per_class=3, split="val", seed=1)
    odd = ("cmyk", "png", "progressive", "gray", "restart", "no_eoi")
    return image_tree(classes=3, per_class=6, odd=odd).parent


def test_packed_shards_give_the_windows_of_the_folder(
    data: Path, decoder: WindowDecoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = data.parent / "out"
    command = ["pack", str(data), "--out", str(out), "--shards", "2", "--seekable"]
    said = CliRunner().invoke(cli, command, catch_exceptions=False).output
    assert "26 images are read in part" in said
    assert "4 are as they were" in said
    assert json.loads((out / "manifest.json").read_text())["seekable"]["images"] == 26
    read, parts = RangeReader.read_parts, []

    def read_parts(self: RangeReader, *arguments: object) -> None:
        parts.append(arguments)
        read(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(RangeReader, "read_parts", read_parts)
    indexes = [ImageIndex.load(find_split(root, "train")) for root in (out, data)]
    for i in range(24):
        window_14 = np.array([[i, 2 * i % 11, 10 + i % 5, 20 - i % 7]])
        ours, theirs = (decoder.read(index, [i], window_14)[0] for index in indexes)
        np.testing.assert_array_equal(ours, theirs)
    assert len(parts) == 20
    assert "2 shards were there already" not in said
    assert "3 shards were there already" in CliRunner().invoke(cli, command, catch_exceptions=False).output


def test_a_damaged_file_of_intervals_is_noticed(data: Path, caplog: pytest.LogCaptureFixture) -> None:
    out = data.parent / "out"
    options = PackOptions(data / "train", out, 1, seekable=True)
    pack(options)
    path = out / "train-000000.intervals.npy"
    good = path.read_bytes()
    path.write_bytes(good[:-2] + bytes(2))
    with pytest.raises(DataError, match="run the command again"):
        pack(options)
    path.write_bytes(good[:-2])
    with caplog.at_level(logging.WARNING):
        index = ImageIndex.load(out / "train-*.tar")
    assert "read as a whole" in caplog.text
    assert index.intervals is None
    pack(options)
    assert path.read_bytes() == good


def seekable_folder(data: Path) -> Path:
    """The training images, packed as a folder."""
    pack(PackOptions(data, data.parent / "folder", None, seekable=True))
    return data.parent / "folder" / "train"


def test_an_image_that_the_source_no_longer_has_is_not_left_among_the_packed_ones(data: Path) -> None:
    root = seekable_folder(data)
    gone = sorted((data / "train").rglob("*.JPEG"))[0]
    gone.unlink()
    with pytest.raises(DataError, match=rf"{gone.name}: is no image of the source: remove it"):
        seekable_folder(data)
    (root / gone.relative_to(data / "train")).unlink()
    assert len(ImageIndex.load(seekable_folder(data))) == len(ImageIndex.load(data / "train"))


def test_a_packing_of_which_nothing_can_be_read_in_part_warns_of_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "in/a").mkdir(parents=True)
    Image.new("RGB", (64, 64)).save(tmp_path / "in/a/x.png")
    pack(PackOptions(tmp_path / "in", tmp_path / "out", None, seekable=True))
    assert ImageIndex.scan(tmp_path / "out/train").intervals is None
    assert [record for record in caplog.records if record.levelname == "WARNING" and "npy" in record.message] == []
    (tmp_path / "out/train" / FOLDER_NAME).write_bytes(b"no table at all" * 9)
    assert ImageIndex.scan(tmp_path / "out/train").intervals is None
    assert f"{FOLDER_NAME} is damaged (" in caplog.text
    assert "pickle" not in caplog.text


def test_splicing_is_compiled_for_seekable_images_alone(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[int] = []
    monkeypatch.setattr(workers, "find_splice", lambda: compiled.append(1))
    for root, times in ((data / "train", 0), (seekable_folder(data), 1)):
        index = ImageIndex.load(root)
        made = workers.Workers(index, rows=4, size=(32, 32), device=CPU, num_threads=1)
        made.close()
        assert len(compiled) == times


def test_the_benchs_links_to_seekable_images_are_seekable(data: Path, tmp_path: Path) -> None:
    index = ImageIndex.load(seekable_folder(data))
    root, copies = enough_images(index, 4, tmp_path / "scratch")
    tiled = ImageIndex.load(root)
    assert (copies > 1, len(tiled)) == (True, copies * len(index))
    for i in range(len(index)):
        for copy in range(copies):
            found, own = tiled.intervals_of(i * copies + copy), index.intervals_of(i)
            assert (found is None) == (own is None)
            if found is not None and own is not None:
                assert found.sampling == own.sampling
                np.testing.assert_array_equal(found.length_K, own.length_K)


def test_a_folder_is_packed_on_where_it_was_stopped(data: Path) -> None:
    root = seekable_folder(data)
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in root.rglob("*.JPEG")}
    assert len(before) == 24
    gone, other, *_ = sorted(before)
    gone.unlink()
    other.write_bytes(jpeg(50, 50, 0, restart_marker_blocks=1))
    (root / FOLDER_NAME).unlink()
    assert seekable_folder(data) == root
    for path, (content, time) in before.items():
        assert path.read_bytes() == content
        assert (path.stat().st_mtime_ns == time) == (path not in (gone, other))
    manifest = json.loads((root.parent / "manifest.json").read_text())
    assert (manifest["seekable"]["images"], manifest["splits"]["val"]["images"]) == (26, 6)
    assert ImageIndex.scan(root).intervals is not None


@pytest.mark.parametrize("options", [{}, {"seekable": True, "max_size": 100}])
def test_without_shards_only_seekable_images_are_written(data: Path, options: dict[str, Any]) -> None:
    with pytest.raises(DataError, match="--shards is missing"):
        pack(PackOptions(data, data.parent / "out", None, **options))


def test_images_outside_class_folders_need_shards(tmp_path: Path, write_image: WriteImage) -> None:
    write_image(tmp_path / "in" / "x.jpg")
    with pytest.raises(DataError, match="--shards"):
        pack(PackOptions(tmp_path / "in", tmp_path / "out", None, seekable=True))


def test_a_folder_and_parts_of_it(data: Path, decoder: WindowDecoder) -> None:
    before = ImageIndex.scan(data / "train")
    whole = [decoder.read(before, [i], np.array([[5, 7, 20, 30]]))[0] for i in range(len(before))]
    index = ImageIndex.scan(seekable_folder(data))
    assert index.intervals is not None
    assert sum(index.intervals_of(i) is not None for i in range(len(index))) == 20
    row_M = [11, 3, 20]
    some = index.subset(row_M)
    for i, expected in [*enumerate(whole), *((i, whole[i]) for i in row_M)]:
        np.testing.assert_array_equal(decoder.read(index, [i], np.array([[5, 7, 20, 30]]))[0], expected)
    for k, i in enumerate(row_M):
        assert (some.intervals_of(k) is None) == (index.intervals_of(i) is None)
        np.testing.assert_array_equal(decoder.read(some, [k], np.array([[5, 7, 20, 30]]))[0], whole[i])


def test_a_table_of_a_packed_folder_and_a_list_of_its_files(data: Path, tmp_path: Path) -> None:
    """A table finds the intervals in its folder; a list is read as a whole, and a Parquet file cannot have any."""
    root = seekable_folder(data)
    index = ImageIndex.scan(root)
    paths = [index.relative_path(i) for i in range(len(index))]
    lines = [f"{path},{index.classes[label]}" for path, label in zip(paths, index.targets, strict=True)]
    (tmp_path / "table.csv").write_text("\n".join(lines))
    table = ImageIndex.load(tmp_path / "table.csv", image_root=root)
    assert table.intervals is not None
    assert index.intervals is not None
    assert table.intervals.count_N.tolist() == index.intervals.count_N.tolist()
    assert ImageIndex.from_lists([root / path for path in paths], index.targets).intervals is None
    assert interval_names(Scan(classes=(), columns={}, bad=(), kind="parquet", shards=("train-0.parquet",))) == []


def test_files_that_have_changed_are_read_as_a_whole(data: Path, decoder: WindowDecoder) -> None:
    """Other bytes of the same number are seen by their markers; another number when the index is made."""
    root = seekable_folder(data)
    index = ImageIndex.scan(root)
    i = next(i for i in range(len(index)) if (found := index.intervals_of(i)) and len(found.length_K) > 8)
    path, window_14 = Path(index.path(i)), np.array([[2, 3, 20, 21]])
    other = jpeg(int(index.height_N[i]), int(index.width_N[i]), 9, quality=10)
    assert len(other) < index.nbytes_N[i]
    path.write_bytes(other + bytes(int(index.nbytes_N[i]) - len(other)))
    (found,) = decoder.read(index, [i], window_14)
    np.testing.assert_array_equal(found, pixels(other)[2:22, 3:24])
    path.write_bytes(other)
    assert ImageIndex.scan(root).intervals_of(i) is None


def test_an_image_that_is_gone_or_cut_is_named(data: Path, decoder: WindowDecoder) -> None:
    index = ImageIndex.scan(seekable_folder(data))
    first, second = (i for i in range(2))
    Path(index.path(first)).unlink()
    path = Path(index.path(second))
    path.write_bytes(path.read_bytes()[:300])
    gone, cut = decoder.read(index, [first, second], np.array([[0, 0, 40, 40]] * 2))
    assert "No such file" in str(gone)
    assert "cut short" in str(cut)


def test_the_measurement(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By Pillow's resize and RandAugment, which need not be compiled."""
    for module in (workers, executor):
        monkeypatch.setattr(module, "find_resize", lambda: resize_pillow)
        monkeypatch.setattr(module, "find_augment", lambda: augment_pillow.augment)
    (data / "train/class0/odd_no_eoi.JPEG").unlink()
    packed, record = seekable_folder(data), data.parent / "record.json"
    options = {"recipe": "a3", "batch_size": 8, "threads": 1, "rounds": 2, "json": record}
    seekable.main(data, packed.parent, **options)
    found = json.loads(record.read_text())
    assert (found["images"], found["in_part"]) == (23, 20)
    assert 0 < found["splice"]["decoded_share"] < found["splice"]["read_share"] < 1
    assert [len(us) for us in found["rounds"].values()] == [2, 2, 2]
    with pytest.raises(DataError, match="no image can be read in part"):
        seekable.main(data, data, **options)


def test_without_numba_images_are_read_whole_and_none_are_packed(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index = ImageIndex.scan(seekable_folder(data))
    with_numba = WindowDecoder(31).read(index, [0], np.array([[1, 2, 30, 31]]))
    regions.find_splice.cache_clear()
    restart_markers.find_loops.cache_clear()
    monkeypatch.setitem(sys.modules, "numba", None)
    try:
        decoder = WindowDecoder(31)
        monkeypatch.setattr(ImageIndex, "read_parts", lambda *_: pytest.fail("read in part"))
        np.testing.assert_array_equal(decoder.read(index, [0], np.array([[1, 2, 30, 31]])), with_numba)
        with pytest.raises(DataError, match="--seekable needs Numba"):
            pack(PackOptions(data, data / "out", 1, seekable=True))
    finally:
        regions.find_splice.cache_clear()
        restart_markers.find_loops.cache_clear()


def test_a_table_without_shards_is_none(data: Path) -> None:
    index = ImageIndex.scan(data / "train")
    assert index.intervals is None
    assert index.intervals_of(0) is None
    assert replace(index, intervals=None).subset([1]).intervals is None
