"""RGB copies of what DALI would not decode as Pillow does; and DALI against Pillow for all that has no copy."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from nvidia.dali import fn, pipeline_def, types
from PIL import Image, features

from rsbdali.data.header import ImageFlags
from rsbdali.data.index import ImageIndex
from rsbdali.data.rgb_copy import PillowError, copy_path, png_size, rgb_copy
from rsbdali.errors import UnreadableImage

WriteImage = Callable[..., Path]
GOOD_KINDS = (
    "plain",
    "gray",
    "cmyk",
    "ycck",
    "rgb",
    "progressive",
    "s411",
    "exif",
    "restart",
    "png",
    "webp",
    "palette",
    "alpha",
    "grey16",
)
PILLOW_ALONE = ("BMP", "GIF", "TIFF", "JPEG2000", "PPM", "ICO")  # formats that never enter DALI
PILLOW_ALONE += ("AVIF",) if "avif" in features.get_supported() else ()  # since Pillow 11.3


def pillow_rgb(encoded: bytes) -> np.ndarray:
    with Image.open(BytesIO(encoded)) as image:
        return np.asarray(image.convert("RGB"))


@pipeline_def(batch_size=len(GOOD_KINDS), num_threads=1, device_id=None)
def decode(encoded: list[np.ndarray]) -> object:
    return fn.decoders.image(
        fn.external_source(source=lambda: encoded), output_type=types.RGB, adjust_orientation=False
    )


def test_bytes_decode_in_dali_as_in_pillow(tmp_path: Path, write_image: WriteImage) -> None:
    for kind in GOOD_KINDS:
        write_image(tmp_path / "data" / f"{kind}.JPEG", kind, 123, 77)
    index = ImageIndex.scan(tmp_path / "data", need_classes=False)
    assert len(index) == len(GOOD_KINDS)
    (images,) = decode([index.read_bytes(i) for i in range(len(index))]).run()
    for i in range(len(index)):
        found, stored = np.asarray(images[i]), Path(index.path(i)).read_bytes()
        assert found.shape == (index.height_N[i], index.width_N[i], 3)
        # exact: the same libjpeg-turbo arithmetic, or Pillow's own pixels in a lossless copy
        np.testing.assert_array_equal(found, pillow_rgb(stored), err_msg=index.path(i))
        assert (index.read_bytes(i).tobytes() != stored) == bool(index.flags_N[i] & ImageFlags.CONVERT)


@pytest.mark.parametrize("form", PILLOW_ALONE)
def test_what_only_pillow_reads_comes_as_a_copy(
    tmp_path: Path, make_photo: Callable[..., Image.Image], form: str
) -> None:
    path = tmp_path / "data" / "x.jpg"
    path.parent.mkdir()
    make_photo(48, 32).save(path, form)
    index = ImageIndex.scan(path.parent, need_classes=False)
    found = index.read_bytes(0)
    assert found[:4].tobytes() == b"\x89PNG"
    np.testing.assert_array_equal(pillow_rgb(found.tobytes()), pillow_rgb(path.read_bytes()))


def test_a_png_without_its_end_is_refused_by_the_parser_and_read_by_pillow(
    tmp_path: Path, write_image: WriteImage
) -> None:
    path = write_image(tmp_path / "data" / "x.png", "png")
    index = ImageIndex.scan(path.parent, need_classes=False)
    whole = pillow_rgb(path.read_bytes())
    path.write_bytes(path.read_bytes()[:-12])  # IEND
    assert index.read_bytes(0).tobytes() != path.read_bytes()
    np.testing.assert_array_equal(pillow_rgb(index.read_bytes(0).tobytes()), whole)


def test_a_file_that_changed_is_named_as_such(tmp_path: Path, write_image: WriteImage) -> None:
    path = write_image(tmp_path / "data" / "x.jpg", "plain", 120, 90)
    index = ImageIndex.scan(path.parent, need_classes=False)
    write_image(path, "plain", 60, 90)
    for read in (index.read_bytes, index.read_copy):
        with pytest.raises(UnreadableImage, match="changed since it was indexed: 60 x 90 pixels, then 120 x 90"):
            read(0)
    path.write_bytes(b"no image")
    with pytest.raises(UnreadableImage, match="changed since it was indexed: cannot identify image file"):
        index.read_bytes(0)
    path.write_bytes(b"")
    with pytest.raises(UnreadableImage, match="changed since it was indexed: empty file"):
        index.read_bytes(0)
    path.unlink()
    with pytest.raises(UnreadableImage, match="cannot be read: No such file or directory"):
        index.read_bytes(0)
    write_image(path, "png", 120, 90)  # another format, the same size: Pillow's pixels of what is there now
    np.testing.assert_array_equal(pillow_rgb(index.read_bytes(0).tobytes()), pillow_rgb(path.read_bytes()))


def test_a_copy_is_made_once(tmp_path: Path, write_image: WriteImage, cache_home: Path) -> None:
    encoded = write_image(tmp_path / "x.jpg", "cmyk").read_bytes()
    first = rgb_copy(encoded)
    (copy,) = (cache_home / "rsbdali" / "rgb").iterdir()
    assert copy == copy_path(encoded)
    assert png_size(first) == (120, 90)
    made = copy.stat().st_mtime_ns
    assert rgb_copy(encoded) == first == copy.read_bytes()
    assert copy.stat().st_mtime_ns == made


def test_many_threads_at_once(tmp_path: Path, write_image: WriteImage) -> None:
    encoded = write_image(tmp_path / "x.jpg", "cmyk").read_bytes()
    with ThreadPoolExecutor(8) as pool:
        copies = set(pool.map(lambda _: rgb_copy(encoded, tmp_path / "cache"), range(32)))
    assert len(copies) == 1
    assert len(list((tmp_path / "cache" / "rgb").iterdir())) == 1
    np.testing.assert_array_equal(pillow_rgb(copies.pop()), pillow_rgb(encoded))


def test_what_pillow_cannot_decode_is_an_error(tmp_path: Path, write_image: WriteImage) -> None:
    encoded = write_image(tmp_path / "x.jpg", "cmyk").read_bytes()
    with pytest.raises(PillowError, match="truncated"):
        rgb_copy(encoded[:-400], tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_a_cache_folder_that_cannot_be_written(tmp_path: Path, write_image: WriteImage) -> None:
    encoded = write_image(tmp_path / "x.jpg", "cmyk").read_bytes()
    (tmp_path / "occupied").write_bytes(b"")  # a file where the folder should be (a test may run as root)
    for _ in range(2):
        np.testing.assert_array_equal(pillow_rgb(rgb_copy(encoded, tmp_path / "occupied")), pillow_rgb(encoded))
