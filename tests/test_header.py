"""Headers read by hand against Pillow, and what needs care."""

import random
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from rsbdali.data import header
from rsbdali.data.header import Format, Header, ImageFlags, InvalidImageError, read_header

WriteImage = Callable[..., Path]


def read(path: Path) -> Header:
    return read_header(str(path), path.stat().st_size)


@pytest.mark.parametrize(
    ("kind", "expected_format", "care"),
    [
        ("plain", Format.JPEG, ImageFlags.NONE),
        ("gray", Format.JPEG, ImageFlags.NONE),
        ("rgb", Format.JPEG, ImageFlags.NONE),
        ("progressive", Format.JPEG, ImageFlags.NONE),
        ("s411", Format.JPEG, ImageFlags.NONE),
        ("exif", Format.JPEG, ImageFlags.NONE),
        ("restart", Format.JPEG, ImageFlags.NONE),
        ("cmyk", Format.JPEG, ImageFlags.CMYK | ImageFlags.CONVERT),
        ("ycck", Format.JPEG, ImageFlags.CMYK | ImageFlags.CONVERT),
        ("no_eoi", Format.JPEG, ImageFlags.NO_EOI),
        ("truncated", Format.JPEG, ImageFlags.NO_EOI),
        ("png", Format.PNG, ImageFlags.OTHER_FORMAT),
        ("palette", Format.PNG, ImageFlags.OTHER_FORMAT),
        ("alpha", Format.PNG, ImageFlags.OTHER_FORMAT),
        ("grey16", Format.PNG, ImageFlags.OTHER_FORMAT | ImageFlags.CONVERT),
        ("webp", Format.WEBP, ImageFlags.OTHER_FORMAT),
    ],
)
def test_kinds(tmp_path: Path, write_image: WriteImage, kind: str, expected_format: Format, care: ImageFlags) -> None:
    path = write_image(tmp_path / "x.JPEG", kind, 123, 77)
    assert read(path) == (123, 77, expected_format, care)
    with Image.open(path) as image:
        assert image.size == (123, 77)


@pytest.mark.parametrize(
    ("kind", "reason"), [("empty", "empty file"), ("text", "not an image"), ("cut_header", "header cannot be read")]
)
def test_no_images(tmp_path: Path, write_image: WriteImage, kind: str, reason: str) -> None:
    path = write_image(tmp_path / "x.JPEG", kind)
    with pytest.raises(InvalidImageError, match=reason):
        read(path)


def test_a_file_that_vanished(tmp_path: Path) -> None:
    with pytest.raises(InvalidImageError, match="cannot be read: No such file"):
        read_header(str(tmp_path / "gone.jpg"), 100)


@pytest.mark.parametrize(
    ("name", "kind"), [("x.png", "png"), ("x.webp", "webp"), ("x.jpg", "plain"), ("x.JPEG", "plain")]
)
def test_a_right_name_needs_no_flags(tmp_path: Path, write_image: WriteImage, name: str, kind: str) -> None:
    assert read(write_image(tmp_path / name, kind)).flags == ImageFlags.NONE


def test_a_jpeg_named_png(tmp_path: Path, write_image: WriteImage) -> None:
    assert read(write_image(tmp_path / "x.png", "plain")).flags == ImageFlags.OTHER_FORMAT


def test_a_format_outside_the_three_is_converted(tmp_path: Path, make_photo: Callable[..., Image.Image]) -> None:
    path = tmp_path / "x.JPEG"
    make_photo(33, 22).save(path, "GIF")
    assert read(path) == (33, 22, Format.OTHER, ImageFlags.OTHER_FORMAT | ImageFlags.CONVERT)


def with_segments(jpeg: bytes, segments: bytes) -> bytes:
    return jpeg[:2] + segments + jpeg[2:]


@pytest.mark.parametrize("sizes", [(65533,), (4070,), (4086, 1), (2, 40000, 65000), (4088,), (4092,)])
def test_frame_beyond_the_first_bytes(tmp_path: Path, write_image: WriteImage, sizes: tuple[int, ...]) -> None:
    path = write_image(tmp_path / "x.jpg", "plain", 61, 47)
    # application segments as large as an embedded thumbnail or profile, full of end markers and frame look-alikes
    segments = b"".join(
        b"\xff\xe1" + (size + 2).to_bytes(2, "big") + (b"\xff\xd9\xff\xc0" * 20000)[:size] for size in sizes
    )
    path.write_bytes(with_segments(path.read_bytes(), segments + b"\xff\xff\xff\xfe\x00\x02"))
    assert read(path) == (61, 47, Format.JPEG, ImageFlags.NONE)


def test_end_markers_before_the_frame_do_not_count(tmp_path: Path, write_image: WriteImage) -> None:
    path = write_image(tmp_path / "x.jpg", "truncated")
    path.write_bytes(with_segments(path.read_bytes(), b"\xff\xe1\x00\x06\xff\xd9\xff\xd9"))
    assert read(path).flags == ImageFlags.NO_EOI


@pytest.mark.parametrize("trailer", [b"\n", b"\0" * 1000, b"a comment that some camera adds"])
def test_bytes_behind_the_end_are_no_harm(tmp_path: Path, write_image: WriteImage, trailer: bytes) -> None:
    path = write_image(tmp_path / "x.jpg")
    path.write_bytes(path.read_bytes() + trailer)
    assert read(path).flags == ImageFlags.NONE


def test_an_unusual_frame_is_left_to_pillow(tmp_path: Path, write_image: WriteImage) -> None:
    path = write_image(tmp_path / "x.jpg")
    content = bytearray(path.read_bytes())
    at = content.index(b"\xff\xc0")
    content[at + 1] = 0xC9  # arithmetic coding
    path.write_bytes(content)
    assert read(path).flags & ImageFlags.CONVERT


def test_damaged_headers_never_break_the_reader(tmp_path: Path, write_image: WriteImage) -> None:
    rng = random.Random(0)
    whole = write_image(tmp_path / "x.jpg", "progressive").read_bytes()[:1500]
    path = tmp_path / "damaged.jpg"
    for _ in range(300):
        content = bytearray(whole[: rng.randrange(3, len(whole))])
        for _ in range(rng.randrange(6)):
            content[rng.randrange(min(700, len(content)))] = rng.randrange(256)
        path.write_bytes(content)
        try:
            found = read(path)
        except InvalidImageError:
            continue
        assert found.width > 0
        assert found.height > 0


def test_a_size_of_zero_is_no_image(tmp_path: Path, write_image: WriteImage) -> None:
    path = write_image(tmp_path / "x.jpg")
    content = bytearray(path.read_bytes())
    at = content.index(b"\xff\xc0")
    content[at + 5 : at + 9] = bytes(4)
    path.write_bytes(content)
    with pytest.raises(InvalidImageError):
        read(path)


def test_a_decompression_bomb_is_no_image(tmp_path: Path, write_image: WriteImage) -> None:
    path = write_image(tmp_path / "x.JPEG", "plain", 64, 48)
    jpeg = bytearray(path.read_bytes())
    at = jpeg.index(b"\xff\xc0") + 5
    jpeg[at : at + 4] = b"\xff" * 4  # 65,535 × 65,535: 12 GB to decode
    path.write_bytes(jpeg)
    with pytest.raises(InvalidImageError, match="4294836225 pixels"):
        read(path)


def test_chunk_edges(tmp_path: Path, write_image: WriteImage, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_image(tmp_path / "x.jpg", "exif", 99, 55)
    for first in range(12, 64):
        monkeypatch.setattr(header, "FIRST_BYTES", first)
        assert read(path)[:2] == (99, 55)
