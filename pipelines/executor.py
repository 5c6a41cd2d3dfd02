"""What the loader asks of an executor: plans in, batches of pixels out, first in first out."""

from typing import Protocol

import numpy as np
import torch

from rsbdali.plan import BatchPlan


class DecodeFailure(RuntimeError):
    """A batch did not decode and is lost; batches submitted after it are unaffected and come in order."""


class ImageSource(Protocol):
    """The part of `rsbdali.index.ImageIndex` that the pipelines use."""

    width_N: np.ndarray
    height_N: np.ndarray

    def __len__(self) -> int: ...

    def source_path(self, i: int) -> str:
        """Path of the file that decodes to the RGB pixels of image i."""
        ...


class Executor(Protocol):
    """Carries out plans in the background.

    Attributes:
        rows: most rows a plan may have.
    """

    rows: int

    def submit(self, plan: BatchPlan) -> None:
        """Queue one batch; the work starts at once, in the background."""
        ...

    def collect(self) -> torch.Tensor:
        """Wait for the oldest batch submitted.

        Returns:
            uint8, shape (N, H, W, 3), on the executor's device, rows in the plan's order.

        Raises:
            DecodeFailure: an image of this batch did not decode.
        """
        ...

    def close(self) -> None:
        """Free threads and buffers; batches not yet collected are dropped. Tensors handed out stay valid."""
        ...
