"""Reading ahead, for sources where every read waits for a network: many at a time, in the order of the plans.

The executors say `fetch_ahead` when a plan is submitted, and `read` or `read_parts` when its turn comes; threads fetch
in between. The windows are in the plan, so what is needed of a seekable image is known as early.
"""

import threading
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from rsbdali.data.sources.base import ByteRange, PartReader, ReadRequest, StoredImage
from rsbdali.data.sources.forks import restarted_in_children

THREADS = 64
HELD_BYTES = 2 << 30


@dataclass
class _Fetch:
    future: "Future[bytes]"
    uses: int


class AheadReader:
    """A reader whose images, or parts of them, are fetched as soon as a plan names them; all else is read at once.

    Args:
        reader: fetches.
        threads: fetches under way at a time.
        held_bytes: bound of what is fetched or to be fetched and not read yet; the oldest is dropped for more.
    """

    def __init__(self, reader: PartReader, threads: int = THREADS, held_bytes: int = HELD_BYTES) -> None:
        self._reader, self._threads, self._bound = reader, threads, held_bytes
        self.restart()
        restarted_in_children(self)

    def restart(self) -> None:
        """See `sources.forks`."""
        self._fetches: OrderedDict[ReadRequest, _Fetch] = OrderedDict()
        self._held_bytes = 0
        self._lock = threading.Lock()
        self._pool: ThreadPoolExecutor | None = None

    def read(self, image: StoredImage) -> bytes:
        """See `Reader`."""
        return self._take(ReadRequest(image))

    def read_parts(self, image: StoredImage, parts: Sequence[ByteRange], out_B: np.ndarray) -> None:
        """See `PartReader`; parts that were fetched ahead are those asked for then, no others."""
        out_B[:] = np.frombuffer(self._take(ReadRequest(image, tuple(parts))), np.uint8)

    def fetch_ahead(self, requests: Iterable[ReadRequest]) -> None:
        """See `Reader`."""
        wanted = list(requests)  # not under the lock: they are made now
        with self._lock:
            if self._pool is None:
                self._pool = ThreadPoolExecutor(self._threads, thread_name_prefix="rsbdali-fetch")
            for request in wanted:
                if (fetch := self._fetches.get(request)) is not None:
                    fetch.uses += 1
                    continue
                self._fetches[request] = _Fetch(self._pool.submit(self._fetch, request), 1)
                self._held_bytes += request.nbytes
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

    def _take(self, request: ReadRequest) -> bytes:
        """The bytes of a request, fetched ahead or now."""
        with self._lock:
            fetch = self._fetches.get(request)
            if fetch is not None:
                fetch.uses -= 1
                if fetch.uses == 0:
                    self._drop(request)
        if fetch is None:
            return self._fetch(request)
        try:
            return fetch.future.result()
        except CancelledError:  # dropped for others before it began
            return self._fetch(request)

    def _fetch(self, request: ReadRequest) -> bytes:
        if not request.parts:
            return self._reader.read(request.image)
        found_B = np.empty(request.nbytes, np.uint8)
        self._reader.read_parts(request.image, request.parts, found_B)
        return found_B.tobytes()

    def _drop(self, request: ReadRequest) -> None:
        del self._fetches[request]
        self._held_bytes -= request.nbytes
