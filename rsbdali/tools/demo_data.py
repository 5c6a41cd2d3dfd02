"""A small procedural data set of real JPEGs, made on the spot: ten classes of shapes and textures.

Each picture is photo-like (colored 1/f noise, varied size and JPEG quality) and filled all over with one kind of shape
or pattern, so that a small random crop still shows the class, and so do inverted, solarized, rotated or sheared copies.
Position, scale, angle, color and contrast say nothing about the class.
"""

import json
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image

from rsbdali.errors import DataError
from rsbdali.tools.demo_patterns import PATTERNS

CLASSES = tuple(sorted(PATTERNS))
MARKER = "rsbdali-demo.json"
VERSION = 1
SIDES = (300, 600)  # pixels
QUALITIES = (80, 95)
FIELD_SIDE = 1024  # of the noise that backgrounds are cut from
FIELDS = 4


@dataclass(frozen=True)
class DemoData:
    """What `make_demo_data` left in a folder: images a split, and how many of all had to be made."""

    root: Path
    train: int
    val: int
    made: int

    def __str__(self) -> str:
        done = f"{self.made:,} made now" if self.made else "all there already"
        return f"{self.train:,} training and {self.val:,} validation images of {len(CLASSES)} classes, {done}"


def make_demo_data(
    out: Path,
    *,
    images_per_class_train: int = 160,
    images_per_class_val: int = 40,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> DemoData:
    """Write `out/train/<class>/<i>.JPEG` and `out/val/<class>/<i>.JPEG`.

    Images already there from an earlier call with the same parameters are kept, so that a second call costs nothing and
    one that was interrupted goes on. The same parameters give the same files.

    Args:
        out: folder to fill; new, empty, or of an earlier call.
        images_per_class_train: training images of each of the ten classes.
        images_per_class_val: validation images of each.
        seed: of everything that is drawn.
        progress: called as progress(images made, images to make), from this thread.

    Raises:
        DataError: the folder holds something else, or cannot be written to.
    """
    out = Path(out)
    counts = {"train": images_per_class_train, "val": images_per_class_val}
    _fields()  # before the threads, so that they do not each make them
    try:
        _claim(out, {"version": VERSION, "seed": seed, **counts})
        jobs = _missing(out, counts)
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for done, _ in enumerate(pool.map(lambda job: _write(*job, seed=seed), jobs), 1):
                if progress is not None:
                    progress(done, len(jobs))
    except OSError as error:
        raise DataError(f"{out}: demo data cannot be written: {error.strerror}") from error
    train, val = (count * len(CLASSES) for count in counts.values())
    return DemoData(root=out, train=train, val=val, made=len(jobs))


def _claim(out: Path, parameters: dict[str, int]) -> None:
    """Put the marker into a folder, or find it there with the same parameters."""
    marker = out / MARKER
    if marker.is_file():
        if marker.read_text(encoding="utf-8") != json.dumps(parameters):
            raise DataError(f"{out}: holds demo data of other parameters ({marker.name}): delete it or name another")
        return
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataError(f"{out}: is not empty and no demo data: expected a new or an empty folder")
    out.mkdir(parents=True, exist_ok=True)
    marker.write_text(json.dumps(parameters), encoding="utf-8")


def _missing(out: Path, counts: dict[str, int]) -> list[tuple[Path, tuple[int, int, int]]]:
    """Path and key (split, class, number) of each image that is not there yet."""
    jobs = []
    for split, (name, count) in enumerate(counts.items()):
        for label, class_name in enumerate(CLASSES):
            folder = out / name / class_name
            folder.mkdir(parents=True, exist_ok=True)
            there = set(os.listdir(folder))
            names = (f"{class_name}_{i:04d}.JPEG" for i in range(count))
            jobs += [(folder / file, (split, label, i)) for i, file in enumerate(names) if file not in there]
    return jobs


def _write(path: Path, key: tuple[int, int, int], *, seed: int) -> None:
    rng = np.random.default_rng([seed, *key])
    image = draw(CLASSES[key[1]], rng)
    unfinished = path.with_suffix(".part")
    image.save(unfinished, "JPEG", quality=int(rng.integers(QUALITIES[0], QUALITIES[1] + 1)))
    os.replace(unfinished, path)


def draw(class_name: str, rng: np.random.Generator) -> Image.Image:
    """One RGB picture of a class, 300 to 600 pixels a side."""
    width, height = (int(side) for side in rng.integers(SIDES[0], SIDES[1] + 1, 2))
    mask_HW = PATTERNS[class_name](rng, width, height)
    mask = Image.fromarray((mask_HW * np.float32(255) + np.float32(0.5)).astype(np.uint8))
    means = [rng.uniform(25, 95, 3), rng.uniform(150, 235, 3)]
    rng.shuffle(means)
    background = _surface(rng, width, height, means[0], contrast=rng.uniform(0.5, 1.0))
    foreground = _surface(rng, width, height, means[1], contrast=rng.uniform(0.15, 0.5))
    return Image.composite(foreground, background, mask)


def _surface(rng: np.random.Generator, width: int, height: int, mean_C: np.ndarray, contrast: float) -> Image.Image:
    """A part of a noise field, turned over at random, in a color of its own."""
    x, y = (int(rng.integers(FIELD_SIDE - side + 1)) for side in (width, height))
    part = _fields()[rng.integers(FIELDS)].crop((x, y, x + width, y + height))
    if rng.random() < 0.5:
        part = part.transpose(Image.Transpose.ROTATE_180)
    # each channel of the gray field gets its own gain, which gives the noise a tint
    gain_C = contrast * rng.uniform(0.7, 1.0, 3)
    level_CV = mean_C[:, None] + gain_C[:, None] * (np.arange(256) - 128)
    return part.point(np.clip(level_CV, 0, 255).astype(np.uint8).ravel().tolist())


@lru_cache(maxsize=1)
def _fields() -> list[Image.Image]:
    """1/f noise of mean 128 and standard deviation 32, three nearly equal channels; the same for every seed."""
    rng = np.random.default_rng(0)
    side = FIELD_SIDE
    # amplitude 1/f is the spectrum of natural images; the longest waves are held down to keep the contrast even
    amplitude = 1 / np.maximum(np.hypot(np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side)[None, :]), 4 / side)
    amplitude[0, 0] = 0
    fields = []
    for _ in range(FIELDS):
        noise_CHW = np.fft.irfft2(np.fft.rfft2(rng.standard_normal((3, side, side))) * amplitude, s=(side, side))
        noise_CHW /= noise_CHW.std()
        grey_HW1, own_HWC = noise_CHW[0, :, :, None], noise_CHW.transpose(1, 2, 0)
        levels_HWC = 128 + 32 * (0.85 * grey_HW1 + 0.5 * own_HWC)
        fields.append(Image.fromarray(np.clip(levels_HWC, 0, 255).astype(np.uint8)))
    return fields
