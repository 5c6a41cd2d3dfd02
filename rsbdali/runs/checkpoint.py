"""Checkpoint files: written atomically, read without running anybody's code, under the keys that timm uses.

Each holds plain containers and tensors only, so that `torch.load(weights_only=True)` and
`timm.create_model(name, checkpoint_path=…)` take it:

    epoch, arch, state_dict, optimizer, version, args, amp_scaler, metric, state_dict_ema      timm's
    rsbdali: {recipe, versions, position, class_names, mix_groups, steps_per_epoch, …}         ours, see state.py

Which files a run keeps is the business of checkpoint_manager.py.
"""

import argparse
import os
import pickle
import shutil
import struct
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from rsbdali.bounded import clipped, shown
from rsbdali.errors import CheckpointError

# what torch's reader of plain data ends with on damaged bytes, beside pickle's own error
UNREADABLE = (
    RuntimeError,
    EOFError,
    OSError,
    LookupError,
    ValueError,
    TypeError,
    AttributeError,
    AssertionError,
    OverflowError,
    struct.error,
)
WRAPPERS = ("module.", "_orig_mod.")  # DistributedDataParallel and torch's AveragedModel, torch.compile
AVERAGED = "n_averaged"  # AveragedModel's counter, beside the weights (torchvision's references save it with them)
COUNTER = "num_batches_tracked"  # of BatchNorm: files from before torch 0.4.1 have none


def read(path: str | Path) -> dict[str, Any]:
    """A checkpoint's dictionary, tensors on the CPU. Nothing in the file is run.

    Raises:
        CheckpointError: no such file, a truncated one, none at all, or one that would run code when loaded.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"no checkpoint {path}")
    if path.suffix == ".safetensors":
        return {"state_dict": _read_safetensors(path)}
    _check_archive(path)
    try:
        # timm's own checkpoints carry their arguments as a Namespace, which is plain data
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(_refusal(path)) from error
    except MemoryError as error:
        raise CheckpointError(f"{path} asks for more memory than there is") from error
    except UNREADABLE as error:
        detail = f" ({_first_line(error)})" if isinstance(error, RuntimeError | OSError) else ""
        raise CheckpointError(f"{path} is truncated, damaged or no checkpoint{detail}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, not a checkpoint")
    return content


def _check_archive(path: Path) -> None:
    """Refuse an archive that unfolds to more than it is: torch stores its members as they are, one behind the other."""
    if not zipfile.is_zipfile(path):
        return
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, *UNREADABLE) as error:
        raise CheckpointError(f"{path} is truncated, damaged or no checkpoint ({_first_line(error)})") from error
    if (
        any(m.compress_type != zipfile.ZIP_STORED for m in members)
        or sum(m.file_size for m in members) > path.stat().st_size
    ):
        raise CheckpointError(f"{path} is an archive with compressed or overlapping members, as torch writes none")


def read_verified(path: Path) -> dict[str, Any]:
    """`read`, once every byte of the file agrees with its checksums, which torch itself does not look at.

    Raises:
        CheckpointError: as `read`, or bytes of it have changed since it was written.
    """
    if path.is_file() and zipfile.is_zipfile(path):
        _check_archive(path)
        try:
            with zipfile.ZipFile(path) as archive:
                rotten = archive.testzip()
        except (zipfile.BadZipFile, zlib.error, *UNREADABLE) as error:
            raise CheckpointError(f"{path} is truncated or damaged ({_first_line(error)})") from error
        if rotten is not None:
            raise CheckpointError(f"{path} is damaged: {shown(rotten)} in it does not agree with its checksum")
    return read(path)


def _refusal(path: Path) -> str:
    if not zipfile.is_zipfile(path):
        return f"{path} is truncated, damaged or no checkpoint"
    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(str(path))  # reads, runs nothing
    except (*UNREADABLE, pickle.UnpicklingError):
        names = []
    if not names:
        return f"{path} is damaged, or holds more than plain data; it was not loaded"
    wants = ", ".join(sorted(names)[:3])
    return f"{path} holds more than plain data and was not loaded: it could run code (it wants {wants})"


def _read_safetensors(path: Path) -> dict[str, Any]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return dict(load_file(path))
    except (SafetensorError, *UNREADABLE) as error:
        raise CheckpointError(f"{path} is truncated or damaged ({_first_line(error)})") from error


def _first_line(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0][:120] if text else type(error).__name__


def weights(content: Mapping[str, Any], *, use_ema: bool = True) -> dict[str, torch.Tensor]:
    """The model's state dict in a checkpoint: averaged weights where there are some and `use_ema`, as timm picks them.

    Raises:
        CheckpointError: no state dict is there, or one with a weight twice.
    """
    keys = (("state_dict_ema", "model_ema") if use_ema else ()) + ("state_dict", "model")
    found = next((content[key] for key in keys if isinstance(content.get(key), Mapping)), content)
    if not found or not all(isinstance(n, str) and isinstance(v, torch.Tensor) for n, v in found.items()):
        raise CheckpointError("the checkpoint holds no model weights (state_dict)")
    twice = [name for name, count in Counter(map(_unwrapped, found)).items() if count > 1]
    if twice:
        raise CheckpointError(f"the checkpoint holds {_some(twice)} with and without a prefix of {', '.join(WRAPPERS)}")
    state = clean(found)
    state.pop(AVERAGED, None)
    return state


def clean(state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """A state dict without the prefixes of the wrappers, in any order."""
    return {_unwrapped(name): value for name, value in state_dict.items()}


def _unwrapped(name: str) -> str:
    while name.startswith(WRAPPERS):
        name = name.split(".", 1)[1]
    return name


def snapshot(value: Any) -> Any:
    """A copy of a checkpoint's dictionary that later training steps do not touch: containers new, tensors on the CPU.

    This is all that a training step waits for when a run is saved; tensors keep their memory format.
    """
    if isinstance(value, torch.Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, Mapping):
        return {key: snapshot(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(snapshot(entry) for entry in value)
    return value


def write(content: Mapping[str, Any], path: Path) -> None:
    """Write a checkpoint so that `path` holds either the old content or the new, whatever happens in between.

    Raises:
        CheckpointError: it cannot be written, for example because the disk is full; the old file is as it was.
    """

    def fill(temporary: Path) -> None:
        with temporary.open("wb") as file:
            torch.save(dict(content), file)
            file.flush()
            os.fsync(file.fileno())

    _replace(path, fill)


def link(source: Path, path: Path) -> None:
    """Let `path` be another name of `source` (a copy where the file system knows no hard links), atomically.

    Raises:
        CheckpointError: as `write`.
    """

    def fill(temporary: Path) -> None:
        temporary.unlink(missing_ok=True)
        try:
            os.link(source, temporary)
        except OSError:
            shutil.copyfile(source, temporary)
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())

    _replace(path, fill)


def sweep(folder: Path) -> None:
    """Delete what writes that were killed have left in a folder. Nobody else may be writing there."""
    for temporary in folder.glob(".*.pth.tar.*.tmp"):
        temporary.unlink(missing_ok=True)


def _replace(path: Path, fill: Callable[[Path], None]) -> None:
    """Make `path` what `fill(temporary)` writes: on the disk first, then under its name, then the name on the disk."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        try:
            fill(temporary)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
        _sync_folder(path.parent)
    except (OSError, RuntimeError) as error:
        cause = _os_error(error)
        if cause is None:
            raise
        raise CheckpointError(f"cannot save {path} ({cause.strerror}): what was saved before is still there") from error


def _os_error(error: BaseException | None) -> OSError | None:
    """The operating system's error behind one of torch.save, which says "unexpected pos" where the disk is full."""
    while error is not None and not isinstance(error, OSError):
        error = error.__cause__ or error.__context__
    return error


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def load_weights(
    model: nn.Module, state: Mapping[str, torch.Tensor], path: str | Path, *, anew: Collection[str] = ()
) -> None:
    """Load a state dict that has to fit exactly, as torch's strict loading does: counters of BatchNorm may be missing.

    Args:
        model: gets the weights.
        state: by name, without prefixes.
        path: of the file, for messages.
        anew: names that stay as they are in the model.

    Raises:
        CheckpointError: names the first weights that do not fit; the model is as it was.
    """
    own = model.state_dict()
    missing = [name for name in own if name not in {*state, *anew} and name.rsplit(".", 1)[-1] != COUNTER]
    unknown = [name for name in state if name not in own]
    other = [name for name in state if name in own and state[name].shape != own[name].shape]
    if missing or unknown or other:
        parts = [("lacks", missing), ("has besides", unknown), ("has of another shape", other)]
        said = "; ".join(f"{what} {_some(names)}" for what, names in parts if names)
        raise CheckpointError(f"{path} is of another model: it {said}")
    try:
        model.load_state_dict(state, strict=not anew)
    except RuntimeError as error:  # a sparse tensor, for example
        raise CheckpointError(f"{path}: its weights cannot be taken ({_first_line(error)})") from error


def _some(names: list[str]) -> str:
    return ", ".join(map(clipped, names[:2])) + (f" and {len(names) - 2} more" if len(names) > 2 else "")
