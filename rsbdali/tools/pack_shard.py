"""One WebDataset shard: written under another name and renamed when whole, with a record beside it; read back.

Tar headers hold no time and no owner, so the same images give the same bytes.
"""

import hashlib
import json
import os
import tarfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import cached_property
from io import BytesIO
from pathlib import Path
from typing import IO, Any

from PIL import Image

from rsbdali import bounded
from rsbdali.atomic import write_atomically
from rsbdali.bounded import NotPlain
from rsbdali.data.header import Format
from rsbdali.data.index import ImageIndex
from rsbdali.data.interval_table import SUFFIX, PackedImage, write_intervals
from rsbdali.data.names import is_image_name
from rsbdali.data.sources.storage import LocalBlob
from rsbdali.data.sources.tar import walk_tar
from rsbdali.errors import DataError
from rsbdali.tools.pack_seekable import Seekable, fits_intervals, make_seekable

JPEG_QUALITY = 90


@dataclass(frozen=True)
class ShardRecord:
    """A whole shard.

    Attributes:
        name: file name.
        images: how many it holds.
        shrunk: how many of them were made smaller.
        bytes: size of the file.
        sha256: of the file.
        made_from: digest of what it was made from: images by name and size, labels, settings.
        seekable: how many images a crop can be read of (`pack_seekable`).
        whole_lines: how many of them have intervals of a whole line of MCUs.
    """

    name: str
    images: int
    shrunk: int
    bytes: int
    sha256: str
    made_from: str
    seekable: int = 0
    whole_lines: int = 0


@dataclass
class ShardJob:
    """A shard to be written.

    Attributes:
        out: folder of the shards.
        name: file name.
        index: where images come from.
        samples: the images.
        keys: WebDataset's key of each.
        settings: what else decides its bytes.
    """

    out: Path
    name: str
    index: ImageIndex = field(repr=False)
    samples: list[int] = field(repr=False)
    keys: list[str] = field(repr=False)
    settings: dict[str, Any]

    def __len__(self) -> int:
        return len(self.samples)

    @property
    def path(self) -> Path:
        """The shard."""
        return self.out / self.name

    @property
    def record_path(self) -> Path:
        """The record beside it."""
        return self.path.with_suffix(".json")

    @property
    def intervals_path(self) -> Path:
        """Where the restart intervals of its images are kept."""
        return self.path.with_suffix(SUFFIX)

    @cached_property
    def made_from(self) -> str:
        """Digest of what the shard is made from."""
        index, digest = self.index, hashlib.sha256(json.dumps(self.settings, sort_keys=True).encode())
        for i, key in zip(self.samples, self.keys, strict=True):
            line = f"{key}\0{index.relative_path(i)}\0{index.nbytes_N[i]}\0{index.label_N[i]}\0{class_name(index, i)}\n"
            digest.update(line.encode("utf-8", "surrogateescape"))
        return digest.hexdigest()

    def find_record(self) -> ShardRecord | None:
        """The record of a whole shard that fits this job, if there is one; its bytes are not looked at."""
        try:
            record = ShardRecord(**bounded.parse_json(bounded.read_text(self.record_path)))
            size = self.path.stat().st_size
        except (OSError, NotPlain, TypeError):  # none, or not whole: written again
            return None
        return record if record.made_from == self.made_from and record.bytes == size else None

    def record(self) -> ShardRecord:
        """The record of the shard, which is there."""
        record = self.find_record()
        if record is None:
            raise DataError(f"{self.path}: changed while it was being packed: run the command again")
        return record


def class_name(index: ImageIndex, i: int) -> str | None:
    """Class of image i, None where it is unknown."""
    label = int(index.label_N[i])
    return index.classes[label] if index.classes and label >= 0 else None


def write_shard(job: ShardJob, *, max_size: int | None, seekable: bool = False) -> ShardJob:
    """Write one shard, unless it is there already.

    Args:
        job: the shard.
        max_size: longest side of an image; None to leave all as they are.
        seekable: whether to give JPEGs restart markers.

    Raises:
        DataError: an image cannot be read, or the folder cannot be written to.
    """
    if job.find_record() is not None:
        return job
    shrunk = whole_lines = 0
    packed: list[PackedImage] = []

    def fill(file: IO[bytes]) -> None:
        nonlocal shrunk, whole_lines
        with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as archive:
            for i, key in zip(job.samples, job.keys, strict=True):
                encoded, is_shrunk = _encoded(job.index, i, max_size)
                image = make_seekable(encoded) if seekable else Seekable(encoded)
                at = _add_sample(archive, job.index, i, key, image.encoded, is_shrunk)
                packed.append(PackedImage(at, len(image.encoded), image.intervals))
                shrunk, whole_lines = shrunk + is_shrunk, whole_lines + image.whole_lines

    try:
        write_public(job.path, fill)
        if seekable:
            write_intervals(job.intervals_path, packed)
        record = ShardRecord(
            job.name,
            len(job),
            shrunk,
            job.path.stat().st_size,
            file_digest(job.path),
            job.made_from,
            sum(image.intervals is not None for image in packed),
            whole_lines,
        )
        text = json.dumps(asdict(record)).encode()
        write_public(job.record_path, lambda file: file.write(text))
    except OSError as error:
        raise DataError(f"{job.path}: cannot be written: {error.strerror}") from error
    return job


def check_shard(job: ShardJob) -> ShardJob:
    """Read a shard back: its digest, and the number of images in it.

    Raises:
        DataError: it is not what was written; its record is removed, so that the next run writes it again.
    """
    record, blob = job.record(), LocalBlob(str(job.path))
    images = [member for member in walk_tar(blob, str(job.path)) if is_image_name(member.path)]
    whole = len(images) == record.images and file_digest(job.path) == record.sha256
    if not (whole and fits_intervals(job.intervals_path, record.seekable, blob)):
        job.record_path.unlink()
        raise DataError(f"{job.path}: reads back otherwise than it was written: run the command again to replace it")
    return job


def write_public(path: Path, fill: Callable[[IO[bytes]], object]) -> None:
    """`write_atomically`, for a file that others may read (a temporary file is its maker's alone)."""
    for left in path.parent.glob(f".{path.name}.*.tmp"):  # by a process that was killed
        left.unlink()
    write_atomically(path, fill)
    path.chmod(0o644)


def file_digest(path: Path) -> str:
    """sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _encoded(index: ImageIndex, i: int, max_size: int | None) -> tuple[bytes, bool]:
    """The bytes of an image, and whether it was made smaller."""
    encoded = index.read_stored(i)
    smaller = None if max_size is None else shrink(encoded, index, i, max_size)
    return (encoded, False) if smaller is None else (smaller, True)


def _add_sample(archive: tarfile.TarFile, index: ImageIndex, i: int, key: str, encoded: bytes, shrunk: bool) -> int:
    """Add an image with its label; returns where the image's bytes begin."""
    path = index.relative_path(i)
    extension = ".jpg" if shrunk and index.format_N[i] != Format.JPEG else os.path.splitext(path)[1]
    at = _add(archive, key + extension, encoded)
    label, name = int(index.label_N[i]), class_name(index, i)
    content: dict[str, Any] = {"path": path}
    if name is not None:
        content |= {"class": name, "label": label}
        _add(archive, f"{key}.cls", str(label).encode())
    _add(archive, f"{key}.json", json.dumps(content).encode())
    return at


def shrink(encoded: bytes, index: ImageIndex, i: int, max_size: int) -> bytes | None:
    """An image made smaller, its longer side `max_size` pixels (FFCV's `max_resolution`), as a JPEG of quality 90.

    Returns:
        None where it is small enough, or does not decode (the reader of the shards then meets it as it is).
    """
    width, height = int(index.width_N[i]), int(index.height_N[i])
    if max(width, height) <= max_size:
        return None
    scale = max_size / max(width, height)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    try:
        with Image.open(BytesIO(encoded)) as image:
            rgb = image.convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return None
    out = BytesIO()
    # like timm, EXIF orientation is not applied; it is gone with the rest of EXIF, so no program applies it
    rgb.resize(size, Image.Resampling.LANCZOS).save(out, "JPEG", quality=JPEG_QUALITY)
    return out.getvalue()


def _add(archive: tarfile.TarFile, name: str, data: bytes) -> int:
    """Add a file; returns where its bytes begin."""
    info = tarfile.TarInfo(name)
    info.size, info.mode = len(data), 0o644
    archive.addfile(info, BytesIO(data))
    return archive.offset - -(-len(data) // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
