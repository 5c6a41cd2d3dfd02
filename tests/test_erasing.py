"""Random erasing: boxes as timm draws them, normal noise as a function of (key, box, pixel), kernel and loader."""

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from timm.data import random_erasing
from timm.data.random_erasing import RandomErasing

from helpers import triton_tools
from rsbdali.data.index import ImageIndex
from rsbdali.loader.train import TrainLoader
from rsbdali.ops.erasing import erase
from rsbdali.ops.noise import noise, philox
from rsbdali.plan.erasing import MODES, draw_erasing
from rsbdali.plan.planner import Planner
from rsbdali.plan.sampling import Sampling
from rsbdali.recipe import Recipe

SIZE = 24, 32


class Recorded:
    """A generator that keeps what it gives."""

    def __init__(self, seed: int) -> None:
        self._rng = np.random.default_rng(seed)
        self.given: list[np.ndarray] = []

    def random(self, shape: Any) -> np.ndarray:
        self.given.append(self._rng.random(shape))
        return self.given[-1]

    def integers(self, low: int, high: int, size: int, dtype: Any = np.int64) -> np.ndarray:
        self.given.append(self._rng.integers(low, high, size=size, dtype=dtype))
        return self.given[-1]


def timms_numbers(drawn: list[np.ndarray], row: int, size: tuple[int, int]) -> Iterator[float]:
    """What timm's `random` has to give so that it draws our row: a uniform in 0..1 for each of its calls."""
    u_4NKT, applied_N, count_N, _ = drawn
    area_scale = size[0] * size[1]
    yield float(applied_N[row])
    if u_4NKT.shape[2] > 1:
        yield (count_N[row] - 0.5) / u_4NKT.shape[2]
    for box in range(int(count_N[row])):
        for u_area, u_aspect, u_top, u_left in u_4NKT[:, row, box].T.tolist():
            yield u_area
            yield u_aspect
            area = (0.02 + (1 / 3 - 0.02) * u_area) * area_scale / int(count_N[row])
            aspect = np.exp(np.log(0.3) + (np.log(1 / 0.3) - np.log(0.3)) * u_aspect)
            if round(np.sqrt(area * aspect)) < size[0] and round(np.sqrt(area / aspect)) < size[1]:
                yield u_top
                yield u_left
                break


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("size", [SIZE, (9, 9)])
def test_boxes_are_timms_for_the_same_numbers(size: tuple[int, int], count: int, monkeypatch: Any) -> None:
    rng, rows = Recorded(count), 200
    box_NK4, key_N = draw_erasing(rng, rows, size, 0.6, count)  # type: ignore[arg-type]
    ours = erase(torch.ones(rows, 3, *size).to(memory_format=torch.channels_last), box_NK4, key_N, "const")
    erasing = RandomErasing(0.6, mode="const", max_count=count, device="cpu")
    erased = 0
    for row in range(rows):
        numbers = timms_numbers(rng.given, row, size)
        uniform = SimpleNamespace(
            random=lambda numbers=numbers: next(numbers),
            uniform=lambda a, b, numbers=numbers: a + (b - a) * next(numbers),
            randint=lambda a, b, numbers=numbers: a + int(next(numbers) * (b - a + 1)),
        )
        monkeypatch.setattr(random_erasing, "random", uniform)
        theirs = erasing(torch.ones(3, *size))
        assert torch.equal(ours[row], theirs), row
        erased += not bool(theirs.all())
    assert 0.45 * rows < erased < 0.75 * rows


def test_a_later_box_covers_an_earlier_one() -> None:
    box_NK4 = np.array([[[2, 9, 3, 12], [5, 14, 1, 8]]], np.int32)
    key_N = np.array([-5])
    images = erase(torch.zeros(1, 3, *SIZE).to(memory_format=torch.channels_last), box_NK4, key_N, "rand")
    first, second = (torch.from_numpy(noise(-5, box, np.zeros((1, 1), int))) for box in range(2))
    assert torch.equal(images[0, :, 5:14, 1:8], second.expand(3, 9, 7))
    assert torch.equal(images[0, :, 2:5, 3:12], first.expand(3, 3, 9))
    assert images.count_nonzero() == 3 * (9 * 7 + 3 * 9 + 4 * 4)


def test_philox_gives_the_words_of_its_reference() -> None:
    """Random123's known answers for philox4x32, 7 rounds: all counters and keys 0."""
    words = [int(word[0]) for word in philox(0, np.zeros(1, np.int64), 0)]
    assert words == [0x5F6FB709, 0x0D893F64, 0x4F121F81, 0x4F730A48]


def test_noise_is_standard_normal_and_its_channels_and_pixels_are_independent() -> None:
    color_3HW = noise(2**63 - 3, 0, np.arange(40000).reshape(200, 200)).astype(np.float64)
    assert stats.kstest(color_3HW.ravel(), "norm").pvalue > 1e-3
    flat_3P = color_3HW.reshape(3, -1)
    assert np.abs(np.corrcoef(flat_3P) - np.eye(3)).max() < 0.02
    assert abs(np.corrcoef(flat_3P[0, 1:], flat_3P[0, :-1])[0, 1]) < 0.02
    others = [noise(key, box, np.arange(40000)[None]).ravel() for key, box in ((1, 0), (1, 1), (1 << 40, 0))]
    assert np.abs(np.corrcoef(others) - np.eye(3)).max() < 0.02


def test_shares_areas_and_places_are_uniform() -> None:
    box_NK4, key_N = draw_erasing(np.random.default_rng(1), 20000, (200, 200), 0.25, 1)
    box_E4 = box_NK4[box_NK4.any(axis=(1, 2)), 0].astype(np.float64)
    assert abs(len(box_E4) / 20000 - 0.25) < 0.01
    assert len(np.unique(key_N)) == 20000
    h_E, w_E = box_E4[:, 1] - box_E4[:, 0], box_E4[:, 3] - box_E4[:, 2]
    square_E = np.abs(np.log(h_E / w_E)) < 0.5  # never cut off by the sides of the image
    assert stats.kstest(h_E[square_E] * w_E[square_E] / 40000, stats.uniform(0.02, 1 / 3 - 0.02).cdf).pvalue > 1e-3
    assert stats.kstest(box_E4[:, 0] / (200 - h_E), "uniform").pvalue > 1e-4  # whole pixels


def test_a_last_batch_that_is_short_has_as_many_boxes_as_rows() -> None:
    recipe = Recipe.from_dict({"global_batch_size": 8, "mix_groups": 2, "reprob": 0.5, "vflip": 0.5})
    planner = Planner(np.full(11, 40), np.full(11, 40), recipe, sampling=Sampling(drop_last=False))
    plan = planner.batch(0, planner.steps_per_epoch - 1)
    assert len(plan.erase_NK4) == len(plan.noise_N) == len(plan.op_NL) == len(plan) == 4


def test_loader_erases_what_is_mixed_and_normalized(image_tree: Callable[..., Path]) -> None:
    index = ImageIndex.scan(image_tree(classes=2, per_class=8))
    small = {"img_size": 32, "global_batch_size": 16, "mix_groups": 2, "mixup": 0.2, "cutmix": 1.0}
    plain = Recipe.from_dict(small)

    def batches(recipe: Recipe, **options: Any) -> list[torch.Tensor]:
        loader = TrainLoader(index, recipe, device="cpu", num_threads=1, **options)
        images = [batch.images.clone() for batch in loader]
        loader.close()
        return images

    expected = batches(plain)
    for mode in MODES:
        recipe = plain.with_overrides({"reprob": 0.9, "remode": mode, "recount": 2})
        planner = Planner(index.width_N, index.height_N, recipe)
        assert planner.group(0, 0, 0).erase_NK4.any()
        for k, images in enumerate(batches(recipe)):
            plan = planner.group(0, 0, k)
            assert torch.equal(images, erase(expected[k].clone(), plan.erase_NK4, plan.noise_N, mode))
            assert not torch.equal(images, expected[k])
    uint8 = batches(plain.with_overrides({"reprob": 0.9, "remode": "const"}), dtype=torch.uint8)
    assert all(torch.equal(a, b) for a, b in zip(uint8, batches(plain, dtype=torch.uint8), strict=True))


# ---------------------------------------------------------------- the kernel, in Triton's interpreter


def cases() -> tuple[np.ndarray, np.ndarray]:
    box_NK4, key_N = draw_erasing(np.random.default_rng(5), 12, SIZE, 0.7, 2)
    box_NK4[0] = [[0, 23, 0, 31], [3, 4, 5, 6]]
    return box_NK4, key_N


def check_kernel_equals_the_reference() -> None:
    import os

    box_NK4, key_N = cases()
    for dtype, bound in ((torch.float32, 2e-6), (torch.float16, 1e-3)):
        for mode in MODES:
            start = torch.randn(12, 3, *SIZE).to(dtype).to(memory_format=torch.channels_last)
            ours = erase(start.clone(memory_format=torch.preserve_format), box_NK4, key_N, mode).float()
            os.environ["RSBDALI_KERNELS"] = "reference"
            theirs = erase(start.clone(memory_format=torch.preserve_format), box_NK4, key_N, mode).float()
            os.environ["RSBDALI_KERNELS"] = "interpret"
            assert ((ours - theirs).abs() <= bound * (1 + theirs.abs())).all(), (dtype, mode)
            assert not torch.equal(ours, start.float())


def check_nothing_to_erase_launches_nothing() -> None:
    from rsbdali.ops import erasing_kernel

    launches: list[int] = []
    erasing_kernel.erase_kernel.add_pre_run_hook(lambda *_, **__: launches.append(1))
    images = torch.zeros(2, 3, *SIZE).to(memory_format=torch.channels_last)
    box_NK4 = np.zeros((2, 3, 4), np.int32)
    erase(images, box_NK4, np.zeros(2, np.int64), "pixel")
    assert not launches
    box_NK4[1, 2] = 0, 2, 0, 2
    erase(images, box_NK4, np.zeros(2, np.int64), "pixel")
    assert len(launches) == 1


CHECKS = [check_kernel_equals_the_reference, check_nothing_to_erase_launches_nothing]


@pytest.fixture(scope="module")
def interpreted() -> dict[str, str]:
    found: dict[str, str] = triton_tools.interpret(__file__)
    return found


@pytest.mark.parametrize("check", triton_tools.names_of(CHECKS, counting=[check_nothing_to_erase_launches_nothing]))
def test_erasing_kernel_interpreted(check: str, interpreted: dict[str, str]) -> None:
    assert not interpreted[check], interpreted[check]


@pytest.mark.parametrize("mode", range(len(MODES)))
def test_erasing_kernel_compiles_for_the_oldest_and_newest_gpus(mode: int) -> None:
    from rsbdali.ops import erasing_kernel

    types = {"images": "*fp16", "boxes": "*i64", "number": "i32"}
    constants = {"HEIGHT": 224, "WIDTH": 224, "MODE": mode, "ROUNDS": 7, "BLOCK": erasing_kernel.BLOCK}
    for capability in (triton_tools.CAPABILITIES[0], triton_tools.CAPABILITIES[-1]):
        assert "ptx" in triton_tools.compiled(erasing_kernel.erase_kernel, capability, types, constants)


if __name__ == "__main__":
    triton_tools.report(CHECKS)
