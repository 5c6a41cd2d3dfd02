"""Script: gloo ranks as forked children, so that torch is imported once; see test_resume.py and test_faults.py.

    python -m helpers.forked_ranks FOLDER STEPS RANKS KIND…     each kind in FOLDER/<kind>, one after the other

    toy     go on with a run of the toy problem
    stop    the last rank's second batch is not finite: --on-nan stop
    skip    the same with --on-nan skip

Writes what each rank ended with, a line a kind, rank after rank; exits with 0.
"""

import os
import socket
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from helpers.common import CPU
from helpers.fakes import CLASSES, FakeEvalLoader, FakeTrainLoader, recipe
from rsbdali.distributed.world import World
from rsbdali.errors import RsbdaliError
from rsbdali.runs.checkpoint_manager import CheckpointManager
from rsbdali.runs.find_checkpoint import find_saved, resume_from
from rsbdali.runs.folder import RunFolder
from rsbdali.runs.state import Identity
from rsbdali.training.live_display import Silent
from rsbdali.training.options import TrainOptions
from rsbdali.training.train import make_state
from rsbdali.training.trainer import Run, Trainer

TOY = {"epochs": 1, "mix_groups": 2, "opt": "sgd", "lr": 0.1}


class SpoiltLoader(FakeTrainLoader):
    """The images of the second step are not finite on the last rank."""

    def batch(self, epoch: int, step: int, group: int) -> object:
        batch = super().batch(epoch, step, group)
        if (step, group) == (1, TOY["mix_groups"] - 1):
            batch.images.fill_(float("nan"))
        return batch


def train(kind: str, folder: Path, steps: int, world: World) -> str:
    chosen, place = recipe(**TOY), {"rank": world.rank, "world_size": world.size}
    state = make_state(chosen, CLASSES, CPU)
    identity = Identity(chosen, tuple("abcd"), chosen.mix_groups, steps)
    resume_from(find_saved("auto", folder, world), state, identity, world)
    files = RunFolder(folder, epoch=state.epoch, step=state.step) if world.is_rank_zero else None
    loader = FakeTrainLoader if kind == "toy" else SpoiltLoader
    run = Run(
        state=state,
        identity=identity,
        loader=loader(chosen, steps=steps, **place),
        eval_loader=FakeEvalLoader(chosen, **place),
        device=CPU,
        amp_dtype=torch.float32,
        world=world,
        reporter=Silent(),
        files=files,
        saver=CheckpointManager(folder, 2, state.history) if files else None,
    )
    outcome = Trainer(run, TrainOptions(recipe=chosen, data=folder, on_nan="skip" if kind == "skip" else "stop")).run()
    total = sum(parameter.double().sum().item() for parameter in state.model.parameters())
    return f"epochs {outcome.epochs} weights {total}"


def rank_of(kinds: list[str], folder: Path, steps: int, world: World, port: int) -> str:
    address = f"tcp://127.0.0.1:{port}"
    dist.init_process_group(
        "gloo", init_method=address, rank=world.rank, world_size=world.size, timeout=timedelta(seconds=60)
    )
    ended = []
    for kind in kinds:
        try:
            ended.append(train(kind, folder / kind, steps, world))
        except RsbdaliError as error:
            ended.append(f"{type(error).__name__} {error}")
    dist.barrier()
    dist.destroy_process_group()
    return "\n".join(ended)


def forked(work: Callable[[], str]) -> tuple[int, int]:
    reading, writing = os.pipe()
    child = os.fork()
    if child:
        os.close(writing)
        return child, reading
    code = 1
    try:
        os.write(writing, work().encode())
        code = 0
    finally:
        os._exit(code)


def main(folder: Path, steps: int, ranks: int, kinds: list[str]) -> int:
    torch.set_num_threads(1)
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port = server.getsockname()[1]
    worlds = [World(rank, ranks, rank) for rank in range(ranks)]
    children = [forked(lambda world=world: rank_of(kinds, folder, steps, world, port)) for world in worlds]
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child, _ in children]
    for _, pipe in children:
        with os.fdopen(pipe, encoding="utf-8") as file:
            sys.stdout.write(file.read() + "\n")
    return max(codes)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), *map(int, sys.argv[2:4]), sys.argv[4:]))
