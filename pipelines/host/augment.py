"""RandAugment on the CPU, equal to timm's to the bit: compiled loops, or Pillow itself where they cannot run."""

import logging
from collections.abc import Sequence
from functools import cache
from typing import Protocol

import numpy as np

from rsbdali.errors import NumbaError
from rsbdali.pipelines.host import augment_pillow
from rsbdali.pipelines.host.compiled import kernels
from rsbdali.plan.randaugment import BICUBIC, BILINEAR, Op


class Augment(Protocol):
    """One image's layers, in place; see `augment_pillow.augment`."""

    def __call__(
        self,
        image_HWC: np.ndarray,
        op_L: Sequence[int],
        arg_L: Sequence[float],
        interp_L: Sequence[int],
        fill: tuple[int, ...] = ...,
    ) -> None:
        """Apply the layers."""
        ...


# to try: where Pillow's own compiler may have fused a multiplication and an addition, other pixels come out
TRIALS = (
    (Op.ROTATE, 17.3),
    (Op.SHEAR_X, 0.171),
    (Op.SHEAR_Y, -0.171),
    (Op.TRANSLATE_X, 0.271),
    (Op.TRANSLATE_Y, -0.271),
    (Op.COLOR, 1.37),
    (Op.CONTRAST, 1.37),
    (Op.BRIGHTNESS, 1.37),
    (Op.SHARPNESS, 1.37),
    (Op.AUTO_CONTRAST, 0.0),
    (Op.EQUALIZE, 0.0),
)
log = logging.getLogger(__name__)


@cache
def find_augment() -> Augment:
    """The fastest way that equals the installed Pillow. The first call of a process compiles or loads it."""
    try:
        compiled: Augment = kernels("rsbdali.pipelines.host.augment_numba").augment
    except NumbaError as error:
        log.warning("Pillow augments, in 2 to 10 times the CPU time: %s", error)
        return augment_pillow.augment
    for op, arg in TRIALS:
        for interp in (BILINEAR, BICUBIC):
            if not equals_pillow(compiled, op, arg, interp):
                log.warning("Pillow augments, in 2 to 10 times the CPU time: it computes %s otherwise here", op.name)
                return augment_pillow.augment
    return compiled


def equals_pillow(augment: Augment, op: int, arg: float, interp: int) -> bool:
    """Whether one op on an image of noise is Pillow's to the bit."""
    ours_HWC = np.random.default_rng(0).integers(0, 200, (61, 47, 3), dtype=np.uint8)
    theirs_HWC = ours_HWC.copy()
    augment(ours_HWC, [op], [arg], [interp])
    augment_pillow.augment(theirs_HWC, [op], [arg], [interp])
    return np.array_equal(ours_HWC, theirs_HWC)
