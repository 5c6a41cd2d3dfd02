"""`rsbdali pack`: shards that hold what the folder held, that go on after a stop, and that are checked."""

import json
import tarfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from rsbdali.cli.main import cli
from rsbdali.data.header import ImageFlags
from rsbdali.data.index import ImageIndex
from rsbdali.data.splits import find_split
from rsbdali.errors import DataError
from rsbdali.loader import TrainLoader
from rsbdali.recipe import Recipe
from rsbdali.tools import pack_shard
from rsbdali.tools.pack import PackOptions, pack

ImageTree = Callable[..., Path]
WriteImage = Callable[..., Path]
SMALL = {"img_size": 32, "global_batch_size": 8, "mix_groups": 2, "aa": "rand-m6-mstd0.5-inc1"}


@pytest.fixture
def data(image_tree: ImageTree) -> Path:
    """train/ of 3 classes and val/ of 2 of them, with images that need care."""
    image_tree(classes=2, per_class=3, split="val", seed=1)
    return image_tree(classes=3, per_class=6, odd=("cmyk", "png", "no_eoi", "text")).parent


def first_batches(index: ImageIndex) -> list[torch.Tensor]:
    loader = TrainLoader(index, Recipe.load("a3", SMALL), device="cpu", num_threads=2)
    try:
        return [batch.images for batch in loader]
    finally:
        loader.close()


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("out", "shards", "message"),
    [
        ("data", None, "is within the source"),
        ("data/train", None, "is within the source"),
        ("data/train/packed", 2, "is within the source"),
        ("memory://bucket", 2, "a folder of this machine"),
        ("shards", None, "a shard, which would be left beside the folder"),
        ("folder", 2, "a folder of images, which would be read in place of the shards"),
    ],
)
def test_outputs_that_would_be_read_along_with_others_are_refused(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, out: str, shards: int | None, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    pack(PackOptions(data, tmp_path / "shards", 1))
    (tmp_path / "folder" / "train").mkdir(parents=True)
    before = contents(tmp_path)
    with pytest.raises(DataError, match=message):
        pack(PackOptions(data, Path(out), shards, seekable=True))
    assert contents(tmp_path) == before


def test_what_a_killed_packing_left_is_removed(data: Path, tmp_path: Path) -> None:
    left = tmp_path / "out" / ".train-000000.tar.0123abcd.tmp"
    left.parent.mkdir()
    left.write_bytes(b"half a shard")
    pack(PackOptions(data, tmp_path / "out", 1))
    assert [path.name for path in left.parent.iterdir() if path.name.startswith(".")] == []


def test_shards_hold_what_the_folder_held(data: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    packed = pack(PackOptions(data, tmp_path / "out", 3), lambda done, total: seen.append((done, total)))
    assert (packed.shards, packed.images) == ({"train": 3, "val": 1}, {"train": 21, "val": 6})
    assert seen[-1] == (2 * 27, 2 * 27)
    for split in ("train", "val"):
        classes = ImageIndex.load(data / "train").classes
        folder = ImageIndex.load(data / split, classes=classes)
        index = ImageIndex.load(find_split(tmp_path / "out", split), classes=classes)
        assert index.classes == folder.classes
        for name in ("label_N", "width_N", "height_N", "nbytes_N", "format_N", "flags_N", "path_bytes"):
            np.testing.assert_array_equal(getattr(index, name), getattr(folder, name), err_msg=name)
    train = [ImageIndex.load(find_split(root, "train")) for root in (tmp_path / "out", data)]
    for ours, theirs in zip(*map(first_batches, train), strict=True):
        assert torch.equal(ours, theirs)


def test_standard_webdataset(data: Path, tmp_path: Path) -> None:
    """Any reader that goes by WebDataset's rules finds samples: files of one key in a row, image and label."""
    pack(PackOptions(data, tmp_path / "out", 2))
    samples = {}
    for path in sorted((tmp_path / "out").glob("train-*.tar")):
        with tarfile.open(path) as archive:
            names = archive.getnames()
            for at in range(0, len(names), 3):
                keys = {name.partition(".")[0] for name in names[at : at + 3]}
                assert len(keys) == 1
                (key,) = keys
                parts = {n.partition(".")[2].lower(): archive.extractfile(n).read() for n in names[at : at + 3]}  # type: ignore[union-attr]
                assert key not in samples
                samples[key] = parts
    assert len(samples) == 21
    for key, parts in samples.items():
        assert parts["jpeg"] == (data / "train" / f"{key}.JPEG").read_bytes()
        assert parts["cls"] == key[len("class")].encode()
        content = {"path": f"{key}.JPEG", "class": key.partition("/")[0], "label": int(parts["cls"])}
        assert json.loads(parts["json"]) == content
    first = [key.partition("/")[0] for key in list(samples)[:8]]
    assert len(set(first)) > 1, "classes are mixed, for readers that stream"


def test_names_that_a_key_cannot_hold(tmp_path: Path, write_image: WriteImage) -> None:
    names = ["a.b.jpg", "a_b.jpg", "a.b.png", "a b.JPEG", "sub.dir/a.jpg"]
    for i, name in enumerate(names):
        write_image(tmp_path / "in" / "c" / name, seed=i)
    pack(PackOptions(tmp_path / "in", tmp_path / "out", 1))
    folder, index = ImageIndex.scan(tmp_path / "in"), ImageIndex.scan(tmp_path / "out")
    assert len(index) == len(names)
    for i in range(len(names)):
        assert index.relative_path(i) == folder.relative_path(i)
        assert index.read_stored(i) == folder.read_stored(i)


def test_shrunk(data: Path, tmp_path: Path) -> None:
    packed = pack(PackOptions(data, tmp_path / "out", 2, max_size=100))
    folder = ImageIndex.load(data / "train")
    index = ImageIndex.load(tmp_path / "out" / "train-*.tar")
    assert [index.relative_path(i) for i in range(21)] == [folder.relative_path(i) for i in range(21)]
    # one without an end Pillow does not decode: it stays as it is
    large_N = (np.maximum(folder.width_N, folder.height_N) > 100) & (folder.flags_N & ImageFlags.NO_EOI == 0)
    assert 0 < large_N.sum() < 21
    assert packed.shrunk >= large_N.sum()
    assert (np.maximum(index.width_N, index.height_N)[large_N] == 100).all()
    for i in range(21):
        if not large_N[i]:
            assert index.read_stored(i) == folder.read_stored(i)
            continue
        with Image.open(BytesIO(index.read_stored(i))) as image, Image.open(folder.path(i)) as original:
            assert image.format == "JPEG"
            expected = np.asarray(original.convert("RGB").resize(image.size, Image.Resampling.LANCZOS), np.int16)
            # JPEG at quality 90 costs the noise of these pictures a few levels
            assert np.abs(np.asarray(image, np.int16) - expected).mean() < 6
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["shrunk"]["images"] == packed.shrunk
    assert "not of the original" in manifest["shrunk"]["effect_on_parity"]


def test_a_stopped_run_goes_on(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    pack(PackOptions(data, tmp_path / "whole", 4))
    real, written = pack_shard._add_sample, []

    def stop_in_the_third(archive: tarfile.TarFile, index: ImageIndex, i: int, *rest: object) -> bool:
        written.append(i)
        if len(written) == 13:
            raise KeyboardInterrupt
        return real(archive, index, i, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(pack_shard, "_add_sample", stop_in_the_third)
    with pytest.raises(KeyboardInterrupt):
        pack(PackOptions(data, out, 4, workers=1))
    there = sorted(path.name for path in out.iterdir())  # the fourth may have been begun before the third was given up
    whole = [name for name in there if name.endswith(".tar")]
    assert whole[:2] == ["train-000000.tar", "train-000001.tar"]
    assert "train-000002.tar" not in whole
    assert there == sorted([*whole, *(name.replace(".tar", ".json") for name in whole)])
    monkeypatch.setattr(pack_shard, "_add_sample", real)
    assert pack(PackOptions(data, out, 4)).kept_shards == len(whole)
    assert contents(out) == contents(tmp_path / "whole")
    assert pack(PackOptions(data, out, 4)).kept_shards == 5  # four of train, one of val


def test_what_changed_is_packed_again(data: Path, tmp_path: Path, write_image: WriteImage) -> None:
    out = tmp_path / "out"
    pack(PackOptions(data, out, 2))
    write_image(data / "train" / "class0" / "0.JPEG", width=77, height=66)
    assert pack(PackOptions(data, out, 2)).kept_shards == 2  # one of train, one of val
    assert 77 in ImageIndex.load(out / "train-*.tar").width_N
    assert pack(PackOptions(data, out, 2, max_size=64)).kept_shards == 0


def test_a_damaged_shard_is_found(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    pack(PackOptions(data, out, 2))
    whole = contents(out)
    bytes_ = bytearray((out / "train-000001.tar").read_bytes())
    bytes_[3000] ^= 1
    (out / "train-000001.tar").write_bytes(bytes_)
    with pytest.raises(DataError, match=r"train-000001\.tar: reads back otherwise"):
        pack(PackOptions(data, out, 2))
    pack(PackOptions(data, out, 2))
    assert contents(out) == whole


def test_mistakes(data: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="21 images cannot fill 22 shards"):
        pack(PackOptions(data, tmp_path / "out", 22))
    pack(PackOptions(data, tmp_path / "out", 3))
    with pytest.raises(DataError, match=r"holds train-000002\.tar \(and 0 more\) of another packing"):
        pack(PackOptions(data, tmp_path / "out", 2))
    with pytest.raises(DataError, match="no such folder"):
        pack(PackOptions(tmp_path / "nowhere", tmp_path / "out", 2))


def test_the_command(data: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(
        cli, ["pack", str(data), "-o", str(tmp_path / "out"), "--shards", "2", "--max-size", "100"]
    )
    assert result.exit_code == 0, result.output
    assert "train: 21 images in 2 shards\nval: 6 images in 1 shard\n" in result.output
    assert "images made smaller" in result.output
    again = CliRunner().invoke(
        cli, ["pack", str(data), "-o", str(tmp_path / "out"), "--shards", "2", "--max-size", "100"]
    )
    assert "3 shards were there already" in again.output
    repacked = CliRunner().invoke(cli, ["pack", str(tmp_path / "out"), "-o", str(tmp_path / "out2"), "--shards", "3"])
    assert repacked.exit_code == 0, repacked.output
    listed = CliRunner().invoke(cli, ["index", str(tmp_path / "out2")])
    assert "images    21 in" in listed.output
    assert "images    6 in" in listed.output
