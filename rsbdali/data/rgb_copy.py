"""An RGB PNG of an image that DALI would not decode as Pillow does, cached under a digest of its bytes."""

import hashlib
import itertools
import logging
import struct
from contextlib import suppress
from io import BytesIO
from pathlib import Path

from PIL import Image

from rsbdali.atomic import write_atomically
from rsbdali.data.cache import default_folder

# what Pillow raises on content that it refuses; SyntaxError is what its PNG reader raises on a damaged chunk
REFUSALS = (
    OSError,
    SyntaxError,
    ValueError,
    LookupError,
    EOFError,
    TypeError,
    ArithmeticError,
    struct.error,
    Image.DecompressionBombError,
)
TOLD_EVERY = 1000  # copies: half a minute of one thread, for photographs
log = logging.getLogger(__name__)
_made = itertools.count(1)


class PillowError(Exception):
    """Pillow does not decode the image; the message says why."""


def rgb_copy(encoded: bytes, cache_dir: Path | None = None) -> bytes:
    """A PNG that holds Pillow's `convert("RGB")` of an image.

    The copy is made once and read from the cache afterwards; where the cache folder cannot be written, it is made each
    time. Safe to call from several threads and processes.

    Args:
        encoded: the image as it is stored.
        cache_dir: folder for copies; the XDG cache folder where None.

    Returns:
        The PNG's bytes.

    Raises:
        PillowError: Pillow does not decode all of it.
    """
    copy = copy_path(encoded, cache_dir)
    with suppress(OSError):  # not there yet, or a cache folder that cannot be read: made again
        return copy.read_bytes()
    png = BytesIO()
    _decode(encoded).save(png, "PNG", compress_level=1)
    with suppress(OSError):  # a cache folder that cannot be written to
        write_atomically(copy, lambda file: file.write(png.getbuffer()))
    if (made := next(_made)) % TOLD_EVERY == 0:
        log.info("%d RGB copies made so far, by Pillow, in %s", made, copy.parent)
    return png.getvalue()


def copy_path(encoded: bytes, cache_dir: Path | None = None) -> Path:
    """Where `rgb_copy` keeps the copy of an image."""
    return (cache_dir or default_folder()) / "rgb" / (hashlib.blake2b(encoded, digest_size=16).hexdigest() + ".png")


def png_size(png: bytes) -> tuple[int, int]:
    """Width and height of a PNG made here, whose first chunk is its header."""
    width, height = struct.unpack(">II", png[16:24])
    return width, height


def _decode(encoded: bytes) -> Image.Image:
    try:
        with Image.open(BytesIO(encoded)) as image:
            return image.convert("RGB")
    except REFUSALS as error:
        raise PillowError(" ".join(str(error).split()) or type(error).__name__) from error
