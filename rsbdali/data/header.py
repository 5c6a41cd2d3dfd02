"""Width, height and kind of an image from its first bytes, without decoding it.

JPEG headers are read by hand (a few microseconds); everything else goes through Pillow, which knows more and is slower.
"""

import os
from collections.abc import Callable
from enum import IntEnum, IntFlag
from functools import partial
from io import BytesIO
from typing import IO, NamedTuple

from PIL import Image, UnidentifiedImageError

FIRST_BYTES = 4096
TAIL_BYTES = 65536
# Frame headers that every decoder here reads alike: baseline, extended sequential, progressive (ITU T.81, table B.1)
COMMON_FRAMES = frozenset({0xC0, 0xC1, 0xC2})
OTHER_FRAMES = frozenset({0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF})
ALONE = frozenset({0x01, 0xD8, *range(0xD0, 0xD8)})  # markers without a length
END_OF_IMAGE = b"\xff\xd9"
Pread = Callable[[int, int], bytes]  # (bytes wanted, offset) -> up to that many; fewer only at the end


class Format(IntEnum):
    """What the content of a file is, whatever its name says."""

    JPEG = 0
    PNG = 1
    WEBP = 2
    OTHER = 3


class ImageFlags(IntFlag):
    """What is special about a file.

    CMYK: four ink components. OTHER_FORMAT: the content is not what the name says. NO_EOI: a JPEG without end-of-image
    marker, most likely cut off; only decoding shows how much is missing. CONVERT: DALI may decode it to other RGB
    values than Pillow's `convert("RGB")`, so pipelines read a copy (`ImageIndex.read_bytes`).
    """

    NONE = 0
    CMYK = 1
    OTHER_FORMAT = 2
    NO_EOI = 4
    CONVERT = 8


class Header(NamedTuple):
    """Width and height in pixels as stored (EXIF orientation not applied), format, and `ImageFlags` flags."""

    width: int
    height: int
    format: Format
    flags: int


class InvalidImageError(Exception):
    """The file is no image that can be used; the message says why."""


def read_header(path: str, nbytes: int) -> Header:
    """Read the header of one file.

    Args:
        path: the file.
        nbytes: its size, known from the walk.

    Raises:
        InvalidImageError: empty, unreadable, or no image.
    """
    if nbytes == 0:
        raise InvalidImageError("empty file")
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # a pipe must not block
    except OSError as error:
        raise InvalidImageError(f"cannot be read: {error.strerror}") from error
    try:
        header = _read_jpeg(partial(os.pread, descriptor), path, nbytes)
    except OSError as error:
        raise InvalidImageError(f"cannot be read: {error.strerror}") from error
    finally:
        os.close(descriptor)
    return header or _read_by_pillow(path, path)


def read_header_from(pread: Pread, name: str, nbytes: int) -> Header:
    """As `read_header`, of an image within something larger: a tar file, an object of a store.

    Args:
        pread: reads some bytes of the image, as `os.pread` does with the image's first byte at 0.
        name: its name, whose extension is compared with the content.
        nbytes: its size.

    Raises:
        InvalidImageError: empty, cut short, or no image.
    """
    if nbytes == 0:
        raise InvalidImageError("empty file")
    header = _read_jpeg(pread, name, nbytes)
    if header is not None:
        return header
    whole = pread(nbytes, 0)
    if len(whole) < nbytes:
        raise InvalidImageError(f"cut short: {len(whole)} of {nbytes} bytes are there")
    return _read_by_pillow(BytesIO(whole), name)


def _read_jpeg(pread: Pread, name: str, nbytes: int) -> Header | None:
    """The header of a JPEG; None for anything else, and where Pillow should look."""
    head = pread(min(FIRST_BYTES, nbytes), 0)
    found = _read_frame(pread, head, nbytes) if head.startswith(b"\xff\xd8\xff") else None
    if found is None:
        return None
    width, height, flags = found
    return Header(width, height, Format.JPEG, flags | _name_flags(name, Format.JPEG))


def _read_frame(pread: Pread, head: bytes, nbytes: int) -> tuple[int, int, int] | None:
    """Width, height and flags of a JPEG; None where Pillow should look (an unusual frame, or none found)."""
    found = _find_frame(pread, head)
    if found is None:
        return None
    end, (precision, height, width, components) = found
    if precision != 8 or components not in (1, 3, 4) or not width or not height:
        return None
    if Image.MAX_IMAGE_PIXELS is not None and width * height > 2 * Image.MAX_IMAGE_PIXELS:
        return None  # Pillow refuses it as a decompression bomb
    flags = ImageFlags.CMYK | ImageFlags.CONVERT if components == 4 else 0
    return width, height, flags if _has_end(pread, nbytes, end) else flags | ImageFlags.NO_EOI


def _find_frame(pread: Pread, head: bytes) -> tuple[int, tuple[int, int, int, int]] | None:
    """Walk the marker segments to the frame header: (offset, (precision, height, width, components)) or None."""
    at, base = 2, 0
    while True:
        i = at - base
        if i + 10 > len(head):
            base, i = at, 0
            head = pread(FIRST_BYTES, at)
            if len(head) < 10:
                return None
        if head[i] != 0xFF:
            return None
        marker = head[i + 1]
        if marker in COMMON_FRAMES:
            height, width = head[i + 5] << 8 | head[i + 6], head[i + 7] << 8 | head[i + 8]
            return at, (head[i + 4], height, width, head[i + 9])
        if marker in OTHER_FRAMES or marker in (0x00, 0xD9, 0xDA):  # 0xDA: a scan before any frame
            return None
        if marker == 0xFF:
            at += 1
        elif marker in ALONE:
            at += 2
        else:
            at += 2 + (head[i + 2] << 8 | head[i + 3])


def _has_end(pread: Pread, nbytes: int, after: int) -> bool:
    """Whether an end-of-image marker is at the end, or before some trailing bytes that others have added."""
    if pread(2, nbytes - 2) == END_OF_IMAGE:
        return True
    # within coded data 0xFF is never followed by 0xD9; thumbnails with a marker of their own come before the frame
    start = max(after, nbytes - TAIL_BYTES)
    return END_OF_IMAGE in pread(nbytes - start, start)


def _name_flags(name: str, content: Format) -> int:
    extension = os.path.splitext(name)[1].lower()
    named = {".png": Format.PNG, ".webp": Format.WEBP}.get(extension, Format.JPEG)
    return 0 if named == content else ImageFlags.OTHER_FORMAT


def _read_by_pillow(file: str | IO[bytes], name: str) -> Header:
    try:
        with Image.open(file) as image:
            format_name, (width, height), mode = image.format, image.size, image.mode
            deep = mode.startswith(("I", "F")) or _is_deep_png(image)
    except UnidentifiedImageError as error:
        raise InvalidImageError("not an image") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise InvalidImageError(f"header cannot be read: {error}") from error
    content = {"JPEG": Format.JPEG, "MPO": Format.JPEG, "PNG": Format.PNG, "WEBP": Format.WEBP}.get(
        format_name or "", Format.OTHER
    )
    flags = _name_flags(name, content)
    # a JPEG comes here only when its frame is an unusual one
    if deep or mode == "CMYK" or content in (Format.JPEG, Format.OTHER):
        flags |= ImageFlags.CONVERT
    return Header(width, height, content, flags | (ImageFlags.CMYK if mode == "CMYK" else 0))


def _is_deep_png(image: Image.Image) -> bool:
    # Pillow opens 16-bit color as 8-bit, and keeps the raw mode only in its tiles
    return any(";16" in str(tile[3]) for tile in getattr(image, "tile", ()))
