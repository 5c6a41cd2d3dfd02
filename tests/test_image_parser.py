"""DALI's own parser: what it says of whole and broken images, and that what it refuses is kept from DALI."""

import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from rsbdali.data.header import Format
from rsbdali.data.image_parser import ParsedImage, parse

WriteImage = Callable[..., Path]


@pytest.mark.parametrize(
    ("kind", "form"),
    [(kind, Format.JPEG) for kind in ("plain", "gray", "cmyk", "progressive", "exif", "no_eoi", "truncated")]
    + [(kind, Format.PNG) for kind in ("png", "palette", "alpha", "grey16")]
    + [("webp", Format.WEBP)],
)
def test_format_and_size_of_whole_headers(tmp_path: Path, write_image: WriteImage, kind: str, form: Format) -> None:
    encoded = write_image(tmp_path / "x", kind, 123, 77).read_bytes()
    for given in (encoded, np.frombuffer(encoded, np.uint8)):
        assert parse(given) == ParsedImage(form, 123, 77)


@pytest.mark.parametrize("kind", ["empty", "text", "cut_header"])
def test_what_is_no_image(tmp_path: Path, write_image: WriteImage, kind: str) -> None:
    assert parse(write_image(tmp_path / "x", kind).read_bytes()) is None


def test_a_png_parses_only_whole(tmp_path: Path, write_image: WriteImage) -> None:
    encoded = write_image(tmp_path / "x", "png").read_bytes()
    assert all(parse(encoded[:size]) is None for size in range(0, len(encoded) - 12, 97))


@pytest.mark.parametrize("bits", [17, 135, 255])
def test_samples_that_dali_has_no_type_for(tmp_path: Path, write_image: WriteImage, bits: int) -> None:
    encoded = bytearray(write_image(tmp_path / "x").read_bytes())
    at = encoded.index(b"\xff\xc0") + 4
    assert encoded[at] == 8
    encoded[at] = bits
    assert parse(bytes(encoded)) is None


def test_a_size_that_overflows(tmp_path: Path, write_image: WriteImage) -> None:
    encoded = write_image(tmp_path / "x", "png").read_bytes()
    assert parse(encoded[:16] + b"\xe3\0\0\0" + encoded[20:]) is None


def test_many_threads(tmp_path: Path, write_image: WriteImage) -> None:
    encoded = write_image(tmp_path / "x").read_bytes()
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda i: parse(encoded if i % 2 else encoded[:100]), range(400)))
    assert found == [None, ParsedImage(Format.JPEG, 120, 90)] * 200


def test_a_refusal_prints_nothing(tmp_path: Path) -> None:
    png = b"\x89PNG\r\n\x1a\n" + b"x" * 40
    code = f"from rsbdali.data.image_parser import parse; print(parse(b'junk' * 100), parse({png!r}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("None None\n", "")
