"""How a run is taken up again: its options, kept in `args.yaml`, and the command that a shell takes unchanged.

args.yaml    # options: {"data": "/data/imagenet", "device": "auto", …}    one line of JSON in its header
"""

import json
import shlex
import string
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rsbdali.bounded import NotPlain, parse_json
from rsbdali.distributed.world import World
from rsbdali.errors import RsbdaliError
from rsbdali.runs.folder import ARGS, read_args

OPTIONS = "options"
PLAIN = (string.ascii_letters + string.digits + "+,-./_=: ").encode()  # as they are between quotes


def options_text(options: Mapping[str, Any]) -> str:
    """Options as JSON in one line; in ASCII, so that a path that is no text comes back as it was."""
    return json.dumps({key: str(value) if isinstance(value, Path) else value for key, value in options.items()})


def read_options(folder: Path) -> dict[str, Any]:
    """The options that a run was started with, as plain values; none where an earlier version wrote its `args.yaml`.

    Raises:
        RsbdaliError: they are damaged.
    """
    text = read_args(folder)[0].get(OPTIONS, "{}")
    try:
        options = parse_json(text.encode())
    except NotPlain as error:
        raise RsbdaliError(f"{folder / ARGS} is damaged: its {OPTIONS} {error}") from error
    if not isinstance(options, dict):
        raise RsbdaliError(f"{folder / ARGS} is damaged: its {OPTIONS} are no keys and values")
    return options


def resume_command(folder: Path, world: World | None = None, *, launched: bool = False) -> str:
    """The command line that goes on with a run, whole, to be pasted into a shell.

    Args:
        folder: the run's.
        world: the processes it had.
        launched: whether `--nproc` started them: that is among the run's options.
    """
    command = f"rsbdali train --resume {shell_word(str(folder))}"
    if world is None or world.size == 1 or launched:
        return command
    if world.size == world.local_size:
        return f"torchrun --nproc-per-node {world.size} -m {command}"
    return f"{command} (under torchrun or srun, as before)"


def shell_word(text: str) -> str:
    """`text` as one word of a shell: quoted where it has to be; bytes that are no text as bash's `$'…'` escapes."""
    if text.isprintable():
        return shlex.quote(text)
    data = text.encode("utf-8", "surrogateescape")
    return "$'" + "".join(chr(byte) if byte in PLAIN else f"\\x{byte:02x}" for byte in data) + "'"
