"""The resize of the host executor: Pillow's to the bit, in both of its ways, for any shape, filter and part."""

from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from rsbdali.pipelines.host import resize as resizing
from rsbdali.pipelines.host import resize_numba
from rsbdali.pipelines.host.resize import Resize, find_resize, resize_pillow
from rsbdali.plan.randaugment import BICUBIC, BILINEAR

FILTERS = {BILINEAR: Image.Resampling.BILINEAR, BICUBIC: Image.Resampling.BICUBIC}
WAYS = [pytest.param(find_resize, id="found"), pytest.param(lambda: resize_pillow, id="pillow")]
Photo = Callable[..., Image.Image]


def _expected(image: Image.Image, size: tuple[int, int], interp: int) -> np.ndarray:
    return np.asarray(image.resize((size[1], size[0]), FILTERS[interp]))


def _noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_the_compiled_way_is_what_is_found() -> None:
    """Else every other test here would compare Pillow with itself."""
    assert find_resize() is not resize_pillow


@settings(max_examples=400, deadline=None)
@given(
    source=st.tuples(st.integers(1, 400), st.integers(1, 400)),
    target=st.tuples(st.integers(1, 300), st.integers(1, 300)),
    interp=st.sampled_from([BILINEAR, BICUBIC]),
    two_valued=st.booleans(),
    mirror=st.booleans(),
)
def test_parity_of_the_resize_for_any_shape(
    source: tuple[int, int], target: tuple[int, int], interp: int, two_valued: bool, mirror: bool
) -> None:
    image_HWC = _noise(*source)
    if two_valued:  # hard edges: a cubic overshoots, and both passes clip
        image_HWC = image_HWC // 128 * np.uint8(255)
    expected_HWC = _expected(Image.fromarray(image_HWC), target, interp)
    out_HWC = np.empty((*target, 3), np.uint8)
    find_resize()(image_HWC, (0, 0, *source), out_HWC, interp, mirror=mirror)
    np.testing.assert_array_equal(out_HWC, expected_HWC[:, ::-1] if mirror else expected_HWC)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("interp", [BILINEAR, BICUBIC])
def test_parity_of_the_resize_of_crops(way: Callable[[], Resize], interp: int, make_photo: Photo) -> None:
    rng = np.random.default_rng(1)
    for seed in range(24):
        width, height = (int(side) for side in rng.integers(30, 500, 2))
        image = make_photo(width, height, seed)
        h, w = int(rng.integers(1, height + 1)), int(rng.integers(1, width + 1))
        y, x = int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1))
        window_HWC, out_HWC = np.asarray(image).copy(), np.empty((80, 96, 3), np.uint8)
        before_HWC = window_HWC.copy()
        way()(window_HWC, (y, x, h, w), out_HWC, interp)
        expected_HWC = _expected(image.crop((x, y, x + w, y + h)), (80, 96), interp)
        np.testing.assert_array_equal(out_HWC, expected_HWC, err_msg=f"{(y, x, h, w)}")
        np.testing.assert_array_equal(window_HWC, before_HWC)


@pytest.mark.parametrize("columns_first", [False, True])
@pytest.mark.parametrize("interp", [BILINEAR, BICUBIC])
def test_either_order_of_the_passes_equals_two_resizes_of_pillow(columns_first: bool, interp: int) -> None:
    """One axis at a time there is no order to choose: so both orders are tested, whichever Pillow is installed."""
    for source, target in [((61, 47), (16, 20)), ((9, 150), (24, 31)), ((100, 33), (37, 70)), ((1, 5), (3, 2))]:
        image = Image.fromarray(_noise(*source))
        between = (target[0], source[1]) if columns_first else (source[0], target[1])
        expected_HWC = _expected(Image.fromarray(_expected(image, between, interp)), target, interp)
        out_HWC = np.empty((*target, 3), np.uint8)
        window_HWC = np.asarray(image).copy()
        resize_numba.resize(window_HWC, (0, 0, *source), target, (0, 0), interp, False, columns_first, out_HWC)
        np.testing.assert_array_equal(out_HWC, expected_HWC)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("mirror", [False, True])
@pytest.mark.parametrize("source", [(90, 140), (140, 50), (20, 30), (130, 20)])
def test_a_part_of_the_result_equals_the_whole_cut(
    way: Callable[[], Resize], mirror: bool, source: tuple[int, int]
) -> None:
    image_HWC = _noise(*source)
    for interp in FILTERS:
        expected_HWC = _expected(Image.fromarray(image_HWC), (60, 75), interp)[7:47, 11:67]
        out_HWC = np.empty((40, 56, 3), np.uint8)
        way()(image_HWC, (0, 0, *source), out_HWC, interp, mirror=mirror, size=(60, 75), offset=(7, 11))
        np.testing.assert_array_equal(out_HWC, expected_HWC[:, ::-1] if mirror else expected_HWC)


def test_a_window_that_is_read_only_or_no_contiguous_memory_is_read_all_the_same() -> None:
    image_HWC = _noise(50, 80)[:, ::2]
    frozen_HWC = image_HWC.copy()
    frozen_HWC.flags.writeable = False
    expected_HWC = _expected(Image.fromarray(image_HWC.copy()), (20, 20), BICUBIC)
    for window_HWC in (image_HWC, frozen_HWC):
        out_HWC = np.empty((20, 20, 3), np.uint8)
        find_resize()(window_HWC, (0, 0, 50, 40), out_HWC, BICUBIC)
        np.testing.assert_array_equal(out_HWC, expected_HWC)


def test_weights_are_cached_within_bounds() -> None:
    resize_numba.axis_weights.cache_clear()
    out_HWC = np.empty((4, 4, 3), np.uint8)
    for width in range(1, 1600):
        find_resize()(np.zeros((2, width, 3), np.uint8), (0, 0, 2, width), out_HWC, BILINEAR)
    info = resize_numba.axis_weights.cache_info()
    assert info.maxsize is not None
    assert info.currsize <= info.maxsize


def test_a_pillow_that_computes_otherwise_resizes_itself(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def otherwise(*args: object, **options: object) -> None:
        resize_pillow(*args, **options)  # type: ignore[arg-type]
        args[2][0, 0] ^= 1  # type: ignore[index]

    monkeypatch.setattr(resizing, "resize_pillow", otherwise)
    assert find_resize.__wrapped__() is otherwise
    assert "this version computes otherwise" in caplog.text


@pytest.mark.parametrize("order", range(2))
def test_the_order_of_the_passes_is_found_by_trial(monkeypatch: pytest.MonkeyPatch, order: int) -> None:
    """A Pillow that makes its passes in the one or the other way, from two resizes of one axis each."""
    columns_first = resizing.PASS_ORDERS[order]
    real = resize_pillow

    def pillow(window_HWC: np.ndarray, box: tuple[int, int, int, int], out_HWC: np.ndarray, interp: int) -> None:
        (_, _, h, w), (height, width, _) = box, out_HWC.shape
        between_HWC = np.empty((height, w, 3) if columns_first(h, w, height, width) else (h, width, 3), np.uint8)
        real(window_HWC, box, between_HWC, interp)
        real(between_HWC, (0, 0, *between_HWC.shape[:2]), out_HWC, interp)

    monkeypatch.setattr(resizing, "resize_pillow", pillow)
    found = find_resize.__wrapped__()
    assert found is not pillow
    assert all(
        resizing.equals_pillow(partial(found), source, (16, 20), BICUBIC) for source in [(90, 20), (200, 90), (30, 31)]
    )
