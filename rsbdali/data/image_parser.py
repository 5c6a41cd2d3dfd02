"""What DALI's own parser says of an encoded image, asked before the image enters DALI.

DALI 2.4 ends the process by SIGSEGV on an image whose header does not parse, in a batch of 32 or more. nvImageCodec's
`CodeStream` is the parser that DALI uses, so what passes here passes there.

Two things pass that DALI refuses afterwards; with both refused here, `tests/fuzz_images.py` no longer ends the process:
samples of a width that DALI has no type for (a damaged JPEG may claim 135 bits), and sizes that overflow to negatives.
It takes 2 to 4 µs an image.
"""

import os
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from rsbdali.data.header import Format

SAMPLES = ("uint8", "uint16")  # what a JPEG, PNG or WebP is decoded from
CODECS = {"jpeg": Format.JPEG, "png": Format.PNG, "webp": Format.WEBP}  # what may enter DALI


class ParsedImage(NamedTuple):
    """Format, width and height in pixels as stored (EXIF orientation not applied)."""

    format: Format
    width: int
    height: int


def parse(encoded: np.ndarray | bytes) -> ParsedImage | None:
    """Parse the header of an encoded image; safe to call from several threads.

    Args:
        encoded: the whole image, uint8, shape (length,), or bytes.

    Returns:
        None for what nvImageCodec refuses, and for formats other than JPEG, PNG and WebP.
    """
    if not len(encoded):
        return None
    try:
        stream = _nvimgcodec().CodeStream(encoded)
        codec, width, height, samples = stream.codec_name, stream.width, stream.height, stream.dtype
    except RuntimeError:  # "Failed to get image info", for any header that does not parse
        return None
    except TypeError:  # "data type '' not understood": its NumPy type of such samples
        return None
    usable = codec in CODECS and samples in SAMPLES and min(width, height) > 0
    return ParsedImage(CODECS[codec], width, height) if usable else None


@cache
def _nvimgcodec() -> Any:
    # read at import: without it each refusal prints a red line, beside the one that names the image
    os.environ.setdefault("PYNVIMGCODEC_VERBOSITY", "0")
    from nvidia import nvimgcodec

    return nvimgcodec
