"""A folder of images in an object store: an object an image, its class the first folder below the prefix."""

from concurrent.futures import ThreadPoolExecutor

from rsbdali.data.columns import to_scan
from rsbdali.data.header import Header
from rsbdali.data.levels import notes_on_depth
from rsbdali.data.names import EXTENSIONS, is_hidden, is_image_name, is_skipped_name, notes_on_names
from rsbdali.data.sources.base import Entry, Progress, Scan, StoredImage, header_or_reason
from rsbdali.data.sources.object_store import BlockBlob, RemoteStorage
from rsbdali.data.sources.storage import FileInfo, fingerprint_of
from rsbdali.errors import DataError, UnreadableImage

# most images are smaller: one request for header and end together, where the time goes into waiting
HEAD_BYTES = 256 << 10
LIST_THREADS = 64
CHUNK = 16


def _base(file: FileInfo) -> str:
    return file.name.rpartition("/")[2]


class ObjectSource:
    """Images in a store.

    Args:
        what: the source as the user wrote it, for messages.
        storage: the prefix.
    """

    def __init__(self, what: str, storage: RemoteStorage) -> None:
        self._what, self._storage = what, storage
        files = storage.walk()
        shown = [f for f in files if not is_hidden(f.name)]
        self._files = [f for f in shown if is_image_name(_base(f))]
        hidden = [f.name for f in files if is_hidden(f.name) and is_image_name(_base(f).lstrip("."))]
        skipped = [f.name for f in shown if is_skipped_name(_base(f))]
        self._notes = (*notes_on_names(hidden, skipped), *notes_on_depth([f.name for f in self._files]))

    def fingerprint(self) -> bytes:
        """See `Source`."""
        return fingerprint_of(self._files)

    def scan(self, threads: int | None, progress: Progress | None) -> Scan:
        """See `Source`."""
        if not self._files:
            raise DataError(f"{self._what}: no images: expected objects named {', '.join(EXTENSIONS)} by class")
        found: list[Entry] = []
        parts = [self._files[i : i + CHUNK] for i in range(0, len(self._files), CHUNK)]
        with ThreadPoolExecutor(threads or LIST_THREADS, thread_name_prefix="index") as pool:
            for done in pool.map(lambda part: [self._found(file) for file in part], parts):
                found += done
                if progress is not None:
                    progress(len(found), len(self._files))
        return to_scan(self._what, found, kind="objects", notes=self._notes)

    def _found(self, file: FileInfo) -> Entry:
        image = StoredImage(file.name, -1, 0, file.size)
        folder, slash, _ = file.name.partition("/")
        return Entry(image, self._header(file, image), class_name=folder if slash else None)

    def _header(self, file: FileInfo, image: StoredImage) -> Header | str:
        blob = BlockBlob(self._storage.open(file.name, file.size), HEAD_BYTES)
        try:
            return header_or_reason(blob.pread, image)
        except UnreadableImage as error:
            return str(error)
