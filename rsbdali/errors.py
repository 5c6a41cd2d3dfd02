"""Errors that are a user's to mend: the command line prints them as one line and exits with 2."""


class RsbdaliError(ValueError):
    """Something the user gave cannot work; the message says what, where, and what would."""


class DataError(RsbdaliError):
    """A data folder, a label file or an image is not what it has to be."""


class RecipeError(RsbdaliError):
    """A recipe holds an unknown key, a wrong type or a value out of range."""


class CheckpointError(RsbdaliError):
    """A checkpoint cannot be read, or is not one of this model or recipe."""


class DeviceError(RsbdaliError):
    """The device asked for is missing, or this torch or DALI has no code for it."""
