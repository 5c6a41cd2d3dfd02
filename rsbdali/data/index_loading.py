"""What an index is made of: the scan of a source, new or from the cache, with labels, a reader and restart intervals.

location or listing ──> Scan (cached) ──> names and values of the attributes of `rsbdali.data.index.ImageIndex`
"""

import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rsbdali.data import cache
from rsbdali.data.header import ImageFlags
from rsbdali.data.interval_files import interval_files
from rsbdali.data.interval_table import load_intervals
from rsbdali.data.labels import labels_of, read_class_map
from rsbdali.data.levels import refuse_other_level
from rsbdali.data.sources.base import Progress, Reader, Scan, Source
from rsbdali.data.sources.listed import ListedSource, Listing, listed_reader
from rsbdali.data.sources.location import Location
from rsbdali.data.sources.registry import image_root, open_source, reader_of
from rsbdali.errors import DataError, counted

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class InvalidFile:
    """A file (absolute path) that was left out, and why."""

    path: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class LabelOptions:
    """How a scan's labels become those of an index; each as in `ImageIndex.scan`."""

    classes: Sequence[str] | None = None
    class_map: Path | None = None
    label_file: Path | None = None
    need_classes: bool = True


@dataclass(frozen=True, kw_only=True)
class ScanOptions:
    """How a source is scanned; each as in `ImageIndex.load`."""

    cache_dir: Path | None = None
    check: bool = True
    rebuild: bool = False
    threads: int | None = None
    progress: Progress | None = None


def scan_location(
    location: Location, root: str | os.PathLike[str] | None, labels: LabelOptions, options: ScanOptions
) -> dict[str, Any]:
    """Attributes of the index of a location that is scanned without the cache.

    Args:
        location: where the data set is.
        root: `image_root` of `ImageIndex.scan`.
        labels: how its labels are read.
        options: of these the threads and the progress.

    Raises:
        DataError: as in `ImageIndex.scan`.
    """
    scan = open_source(location, root).scan(options.threads, options.progress)
    return _of_location(location, scan, options.cache_dir, root, labels)


def load_location(
    location: Location, root: str | os.PathLike[str] | None, labels: LabelOptions, options: ScanOptions
) -> dict[str, Any]:
    """Attributes of the index of a location, by the cache where it is unchanged; arguments as of `scan_location`."""
    identity = location.identity if root is None else f"{location.identity}\0{os.path.abspath(root)}"
    scan = _cached(identity, lambda: open_source(location, root), options)
    return _of_location(location, scan, options.cache_dir, root, labels)


def load_listing(listing: Listing, labels: LabelOptions, options: ScanOptions) -> dict[str, Any]:
    """Attributes of the index of what a program lists, by the cache where the listing has an identity.

    Raises:
        DataError: no usable images, or labels that do not fit.
    """
    source = ListedSource(listing)
    if listing.identity is None:
        scan = source.scan(options.threads, options.progress)
    else:
        scan = _cached(listing.identity, lambda: source, options)
    reader = listed_reader(listing)
    folder = listing.root
    return _labeled(
        listing.what, scan, options.cache_dir, folder, lambda name: os.path.join(folder, name), reader, labels
    )


def _cached(identity: str, opened: Callable[[], Source], options: ScanOptions) -> Scan:
    """The scan in a source's cache file where the source is unchanged; else a new one, which is kept there."""
    file = cache.cache_file(options.cache_dir or cache.default_folder(), identity)
    unchecked = None if options.check or options.rebuild else cache.read(file, None)
    if unchecked is not None:
        return unchecked
    source = opened()
    fingerprint = source.fingerprint()
    kept = None if options.rebuild else cache.read(file, fingerprint)
    scan = kept or source.scan(options.threads, options.progress)
    if kept is None:
        cache.write(file, fingerprint, scan)
    return scan


def _of_location(
    location: Location,
    scan: Scan,
    cache_dir: Path | None,
    root: str | os.PathLike[str] | None,
    labels: LabelOptions,
) -> dict[str, Any]:
    """Attributes of the index of a location's scan."""
    folder = image_root(location, root)
    join = location.join if root is None else lambda name: os.path.join(folder, name)
    refuse_other_level(location.text, scan)
    reader = reader_of(scan, location, folder)
    found = _labeled(location.text, scan, cache_dir, folder, join, reader, labels)
    return {**found, "intervals": load_intervals(interval_files(location, folder, scan, cache_dir), scan)}


def _labeled(
    what: str,
    scan: Scan,
    cache_dir: Path | None,
    folder: str,
    join: Callable[[str], str],
    reader: Reader,
    labels: LabelOptions,
) -> dict[str, Any]:
    """Attributes of the index of a scan, its labels checked and translated."""
    if not len(scan.columns["label_N"]):
        path, reason = scan.bad[0]
        raise DataError(f"{what}: no usable images: all {len(scan.bad)} fail, {join(path)}: {reason}")
    classes = labels.classes
    if classes is None and labels.class_map is not None:
        classes = read_class_map(Path(labels.class_map), scan.classes)
    _report(what, scan, cache_dir)
    names, label_N = labels_of(what, scan, classes, labels.label_file, need_classes=labels.need_classes)
    return {
        **scan.columns,
        "label_N": label_N,
        "root": Path(folder),
        "name": what,
        "classes": names,
        "shards": scan.shards,
        "reader": reader,
        "bad": tuple(InvalidFile(join(path), reason) for path, reason in scan.bad),
        "cache_dir": cache_dir,
        "notes": scan.notes,
    }


def _report(what: str, scan: Scan, cache_dir: Path | None) -> None:
    """Log what a user should know of a scan."""
    for note in scan.notes:
        log.warning("%s: %s", what, note)
    if copies := int((scan.columns["flags_N"] & ImageFlags.CONVERT > 0).sum()):
        log.info(
            "%s: %d of %s %s read through an RGB copy, which Pillow makes at first use in %s",
            what,
            copies,
            counted(len(scan.columns["flags_N"]), "image"),
            "is" if copies == 1 else "are",
            (cache_dir or cache.default_folder()) / "rgb",
        )
