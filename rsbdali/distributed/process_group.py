"""One process a GPU under torchrun or srun: start and stop of the process group.

Without torchrun's or Slurm's environment this is the single-process case and does nothing. GPUs communicate by
NCCL, CPUs by gloo. Two groups with two timeouts:

    patient   30 min   start and end: the others wait while rank 0 indexes a large folder, or ends a save. Always gloo:
                       whoever waits by NCCL keeps a kernel spinning on the GPU, and a core with it
    default   10 min   steps and evaluation: a rank that is late by that much is not coming
"""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from rsbdali.distributed import rendezvous
from rsbdali.distributed.world import World
from rsbdali.errors import LostRankError

PATIENCE = timedelta(minutes=30)
TIMEOUT = timedelta(minutes=10)

# What gloo's errors say, which torch raises as plain RuntimeErrors; NCCL's have a class of their own.
LOST = ("gloo", "Connection closed by peer", "Connection reset by peer", "timeout caused pair closure")

_patient: Any = None  # a process group; None: the default one, whose timeout the caller chose


def patient_group() -> Any:
    """The group whose collectives wait for `PATIENCE`, as torch.distributed takes it."""
    return _patient


@contextmanager
def process_group(world: World, device: torch.device, timeout: timedelta = TIMEOUT) -> Iterator[None]:
    """The process group of `world` while the block runs; nothing for a single process.

    Ranks above 0 log warnings only meanwhile.

    Args:
        world: from `World.from_env`.
        device: of this process; its type chooses NCCL or gloo.
        timeout: of the collectives of steps; what may take long at start and end has `PATIENCE`.

    Raises:
        LostRankError: another process ended or did not answer in time (gloo; NCCL's watchdog ends the process itself).
    """
    global _patient
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if world.size == 1 or dist.is_initialized():  # a group that the caller started stays the caller's
        yield
        return
    with _lost_ranks_named(world):
        _start(world, device, timeout)
        _patient = dist.new_group(timeout=max(timeout, PATIENCE), backend="gloo")
        try:
            with _quiet_unless(world.is_rank_zero):
                yield
        finally:
            _patient = None
        # not after an error: the others may wait in a collective that this rank never joins, and so would the goodbye
        dist.destroy_process_group()


def _start(world: World, device: torch.device, timeout: timedelta) -> None:
    arguments: dict[str, Any] = {"rank": world.rank, "world_size": world.size, "timeout": timeout}
    if (store := rendezvous.agent_store(os.environ, PATIENCE)) is not None:
        arguments["store"] = rendezvous.of_this_start(store, world.rank, world.size, PATIENCE)
    else:
        arguments["init_method"] = world.init_method
    if device.type == "cuda":
        dist.init_process_group("nccl", device_id=device, **arguments)
    else:
        dist.init_process_group("gloo", **arguments)


@contextmanager
def _lost_ranks_named(world: World) -> Iterator[None]:
    """Turn the backend's errors about lost processes into one line for people."""
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, dist.DistError) and not any(words in str(error) for words in LOST):
            raise
        raise LostRankError(
            f"rank {world.rank} of {world.size}: another process of the run ended or does not answer: its own last "
            f"lines say why. Checkpoints are whole: start again with --resume auto ({_first_sentence(error)})"
        ) from error


def _first_sentence(error: RuntimeError) -> str:
    """The error without the source file that gloo puts in front and the advice that it puts behind."""
    text = str(error).strip().splitlines()[0]
    return text.split("] ", 1)[-1].split(". ")[0]


@contextmanager
def _quiet_unless(prints: bool) -> Iterator[None]:
    """Log warnings only, on ranks that do not print."""
    log = logging.getLogger("rsbdali")
    level = log.level
    if not prints:
        log.setLevel(logging.WARNING)
    try:
        yield
    finally:
        log.setLevel(level)
