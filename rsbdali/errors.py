"""Errors that are a user's to fix: the command line prints them as one line and exits with 2."""


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
