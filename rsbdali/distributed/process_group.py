"""One process a GPU under torchrun or srun: who am I, start and stop of the process group, small collectives.

Without torchrun's or Slurm's environment everything here is the single-process case and does nothing. GPUs talk by
NCCL, CPUs by gloo. Two groups with two timeouts:

    patient   30 min   start and end: the others wait while rank 0 indexes a large folder, or ends a save
    default   10 min   steps and evaluation: a rank that is late by that much is not coming
"""

import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from rsbdali.distributed import rendezvous, slurm
from rsbdali.errors import DeviceError, LostRankError, RsbdaliError

T = TypeVar("T")
PATIENCE = timedelta(minutes=30)
TIMEOUT = timedelta(minutes=10)

# What gloo's errors say, which torch raises as plain RuntimeErrors; NCCL's have a class of their own.
LOST = ("gloo", "Connection closed by peer", "Connection reset by peer", "timeout caused pair closure")

_patient: Any = None  # a process group; None: the default one, whose timeout the caller chose


@dataclass(frozen=True)
class World:
    """This process among the others.

    Attributes:
        rank: 0 … size − 1; rank 0 writes files and talks.
        size: number of processes W.
        local_rank: number of this process on its node, and of its GPU.
        local_size: number of processes on this node.
        init_method: where they meet, as `init_process_group` takes it.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    init_method: str = "env://"

    @property
    def is_primary(self) -> bool:
        """Whether this process writes files and talks to the user."""
        return self.rank == 0

    @classmethod
    def from_env(cls, env: Mapping[str, str] = os.environ) -> "World":
        """The world that torchrun, else Slurm's srun, describes in the environment; a single process where none does.

        Raises:
            DeviceError: the variables are there in part, or are no numbers.
        """
        of_slurm = slurm.torchrun_variables(env)
        env = {**env, **of_slurm}
        if int_of(env, "WORLD_SIZE", 1) == 1:
            return cls()
        missing = [key for key in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT") if key not in env]
        if missing:
            raise DeviceError(f"WORLD_SIZE is set but {', '.join(missing)} is not: start with torchrun, or unset it")
        method = f"tcp://{env['MASTER_ADDR']}:{env['MASTER_PORT']}" if of_slurm else "env://"
        rank, size = int_of(env, "RANK", 0), int_of(env, "WORLD_SIZE", 1)
        return cls(rank, size, int_of(env, "LOCAL_RANK", 0), int_of(env, "LOCAL_WORLD_SIZE", 1), method)

    @classmethod
    def current(cls) -> "World":
        """The world of the process group that runs, whoever started it; a single process where none does."""
        if not dist.is_available() or not dist.is_initialized():
            return cls()
        return cls(dist.get_rank(), dist.get_world_size(), int_of(os.environ, "LOCAL_RANK", 0))


def int_of(env: Mapping[str, str], key: str, default: int) -> int:
    """A whole number from the environment, or a `DeviceError` that names the variable."""
    text = env.get(key, str(default))
    if not text.isdigit():
        raise DeviceError(f"{key}={text!r} in the environment: expected a whole number (torchrun sets it)")
    return int(text)


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
        _patient = dist.new_group(timeout=max(timeout, PATIENCE))
        try:
            with _quiet_unless(world.is_primary):
                yield
        finally:
            _patient = None
        # not after an error: the others may wait in a collective that this rank never joins, and so would the goodbye
        dist.destroy_process_group()


def _start(world: World, device: torch.device, timeout: timedelta) -> None:
    place: dict[str, Any] = {"rank": world.rank, "world_size": world.size, "timeout": timeout}
    if (store := rendezvous.agent_store(os.environ, PATIENCE)) is not None:
        place["store"] = rendezvous.of_this_start(store, world.rank, world.size, PATIENCE)
    else:
        place["init_method"] = world.init_method
    if device.type == "cuda":
        dist.init_process_group("nccl", device_id=device, **place)
    else:
        dist.init_process_group("gloo", **place)


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
def _quiet_unless(talks: bool) -> Iterator[None]:
    """Log warnings only, on ranks that do not talk."""
    log = logging.getLogger("rsbdali")
    level = log.level
    if not talks:
        log.setLevel(logging.WARNING)
    try:
        yield
    finally:
        log.setLevel(level)


def local_device(device: str, world: World) -> str:
    """`device` for this process: 'auto' and 'cuda' become this process's own GPU where there are several processes.

    Raises:
        DeviceError: more processes on this node than GPUs, or one numbered GPU for all.
    """
    if world.size == 1 or device == "cpu" or (device == "auto" and not torch.cuda.is_available()):
        return device
    if device not in ("auto", "cuda"):
        raise DeviceError(f"--device {device} under torchrun: use cuda, and each process takes its own GPU")
    if world.local_rank >= torch.cuda.device_count():
        raise DeviceError(
            f"process {world.local_rank} of this node has no GPU: {torch.cuda.device_count()} here; "
            "lower torchrun's --nproc-per-node"
        )
    return f"cuda:{world.local_rank}"


def barrier(world: World) -> None:
    """Wait for all processes, for as long as `PATIENCE`."""
    if world.size > 1:
        dist.barrier(group=_patient)


def sum_(tensor: torch.Tensor, world: World) -> torch.Tensor:
    """Sum a tensor over all processes in place, and return it. Does not wait for the GPU."""
    if world.size > 1:
        dist.all_reduce(tensor)
    return tensor


def from_primary(value: T, world: World) -> T:
    """Rank 0's plain value (text, numbers) on every rank."""
    if world.size == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0, group=_patient)
    return box[0]


def from_all(value: T, world: World) -> list[T]:
    """Every rank's plain value, by rank."""
    if world.size == 1:
        return [value]
    box: list[Any] = [None] * world.size
    dist.all_gather_object(box, value, group=_patient)
    return box


def primary_first(make: Callable[[bool], T], world: World) -> T:
    """`make(True)` on rank 0, which may fill a cache; then `make(False)` on the others. Fails as `together` does."""
    made: list[T] = []

    def take_turn(first: bool) -> None:
        if first == world.is_primary:
            made.append(make(first))

    together(lambda: take_turn(True), world)
    together(lambda: take_turn(False), world)
    return made[0]


def together(make: Callable[[], T], world: World) -> T:
    """`make()` on every rank, and a mistake of the user on any of them ends all.

    Raises:
        RsbdaliError: from `make`. On ranks that it did not fail on, or failed on too, it is a copy of the first one's
            that is not printed (`told_elsewhere`).
    """
    try:
        value, failure = make(), None
    except RsbdaliError as error:
        failure = error
    told = from_all(None if failure is None else (str(failure), failure.exit_code), world)
    failures = [(rank, *text) for rank, text in enumerate(told) if text is not None]
    if not failures:
        return value
    first, message, code = failures[0]
    if failure is not None and first == world.rank:
        raise failure
    copy = RsbdaliError(f"rank {first}: {message}")
    copy.told_elsewhere, copy.exit_code = True, code
    raise copy from failure
