"""This process among the others: its rank, and how many there are."""

import os
from collections.abc import Mapping
from dataclasses import dataclass

import torch.distributed as dist

from rsbdali.distributed import slurm
from rsbdali.errors import DeviceError


@dataclass(frozen=True)
class World:
    """This process among the others.

    Attributes:
        rank: 0 … size − 1; rank 0 writes files and prints.
        size: number of processes W.
        local_rank: number of this process on its node, and of its GPU; None where no launcher says it.
        local_size: number of processes on this node; None likewise (`distributed.neighbors` finds out).
        init_method: where they meet, as `init_process_group` takes it.
    """

    rank: int = 0
    size: int = 1
    local_rank: int | None = 0
    local_size: int | None = 1
    init_method: str = "env://"

    @property
    def is_rank_zero(self) -> bool:
        """Whether this process writes files and prints to the user."""
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
        return cls(rank, size, *_place(env), method)

    @classmethod
    def current(cls) -> "World":
        """The world of the process group that runs, whoever started it; a single process where none does."""
        if not dist.is_available() or not dist.is_initialized():
            return cls()
        return cls.of(dist.get_rank(), dist.get_world_size())

    @classmethod
    def of(cls, rank: int, size: int, env: Mapping[str, str] = os.environ) -> "World":
        """A rank by its number. Its number on the node is what a launcher says of this very rank, else not known."""
        if size == 1:
            return cls()
        env = {**env, **slurm.torchrun_variables(env)}
        is_same = int_of(env, "RANK", rank) == rank and int_of(env, "WORLD_SIZE", size) == size
        return cls(rank, size, *(_place(env) if is_same else (None, None)))


def _place(env: Mapping[str, str]) -> tuple[int | None, int | None]:
    """Local rank and local size, as far as they are there."""
    names = "LOCAL_RANK", "LOCAL_WORLD_SIZE"
    local_rank, local_size = (int_of(env, name, 0) if name in env else None for name in names)
    return local_rank, local_size


def int_of(env: Mapping[str, str], key: str, default: int) -> int:
    """A whole number from the environment, or a `DeviceError` that names the variable."""
    text = env.get(key, str(default))
    if not text.isdigit():
        raise DeviceError(f"{key}={text!r} in the environment: expected a whole number (torchrun sets it)")
    return int(text)
