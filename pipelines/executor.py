"""What the loader asks of an executor: plans in, batches of pixels out, first in first out."""

from typing import Protocol

import numpy as np
import torch

from rsbdali.plan.planner import BatchPlan


class DecodeFailure(RuntimeError):
    """A batch did not decode and is lost; batches submitted after it are unaffected and come in order."""


class ImageSource(Protocol):
    """The part of `rsbdali.data.index.ImageIndex` that the pipelines use."""

    width_N: np.ndarray
    height_N: np.ndarray

    def __len__(self) -> int: ...

    @property
    def has_files(self) -> bool:
        """Whether images are files, to be read by `source_path`; else they come by `read_bytes`."""
        ...

    def source_path(self, i: int) -> str:
        """Path of the file that decodes to the RGB pixels of image i."""
        ...

    def read_bytes(self, i: int) -> np.ndarray:
        """What decodes to the RGB pixels of image i: uint8, shape (length,). From any thread."""
        ...

    def fetch_ahead(self, sample_N: np.ndarray) -> None:
        """These images will be read soon."""
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
