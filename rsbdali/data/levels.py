"""Whether the folders of a source are class folders, or the folders above them."""

import os
from collections.abc import Sequence

from rsbdali.data.names import first_few, natural_key
from rsbdali.data.sources.base import Scan
from rsbdali.errors import DataError, counted

SPLIT_FOLDERS = frozenset({"train", "val", "validation", "test"})


def refuse_other_level(what: str, scan: Scan) -> None:
    """Refuse data that is given one level too high, where a split or a whole data set would count as a class.

    Raises:
        DataError: all folders are named like splits, or there is one, and its images are in several folders within.
    """
    if len(scan.classes) > 1 and {name.lower() for name in scan.classes} <= SPLIT_FOLDERS:
        raise DataError(f"{what}: its folders are splits ({', '.join(scan.classes)}), not classes: give one of them")
    if len(scan.classes) != 1:
        return
    inner = _second_folders(scan, scan.classes[0])
    if len(inner) > 1:
        raise DataError(
            f"{what}: holds one folder, {scan.classes[0]!r}, whose images are in {len(inner)} folders "
            f"({first_few(sorted(inner, key=natural_key))}): one level too high? give {what}/{scan.classes[0]}"
        )


def _second_folders(scan: Scan, first: str) -> set[str]:
    """Folders directly in the only class folder that hold images; none where an image is beside them."""
    blob, start, found = scan.columns["path_bytes"].tobytes(), 0, set()
    for end in scan.columns["path_end_N"].tolist():
        parts = os.fsdecode(blob[start:end]).split("/")
        start = end
        if len(parts) < 3 or parts[0] != first:
            return set()
        found.add(parts[1])
    return found


def notes_on_depth(files: Sequence[str]) -> tuple[str, ...]:
    """A note where folders within class folders would be classes to timm."""
    deeper = [name for name in files if name.count("/") > 1]
    if not deeper:
        return ()
    return (
        f"{counted(len(deeper), 'image is', 'images are')} in folders within class folders, {deeper[0]!r} the first: "
        "the first folder is the class (timm takes the innermost)",
    )
