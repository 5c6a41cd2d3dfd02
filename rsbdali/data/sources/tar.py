"""Tar files and WebDataset shards: members found once by their headers, images read by offset, nothing unpacked.

The class of a plain member is the first folder of its path. In WebDataset shards the files of one sample share a key
(the path up to the first dot of its last part), and the label is beside the image: `key.cls`, a number (or a class
name), or `key.json` with "label" or "cls", and optionally "class" (a name) and "path" (the image's path in the folder
that it came from; it then gives the order). A tar file within a tar file (ILSVRC2012_img_train.tar holds one a class)
is read as a folder of its name.
"""

import json
import re
import tarfile
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

from rsbdali.data.columns import to_scan
from rsbdali.data.names import is_hidden, is_image_name, is_skipped_name, notes_on_names
from rsbdali.data.sources.base import DEFAULT_THREADS, Entry, Progress, Scan, StoredImage, header_or_reason
from rsbdali.data.sources.storage import Blob, BlobFile, FileInfo, Storage, fingerprint_of
from rsbdali.data.text import LabelError, parse_label
from rsbdali.errors import DataError, RsbdaliError, UnreadableImage, counted

COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
SPLIT_FOLDERS = ("train", "val", "validation", "test")
MOST_JSON_BYTES = 1 << 20
MOST_CLS_BYTES = 4096
MOST_HEADER_BYTES = 1 << 20
MOST_DEPTH = 3  # of tar files within tar files


class Member(NamedTuple):
    """A regular file in a tar file: its path, and where its bytes are."""

    path: str
    offset: int
    nbytes: int


class _Names:
    """Paths of members that are left out by their names."""

    def __init__(self) -> None:
        self.hidden: list[str] = []
        self.skipped: list[str] = []


class TarSource:
    """Images in tar files.

    Args:
        what: the source as the user wrote it, for messages.
        storage: where the files are.
        files: the tar files.
    """

    def __init__(self, what: str, storage: Storage, files: Sequence[FileInfo]) -> None:
        self._what, self._storage, self._files = what, storage, files

    def fingerprint(self) -> bytes:
        """See `Source`."""
        return fingerprint_of(self._files)

    def scan(self, threads: int | None, progress: Progress | None) -> Scan:
        """See `Source`; one thread a tar file, progress counts tar files."""
        found: list[Entry] = []
        bad: list[tuple[str, str]] = []
        names = _Names()
        shards = [file.name for file in self._files]
        with ThreadPoolExecutor(threads or DEFAULT_THREADS, thread_name_prefix="index") as pool:
            for done, (images, reasons, others) in enumerate(pool.map(self._list, range(len(shards))), 1):
                found += images
                bad += reasons
                names.hidden += others.hidden
                names.skipped += others.skipped
                if progress is not None:
                    progress(done, len(shards))
        if not found:
            why = f": {bad[0][1]}" if bad else ""
            raise DataError(f"{self._what}: no images in {counted(len(shards), 'tar file')}{why}")
        notes = notes_on_names(names.hidden, names.skipped)
        return to_scan(self._what, _class_folders(found, shards), kind="tar", shards=shards, bad=bad, notes=notes)

    def _list(self, shard: int) -> tuple[list[Entry], list[tuple[str, str]], "_Names"]:
        """Images of one tar file, what is wrong with the file itself, and members left out by name."""
        name = self._files[shard].name
        bad: list[tuple[str, str]] = []
        found: list[Entry] = []
        names = _Names()
        sidecars: dict[str, dict[str, Member]] = {}
        where = f"{self._storage.base}/{name}"
        try:
            blob = self._storage.open_to_list(name, self._files[shard].size)
            for member in walk_tar(blob, where):
                base = member.path.rpartition("/")[2]
                if is_hidden(member.path):
                    names.hidden += [member.path] * is_image_name(base.lstrip("."))
                    continue
                names.skipped += [member.path] * is_skipped_name(base)
                if is_image_name(base):
                    image = StoredImage(member.path, shard, member.offset, member.nbytes)
                    # at once, while its block is at hand
                    found.append(Entry(image, _header(blob, image)))
                elif (parts := split_key(member.path))[1] in ("cls", "json"):
                    _add_once(sidecars.setdefault(parts[0], {}), parts[1], member, where)
        except (tarfile.TarError, UnreadableImage) as error:
            bad.append((name, f"tar file cannot be read to its end: {error}"))
        _refuse_twice(found, where)
        if sidecars:
            _refuse_two_images_a_sample(found, where)
            found = [_labeled(f, blob, sidecars.get(split_key(f.image.path)[0], {}), name) for f in found]
        return found, bad, names


def walk_tar(blob: Blob, name: str, start: int = 0, end: int | None = None, depth: int = 0) -> Iterator[Member]:
    """Regular files of an uncompressed tar file, of tar files within it too (long names and PAX headers understood).

    Raises:
        DataError: it is compressed.
        tarfile.TarError: it is no tar file, is damaged, or does not end as tar files do; members before that have come.
    """
    end = blob.size if end is None else end
    magic = blob.pread(6, start)
    for sign, kind in COMPRESSED.items():
        if magic.startswith(sign):
            raise DataError(f"{name}: compressed by {kind}: images are read by offset, so unpack it to a plain .tar")
    if depth > MOST_DEPTH:
        raise tarfile.ReadError(f"tar files within tar files, more than {MOST_DEPTH} deep")
    for info in _headers(_HeaderFile(blob, start), start, end):
        if not info.isreg() or info.sparse is not None:
            continue
        path = re.sub(r"^(\.?/)+", "", info.name)
        if path.lower().endswith(".tar") and not is_hidden(path):
            prefix, inside_end = path[: -len(".tar")], min(end, info.offset_data + info.size)
            for inner in walk_tar(blob, f"{name}::{path}", info.offset_data, inside_end, depth + 1):
                yield inner._replace(path=inner.path if "/" in inner.path else f"{prefix}/{inner.path}")
        else:
            yield Member(path, info.offset_data, info.size)


class _HeaderFile(BlobFile):
    """A tar file of which only headers are read: a damaged length cannot take the whole file into memory."""

    def read(self, size: int | None = -1, /) -> bytes:
        """See `BlobFile`.

        Raises:
            tarfile.ReadError: more than any header has.
        """
        if size is None or not 0 <= size <= MOST_HEADER_BYTES:
            raise tarfile.ReadError(f"a header of {size} bytes")
        return super().read(size)


def _headers(file: BlobFile, start: int, end: int) -> Iterator[tarfile.TarInfo]:
    """Headers of a tar file that begins at `start`.

    `tarfile` takes a header that it cannot read for the end of the file; here it is an error, and so is an end without
    the block of zeros that closes a tar file (a cut between two members).
    """
    at, count = start, 0
    try:
        with tarfile.open(fileobj=file, mode="r:") as archive:
            while (info := archive.next()) is not None and info.offset < end:
                vars(archive)["members"].clear()  # else it keeps an object a member
                at = info.offset
                if info.size < 0 or archive.offset <= at:
                    raise tarfile.ReadError(f"a member of {info.size} bytes")
                yield info
                at, count = archive.offset, count + 1
    # tarfile lets through what damaged numbers make of its parsing
    except (tarfile.TarError, ValueError, IndexError, KeyError, OverflowError, RecursionError, TypeError) as error:
        if isinstance(error, RsbdaliError):
            raise
        raise tarfile.ReadError(f"{_brief(error)}, at byte {at}, behind {count} members") from error
    file.seek(at)
    block = file.read(min(tarfile.BLOCKSIZE, max(0, end - at)))
    if len(block) < tarfile.BLOCKSIZE or block.strip(b"\0"):
        what = "a damaged header" if len(block) == tarfile.BLOCKSIZE else "it ends without the mark of its end"
        raise tarfile.ReadError(f"{what}, at byte {at}, behind {count} members")


def _brief(error: BaseException) -> str:
    return f"a damaged header ({str(error).splitlines()[0][:100] if str(error) else type(error).__name__})"


def split_key(path: str) -> tuple[str, str]:
    """WebDataset's key and extension: the path up to the first dot of its last part, and what follows, lower case."""
    folder, slash, name = path.rpartition("/")
    stem, _, extension = name.partition(".")
    return folder + slash + stem, extension.lower()


def _header(blob: Blob, image: StoredImage) -> Any:
    if image.offset + image.nbytes > blob.size:
        return f"cut short: the tar file ends {image.offset + image.nbytes - blob.size} bytes before the image does"
    return header_or_reason(blob.pread, image)


def _add_once(sidecars: dict[str, Member], kind: str, member: Member, name: str) -> None:
    if sidecars.setdefault(kind, member) is not member:
        raise DataError(f"{name}: {member.path} is there twice: expected each key once")


def _refuse_twice(found: Sequence[Entry], name: str) -> None:
    twice = next((p for p, count in Counter(f.image.path for f in found).items() if count > 1), None)
    if twice is not None:
        raise DataError(f"{name}: {twice} is there twice: expected each key once")


def _refuse_two_images_a_sample(found: Sequence[Entry], name: str) -> None:
    seen: dict[str, str] = {}
    for path in (f.image.path for f in found):
        other = seen.setdefault(split_key(path)[0], path)
        if other != path:
            raise DataError(f"{name}: {other} and {path} belong to one sample: expected one image a sample")


def _labeled(found: Entry, blob: Blob, sidecars: dict[str, Member], shard: str) -> Entry:
    """The image with what its .json or .cls says."""
    path, label, class_name = found.image.path, None, None
    if (member := sidecars.get("json")) is not None:
        content = _read_json(blob, member, shard)
        path = content["path"] if isinstance(content.get("path"), str) else path
        class_name = content["class"] if isinstance(content.get("class"), str) else None
        given = next((content[k] for k in ("label", "cls") if type(content.get(k)) in (int, float, str)), "")
        label, name = _label(str(given), f"{shard}::{member.path}")
        class_name = class_name or name
    if label is None and class_name is None and (member := sidecars.get("cls")) is not None:
        if member.nbytes > MOST_CLS_BYTES:
            raise DataError(f"{shard}::{member.path}: {member.nbytes} bytes: expected a label")
        text = blob.pread(member.nbytes, member.offset).decode("utf-8-sig", "replace")
        label, class_name = _label(text, f"{shard}::{member.path}")
    return Entry(found.image._replace(path=path), found.header, label, class_name)


def _label(text: str, where: str) -> tuple[int | None, str | None]:
    """A label as number and as name."""
    try:
        label = parse_label(text)
    except LabelError as error:
        raise DataError(f"{where}: {error}") from error
    return (None, label) if isinstance(label, str) else (label, None)


def _read_json(blob: Blob, member: Member, shard: str) -> dict[str, Any]:
    try:
        content = json.loads(blob.pread(min(member.nbytes, MOST_JSON_BYTES), member.offset))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{shard}::{member.path}: not JSON: {error}") from error
    return content if isinstance(content, dict) else {}


def _class_folders(found: Sequence[Entry], shards: Sequence[str]) -> list[Entry]:
    """Images of plain tar files with their class: the first folder of the path, or their tar file's name.

    A folder that only repeats what the tar file is (`train/n01440764/x.JPEG` in train.tar) is taken off first.
    """
    if any(f.label is not None or f.class_name is not None for f in found):
        return list(found)
    stems = [shard.rpartition("/")[2].removesuffix(".tar") for shard in shards]
    first = {f.image.path.partition("/")[0] for f in found}
    if len(first) == 1 and first <= {*SPLIT_FOLDERS, *stems} and all(f.image.path.count("/") > 1 for f in found):
        found = [f._replace(image=f.image._replace(path=f.image.path.partition("/")[2])) for f in found]
    if len(shards) > 1 and not any("/" in f.image.path for f in found):
        found = [f._replace(image=f.image._replace(path=f"{stems[f.image.shard]}/{f.image.path}")) for f in found]
    return [f._replace(class_name=f.image.path.partition("/")[0]) if "/" in f.image.path else f for f in found]
