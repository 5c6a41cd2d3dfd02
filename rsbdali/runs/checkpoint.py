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
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

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
WRAPPERS = ("module.", "_orig_mod.")  # DistributedDataParallel, torch.compile


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
    try:
        # timm's own checkpoints carry their arguments as a Namespace, which is plain data
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(_refusal(path)) from error
    except UNREADABLE as error:
        detail = f" ({_first_line(error)})" if isinstance(error, RuntimeError | OSError) else ""
        raise CheckpointError(f"{path} is truncated, damaged or no checkpoint{detail}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, not a checkpoint")
    return content


def read_verified(path: Path) -> dict[str, Any]:
    """`read`, once every byte of the file agrees with its checksums, which torch itself does not look at.

    Raises:
        CheckpointError: as `read`, or bytes of it have changed since it was written.
    """
    if path.is_file() and zipfile.is_zipfile(path):
        try:
            with zipfile.ZipFile(path) as archive:
                rotten = archive.testzip()
        except (zipfile.BadZipFile, zlib.error, OSError, EOFError, NotImplementedError) as error:
            raise CheckpointError(f"{path} is truncated or damaged ({_first_line(error)})") from error
        if rotten is not None:
            raise CheckpointError(f"{path} is damaged: {rotten} in it does not agree with its checksum")
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
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is truncated or damaged ({_first_line(error)})") from error


def _first_line(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0][:120] if text else type(error).__name__


def weights(content: Mapping[str, Any], *, use_ema: bool = True) -> dict[str, torch.Tensor]:
    """The model's state dict in a checkpoint: averaged weights where there are some and `use_ema`, as timm picks them.

    Raises:
        CheckpointError: no state dict is there.
    """
    keys = (("state_dict_ema", "model_ema") if use_ema else ()) + ("state_dict", "model")
    found = next((content[key] for key in keys if isinstance(content.get(key), Mapping)), content)
    state = clean(found) if all(isinstance(name, str) for name in found) else {}
    if not state or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise CheckpointError("the checkpoint holds no model weights (state_dict)")
    return state


def clean(state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """A state dict without the prefixes of DistributedDataParallel and torch.compile, in whatever order they stand."""
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


def load_weights(model: nn.Module, state: Mapping[str, torch.Tensor], path: str | Path) -> None:
    """Load a state dict that has to fit exactly.

    Raises:
        CheckpointError: names the first weights that do not fit.
    """
    _check_fit(model.state_dict(), state, [], path)
    model.load_state_dict(state)


def _check_fit(
    own: Mapping[str, torch.Tensor], state: Mapping[str, torch.Tensor], excused: list[str], path: str | Path
) -> None:
    missing = [name for name in own if name not in state and name not in excused]
    unknown = [name for name in state if name not in own]
    other = [name for name in state if name in own and state[name].shape != own[name].shape]
    if missing or unknown or other:
        parts = [("lacks", missing), ("has besides", unknown), ("has of another shape", other)]
        said = "; ".join(f"{what} {_some(names)}" for what, names in parts if names)
        raise CheckpointError(f"{path} is of another model: it {said}")


def _some(names: list[str]) -> str:
    return ", ".join(names[:2]) + (f" and {len(names) - 2} more" if len(names) > 2 else "")
