"""A zoo of images: formats under wrong names, twelve kinds of broken header, and files cut behind their header.

`write_zoo` writes whole images; `break_zoo` damages some of them in place, so that a test may do it behind an index's
back. What is good is Pillow's to say: `whole`.
"""

import struct
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, features

PNG_HEADER = 8 + 25  # signature, IHDR


def _saved(image: Image.Image, form: str, **how: object) -> bytes:
    buffer = BytesIO()
    image.save(buffer, form, **how)
    return buffer.getvalue()


FORMATS: dict[str, Callable[[Image.Image], bytes]] = {
    "bmp": lambda image: _saved(image, "BMP"),
    "gif": lambda image: _saved(image.quantize(64), "GIF"),
    "tiff": lambda image: _saved(image, "TIFF", compression="tiff_lzw"),
    "ppm": lambda image: _saved(image, "PPM"),
    "cmyk": lambda image: _saved(image.convert("CMYK"), "JPEG"),
    "png": lambda image: _saved(image, "PNG"),
    "webp": lambda image: _saved(image, "WEBP"),
    "tga": lambda image: _saved(image, "TGA"),
    **({"jpeg2000": lambda image: _saved(image, "JPEG2000")} if features.check("jpg_2000") else {}),
    **({"avif": lambda image: _saved(image, "AVIF")} if "avif" in features.get_supported() else {}),
}


def _jpeg_size(height: int | None, width: int | None) -> Callable[[bytes], bytes]:
    def patch(jpeg: bytes) -> bytes:
        at = jpeg.index(b"\xff\xc0") + 5
        old = struct.unpack(">HH", jpeg[at : at + 4])
        new = struct.pack(">HH", old[0] if height is None else height, old[1] if width is None else width)
        return jpeg[:at] + new + jpeg[at + 4 :]

    return patch


# name: (format as it is stored at first, what is done to it)
BREAKS: dict[str, tuple[str, Callable[[bytes], bytes]]] = {
    "empty": ("JPEG", lambda _: b""),
    "text": ("JPEG", lambda _: b"this is no image\n" * 50),
    "jpeg_cut_in_header": ("JPEG", lambda jpeg: jpeg[:150]),
    "jpeg_two_bytes": ("JPEG", lambda jpeg: jpeg[:2]),
    "jpeg_no_start": ("JPEG", lambda jpeg: b"\0\0" + jpeg[2:]),
    "jpeg_height_0": ("JPEG", _jpeg_size(0, None)),
    "jpeg_width_0": ("JPEG", _jpeg_size(None, 0)),
    "jpeg_zeros_after_header": ("JPEG", lambda jpeg: jpeg[:20] + bytes(len(jpeg) - 20)),
    "png_half": ("PNG", lambda png: png[: len(png) // 2]),
    "png_cut_in_header": ("PNG", lambda png: png[:20]),
    "png_header_length": ("PNG", lambda png: png[:8] + b"\0\0\0\1" + png[12:]),
    "png_bit_depth": ("PNG", lambda png: png[:24] + b"\7" + png[25:]),
    "png_no_iend": ("PNG", lambda png: png[:-12]),
    "png_only_header": ("PNG", lambda png: png[:PNG_HEADER]),
    "webp_half": ("WEBP", lambda webp: webp[: len(webp) // 2]),
    "webp_cut_in_header": ("WEBP", lambda webp: webp[:18]),
    "webp_chunk_name": ("WEBP", lambda webp: webp[:12] + b"XXXX" + webp[16:]),
    # behind the header
    "jpeg_cut_in_scan": ("JPEG", lambda jpeg: jpeg[: len(jpeg) * 6 // 10]),
    "jpeg_no_end": ("JPEG", lambda jpeg: jpeg[:-2]),
    "png_damaged_pixels": ("PNG", lambda png: png[:100] + bytes(40) + png[140:]),
}
EXTENSIONS = {"JPEG": ".jpg", "PNG": ".png", "WEBP": ".webp"}


def _picture(rng: np.random.Generator) -> Image.Image:
    width, height = (int(side) for side in rng.integers(40, 90, 2))
    coarse_HWC = rng.integers(0, 256, (5, 5, 3), dtype=np.uint8)
    return Image.fromarray(coarse_HWC).resize((width, height), Image.Resampling.BICUBIC)


def write_zoo(root: Path, plain: int) -> None:
    """Whole images: `plain` JPEGs, each of FORMATS as .jpg, and those that `break_zoo` damages; in four classes."""
    rng = np.random.default_rng(12)
    files = [(f"plain{i}.jpg", _saved(_picture(rng), "JPEG", quality=90)) for i in range(plain)]
    files += [(f"is_{name}.jpg", encode(_picture(rng))) for name, encode in FORMATS.items()]
    files += [(name + EXTENSIONS[form], _saved(_picture(rng), form)) for name, (form, _) in BREAKS.items()]
    for i, (name, encoded) in enumerate(files):
        path = root / f"class{i % 4}" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded)


def break_zoo(root: Path) -> None:
    """Damage the files named in BREAKS."""
    for name, (form, damage) in BREAKS.items():
        (path,) = root.glob(f"*/{name}{EXTENSIONS[form]}")
        path.write_bytes(damage(path.read_bytes()))


def whole(path: Path) -> bool:
    """Whether Pillow decodes all of an image."""
    try:
        with Image.open(path) as image:
            image.convert("RGB")
    except (OSError, SyntaxError, ValueError):
        return False
    return True
