"""What `rsbdali index DIR` prints: counts, sizes, formats, and every file that is no image or needs care."""

import csv
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from rsbdali.data.header import Format, ImageFlags
from rsbdali.data.index import ImageIndex
from rsbdali.data.sources.location import Location
from rsbdali.data.splits import find_parts
from rsbdali.errors import DataError, counted
from rsbdali.progress_bar import counting

PERCENTILES = (0, 5, 50, 95, 100)
CARE_TEXT = {
    ImageFlags.NO_EOI: "no end-of-image marker, probably cut off",
    ImageFlags.CMYK: "CMYK, read through an RGB copy",
    ImageFlags.OTHER_FORMAT: "content is not what its name says",
    ImageFlags.CONVERT: "read through an RGB copy",
}


def summary(index: ImageIndex) -> dict[str, Any]:
    """Figures of an index, ready for JSON.

    Returns:
        images, classes, bad (counts); images_per_class (min, max); bytes; width, height and kilopixels (percentiles
        by name p0 ... p100); formats and flags (counts by name).
    """
    pixels_N = index.width_N.astype(np.int64) * index.height_N
    known_N = index.label_N[index.label_N >= 0]
    per_class_C = np.bincount(known_N, minlength=index.num_classes)
    return {
        "images": len(index),
        "classes": index.num_classes,
        "bad": len(index.bad),
        "images_per_class": {"min": int(per_class_C.min()), "max": int(per_class_C.max())} if index.classes else None,
        "bytes": int(index.nbytes_N.sum()),
        "width": _percentiles(index.width_N),
        "height": _percentiles(index.height_N),
        "kilopixels": _percentiles(pixels_N // 1000),
        "formats": {
            kind.name: int((index.format_N == kind).sum()) for kind in Format if (index.format_N == kind).any()
        },
        "flags": {
            str(flag.name): int((index.flags_N & flag > 0).sum()) for flag in CARE_TEXT if (index.flags_N & flag).any()
        },
    }


def _percentiles(value_N: np.ndarray) -> dict[str, int]:
    return {f"p{p}": int(v) for p, v in zip(PERCENTILES, np.percentile(value_N, PERCENTILES), strict=True)}


def print_index(console: Console, index: ImageIndex) -> None:
    """Print an index: the summary, then each file that needs care and each that is no image, one a line."""
    figures = summary(index)

    def line(text: str) -> None:
        console.print(text, markup=False, highlight=False, soft_wrap=True)

    line(f"{index.name}")
    bad = f"; {counted(figures['bad'], 'file')} left out" if figures["bad"] else ""
    line(f"  images    {figures['images']:,} in {figures['bytes'] / 1e6:,.1f} MB{bad}")
    if figures["images_per_class"]:
        line(f"  classes   {figures['classes']:,}, {_per_class(figures['images_per_class'])} each")
    else:
        line("  classes   none (a flat folder)")
    for name, unit in (("width", "pixels"), ("height", "pixels"), ("area", "megapixels")):
        line(f"  {name:<10}{_spread(figures['kilopixels' if name == 'area' else name], unit)}")
    line("  formats   " + ", ".join(f"{name} {count:,}" for name, count in figures["formats"].items()))
    for i in np.flatnonzero(index.flags_N).tolist():
        line(f"  care      {index.path(i)}: {flags_text(int(index.flags_N[i]))}")
    for note in index.notes:
        line(f"  note      {note}")
    for each in index.bad:
        line(f"  left out  {each.path}: {each.reason}")


def _per_class(spread: dict[str, int]) -> str:
    low, high = spread["min"], spread["max"]
    return counted(low, "image") if low == high else f"{low:,} to {counted(high, 'image')}"


def _spread(value: dict[str, int], unit: str) -> str:
    """Percentiles in words; areas come in thousands of pixels."""
    shown = {key: f"{n / 1000:,.3f}" if unit == "megapixels" else f"{n:,}" for key, n in value.items()}
    if value["p0"] == value["p100"]:
        return f"{shown['p0']} {unit}, all of them"
    return (
        f"half have {shown['p50']} {unit} or less; 9 of 10 have {shown['p5']} to {shown['p95']}; "
        f"from {shown['p0']} to {shown['p100']} in all"
    )


def flags_text(care: int) -> str:
    """Flags of one image in words."""
    flags = ImageFlags(care)
    if flags & ImageFlags.CMYK:
        flags &= ~ImageFlags.CONVERT  # said already
    return "; ".join(text for flag, text in CARE_TEXT.items() if flags & flag)


def report(
    console: Console,
    folder: Path,
    *,
    threads: int | None = None,
    rebuild: bool = False,
    val_labels: Path | None = None,
    class_map: Path | None = None,
    bad_list: Path | None = None,
) -> None:
    """Index a folder, or its train and val folders, with a progress bar, and print what is there.

    Args:
        console: where to print.
        folder: a folder of images or another source, or one that holds train/ and val/ or validation/.
        threads: threads of the scan.
        rebuild: scan again even where the cache fits.
        val_labels: label file of a flat val folder.
        class_map: file of class names in label order.
        bad_list: CSV file that gets the path of each file that is skipped or read through an RGB copy, and why.

    Raises:
        DataError: no such folder, or no images in it; where it has train or val, what training would refuse (classes of
            val that train lacks, a flat folder without a label file), once all is printed.
    """
    location = Location.parse(folder)
    if not location.is_url and location.pattern is None and not folder.is_dir():
        raise DataError(f"{folder}: no such folder: expected a folder of images, or one that holds train/ and val/")
    parts = find_parts(folder)
    classes: tuple[str, ...] | None = None
    refused: DataError | None = None
    special: list[tuple[str, str]] = []
    for split, part in parts or [("", folder)]:
        with counting(part.name, console) as advance:
            index = ImageIndex.load(part, need_classes=False, threads=threads, rebuild=rebuild, progress=advance)
        if parts or class_map is not None:
            labels = val_labels if split == "val" else None
            try:  # from the cache that was just made
                index = ImageIndex.load(part, classes=classes, labels=labels, class_map=class_map, check=False)
                classes = index.classes
            except DataError as error:
                refused = refused or error
        print_index(console, index)
        special += _special(index)
    if bad_list is not None:
        _write_list(bad_list, special)
    if refused is not None:
        raise refused


def _special(index: ImageIndex) -> list[tuple[str, str]]:
    """Path and reason of each file that is skipped, or read through an RGB copy."""
    converted = np.flatnonzero(index.flags_N & ImageFlags.CONVERT).tolist()
    skipped = [(bad.path, bad.reason) for bad in index.bad]
    return skipped + [(index.path(i), "read through an RGB copy") for i in converted]


def _write_list(path: Path, rows: list[tuple[str, str]]) -> None:
    try:
        # names that are no text are written with escapes, so that nothing stops the list
        with path.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows([("path", "reason"), *rows])
    except OSError as error:
        raise DataError(f"{path}: cannot be written: {error.strerror}") from error
