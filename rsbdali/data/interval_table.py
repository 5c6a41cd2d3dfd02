"""Where the restart intervals of a data set's images are: a file beside each shard, or one in a folder of images.

    rsbdali-intervals.npy             in the folder's root
    train-000000.intervals.npy        beside train-000000.tar

Such a file holds a .npy of int64 (K, 5), rows by ascending key: key (the image's first byte in the shard; in a folder a
digest of its relative path), bytes of the image, sampling across and down, where its lengths end; then the lengths of
all images, uint16, which stay on the disk and are read where they are needed.
"""

import hashlib
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np

from rsbdali.atomic import write_atomically
from rsbdali.data.intervals import Intervals
from rsbdali.data.sources.base import Scan
from rsbdali.errors import counted

FOLDER_NAME = "rsbdali-intervals.npy"
SUFFIX = ".intervals.npy"
COLUMNS = 5
log = logging.getLogger(__name__)


class PackedImage(NamedTuple):
    """An image that was packed: its key in the file, its bytes, and its intervals if it has any."""

    key: int
    nbytes: int
    intervals: Intervals | None


class IntervalTable(NamedTuple):
    """Intervals of N images.

    Attributes:
        file_N: int32, position in `files`; -1 where an image is read as a whole.
        start_N: int64, where the lengths of each image begin in its file.
        count_N: int32, how many.
        sampling_N2: uint8, blocks of luma in an MCU, across and down.
        files: uint16 each, the lengths.
    """

    file_N: np.ndarray
    start_N: np.ndarray
    count_N: np.ndarray
    sampling_N2: np.ndarray
    files: tuple[np.ndarray, ...]

    def of(self, i: int) -> Intervals | None:
        """The intervals of image i; None where it is read as a whole."""
        file = self.file_N[i]
        if file < 0:
            return None
        across, down = self.sampling_N2[i].tolist()
        return Intervals((across, down), self.files[file][self.start_N[i] : self.start_N[i] + self.count_N[i]])

    def take(self, row_M: np.ndarray) -> "IntervalTable":
        """The table of some of the images."""
        columns = self.file_N[row_M], self.start_N[row_M], self.count_N[row_M], self.sampling_N2[row_M]
        return IntervalTable(*columns, self.files)


def path_key(path: bytes) -> int:
    """Key of an image in a folder, by its relative path."""
    return int.from_bytes(hashlib.blake2b(path, digest_size=8).digest(), "little", signed=True)


def write_intervals(path: Path, images: Sequence[PackedImage]) -> None:
    """Write the file of a shard or a folder.

    Raises:
        OSError: it cannot be written.
    """
    kept = sorted((image for image in images if image.intervals is not None), key=lambda image: image.key)
    lengths = [image.intervals.length_K for image in kept if image.intervals is not None]
    end_K = np.cumsum([len(length_K) for length_K in lengths], dtype=np.int64)
    rows = [(image.key, image.nbytes, *image.intervals.sampling) for image in kept if image.intervals is not None]
    column_K5 = np.column_stack([np.array(rows, np.int64).reshape(-1, COLUMNS - 1), end_K])

    def fill(file: IO[bytes]) -> None:
        np.save(file, column_K5, allow_pickle=False)
        file.write(b"".join(length_K.astype("<u2").tobytes() for length_K in lengths))

    write_atomically(path, fill)
    path.chmod(0o644)


def interval_names(scan: Scan) -> list[str]:
    """Names of the files that may hold a scan's intervals, relative to the source: one a shard, or one of a folder."""
    if scan.kind not in ("files", "tar", "objects"):
        return []
    return [name.removesuffix(".tar") + SUFFIX for name in scan.shards] if scan.shards else [FOLDER_NAME]


def load_intervals(files: Sequence[str | os.PathLike[str] | None], scan: Scan) -> IntervalTable | None:
    """The intervals of a scan's images; None where none were packed to be read in part.

    Args:
        files: of `interval_names`, on this machine; None where there is none.
        scan: its columns give the order.
    """
    read = {f: found for f, file in enumerate(files) if file and (found := read_intervals(file)) is not None}
    if not read:
        return None
    columns, count = scan.columns, len(scan.columns["nbytes_N"])
    file_N, start_N = np.full(count, -1, np.int32), np.zeros(count, np.int64)
    count_N, sampling_N2 = np.zeros(count, np.int32), np.zeros((count, 2), np.uint8)
    for f, (column_K5, _) in read.items():
        row_M = np.flatnonzero(columns["shard_N"] == f) if scan.shards else np.arange(count)
        key_M = columns["offset_N"][row_M] if scan.shards else _path_keys(columns)
        position_M = np.searchsorted(column_K5[:, 0], key_M)
        position_M[position_M == len(column_K5)] = 0
        found_M = np.all(column_K5[position_M, :2] == np.column_stack([key_M, columns["nbytes_N"][row_M]]), axis=1)
        row_M, position_M = row_M[found_M], position_M[found_M]
        start_K = np.concatenate([[0], column_K5[:-1, 4]])
        file_N[row_M], start_N[row_M] = f, start_K[position_M]
        count_N[row_M] = column_K5[position_M, 4] - start_K[position_M]
        sampling_N2[row_M] = column_K5[position_M, 2:4]
    lengths = tuple(read[f][1] if f in read else np.empty(0, np.uint16) for f in range(len(files)))
    log.info("%d of %s can be read in part", int((file_N >= 0).sum()), counted(count, "image"))
    return IntervalTable(file_N, start_N, count_N, sampling_N2, lengths)


def _path_keys(columns: dict[str, np.ndarray]) -> np.ndarray:
    paths, ends = columns["path_bytes"].tobytes(), columns["path_end_N"].tolist()
    return np.array([path_key(paths[a:b]) for a, b in zip([0, *ends], ends, strict=False)], np.int64)


def read_intervals(path: str | os.PathLike[str]) -> tuple[np.ndarray, np.ndarray] | None:
    """Columns and lengths of a file; None where there is none, or it is not one that was written here."""
    try:
        with open(path, "rb") as file:
            column_K5 = np.lib.format.read_array(file, allow_pickle=False)
            start, size = file.tell(), os.fstat(file.fileno()).st_size
        if column_K5.dtype != np.int64 or column_K5.shape[1:] != (COLUMNS,):
            raise ValueError("not a table of intervals")
        lengths = int(column_K5[-1, 4]) if len(column_K5) else 0
        if np.any(np.diff(column_K5[:, [0, 4]], axis=0) < 0) or size != start + 2 * lengths:
            raise ValueError("not its length")
        if not lengths:  # of a packing in which no image could be written again
            return None
        # copy on write: compiled loops take only what can be written to
        return column_K5, np.memmap(path, np.uint16, "c", start).view(np.ndarray)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, EOFError) as error:
        log.warning("%s is damaged (%s): its images are read as a whole", path, error)
        return None
