"""Names of image files: which count, and in which order."""

import re
from collections.abc import Sequence

from rsbdali.errors import counted

# timm's (timm.data.readers.img_extensions) plus .webp
EXTENSIONS = (".jpeg", ".jpg", ".png", ".webp")
# images by other names, which are counted, not read
SKIPPED = (
    ".avif",
    ".bmp",
    ".gif",
    ".heic",
    ".heif",
    ".jfif",
    ".jp2",
    ".jpe",
    ".jxl",
    ".pgm",
    ".pjpeg",
    ".ppm",
    ".tga",
    ".tif",
    ".tiff",
)
# what file managers and NAS systems add; names that begin with a dot (._x.jpg, .ipynb_checkpoints) are hidden anyway
HIDDEN = frozenset({"__MACOSX", "@eaDir", "#recycle", "$RECYCLE.BIN", "lost+found"})
# names of columns in a table or a label file, the first one there is taken
PATH_NAMES = (
    "path",
    "filepath",
    "file_path",
    "image_path",
    "img_path",
    "file",
    "filename",
    "file_name",
    "image",
    "img",
    "image_name",
    "image_file",
    "name",
    "image_id",
    "imageid",
    "id",
)
LABEL_NAMES = (
    "label",
    "labels",
    "target",
    "targets",
    "class_id",
    "cls",
    "class_idx",
    "label_id",
    "category_id",
    "y",
)
CLASS_NAMES = ("class", "class_name", "classname", "classes", "category", "label_name", "wnid", "synset")


def natural_key(name: str) -> tuple[list[int | str], str]:
    """Sort key by timm's `natural_key` (numbers count as numbers, case does not); ties go by the name itself."""
    parts = re.split(r"(\d{1,4000})", name.lower())  # Python converts at most 4300 digits
    # every second part is a run of digits, so like is always compared with like
    return [int(part) if i % 2 else part for i, part in enumerate(parts)], name


def is_image_name(name: str) -> bool:
    """Whether a file of that name is taken for an image."""
    lower = name.lower()
    return lower.endswith(EXTENSIONS) and lower not in EXTENSIONS


def is_skipped_name(name: str) -> bool:
    """Whether a file of that name most likely is an image that is not read, such as x.bmp."""
    return name.lower().endswith(SKIPPED)


def is_hidden(path: str) -> bool:
    """Whether a file or folder is hidden, or is in a folder that is (`HIDDEN`); path is relative to the source."""
    return any((part.startswith(".") and part not in (".", "..")) or part in HIDDEN for part in path.split("/"))


def notes_on_names(hidden: list[str], skipped: list[str]) -> tuple[str, ...]:
    """What to say of files and folders that were left out by their names; see `Scan.notes`."""
    notes = []
    if hidden:
        notes.append(
            f"{counted(len(hidden), 'hidden file or folder is', 'hidden files or folders are')} left out, "
            f"{sorted(hidden)[0]!r} the first "
            "(timm takes such folders for classes, so its class numbers can differ)"
        )
    if skipped:
        endings = sorted({name[name.rindex(".") :].lower() for name in skipped})
        said = counted(len(skipped), "file is skipped by its extension", "files are skipped by their extension")
        notes.append(f"{said} ({', '.join(endings)})")
    return tuple(notes)


def first_few(names: Sequence[str], most: int = 3) -> str:
    """Names for a message: the first ones, and dots only where some are left out."""
    return ", ".join([*names[:most], *(["..."] if len(names) > most else [])])
