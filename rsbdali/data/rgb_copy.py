"""An RGB PNG of an image that DALI would not decode as Pillow does, made once, on first use, in the cache folder."""

import atexit
import hashlib
import logging
import os
import shutil
import tempfile
from contextlib import suppress
from functools import lru_cache
from io import BytesIO
from pathlib import Path

from PIL import Image

from rsbdali.atomic import write_atomically
from rsbdali.data.cache import default_folder

log = logging.getLogger(__name__)


def rgb_copy(path: str, cache_dir: Path | None = None) -> str:
    """Path of a PNG that holds Pillow's `convert("RGB")` of the image.

    The copy is named by the source's real path, size and time of last change, so a changed source gets a new one.
    Safe to call from several threads and processes.

    Args:
        path: the source image.
        cache_dir: folder for copies; the XDG cache folder where None, a temporary one where that cannot be written.

    Returns:
        The copy's path, or `path` itself where Pillow cannot decode it (whoever decodes it next then says so).
    """
    try:
        status = os.stat(path)
    except OSError:
        return path
    identity = f"{os.path.realpath(path)}\0{status.st_size}\0{status.st_mtime_ns}"
    name = hashlib.blake2b(os.fsencode(identity), digest_size=16).hexdigest() + ".png"
    copy = (cache_dir or default_folder()) / "rgb" / name
    if os.path.exists(copy):
        return str(copy)
    try:
        with Image.open(path) as image:
            rgb = image.convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        log.warning("%s: no RGB copy can be made: %s", path, error)
        return path
    try:
        return _save(rgb, copy)
    except OSError:
        return _save(rgb, _temporary_folder() / name)


def rgb_copy_of(encoded: bytes, name: str, cache_dir: Path | None = None) -> bytes:
    """As `rgb_copy`, for an image that is no file; its copy is named by a digest of its bytes.

    Args:
        encoded: the image as it is stored.
        name: its name, for messages.
        cache_dir: as in `rgb_copy`.

    Returns:
        The PNG's bytes, or `encoded` itself where Pillow cannot decode it.
    """
    copy = (cache_dir or default_folder()) / "rgb" / (hashlib.blake2b(encoded, digest_size=16).hexdigest() + ".png")
    with suppress(OSError):  # not there yet, or a cache folder that cannot be read: made again
        return copy.read_bytes()
    try:
        with Image.open(BytesIO(encoded)) as image:
            rgb = image.convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        log.warning("%s: no RGB copy can be made: %s", name, error)
        return encoded
    png = BytesIO()
    rgb.save(png, "PNG", compress_level=1)
    with suppress(OSError):  # a cache folder that cannot be written to: converted each time
        write_atomically(copy, lambda file: file.write(png.getbuffer()))
    return png.getvalue()


def _save(image: Image.Image, path: Path) -> str:
    if not os.path.exists(path):
        write_atomically(path, lambda file: image.save(file, "PNG", compress_level=1))
    return str(path)


@lru_cache(maxsize=1)
def _temporary_folder() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="rsbdali-rgb-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    log.warning("the cache folder cannot be written to: RGB copies go to %s", folder)
    return folder
