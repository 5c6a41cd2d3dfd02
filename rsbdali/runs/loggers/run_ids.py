"""`loggers.json` in a run's folder: under which id each service keeps the run, so that a resumed run goes on there."""

import json
from pathlib import Path

from rsbdali.atomic import write_text
from rsbdali.bounded import NotPlain, parse_json, read_text
from rsbdali.errors import RsbdaliError

FILE = "loggers.json"


def read_id(folder: Path, service: str) -> str | None:
    """The id that a service gave the run of this folder; None if it has none yet.

    Raises:
        RsbdaliError: the file is damaged.
    """
    found = _read(folder / FILE).get(service)
    return None if found is None else str(found)


def write_id(folder: Path, service: str, run_id: str) -> None:
    """Keep a service's id, whole or not at all."""
    ids = {**_read(folder / FILE), service: run_id}
    write_text(folder / FILE, json.dumps(ids, indent=2) + "\n")


def _read(path: Path) -> dict[str, str]:
    if not path.exists():
        return {}
    try:
        content = parse_json(read_text(path))
        if not isinstance(content, dict):
            raise NotPlain("holds no ids")
    except NotPlain as error:
        raise RsbdaliError(f"{path} is damaged: remove it, and services begin a new record (it {error})") from error
    return content
