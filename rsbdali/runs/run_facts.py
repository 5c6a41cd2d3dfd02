"""Read the `args.yaml` of a run back: the recipe it ran, and the facts in its header (versions, device, data, …)."""

from pathlib import Path
from typing import Any

import yaml

from rsbdali.errors import RsbdaliError

ARGS = "args.yaml"  # as outputs.py, which is not imported since it brings torch along


def read_args(folder: Path) -> tuple[dict[str, str], dict[str, Any]]:
    """Facts and recipe keys of a run; both are empty where it has no `args.yaml`.

    Args:
        folder: the run's.

    Returns:
        The comments at the file's head by key, and the recipe as plain values (not checked: another version of rsbdali
        may have written it).

    Raises:
        RsbdaliError: the file is damaged.
    """
    path = folder / ARGS
    if not path.is_file():
        return {}, {}
    try:
        text = path.read_text(encoding="utf-8")
        recipe = yaml.safe_load(text)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise RsbdaliError(f"{path} cannot be read: {str(error).splitlines()[0]}") from error
    if not isinstance(recipe, dict):
        raise RsbdaliError(f"{path} holds no settings")
    return _header(text), {str(key): value for key, value in recipe.items()}


def _header(text: str) -> dict[str, str]:
    facts = {}
    for line in text.splitlines():
        if not line.startswith("# "):
            break
        key, colon, value = line[2:].partition(": ")
        if colon:
            facts[key] = value
    return facts
