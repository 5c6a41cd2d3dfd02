"""Script: train the toy problem in this process or, under torchrun's variables, as one rank; see test_ddp.py.

    python -m helpers.run_toy FOLDER STEPS KEY=VALUE…

Writes FOLDER/state.pt (rank 0) and exits as the command line would.
"""

import logging
import sys
from pathlib import Path

import torch

from helpers.fakes import CLASSES, FakeEvalLoader, FakeTrainLoader, recipe
from rsbdali.distributed import collectives, process_group
from rsbdali.distributed.launch import exit_code
from rsbdali.distributed.world import World
from rsbdali.recipe import Recipe
from rsbdali.runs.checkpoint_manager import CheckpointManager
from rsbdali.runs.find_checkpoint import find_saved, resume_from
from rsbdali.runs.folder import RunFolder
from rsbdali.runs.state import Identity
from rsbdali.training.live_display import Plain, Silent
from rsbdali.training.options import TrainOptions
from rsbdali.training.train import make_state
from rsbdali.training.trainer import Run, Trainer


def main(folder: Path, steps: int, *pairs: str) -> int:
    torch.set_num_threads(1)
    chosen = recipe().with_overrides(dict(pair.split("=") for pair in pairs))
    world = World.from_env()
    with process_group.process_group(world, torch.device("cpu")):
        return run(folder, steps, chosen, world)


def run(folder: Path, steps: int, chosen: Recipe, world: World) -> int:
    """Train; a function of its own, so that DDP is gone before the process group (torch 2.7 hangs otherwise)."""
    device, place = torch.device("cpu"), {"rank": world.rank, "world_size": world.size}
    loader, evaluation = FakeTrainLoader(chosen, steps=steps, **place), FakeEvalLoader(chosen, **place)
    state = make_state(chosen, CLASSES, device)
    identity = Identity(chosen, tuple(map(str, range(CLASSES))), chosen.mix_groups, steps)
    resume_from(find_saved("auto", folder), state, identity)
    collectives.barrier(world)
    files = RunFolder(folder, epoch=state.epoch, step=state.step) if world.is_rank_zero else None
    saver = CheckpointManager(folder, 2, state.history) if world.is_rank_zero else None
    prepared = Run(
        state=state,
        identity=identity,
        loader=loader,
        eval_loader=evaluation,
        device=device,
        amp_dtype=torch.float32,
        world=world,
        reporter=Plain(chosen, steps) if files else Silent(),
        files=files,
        saver=saver,
    )
    outcome = Trainer(prepared, TrainOptions(recipe=chosen, data=folder)).run()
    if world.is_rank_zero:
        content = {"state_dict": state.model.state_dict(), "last": vars(outcome.last) if outcome.last else None}
        torch.save(content, folder / "state.pt")
    collectives.barrier(world)
    return 0 if outcome.signal is None else exit_code(outcome.signal)


if __name__ == "__main__":
    logging.basicConfig(stream=sys.stdout)
    logging.getLogger("rsbdali").setLevel(logging.INFO)
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:]))
