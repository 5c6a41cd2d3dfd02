"""A data set of any form written as WebDataset shards: fewer, larger files, optionally of smaller images.

    OUT/train-000000.tar …   class/name.JPEG, class/name.cls, class/name.json for each image
    OUT/val-000000.tar …
    OUT/train-000000.json …  beside each whole shard; by it a run that was stopped goes on
    OUT/manifest.json        what is there, how it was made, and what that means for parity

The .json of an image holds its path, class and label, so the index orders shards as it orders the folder that they came
from, and the batches of a seed stay what they were (unless images were shrunk).
"""

import itertools
import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from rsbdali import __version__
from rsbdali.atomic import write_text
from rsbdali.data.index import ImageIndex
from rsbdali.data.splits import find_parts
from rsbdali.errors import DataError, NumbaError, counted
from rsbdali.tools.pack_folder import write_folder
from rsbdali.tools.pack_seekable import INTERVAL_WIDTH
from rsbdali.tools.pack_shard import ShardJob, ShardRecord, check_shard, write_shard
from rsbdali.tools.restart_markers import find_loops

MANIFEST_FORMAT = 1
SHUFFLE_SEED = 0  # readers that stream shards want classes mixed; ours reads in any order
EFFECT = (
    "Images whose longer side exceeds max_size were made smaller and encoded again: their pixels differ from the "
    "originals', so batches and accuracies are those of this data set, not of the original one. Random resized crops "
    "of a small area come out softer; at a training size well below max_size the difference is small."
)
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class PackOptions:
    """What to pack, and how.

    Attributes:
        data: folder with train/ and val/, or any other data source.
        out: folder for the shards.
        shards: shards of the training set; the validation set gets as many as its share asks for. None: a folder of
            seekable images.
        max_size: longest side of an image in pixels; larger ones are shrunk. None: bytes stay as they are.
        seekable: whether to give JPEGs restart markers, so that a crop can be read alone.
        val_labels: label file of a flat validation folder.
        workers: threads, each writes one shard at a time; None for one a CPU.
    """

    data: Path
    out: Path
    shards: int | None
    max_size: int | None = None
    seekable: bool = False
    val_labels: Path | None = None
    workers: int | None = None


@dataclass(frozen=True)
class Packed:
    """What a run has done: shards and images by split, how many shards were there already, and see `ShardRecord`."""

    shards: dict[str, int]
    images: dict[str, int]
    shrunk: int
    seekable: int
    whole_lines: int
    kept_shards: int
    manifest: Path


def pack(options: PackOptions, progress: Progress | None = None) -> Packed:
    """Write the shards that are missing, check all of them, write the manifest.

    Args:
        options: what and how.
        progress: called as progress(images done, images in all), written first, then checked, from this thread.

    Raises:
        DataError: no data, an output folder that holds other shards, or a shard that reads back otherwise.
    """
    if options.shards is None and (not options.seekable or options.max_size is not None):
        raise DataError("--shards is missing: only --seekable alone writes a folder of images")
    if options.seekable:
        _require_loops()
    indexes = _indexes(options)
    _refuse_output(options, indexes)
    if options.shards is None:
        return _pack_folder(options, indexes, progress)
    jobs = {split: _jobs(options, split, index, indexes) for split, index in indexes.items()}
    every = [job for split_jobs in jobs.values() for job in split_jobs]
    _refuse_strangers(options.out, every)
    total = 2 * sum(len(job) for job in every)
    kept = sum(job.find_record() is not None for job in every)
    done = 0
    with ThreadPoolExecutor(options.workers or len(os.sched_getaffinity(0)), thread_name_prefix="pack") as pool:
        try:
            for work in (partial(write_shard, max_size=options.max_size, seekable=options.seekable), check_shard):
                for job in pool.map(work, every):
                    done += len(job)
                    if progress is not None:
                        progress(done, total)
        except BaseException:
            pool.shutdown(cancel_futures=True)  # a mistake in one shard, or Ctrl-C: whole shards stay, for the next run
            raise
    records = {split: [job.record() for job in split_jobs] for split, split_jobs in jobs.items()}
    manifest = options.out / "manifest.json"
    text = json.dumps(_manifest(options, indexes, records), indent=1, ensure_ascii=False)
    write_text(manifest, text)
    return Packed(
        shards={split: len(r) for split, r in records.items()},
        images={split: sum(record.images for record in r) for split, r in records.items()},
        shrunk=_total(records, "shrunk"),
        seekable=_total(records, "seekable"),
        whole_lines=_total(records, "whole_lines"),
        kept_shards=kept,
        manifest=manifest,
    )


def _pack_folder(options: PackOptions, indexes: dict[str, ImageIndex], progress: Progress | None) -> Packed:
    """Write folders of seekable images, and the manifest."""
    total, done = sum(map(len, indexes.values())), itertools.count(1)

    def count() -> None:
        if progress is not None:
            progress(next(done), total)

    workers = options.workers or len(os.sched_getaffinity(0))
    records = {split: write_folder(index, options.out / split, workers, count) for split, index in indexes.items()}
    seekable, whole_lines = (sum(getattr(r, name) for r in records.values()) for name in ("seekable", "whole_lines"))
    content = {
        "format": MANIFEST_FORMAT,
        "made_by": f"rsbdali {__version__}",
        "source": os.fspath(options.data),
        "seekable": _seekable_record(seekable, whole_lines),
        "splits": {split: {"images": record.images} for split, record in records.items()},
    }
    manifest = options.out / "manifest.json"
    write_text(manifest, json.dumps(content, indent=1))
    images = {split: record.images for split, record in records.items()}
    return Packed({}, images, 0, seekable, whole_lines, 0, manifest)


def _seekable_record(images: int, whole_lines: int) -> dict[str, int]:
    return {"interval_width": INTERVAL_WIDTH, "images": images, "by_whole_lines": whole_lines}


def _total(records: dict[str, list[ShardRecord]], name: str) -> int:
    return sum(getattr(record, name) for split_records in records.values() for record in split_records)


def _require_loops() -> None:
    try:
        find_loops()
    except NumbaError as error:
        raise DataError(f"--seekable needs Numba: {error}") from error


def _refuse_output(options: PackOptions, indexes: dict[str, ImageIndex]) -> None:
    """Refuse an output folder that is no folder here, is part of the source, or holds the other kind of output."""
    if re.match("[A-Za-z][A-Za-z0-9+.-]+:/", os.fspath(options.out)):
        raise DataError(f"{options.out}: shards and images are written to a folder of this machine; upload them then")
    out = options.out.resolve()
    for split, index in indexes.items():
        source, own = Path(index.root).resolve(), out / split
        if out.is_relative_to(source) or own.is_relative_to(source) or source.is_relative_to(own):
            raise DataError(f"{options.out}: is within the source, {index.name}: choose another folder")
        if options.shards is not None and own.is_dir():
            raise DataError(f"{own}: is a folder of images, which would be read in place of the shards beside it")
    shard = next(options.out.glob("*.tar"), None) if options.shards is None else None
    if shard is not None:
        raise DataError(f"{shard}: a shard, which would be left beside the folder of images: choose another folder")


def _indexes(options: PackOptions) -> dict[str, ImageIndex]:
    """The index of each split; a source without splits is a training set."""
    parts = find_parts(options.data) or [("train", options.data)]
    indexes: dict[str, ImageIndex] = {}
    for split, where in parts:
        classes = indexes["train"].classes if split == "val" and "train" in indexes else None
        labels = options.val_labels if split == "val" else None
        indexes[split] = ImageIndex.load(where, classes=classes or None, labels=labels, need_classes=False)
    return indexes


def _jobs(options: PackOptions, split: str, index: ImageIndex, indexes: dict[str, ImageIndex]) -> list[ShardJob]:
    """The shards of a split, images dealt out at random and alike every time."""
    largest = max(len(other) for other in indexes.values())
    assert options.shards is not None
    count = options.shards if split == "train" else max(1, round(options.shards * len(index) / largest))
    if count > len(index):
        raise DataError(
            f"{index.name}: {counted(len(index), 'image')} cannot fill {counted(count, 'shard')}: "
            "ask for fewer (--shards)"
        )
    order_N = np.random.default_rng(SHUFFLE_SEED).permutation(len(index))
    keys = list(_keys(index))
    settings = {"format": MANIFEST_FORMAT, "max_size": options.max_size}
    if options.seekable:
        settings["seekable"] = INTERVAL_WIDTH
    return [
        ShardJob(options.out, f"{split}-{i:06d}.tar", index, part.tolist(), [keys[k] for k in part], settings)
        for i, part in enumerate(np.array_split(order_N, count))
    ]


def _keys(index: ImageIndex) -> Iterator[str]:
    """WebDataset's key of each image: its path without extension; a dot in a name would end the key, so none stays."""
    seen: set[str] = set()
    for i in range(len(index)):
        parts = [part for part in index.relative_path(i).split("/") if part not in ("", ".", "..")]
        key = stem = "/".join([*parts[:-1], os.path.splitext(parts[-1])[0].replace(".", "_")])
        number = 0
        while key in seen:  # x.jpg beside x.png
            number += 1
            key = f"{stem}_{number}"
        seen.add(key)
        yield key


def _refuse_strangers(out: Path, jobs: Sequence[ShardJob]) -> None:
    """Shards of another packing would be read along with ours."""
    ours = {job.name for job in jobs}
    strangers = sorted(path.name for path in out.glob("*.tar") if path.name not in ours)
    if strangers:
        raise DataError(
            f"{out}: holds {strangers[0]} (and {len(strangers) - 1} more) of another packing: choose an empty folder, "
            "or the same --shards as before"
        )


def _manifest(
    options: PackOptions, indexes: dict[str, ImageIndex], records: dict[str, list[ShardRecord]]
) -> dict[str, Any]:
    return {
        "format": MANIFEST_FORMAT,
        "made_by": f"rsbdali {__version__}",
        "source": os.fspath(options.data),
        "shrunk": None
        if options.max_size is None
        else {
            "max_size": options.max_size,
            "side": "longer",
            "filter": "lanczos",
            "jpeg_quality": 90,
            "images": _total(records, "shrunk"),
            "effect_on_parity": EFFECT,
        },
        "seekable": None
        if not options.seekable
        else _seekable_record(_total(records, "seekable"), _total(records, "whole_lines")),
        "splits": {
            split: {
                "images": sum(record.images for record in records[split]),
                "classes": list(index.classes),
                "shards": [asdict(record) for record in records[split]],
                "left_out": [asdict(bad) for bad in index.bad],
            }
            for split, index in indexes.items()
        },
    }
