"""The images that do not decode: named once, counted, replaced by the plan's draws; too many are an error."""

import logging
from collections.abc import Callable

import numpy as np

from rsbdali.data.index import ImageIndex
from rsbdali.errors import DataError, counted
from rsbdali.loader.prefetcher import Prefetcher
from rsbdali.pipelines.executor import DecodedBatch
from rsbdali.plan.planner import BatchPlan, Planner

MAX_ATTEMPTS = 100  # images tried for one row before giving up

log = logging.getLogger(__name__)


class BadImages:
    """Images met so far that do not decode.

    Args:
        on_bad: called once for each with path and reason; by default a warning is logged.
        fate: what becomes of them, for that warning.
        limit: more bad images than this raise `DataError`; None means no limit.
    """

    def __init__(
        self, on_bad: Callable[[str, str], None] | None = None, *, fate: str = "replaced", limit: int | None = None
    ) -> None:
        self.reasons: dict[str, str] = {}
        self._on_bad, self._fate, self._limit = on_bad, fate, limit

    def add(self, path: str, reason: str) -> None:
        """Note one bad image; only its first time is reported."""
        if path in self.reasons:
            return
        self.reasons[path] = reason
        (self._on_bad or self._warn)(path, reason)
        if self._limit is not None and len(self.reasons) > self._limit:
            raise DataError(
                f"{counted(len(self.reasons), 'image does', 'images do')} not decode, more than "
                f"max_bad_images={self._limit}; the last: {path} ({reason})"
            )

    def _warn(self, path: str, reason: str) -> None:
        log.warning("does not decode, %s: %s (%s)", self._fate, path, reason)


class BadRows:
    """Replaces the rows of training batches whose image does not decode, by other images that the seed draws.

    What is bad depends on the plan alone, and so does what takes its place: a resume makes the same batch.

    Args:
        index: the images.
        planner: draws.
        bad: where each is noted.
    """

    def __init__(self, index: ImageIndex, planner: Planner, bad: BadImages) -> None:
        self._index, self._planner, self._bad = index, planner, bad

    def replace(
        self, plan: BatchPlan, batch: DecodedBatch, prefetcher: Prefetcher[BatchPlan]
    ) -> tuple[BatchPlan, DecodedBatch]:
        """The plan and its pixels without bad rows; only the rows replaced are made anew.

        Raises:
            DataError: 100 images in a row do not decode, or more are bad than allowed.
        """
        images_NHWC, bad = batch
        for attempt in range(MAX_ATTEMPTS):
            if not bad:
                return plan, DecodedBatch(images_NHWC, {})
            for row, reason in sorted(bad.items()):
                self._bad.add(self._index.path(int(plan.sample_N[row])), reason)
                plan = self._planner.replacement(plan, row, attempt)
            row_K = np.array(sorted(bad))
            new_KHWC, still_bad = prefetcher.run(plan.rows(row_K))
            images_NHWC[row_K] = new_KHWC
            bad = {int(row_K[k]): reason for k, reason in still_bad.items()}
        raise DataError(f"{MAX_ATTEMPTS} images in a row do not decode: is {self._index.name} damaged?")
