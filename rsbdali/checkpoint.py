"""Checkpoint files: written atomically, read without running anybody's code, under the keys that timm uses.

Each holds plain containers and tensors only, so that `torch.load(weights_only=True)` and
`timm.create_model(name, checkpoint_path=…)` take it:

    epoch, arch, state_dict, optimizer, version, args, amp_scaler, metric, state_dict_ema      timm's
    rsbdali: {recipe, versions, position, class_names, mix_groups, steps_per_epoch, …}         ours, see run_state.py

Which files a run keeps is the business of saver.py.
"""

import argparse
import os
import pickle
import shutil
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from rsbdali.errors import CheckpointError

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
    except (RuntimeError, EOFError, OSError, KeyError, ValueError) as error:
        raise CheckpointError(f"{path} is truncated, damaged or no checkpoint ({_first_line(error)})") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, not a checkpoint")
    return content


def _refusal(path: Path) -> str:
    if not zipfile.is_zipfile(path):
        return f"{path} is truncated, damaged or no checkpoint"
    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(str(path))  # reads, runs nothing
    except (RuntimeError, ValueError, pickle.UnpicklingError):
        names = []
    wants = f" (it wants {', '.join(sorted(names)[:3])})" if names else ""
    return f"{path} holds more than plain data and was not loaded: it could run code{wants}"


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
    state = clean(found)
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


def write(content: Mapping[str, Any], path: Path) -> None:
    """Write a checkpoint so that `path` holds either the old content or the new, whatever happens in between."""
    temporary = _temporary(path)
    try:
        with temporary.open("wb") as file:
            torch.save(dict(content), file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    _sync_folder(path.parent)


def link(source: Path, path: Path) -> None:
    """Let `path` be another name of `source` (a copy where the file system knows no hard links), atomically."""
    temporary = _temporary(path)
    temporary.unlink(missing_ok=True)
    try:
        try:
            os.link(source, temporary)
        except OSError:
            shutil.copyfile(source, temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    _sync_folder(path.parent)


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
