"""Reading ahead, for sources where every read waits for a network: many at a time, in the order of the plans.

The executors say `fetch_ahead` when a plan is submitted, and `read` when its turn comes; threads fetch in between.
"""

import threading
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from dataclasses import dataclass

from rsbdali.data.sources.base import Reader, StoredImage
from rsbdali.data.sources.forks import restarted_in_children

THREADS = 64
HELD_BYTES = 2 << 30


@dataclass
class _Fetch:
    future: "Future[bytes]"
    uses: int


class AheadReader:
    """A reader whose images are fetched as soon as a plan names them; what nobody fetched ahead is read at once.

    Args:
        reader: fetches.
        threads: fetches under way at a time.
        held_bytes: bound of what is fetched or to be fetched and not read yet; the oldest is dropped for more.
    """

    def __init__(self, reader: Reader, threads: int = THREADS, held_bytes: int = HELD_BYTES) -> None:
        self._reader, self._threads, self._bound = reader, threads, held_bytes
        self.restart()
        restarted_in_children(self)

    def restart(self) -> None:
        """See `sources.forks`."""
        self._fetches: OrderedDict[StoredImage, _Fetch] = OrderedDict()
        self._held_bytes = 0
        self._lock = threading.Lock()
        self._pool: ThreadPoolExecutor | None = None

    def read(self, image: StoredImage) -> bytes:
        """See `Reader`."""
        with self._lock:
            fetch = self._fetches.get(image)
            if fetch is not None:
                fetch.uses -= 1
                if fetch.uses == 0:
                    self._drop(image)
        if fetch is None:
            return self._reader.read(image)
        try:
            return fetch.future.result()
        except CancelledError:  # dropped for others before it began
            return self._reader.read(image)

    def fetch_ahead(self, images: Sequence[StoredImage]) -> None:
        """See `Reader`."""
        with self._lock:
            if self._pool is None:
                self._pool = ThreadPoolExecutor(self._threads, thread_name_prefix="rsbdali-fetch")
            for image in images:
                if (fetch := self._fetches.get(image)) is not None:
                    fetch.uses += 1
                    continue
                self._fetches[image] = _Fetch(self._pool.submit(self._reader.read, image), 1)
                self._held_bytes += image.nbytes
            while self._held_bytes > self._bound:
                oldest = next(iter(self._fetches))
                self._fetches[oldest].future.cancel()
                self._drop(oldest)

    def close(self) -> None:
        """See `Reader`."""
        with self._lock:
            pool, self._pool = self._pool, None
            self._fetches.clear()
            self._held_bytes = 0
        if pool is not None:
            pool.shutdown(cancel_futures=True)
        self._reader.close()

    def _drop(self, image: StoredImage) -> None:
        del self._fetches[image]
        self._held_bytes -= image.nbytes
