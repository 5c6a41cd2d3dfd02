"""Errors that are a user's to fix, which the command line prints as one line and exits with 2; phrases of messages."""

import difflib
from collections.abc import Iterable


def counted(number: int, one: str, many: str = "") -> str:
    """A number of things for a message: 1 step, 1,200 steps; `many` where an s behind `one` would not do: 2 batches."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def nearest(word: str, known: Iterable[str], most: int = 1) -> str:
    """What a name that is not known was meant to be: `, did you mean 'a' or 'b'?`; nothing where none is near."""
    close = [repr(name) for name in difflib.get_close_matches(word, list(known), n=most)]
    return f", did you mean {' or '.join(filter(None, [', '.join(close[:-1]), close[-1]]))}?" if close else ""


class RsbdaliError(ValueError):
    """Something the user gave cannot work; the message says what, where, and what would.

    Attributes:
        exit_code: what the command line ends with.
        reported_elsewhere: another rank has the same error and prints it, so that one line is not printed by each.
    """

    exit_code = 2
    reported_elsewhere = False


class DataError(RsbdaliError):
    """A data folder, a label file or an image is not what it has to be."""


class UnreadableImage(DataError):
    """The bytes of one image are not there (a vanished shard, a cut tar file): treated as an image that is broken."""


class SourceError(DataError):
    """The source itself does not answer (a store that is down): nothing that replacing an image would fix."""


class RecipeError(RsbdaliError):
    """A recipe holds an unknown key, a wrong type or a value out of range."""


class CheckpointError(RsbdaliError):
    """A checkpoint cannot be read, or is not one of this model or recipe."""


class DeviceError(RsbdaliError):
    """The device asked for is missing, or this torch or DALI has no code for it."""


class NumbaError(RsbdaliError):
    """Numba is missing, or does not work with this Python, NumPy or CPU; the message says which."""


class LostRankError(RsbdaliError):
    """Another process of the run ended or does not answer. Nothing is wrong here: start again, with `--resume auto`."""

    exit_code = 75  # EX_TEMPFAIL of sysexits.h: trying again may help
