"""Two ranks for tests, at the cost of a fork: a server process imports torch once, and its children are the ranks.

    with Ranks(folder, 2, toy, folder, 3, "epochs=1") as ranks: …       `toy` and others run in each rank

What a rank prints goes to FOLDER/rank<k>.txt.
"""

import json
import logging
import multiprocessing
import os
import signal
import socket
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from helpers.common import CPU
from helpers.scripts import without_gloo
from rsbdali.distributed import affinity, neighbors, process_group
from rsbdali.distributed.collectives import all_reduce_sum, barrier, from_all, on_all_ranks, rank_zero_first
from rsbdali.distributed.world import World
from rsbdali.errors import DataError, RsbdaliError

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["rsbdali.training.train", "torch.distributed.run"])


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port: int = server.getsockname()[1]
        return port


class Ranks:
    """`function(*arguments)` in `size` processes that torchrun could have started; what is left of them is killed."""

    def __init__(self, folder: Path, size: int, function: Callable[..., int], *arguments: object) -> None:
        self.outputs = [folder / f"rank{rank}.txt" for rank in range(size)]
        common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
        numbers = {"WORLD_SIZE": str(size), "LOCAL_WORLD_SIZE": str(size)}
        self.processes = [
            CONTEXT.Process(
                target=enter,
                args=(output, {**common, **numbers, "RANK": str(rank), "LOCAL_RANK": str(rank)}, function, *arguments),
            )
            for rank, output in enumerate(self.outputs)
        ]

    def __enter__(self) -> "Ranks":
        for process in self.processes:
            process.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for process in self.processes:
            process.kill()
            process.join()

    def codes(self, timeout: float = 120) -> list[int | None]:
        """Exit codes of all, as `multiprocessing` gives them; None where one still runs after `timeout` seconds."""
        for process in self.processes:
            process.join(timeout)
        return [process.exitcode for process in self.processes]

    def texts(self) -> list[str]:
        """What each has printed so far, but for gloo's own lines."""
        return [without_gloo(output.read_text()) if output.exists() else "" for output in self.outputs]

    def send(self, rank: int, number: signal.Signals) -> None:
        pid = self.processes[rank].pid
        assert pid is not None
        os.kill(pid, number)


def enter(output: Path, env: dict[str, str], function: Callable[..., int], *arguments: object) -> None:
    os.environ.update(env)
    descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    logging.basicConfig(stream=sys.stdout)
    logging.getLogger("rsbdali").setLevel(logging.INFO)
    try:
        code = function(*arguments)
    except RsbdaliError as error:  # as cli.py does
        sys.stderr.write(f"Error: {error}\n")
        code = error.exit_code
    sys.stdout.flush()
    sys.exit(code)


def toy(*arguments: Any) -> int:
    """run_toy.py in this process."""
    from helpers import run_toy

    code: int = run_toy.main(*arguments)
    return code


def collectives(folder: Path) -> int:
    """Everything that ranks do together, into FOLDER/<rank>.json; then rank 1 goes silent, and rank 0 waits for it."""
    world, found = World.from_env(), {}
    with process_group.process_group(world, CPU, timeout=timedelta(seconds=3)):
        found["current"] = World.current() == World(world.rank, 2, world.local_rank, 2)
        found["here"] = neighbors.ranks_here(World(world.rank, 2, None, None))  # as if no launcher said it
        found["all"] = from_all(world.rank * 10, world)
        found["sum"] = all_reduce_sum(torch.tensor([float(world.rank + 1)]), world).tolist()
        found["first"] = rank_zero_first(lambda first: _note_turn(folder, world, first), world)
        found["failures"] = [_failure(world, failing) for failing in ([0], [1], [0, 1], [])]
        with affinity.pinned(world, CPU) as threads:
            found["cores"], found["threads"] = sorted(os.sched_getaffinity(0)), threads
        with affinity.pinned(world, CPU, enabled=False) as threads:
            found["cores left"], found["threads left"] = sorted(os.sched_getaffinity(0)), threads
        (folder / f"{world.rank}.json").write_text(json.dumps(found))
        barrier(world)
        if world.rank == 1:
            signal.pause()
        all_reduce_sum(torch.ones(1), world)
    return 0


def _note_turn(folder: Path, world: World, first: bool) -> list[object]:
    """Which ranks had their turn before this one."""
    before = sorted(path.name for path in folder.glob("turn*"))
    (folder / f"turn{world.rank}").touch()
    return [first, before]


def _failure(world: World, failing: list[int]) -> list[object]:
    """What `on_all_ranks` raises on this rank when some ranks fail."""

    def make() -> str:
        if world.rank in failing:
            raise DataError(f"mistake of rank {world.rank}")
        return "made"

    try:
        return [on_all_ranks(make, world)]
    except RsbdaliError as error:
        return [type(error).__name__, str(error), error.reported_elsewhere, error.exit_code]
