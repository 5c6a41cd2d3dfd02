"""Agents of torchrun and their ranks as forked processes, so that torch is imported once; see test_elastic.py.

    agent ── one for each "node" of one rank ── fork ──> worker: trains the data's run, and notes each batch it gets

The worker of the agent that is not to live kills it, in the middle of an epoch, and goes with it.
"""

import hashlib
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import torch

from helpers import ranks
from helpers.common import TINY
from rsbdali.distributed.launch import end_with_launcher
from rsbdali.loader.batch import TrainBatch
from rsbdali.loader.train import TrainLoader
from rsbdali.recipe import Recipe
from rsbdali.training import session
from rsbdali.training.options import TrainOptions
from rsbdali.training.train import train

RECIPE = {
    "name": "tiny",
    **TINY,
    "epochs": 2,
    "global_batch_size": 16,
    "mix_groups": 4,
    "mixup": 0.2,
    "cutmix": 1.0,
    "aa": "rand-m6",
    "opt": "sgd",
    "lr": 0.01,
    "warmup_epochs": 0,
    "log_interval": 1,
}
END = 1, 3  # epoch and step at which the agent is killed; a save is after every second step
SAVED = 1, 2
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "NUMBA_DISABLE_JIT": "1",
}  # Pillow's loops: loading Numba takes each rank seconds


class NotingLoader(TrainLoader):
    """Writes (epoch, step, group), the number of ranks and a hash of each batch to a file of this process."""

    notes: Path
    agent: int | None = None  # that is killed at END

    def __iter__(self) -> Iterator[TrainBatch]:
        return map(self._note, super().__iter__())

    def _note(self, batch: TrainBatch) -> TrainBatch:
        if (batch.epoch, batch.step) == END and self.agent is not None:
            os.kill(self.agent, signal.SIGKILL)
            signal.pause()  # the kernel ends this one
        hashed = hashlib.sha256(batch.images.contiguous().numpy().tobytes())
        for values in (batch.label_N, batch.partner_label_N, batch.lam_N):
            hashed.update(values.numpy().tobytes())
        line = batch.epoch, batch.step, batch.group, os.environ.get("WORLD_SIZE", "1"), hashed.hexdigest()
        with (self.notes / f"batches-{os.getpid()}.txt").open("a") as file:
            print(*line, file=file)
        return batch


def worker(folder: Path, data: Path, *, is_mortal: bool = False) -> int:
    """Train, or go on: FOLDER/run/ is the run, FOLDER/batches-*.txt are the batches."""
    end_with_launcher()
    torch.set_num_threads(1)
    NotingLoader.notes, NotingLoader.agent = folder, os.getppid() if is_mortal else None
    session.TrainLoader = NotingLoader
    options = TrainOptions(
        recipe=Recipe.from_dict(RECIPE),
        data=data,
        output=folder,
        experiment="run",
        resume="auto",
        checkpoint_every="2steps",
        device="cpu",
        workers=1,
        affinity=False,
    )
    code = train(options).exit_code
    if code:  # else torchrun takes what is returned
        sys.exit(code)
    return code


def agent(number: int, ready: Barrier, port: int, folder: Path, data: Path) -> int:
    """torchrun on one of several nodes; the first one keeps the store, the last one is killed."""
    from torch.distributed import run as torchrun
    from torch.distributed.launcher.api import elastic_launch

    agents = ready.parties
    # 30 s and 5 s if nothing is said. The first wait begins with the first agent: on a busy machine the others come
    # seconds later, and a round of fewer would form. It is waited once, at the restart. Agents write their heartbeats
    # into one record, and start over where another one was faster: with an interval of 1 s they do little else there
    waits = "last_call_timeout=12,keep_alive_interval=3"
    options = [
        f"--nnodes=1:{agents}",
        "--nproc-per-node=1",
        "--max-restarts=3",
        "--rdzv-id=tiny",
        "--rdzv-backend=c10d",
        f"--rdzv-endpoint=127.0.0.1:{port}",
        f"--local-addr=127.0.0.{number + 1}",  # their order is that of the ranks, and rank 0's agent has to stay
        f"--rdzv-conf={waits},is_host={number == 0}",
        "--start-method=fork",
        "a-function-in-place-of-a-script",
    ]
    config, _, _ = torchrun.config_from_args(torchrun.parse_args(options))
    ready.wait(60)
    elastic_launch(config, mortal if number == agents - 1 else worker)(folder, data)
    return 0


def mortal(folder: Path, data: Path) -> int:
    """The worker of an agent that is killed."""
    return worker(folder, data, is_mortal=True)


@contextmanager
def run(agents: int, folder: Path, data: Path) -> Iterator[list[Any]]:
    """Processes of that many agents, none: of one worker without torchrun; number k prints to FOLDER/<k>.txt."""
    folder.mkdir()
    port = ranks.free_port()
    ready = ranks.CONTEXT.Barrier(agents or 1)
    work = [(agent, number, ready, port, folder, data) for number in range(agents)] or [(worker, folder, data)]
    processes = [
        ranks.CONTEXT.Process(target=ranks.enter, args=(folder / f"{number}.txt", ENVIRONMENT, *call))
        for number, call in enumerate(work)
    ]
    for process in processes:
        process.start()
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.join()
