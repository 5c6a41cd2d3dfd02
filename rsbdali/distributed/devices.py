"""Where batches are made: the device by name, the CPU threads of this process, arrays on their way to a device."""

import os

import numpy as np
import torch

from rsbdali.distributed.process_group import World
from rsbdali.errors import DeviceError


def resolve_device(device: str | torch.device) -> torch.device:
    """`device` as torch has it; 'auto' means the GPU of this process where there is one.

    Raises:
        DeviceError: a GPU was asked for and there is none.
    """
    if str(device) == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        resolved = torch.device(device)
    except RuntimeError as error:
        raise DeviceError(f"--device {device}: use auto, cpu, cuda or cuda:N") from error
    if resolved.type == "cuda":
        if not torch.cuda.is_available():
            raise DeviceError(f"--device {device}: torch sees no GPU here (see rsbdali doctor); try --device cpu")
        return torch.device("cuda", resolved.index if resolved.index is not None else torch.cuda.current_device())
    if resolved.type != "cpu":
        raise DeviceError(f"--device {device}: only cpu and cuda are known here")
    return resolved


def default_threads() -> int:
    """CPU threads this process may use: the cores of its affinity mask, shared among the ranks of the node.

    Under `rsbdali train` the ranks know better, see `affinity`.
    """
    return max(1, len(os.sched_getaffinity(0)) // World.from_env().local_size)


def to_device(array: np.ndarray, device: torch.device) -> torch.Tensor:
    """An array on `device`; the copy to a GPU does not hold the host up."""
    tensor = torch.from_numpy(array)
    if device.type == "cuda":  # from pinned memory, else the copy would wait
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor
