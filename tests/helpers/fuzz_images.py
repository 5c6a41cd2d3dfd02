"""For test_fuzz_images.py, in a child process: images with mutated headers that the check lets pass, decoded by DALI.

fuzz_images.py COUNT SEED     prints how many images were decoded, and in how many batches DALI refused one
"""

import sys
from collections.abc import Iterator
from io import BytesIO
from typing import Any

import numpy as np
from nvidia.dali import fn, pipeline_def, types
from PIL import Image

from rsbdali.data.image_parser import ParsedImage, parse
from rsbdali.pipelines.host.decode import WindowDecoder

ROWS = 64  # DALI shares out the parsing of a batch from 32 rows on, and that is where it dies
FIRST_BYTES = 200
MAX_PIXELS = 1 << 20  # a mutated size may ask for gigabytes, which would test the memory of the machine
FORMATS = ("JPEG", "PNG", "WEBP")


def originals() -> list[bytes]:
    """Small images of the three formats, in the ways that they are commonly stored."""
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (6, 9, 3), dtype=np.uint8)).resize((72, 48))
    ways: list[tuple[str, Image.Image, dict[str, Any]]] = [
        *(("JPEG", image, {"quality": 90, **how}) for how in ({}, {"progressive": True}, {"subsampling": 0})),
        ("JPEG", image.convert("L"), {}),
        *(("PNG", image.convert(mode), {}) for mode in ("RGB", "L", "P", "RGBA")),
        *(("WEBP", image.convert(mode), {"lossless": mode == "RGBA"}) for mode in ("RGB", "RGBA")),
    ]
    encoded = []
    for form, source, how in ways:
        buffer = BytesIO()
        source.save(buffer, form, **how)
        encoded.append(buffer.getvalue())
    return encoded


def mutated(count: int, seed: int) -> Iterator[tuple[np.ndarray, ParsedImage]]:
    """`count` images with one to four changes in their first 200 bytes that still parse."""
    rng = np.random.default_rng(seed)
    stored = originals()
    while count:
        encoded = mutate(stored[rng.integers(len(stored))], rng)
        parsed = parse(encoded)
        if parsed is not None and parsed.width * parsed.height <= MAX_PIXELS:
            yield np.frombuffer(encoded, np.uint8), parsed
            count -= 1


def mutate(encoded: bytes, rng: np.random.Generator) -> bytes:
    """Replace, insert or delete bytes near the start; now and then cut the end off."""
    mutant = bytearray(encoded)
    for _ in range(rng.integers(1, 5)):
        at = int(rng.integers(min(FIRST_BYTES, len(mutant))))
        match rng.integers(8):
            case 0:
                del mutant[at : at + int(rng.integers(1, 5))]
            case 1:
                mutant[at:at] = rng.bytes(int(rng.integers(1, 5)))
            case 2:
                mutant[at] ^= 1 << int(rng.integers(8))
            case _:
                mutant[at] = int(rng.integers(256))
    if rng.random() < 0.1:
        del mutant[int(rng.integers(FIRST_BYTES, len(mutant))) :]
    return bytes(mutant)


class WholeDecoder:
    """`fn.decoders.image` on batches of 64."""

    def __init__(self) -> None:
        self._batch: list[np.ndarray] = []

        @pipeline_def(batch_size=ROWS, num_threads=2, device_id=None, prefetch_queue_depth=1, exec_dynamic=True)
        def graph() -> Any:
            encoded = fn.external_source(source=lambda: self._batch, batch=True)
            return fn.decoders.image(encoded, device="cpu", output_type=types.RGB)

        self._pipe = graph()
        self._pipe.build()

    def decode(self, batch: list[np.ndarray], window_N4: np.ndarray) -> None:
        """Decode whole images; the windows are for the other decoder."""
        self._batch = batch
        self._pipe.run()


def main(count: int, seed: int) -> None:
    """Decode `count` mutated images by both decoders."""
    decoders = WholeDecoder(), WindowDecoder(ROWS)
    images = list(mutated(count, seed))
    refused = {type(decoder).__name__: 0 for decoder in decoders}
    for start in range(0, count, ROWS):
        batch = images[start : start + ROWS]
        window_N4 = np.array([(0, 0, parsed.height, parsed.width) for _, parsed in batch], np.int32)
        for decoder in decoders:
            try:
                decoder.decode([encoded for encoded, _ in batch], window_N4)
            except RuntimeError:  # DALI's only class of error; it costs the batch
                refused[type(decoder).__name__] += 1
    formats = {name: sum(p.format.name == name for _, p in images) for name in FORMATS}
    sys.stdout.write(f"decoded {len(images)} {formats}, refused batches {refused}\n")


if __name__ == "__main__":
    main(*(int(argument) for argument in sys.argv[1:]))
