"""Parity of the evaluation graph with timm's `transforms_imagenet_eval`. Bounds are tabled in docs/PARITY.md."""

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data.transforms_factory import transforms_imagenet_eval

from rsbdali.data.index import ImageIndex
from rsbdali.loader.eval import EvalLoader
from rsbdali.pipelines.eval import EvalExecutor, eval_geometry
from rsbdali.recipe import Recipe

DEVICES = [
    "cpu",
    pytest.param(
        "cuda", marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
    ),
]


def timm_eval(path: str, size: int | tuple[int, int], crop_pct: float, interpolation: str) -> np.ndarray:
    """Timm's pixels, HWC, before the normalization."""
    transform = transforms_imagenet_eval(size, crop_pct=crop_pct, interpolation=interpolation, normalize=False)
    with Image.open(path) as image:
        pixels_HWC: np.ndarray = transform(image.convert("RGB")).permute(1, 2, 0).numpy()
    return pixels_HWC


SETTINGS = pytest.mark.parametrize(
    ("size", "crop_pct", "interpolation"),
    [(56, 0.95, "bicubic"), (56, 0.875, "bilinear"), (64, 1.0, "bicubic"), ((48, 72), 0.9, "bicubic")],
)


@SETTINGS
def test_parity_eval_host(
    image_tree: Callable[..., Path],
    size: int | tuple[int, int],
    crop_pct: float,
    interpolation: Literal["bilinear", "bicubic"],
) -> None:
    """The CPU's evaluation loader, image by image: timm's pixels to the bit."""
    index = ImageIndex.scan(image_tree(3, 8, odd=("gray", "exif", "cmyk", "png", "progressive")), threads=1)
    recipe = Recipe(test_img_size=size, crop_pct=crop_pct, interpolation=interpolation)
    loader = EvalLoader(index, recipe, device="cpu", batch_size=16, num_threads=2, dtype=torch.uint8)
    ours_NHWC = torch.cat([batch.images for batch in loader]).permute(0, 2, 3, 1).numpy()
    loader.close()
    assert len(index) == 29
    for i in range(len(index)):
        np.testing.assert_array_equal(ours_NHWC[i], timm_eval(index.path(i), size, crop_pct, interpolation))


# The graph's resize differs from Pillow's as in training (see check_resize in test_parity_graph.py): nearly everywhere
# by at most 1, by some levels where a cubic overshoots or the crop reaches the image's edge. Any shift of the crop or
# of the scale would show in the mean.
@pytest.mark.parametrize("device", DEVICES)
@SETTINGS
def test_parity_eval(
    image_tree: Callable[..., Path],
    device: str,
    size: int | tuple[int, int],
    crop_pct: float,
    interpolation: Literal["bilinear", "bicubic"],
) -> None:
    index = ImageIndex.scan(image_tree(3, 8, odd=("gray", "exif", "cmyk", "png", "progressive")), threads=1)
    recipe = Recipe(test_img_size=size, crop_pct=crop_pct, interpolation=interpolation)
    executor = EvalExecutor(index, recipe, rows=16, device=torch.device(device), num_threads=1)
    samples = [np.arange(16), np.arange(16, len(index))]
    for sample_N in samples:
        executor.submit(sample_N)
    ours_NHWC = np.concatenate([executor.collect().images_NHWC.cpu().numpy() for _ in samples])
    executor.close()
    theirs_NHWC = np.stack([timm_eval(index.path(i), size, crop_pct, interpolation) for i in range(len(index))])
    assert len(index) == 29
    different_NHWC = np.abs(ours_NHWC.astype(int) - theirs_NHWC)
    if device == "cuda":  # the GPU's JPEG decoder has an inverse DCT and a chroma upsampling of its own
        assert different_NHWC.mean() < 1.5
        return
    assert different_NHWC.max() <= 32
    assert (different_NHWC > 1).mean() <= 0.008
    assert different_NHWC.mean() < 0.25


@pytest.mark.parametrize("size", [(224, 224), (160, 224), (224, 96), (57, 57)])
@pytest.mark.parametrize("crop_pct", [0.95, 0.875, 1.0])
def test_parity_eval_geometry(size: tuple[int, int], crop_pct: float) -> None:
    """Offsets and sizes alone, exactly, for many odd source sizes: a ramp image tells where its pixels went."""
    rng = np.random.default_rng(0)
    side_N2 = rng.integers(1, 900, (40, 2))
    resized_N2, offset_N2 = eval_geometry(side_N2[:, 0], side_N2[:, 1], size, crop_pct)
    arguments = size[0] if size[0] == size[1] else size
    resize, centre_crop = transforms_imagenet_eval(arguments, crop_pct=crop_pct, normalize=False).transforms[:2]
    for side_2, resized_2, offset_2 in zip(side_N2, resized_N2, offset_N2, strict=True):
        resized = resize(Image.new("L", tuple(side_2.tolist())))
        assert (resized.height, resized.width) == tuple(resized_2)
        columns_W, rows_H = np.arange(resized.width, dtype=np.int32), np.arange(resized.height, dtype=np.int32)
        assert np.asarray(centre_crop(Image.fromarray(np.tile(columns_W, (resized.height, 1)))))[0, 0] == offset_2[1]
        assert (
            np.asarray(centre_crop(Image.fromarray(np.tile(rows_H[:, None], (1, resized.width)))))[0, 0] == offset_2[0]
        )
