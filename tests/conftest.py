"""Shared fixtures: folders of small real JPEGs, and files that need care, made on the spot with Pillow."""

import logging
import multiprocessing.process
import os
import subprocess
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from PIL import Image

from helpers import fakes
from helpers.session import Run

# Idle OpenMP threads spin by default, which starves the others when tests share few cores (seen: 10 × slower steps).
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# An example takes as long as a busy machine lets it. In CI the examples are the same at every run.
settings.register_profile("default", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True)
settings.load_profile("ci" if "CI" in os.environ else "default")

FAST = set(Path(__file__).with_name("fast.txt").read_text(encoding="utf-8").split())  # what `make check` runs

JPEG_KINDS = ("plain", "gray", "cmyk", "ycck", "rgb", "progressive", "s411", "exif", "restart")
BAD_KINDS = ("empty", "text", "cut_header")  # no image by the header
KINDS = (*JPEG_KINDS, "no_eoi", "truncated", "png", "webp", "palette", "alpha", "grey16", *BAD_KINDS)


@pytest.fixture(scope="session")
def compiled_code(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the processes of all tests, xdist's workers too, keep code compiled by Numba, which takes seconds."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "compiled"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(autouse=True)
def cache_home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch, compiled_code: Path) -> Path:
    """Every test has an XDG cache folder of its own, but for the compiled code in it."""
    folder = tmp_path_factory.mktemp("xdg-cache")
    (folder / "rsbdali").mkdir()
    (folder / "rsbdali" / "compiled").symlink_to(compiled_code)
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder


def drop_handlers() -> None:
    """Leave loggers as they are in a new process, but for pytest's own handlers."""
    for logger in (logging.getLogger(), logging.getLogger("rsbdali")):
        for handler in list(logger.handlers):
            if not type(handler).__module__.startswith("_pytest"):
                logger.removeHandler(handler)
    logging.getLogger().setLevel(logging.WARNING)
    logging.getLogger("rsbdali").setLevel(logging.NOTSET)


@pytest.fixture(autouse=True)
def no_handler_stays() -> Iterator[None]:
    """Command lines and examples that run in this process, in fixtures too, leave log handlers to a closed stream."""
    drop_handlers()
    yield
    drop_handlers()


def forbid_processes(patch: pytest.MonkeyPatch) -> None:
    """Let every way by which Python starts a process fail."""

    def refuse(*_args: object, **_kwargs: object) -> None:
        pytest.fail("starts a process: take its module out of tests/fast.txt")

    patch.setattr(subprocess.Popen, "__init__", refuse)
    patch.setattr(multiprocessing.process.BaseProcess, "start", refuse)
    for name in ("fork", "posix_spawn", "system"):
        patch.setattr(os, name, refuse)


@pytest.fixture(autouse=True)
def no_process_in_fast_tests(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The modules that `make check` runs start no process."""
    if request.path.name in FAST:
        forbid_processes(monkeypatch)


def _photo(width: int, height: int, seed: int = 0) -> Image.Image:
    rng = np.random.default_rng(seed)
    coarse_HWC = rng.integers(0, 256, (max(2, height // 16), max(2, width // 16), 3), dtype=np.uint8)
    smooth_HWC = np.asarray(Image.fromarray(coarse_HWC).resize((width, height), Image.Resampling.BICUBIC))
    noise_HWC = rng.normal(0, 6, smooth_HWC.shape)
    return Image.fromarray(np.clip(smooth_HWC + noise_HWC, 0, 255).astype(np.uint8))


def _jpeg(image: Image.Image, **options: object) -> bytes:
    buffer = BytesIO()
    image.save(buffer, "JPEG", **{"quality": 90, **options})
    return buffer.getvalue()


def _as_ycck(cmyk_jpeg: bytes) -> bytes:
    # libjpeg writes Adobe's marker with transform 0 (CMYK); the same samples under transform 2 are a valid YCCK file
    at = cmyk_jpeg.index(b"\xff\xee\x00\x0eAdobe") + 15
    return cmyk_jpeg[:at] + b"\x02" + cmyk_jpeg[at + 1 :]


def _encode(kind: str, image: Image.Image) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    plain = _jpeg(image)
    if kind == "grey16":
        grey_HW = np.asarray(image.convert("L")).astype(np.uint16) * 257
        return _other(Image.fromarray(grey_HW), "PNG")
    makers: dict[str, Callable[[], bytes]] = {
        "plain": lambda: plain,
        "gray": lambda: _jpeg(image.convert("L")),
        "cmyk": lambda: _jpeg(image.convert("CMYK")),
        "ycck": lambda: _as_ycck(_jpeg(image.convert("CMYK"))),
        "rgb": lambda: _jpeg(image, keep_rgb=True),
        "progressive": lambda: _jpeg(image, progressive=True),
        "s411": lambda: _jpeg(image, subsampling="4:1:1"),
        "exif": lambda: _jpeg(image, exif=exif),
        "restart": lambda: _jpeg(image, restart_marker_rows=1),
        "no_eoi": lambda: plain[:-2],
        "truncated": lambda: plain[: len(plain) * 6 // 10],
        "png": lambda: _other(image, "PNG"),
        "webp": lambda: _other(image, "WEBP"),
        "palette": lambda: _other(image.quantize(64), "PNG"),
        "alpha": lambda: _other(_with_alpha(image), "PNG"),
        "empty": lambda: b"",
        "text": lambda: b"this is no image\n" * 20,
        "cut_header": lambda: plain[:120],
    }
    return makers[kind]()


def _with_alpha(image: Image.Image) -> Image.Image:
    alpha = Image.linear_gradient("L").resize(image.size)
    return Image.merge("RGBA", (*image.split(), alpha))


def _other(image: Image.Image, format_name: str) -> bytes:
    buffer = BytesIO()
    image.save(buffer, format_name)
    return buffer.getvalue()


@pytest.fixture
def make_photo() -> Callable[..., Image.Image]:
    """`make_photo(width, height, seed=0)`: a smooth RGB picture with a little noise."""
    return _photo


@pytest.fixture
def write_image() -> Callable[..., Path]:
    """`write_image(path, kind="plain", width=120, height=90, seed=0)`: one file of one of KINDS, whatever its name.

    Kinds: plain, gray, cmyk, ycck, rgb (Adobe transform 0), progressive, s411, exif (orientation 6), restart: JPEGs;
    no_eoi (end marker gone), truncated (cut at 60 %); png, webp, palette, alpha, grey16 (PNGs) under any name;
    empty, text, cut_header: no images.
    """

    def write(path: Path, kind: str = "plain", width: int = 120, height: int = 90, seed: int = 0) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(_encode(kind, _photo(width, height, seed)))
        return path

    return write


@pytest.fixture
def image_tree(tmp_path: Path, write_image: Callable[..., Path]) -> Callable[..., Path]:
    """`image_tree(classes=3, per_class=4, split="train", name="data", seed=0, odd=())` -> folder of class folders.

    Files are `<tmp_path>/<name>/<split>/class<k>/<i>.JPEG` of random size, 40 to 200 pixels a side; split "" leaves
    that folder out. `odd` names kinds (see `write_image`), each written as `odd_<kind>.JPEG` into class 0 as well.
    """

    def make(
        classes: int = 3,
        per_class: int = 4,
        split: str = "train",
        name: str = "data",
        seed: int = 0,
        odd: tuple[str, ...] = (),
    ) -> Path:
        rng = np.random.default_rng(seed)
        root = tmp_path / name / split
        for label in range(classes):
            for i in range(per_class):
                width, height = (int(side) for side in rng.integers(40, 201, 2))
                write_image(root / f"class{label}" / f"{i}.JPEG", "plain", width, height, int(rng.integers(1 << 30)))
        for kind in odd:
            write_image(root / "class0" / f"odd_{kind}.JPEG", kind)
        return root

    return make


@pytest.fixture
def toy(tmp_path: Path) -> Callable[..., Run]:
    """`toy(folder="run", steps=3, more=None, **recipe)`: a run (helpers.session) that resumes its folder's state."""

    def make(folder: str = "run", steps: int = 3, more: dict[str, Any] | None = None, **values: object) -> Run:
        return Run(tmp_path / folder, fakes.recipe(**values), steps=steps, **(more or {}))

    return make
