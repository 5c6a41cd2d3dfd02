"""Names of image files: which count, and in which order."""

import re

# timm's (timm.data.readers.img_extensions) plus .webp
EXTENSIONS = (".jpeg", ".jpg", ".png", ".webp")


def natural_key(name: str) -> tuple[list[int | str], str]:
    """Sort key by timm's `natural_key` (numbers count as numbers, case does not); ties go by the name itself."""
    parts = re.split(r"(\d+)", name.lower())
    # every second part is a run of digits, so like is always compared with like
    return [int(part) if i % 2 else part for i, part in enumerate(parts)], name


def is_image_name(name: str) -> bool:
    """Whether a file of that name is taken for an image."""
    lower = name.lower()
    return lower.endswith(EXTENSIONS) and lower not in EXTENSIONS
