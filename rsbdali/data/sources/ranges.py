"""A reader of images that lie in shards as they are: bytes from an offset on."""

from collections.abc import Sequence

from rsbdali.data.sources.base import Place, UnreadableImage
from rsbdali.data.sources.storage import OpenBlobs, Storage


class RangeReader:
    """Images by (shard, offset, length), see `rsbdali.data.sources.base.Reader`; a file of its own where shard is -1.

    Args:
        storage: where the shards are.
        shards: their names.
    """

    def __init__(self, storage: Storage, shards: Sequence[str]) -> None:
        self._shards, self._storage, self._blobs = shards, storage, OpenBlobs(storage)

    def read(self, place: Place) -> bytes:
        """See `Reader`."""
        if place.shard < 0:  # an object is read once and whole: nothing to keep open
            name, blob = place.path, self._storage.open(place.path)
        else:
            name = self._shards[place.shard]
            blob = self._blobs.get(name)
        data = blob.pread(place.nbytes, place.offset)
        if len(data) < place.nbytes:
            raise UnreadableImage(f"{name} is cut short: {len(data)} of {place.nbytes} bytes are there")
        return data

    def fetch_ahead(self, places: Sequence[Place]) -> None:
        """Nothing: the kernel reads ahead."""

    def close(self) -> None:
        """See `Reader`."""
        self._blobs.clear()
