"""RGB copies of what DALI would not decode as Pillow does; and DALI against Pillow for all that has no copy."""

import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from nvidia.dali import fn, pipeline_def, types
from PIL import Image

from rsbdali.data import rgb_copy as module
from rsbdali.data.header import Care
from rsbdali.data.index import ImageIndex
from rsbdali.data.rgb_copy import rgb_copy

WriteImage = Callable[..., Path]
GOOD_KINDS = (
    "plain", "grey", "cmyk", "ycck", "rgb", "progressive", "s411", "exif", "restart", "png", "webp", "palette", "alpha",
    "grey16",
)  # fmt: skip


def pillow_rgb(path: str | Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


@pipeline_def(batch_size=len(GOOD_KINDS), num_threads=1, device_id=None)
def decode(paths: list[np.ndarray]) -> object:
    encoded = fn.io.file.read(fn.external_source(source=lambda: paths))
    return fn.decoders.image(encoded, output_type=types.RGB, adjust_orientation=False)


def test_source_paths_decode_in_dali_as_in_pillow(tmp_path: Path, write_image: WriteImage) -> None:
    for kind in GOOD_KINDS:
        write_image(tmp_path / "data" / f"{kind}.JPEG", kind, 123, 77)
    index = ImageIndex.scan(tmp_path / "data", need_classes=False)
    assert len(index) == len(GOOD_KINDS)
    pipeline = decode([index.path_array(i) for i in range(len(index))])
    (images,) = pipeline.run()
    for i in range(len(index)):
        found = np.asarray(images[i])
        assert found.shape == (index.height_N[i], index.width_N[i], 3)
        # exact: the same libjpeg-turbo arithmetic, or Pillow's own pixels in a lossless copy
        np.testing.assert_array_equal(found, pillow_rgb(index.path(i)), err_msg=index.path(i))
        assert (index.source_path(i) != index.path(i)) == bool(index.care_N[i] & Care.CONVERT)


def test_a_copy_is_made_once(tmp_path: Path, write_image: WriteImage, cache_home: Path) -> None:
    path = write_image(tmp_path / "x.jpg", "cmyk")
    copy = Path(rgb_copy(str(path)))
    assert copy.parent == cache_home / "rsbdali" / "rgb"
    made = copy.stat().st_mtime_ns
    assert rgb_copy(str(path)) == str(copy)
    assert copy.stat().st_mtime_ns == made


def test_a_changed_source_gets_a_new_copy(tmp_path: Path, write_image: WriteImage) -> None:
    path = write_image(tmp_path / "x.jpg", "cmyk")
    first = rgb_copy(str(path))
    write_image(path, "cmyk", width=130)
    second = rgb_copy(str(path))
    assert first != second
    np.testing.assert_array_equal(pillow_rgb(second), pillow_rgb(path))


def test_many_threads_at_once(tmp_path: Path, write_image: WriteImage) -> None:
    path = str(write_image(tmp_path / "x.jpg", "cmyk"))
    with ThreadPoolExecutor(8) as pool:
        copies = set(pool.map(lambda _: rgb_copy(path, tmp_path / "cache"), range(32)))
    assert len(copies) == 1
    assert len(list((tmp_path / "cache" / "rgb").iterdir())) == 1
    np.testing.assert_array_equal(pillow_rgb(copies.pop()), pillow_rgb(path))


def test_what_pillow_cannot_decode_is_left_to_the_decoder(
    tmp_path: Path, write_image: WriteImage, caplog: pytest.LogCaptureFixture
) -> None:
    path = write_image(tmp_path / "x.jpg", "cmyk")
    path.write_bytes(path.read_bytes()[:-400])
    with caplog.at_level(logging.WARNING):
        assert rgb_copy(str(path), tmp_path / "cache") == str(path)
    assert "no RGB copy" in caplog.text
    assert rgb_copy(str(tmp_path / "gone.jpg")) == str(tmp_path / "gone.jpg")


def test_a_cache_folder_that_cannot_be_written(
    tmp_path: Path, write_image: WriteImage, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_image(tmp_path / "x.jpg", "cmyk")
    (tmp_path / "occupied").write_bytes(b"")  # a file where the folder should be (a test may run as root)
    spare = tmp_path / "spare"
    monkeypatch.setattr(module, "_temporary_folder", lambda: spare)
    copy = rgb_copy(str(path), tmp_path / "occupied")
    assert Path(copy).parent == spare
    np.testing.assert_array_equal(pillow_rgb(copy), pillow_rgb(path))
