"""The images that did not decode: named once, counted, and more than allowed is an error."""

import logging
from collections.abc import Callable

from rsbdali.errors import DataError

log = logging.getLogger(__name__)


class BadImages:
    """Images met so far that do not decode.

    Args:
        on_bad: called once for each with path and reason; by default a warning is logged.
        limit: more bad images than this raise `DataError`; None means no limit.
    """

    def __init__(self, on_bad: Callable[[str, str], None] | None = None, limit: int | None = None) -> None:
        self.reasons: dict[str, str] = {}
        self._on_bad, self._limit = on_bad or _warn, limit

    def add(self, path: str, reason: str) -> None:
        """Note one bad image; only its first time is reported."""
        if path in self.reasons:
            return
        self.reasons[path] = reason
        self._on_bad(path, reason)
        if self._limit is not None and len(self.reasons) > self._limit:
            raise DataError(
                f"{len(self.reasons)} images do not decode, more than --max-bad-images {self._limit}; the last: "
                f"{path} ({reason})"
            )


def _warn(path: str, reason: str) -> None:
    log.warning("does not decode, replaced: %s (%s)", path, reason)
