"""Parity of the graph executor with Pillow and timm: one plan, the same pixels. Bounds are tabled in docs/PARITY.md.

Images have photographs' statistics (1/f spectra, gradients, flat and clipped areas). They lie on disk as PNG where only
the ops are compared, so that both sides start from the same pixels, and as JPEG where decoding belongs to the test.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data.auto_augment import NAME_TO_OP
from torchvision.transforms.functional import InterpolationMode, hflip, resized_crop

from rsbdali.data.index import ImageIndex
from rsbdali.pipelines.train import GraphExecutor
from rsbdali.plan.draws import draw_crops
from rsbdali.plan.planner import BatchPlan, Planner
from rsbdali.plan.randaugment import BICUBIC, BILINEAR, FILL_RGB, GEOMETRIC, NUM_OPS, Op
from rsbdali.recipe import Recipe

HEIGHT, WIDTH = 56, 72
COUNT = 24
RESIZE_MAX = 32  # levels, see check_resize; the next two are shares of values that differ by more than 1
SHRINK_ABOVE_1, ENLARGE_ABOVE_1 = 0.008, 0.04
MODES = {BILINEAR: InterpolationMode.BILINEAR, BICUBIC: InterpolationMode.BICUBIC}
RESAMPLE = {BILINEAR: Image.Resampling.BILINEAR, BICUBIC: Image.Resampling.BICUBIC}
DEVICES = [
    "cpu",
    pytest.param(
        "cuda", marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
    ),
]
TIMM_NAMES = {
    Op.AUTO_CONTRAST: "AutoContrast",
    Op.EQUALIZE: "Equalize",
    Op.INVERT: "Invert",
    Op.ROTATE: "Rotate",
    Op.POSTERIZE: "Posterize",
    Op.SOLARIZE: "Solarize",
    Op.SOLARIZE_ADD: "SolarizeAdd",
    Op.COLOR: "Color",
    Op.CONTRAST: "Contrast",
    Op.BRIGHTNESS: "Brightness",
    Op.SHARPNESS: "Sharpness",
    Op.SHEAR_X: "ShearX",
    Op.SHEAR_Y: "ShearY",
    Op.TRANSLATE_X: "TranslateXRel",
    Op.TRANSLATE_Y: "TranslateYRel",
}
_ENHANCE = [0.1, 0.154, 0.3, 0.46, 0.73, 0.9973, 1.0, 1.0031, 1.2345, 1.54, 1.77, 1.9]
# the whole range of every op's argument, both signs
ARGS: dict[Op, list[float]] = {
    Op.AUTO_CONTRAST: [0],
    Op.EQUALIZE: [0],
    Op.INVERT: [0],
    Op.ROTATE: [-30, -18.37, -5.1, -0.01, 0, 0.3, 7.77, 18, 30],
    Op.POSTERIZE: [0, 1, 2, 3, 4],
    Op.SOLARIZE: [0, 1, 26, 102, 128, 200, 255, 256],
    Op.SOLARIZE_ADD: [0, 1, 33, 66, 110, 128],
    Op.COLOR: _ENHANCE,
    Op.CONTRAST: _ENHANCE,
    Op.BRIGHTNESS: _ENHANCE,
    Op.SHARPNESS: _ENHANCE,
    Op.SHEAR_X: [-0.3, -0.1799, 0, 0.05, 0.3],
    Op.SHEAR_Y: [-0.3, -0.1799, 0, 0.05, 0.3],
    Op.TRANSLATE_X: [-0.45, -0.2713, 0, 0.0137, 0.25, 0.45],
    Op.TRANSLATE_Y: [-0.45, -0.2713, 0, 0.0137, 0.25, 0.45],
}


class Folder:
    """Images on disk as the pipelines see an index."""

    def __init__(self, folder: Path, images: list[Image.Image], *, jpeg: bool, **options: object) -> None:
        suffix = "jpg" if jpeg else "png"
        self.paths = [folder / f"{i}.{suffix}" for i in range(len(images))]
        for path, image in zip(self.paths, images, strict=True):
            image.save(path, **({"quality": 92} | options if jpeg else {}))
        self.width_N = np.array([image.width for image in images], np.int32)
        self.height_N = np.array([image.height for image in images], np.int32)

    def __len__(self) -> int:
        return len(self.paths)

    def read_bytes(self, i: int) -> np.ndarray:
        return np.fromfile(self.paths[i], np.uint8)

    def intervals_of(self, i: int) -> None:
        pass

    def fetch_ahead(self, sample_N: np.ndarray, parts: object = None) -> None:
        pass

    def rgb(self, i: int) -> Image.Image:
        return Image.open(self.paths[i]).convert("RGB")


def photo(rng: np.random.Generator, width: int, height: int) -> Image.Image:
    """1/f noise with correlated channels, a gradient, and a contrast that may clip or hardly vary."""
    fy, fx = np.meshgrid(np.fft.fftfreq(height), np.fft.rfftfreq(width), indexing="ij")
    falloff = 1 / np.maximum(np.hypot(fy, fx), 1 / max(width, height)) ** rng.uniform(0.8, 1.6)
    planes = np.stack(
        [np.fft.irfft2(np.fft.rfft2(rng.normal(size=(height, width))) * falloff, (height, width)) for _ in range(3)],
        axis=2,
    )
    planes = planes / planes.std() + rng.normal() * np.linspace(-1, 1, width)[None, :, None]
    planes = 0.7 * planes.mean(axis=2, keepdims=True) + 0.5 * planes
    pixels = rng.uniform(60, 200) + rng.choice([12, 35, 60, 110]) * planes
    buffer = BytesIO()
    Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=90)
    return Image.open(buffer).convert("RGB")


def make_plan(
    sample_N: np.ndarray,
    crop_N4: np.ndarray,
    *,
    flip_N: np.ndarray | None = None,
    interp_N: np.ndarray | None = None,
    op_NL: np.ndarray | None = None,
    arg_NL: np.ndarray | None = None,
    op_interp_NL: np.ndarray | None = None,
) -> BatchPlan:
    n = len(sample_N)
    none_NL = np.full((n, 2), Op.NONE, np.int8)
    return BatchPlan(
        epoch=0,
        step=0,
        group=0,
        position_N=np.arange(n),
        sample_N=sample_N,
        crop_N4=crop_N4.astype(np.int32),
        resized_N2=np.zeros((n, 2), np.int32),
        offset_N2=np.zeros((n, 2), np.int32),
        flip_N=np.zeros(n, bool) if flip_N is None else flip_N,
        interp_N=np.zeros(n, np.uint8) if interp_N is None else interp_N,
        op_NL=none_NL if op_NL is None else op_NL.astype(np.int8),
        arg_NL=np.zeros((n, 2)) if arg_NL is None else arg_NL,
        op_interp_NL=np.zeros((n, 2), np.uint8) if op_interp_NL is None else op_interp_NL,
        erase_NK4=np.zeros((n, 1, 4), np.int32),
        noise_N=np.zeros(n, np.int64),
        partner_N=np.arange(n, dtype=np.int32),
        lam_N=np.ones(n, np.float32),
        box_N4=np.zeros((n, 4), np.int32),
    )


def whole(folder: Folder, sample_N: np.ndarray) -> np.ndarray:
    """Crops that are the whole image."""
    zero_N = np.zeros(len(sample_N))
    return np.stack([zero_N, zero_N, folder.height_N[sample_N], folder.width_N[sample_N]], axis=1)


def run(executor: GraphExecutor, plan: BatchPlan) -> np.ndarray:
    """All rows of a plan, in batches that the executor takes."""
    starts = range(0, len(plan), executor.rows)
    for start in starts:
        executor.submit(plan.rows(slice(start, start + executor.rows)))
    return np.concatenate([executor.collect().images_NHWC.cpu().numpy() for _ in starts])


def apply_timm(image: Image.Image, op: int, arg: float, interp: int) -> Image.Image:
    """One op by timm's own function."""
    if op == Op.NONE:
        return image
    if op == Op.POSTERIZE and arg == 0:
        return Image.new(
            "RGB", image.size
        )  # timm reaches 0 bits at level 10; Pillow 13 refuses them, before it was black
    args = [int(arg)] if op in (Op.POSTERIZE, Op.SOLARIZE, Op.SOLARIZE_ADD) else [arg]
    if op in (Op.AUTO_CONTRAST, Op.EQUALIZE, Op.INVERT):
        args = []
    result: Image.Image = NAME_TO_OP[TIMM_NAMES[Op(op)]](image, *args, fillcolor=FILL_RGB, resample=RESAMPLE[interp])
    return result


def differences(ours_NHWC: np.ndarray, theirs: list[Image.Image]) -> np.ndarray:
    """Absolute differences of all values, int."""
    return np.abs(ours_NHWC.astype(int) - np.stack([np.asarray(image) for image in theirs]).astype(int))


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    """PNGs of the output's size: crop and resize leave them as they are."""
    rng = np.random.default_rng(5)
    images = [photo(rng, WIDTH, HEIGHT) for _ in range(COUNT - 2)]
    flat = Image.new("RGB", (WIDTH, HEIGHT), (7, 130, 255))  # no contrast to stretch, no histogram to equalize
    nearly = flat.copy()
    nearly.putpixel((3, 4), (8, 131, 254))
    return Folder(tmp_path_factory.mktemp("png"), [*images, flat, nearly], jpeg=False)


@pytest.fixture(scope="module", params=DEVICES)
def executor(request: pytest.FixtureRequest, photos: Folder) -> Iterator[GraphExecutor]:
    recipe = Recipe(img_size=(HEIGHT, WIDTH), aa="rand-m6-mstd0.5-inc1")
    executor = GraphExecutor(
        photos,
        recipe,
        rows=64,
        device=torch.device(request.param),
        num_threads=1,
        roi=request.param == "cpu",
        augment=True,
    )
    yield executor
    executor.close()


# only geometric ops interpolate
CASES = [
    (op, interp)
    for op in map(Op, range(NUM_OPS))
    for interp in ((BILINEAR, BICUBIC) if op in GEOMETRIC else (BILINEAR,))
]


@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize(("op", "interp"), CASES, ids=[f"{op.name}-{('bilinear', 'bicubic')[i]}" for op, i in CASES])
def test_parity_graph_op(executor: GraphExecutor, photos: Folder, op: Op, layer: int, interp: int) -> None:
    args = ARGS[op] if layer == 0 else ARGS[op][::3]
    sample_N = np.tile(np.arange(COUNT), len(args))
    arg_N = np.repeat(np.array(args, np.float64), COUNT)
    op_NL, arg_NL = np.full((len(sample_N), 2), Op.NONE), np.zeros((len(sample_N), 2))
    op_NL[:, layer], arg_NL[:, layer] = op, arg_N
    plan = make_plan(
        sample_N,
        whole(photos, sample_N),
        op_NL=op_NL,
        arg_NL=arg_NL,
        op_interp_NL=np.full((len(sample_N), 2), interp, np.uint8),
    )
    theirs = [apply_timm(photos.rgb(s), op, a, interp) for s, a in zip(sample_N, arg_N, strict=True)]
    different = differences(run(executor, plan), theirs)
    assert different.max() == 0, f"{(different > 0).mean():.4%} differ, at most {different.max()}"


def photographs(folder: Path, count: int, low: int, high: int, **options: object) -> Folder:
    """JPEGs of random size, `low` to `high` pixels a side."""
    rng = np.random.default_rng(11)
    sizes = rng.integers(low, high, (count, 2))
    return Folder(folder, [photo(rng, int(w), int(h)) for w, h in sizes], jpeg=True, **options)


def random_crops(folder: Folder, sample_N: np.ndarray, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return draw_crops(rng, folder.width_N[sample_N], folder.height_N[sample_N], (0.08, 1.0), (3 / 4, 4 / 3))


def crop_resize_flip(folder: Folder, plan: BatchPlan, size: tuple[int, int]) -> list[Image.Image]:
    """What torchvision's `resized_crop` and `hflip` do to a PIL image."""
    images = []
    for row, sample in enumerate(plan.sample_N):
        y, x, h, w = plan.crop_N4[row].tolist()
        image = resized_crop(folder.rgb(sample), y, x, h, w, list(size), MODES[int(plan.interp_N[row])])
        images.append(hflip(image) if plan.flip_N[row] else image)
    return images


# Resizing: Pillow rounds to 8 bits between its two passes, DALI keeps floats, so values near .5 go either way and a
# cubic's overshoot, which Pillow clips between the passes, stays: rare, but some levels. At the crop's edge Pillow
# drops the taps outside and scales the others up, DALI repeats the edge pixel: the outermost rows and columns of the
# output differ by some levels (one where a triangle shrinks, two where a cubic does, many where a cubic enlarges).
def check_resize(
    ours_NHWC: np.ndarray, theirs: list[Image.Image], interp_N: np.ndarray, above_1: float = SHRINK_ABOVE_1
) -> None:
    different_NHWC = differences(ours_NHWC, theirs)
    assert different_NHWC.max() <= RESIZE_MAX
    assert (different_NHWC > 1).mean() <= above_1
    assert (different_NHWC > 0).mean() <= 0.3
    if (interp_N == BILINEAR).any():
        assert different_NHWC[interp_N == BILINEAR, 1:-1, 1:-1].max() <= 1


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("interp", [BILINEAR, BICUBIC])
@pytest.mark.parametrize(
    ("low", "high", "above_1"), [(60, 260, SHRINK_ABOVE_1), (6, 40, ENLARGE_ABOVE_1)], ids=["shrink", "enlarge"]
)
def test_parity_graph_crop_resize_flip(
    tmp_path: Path, device: str, interp: int, low: int, high: int, above_1: float
) -> None:
    folder = photographs(tmp_path, COUNT, low, high)
    sample_N = np.tile(np.arange(COUNT), 4)
    plan = make_plan(
        sample_N,
        random_crops(folder, sample_N, 3),
        flip_N=np.arange(len(sample_N)) % 2 == 0,
        interp_N=np.full(len(sample_N), interp, np.uint8),
    )
    executor = GraphExecutor(
        folder,
        Recipe(img_size=(48, 64)),
        rows=32,
        device=torch.device(device),
        num_threads=1,
        roi=device == "cpu",
        augment=True,
    )
    ours_NHWC, theirs = run(executor, plan), crop_resize_flip(folder, plan, (48, 64))
    executor.close()
    if device == "cuda":  # the GPU's JPEG decoder has an inverse DCT and a chroma upsampling of its own
        assert differences(ours_NHWC, theirs).mean() < 1.5
    else:
        check_resize(ours_NHWC, theirs, plan.interp_N, above_1)


@pytest.mark.parametrize("repeats_mode", ["across_ranks", "decode_once"])
def test_parity_graph_chain(tmp_path: Path, repeats_mode: str) -> None:
    """Planned batches, everything on: two layers on top of crop, resize and flip.

    The ops are exact, so they are compared on the pixels that crop, resize and flip of the same executor give.
    """
    folder = photographs(tmp_path, 40, 60, 200)
    recipe = Recipe(
        img_size=(40, 56),
        aa="rand-m9-mstd3-p0.9-inc1",
        global_batch_size=40,
        mix_groups=1,
        aug_repeats=2,
        aug_repeats_mode=repeats_mode,
    )
    planner = Planner(folder.width_N, folder.height_N, recipe)
    assert planner.steps_per_epoch == 1
    executor = GraphExecutor(folder, recipe, rows=40, device=torch.device("cpu"), num_threads=2, roi=True, augment=True)
    for epoch in range(3):
        plan = planner.batch(epoch, 0)
        base_NHWC = run(executor, replace(plan, op_NL=np.full_like(plan.op_NL, Op.NONE)))
        check_resize(base_NHWC, crop_resize_flip(folder, plan, (40, 56)), plan.interp_N)
        theirs = []
        for row in range(len(plan)):
            image = Image.fromarray(base_NHWC[row])
            for layer in range(plan.op_NL.shape[1]):
                image = apply_timm(
                    image,
                    int(plan.op_NL[row, layer]),
                    float(plan.arg_NL[row, layer]),
                    int(plan.op_interp_NL[row, layer]),
                )
            theirs.append(image)
        assert differences(run(executor, plan), theirs).max() == 0
    executor.close()


@pytest.mark.parametrize(
    "kind",
    [
        "plain",
        "gray",
        "progressive",
        "exif",
        "rgb",
        "s411",
        "restart",
        "cmyk",
        "ycck",
        "png",
        "webp",
        "palette",
        "alpha",
        "grey16",
    ],
)
@pytest.mark.parametrize("roi", [True, False], ids=["region", "whole"])
def test_parity_graph_decode(tmp_path: Path, write_image: Callable[..., Path], kind: str, roi: bool) -> None:
    """Every kind of file comes out as Pillow's `convert("RGB")`, orientation ignored, whole or by region."""
    path = write_image(tmp_path / "data" / "class0" / "0.JPEG", kind)
    index = ImageIndex.scan(tmp_path / "data", threads=1)
    with Image.open(path) as image:
        rgb = image.convert("RGB")
    crop_N4 = np.array([[0, 0, rgb.height, rgb.width]])
    for crop in (crop_N4, np.array([[5, 9, rgb.height - 12, rgb.width - 20]])):
        y, x, h, w = (int(v) for v in crop[0])
        executor = GraphExecutor(
            index, Recipe(img_size=(h, w)), rows=1, device=torch.device("cpu"), num_threads=1, roi=roi
        )
        ours_NHWC = run(executor, make_plan(np.array([0]), crop))
        executor.close()
        assert differences(ours_NHWC, [rgb.crop((x, y, x + w, y + h))]).max() == 0
