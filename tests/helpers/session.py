"""One session of a run of the toy problem (fakes.py) in a folder; the fixture `toy` makes them."""

from pathlib import Path
from typing import Any

import torch

from helpers.common import CPU
from helpers.fakes import CLASSES, FakeEvalLoader, FakeTrainLoader
from rsbdali.distributed.world import World
from rsbdali.recipe import Recipe
from rsbdali.runs.checkpoint_manager import CheckpointManager
from rsbdali.runs.find_checkpoint import find_saved, resume_from
from rsbdali.runs.folder import RunFolder
from rsbdali.runs.state import Identity, RunState
from rsbdali.training import trainer
from rsbdali.training.live_display import EpochReport, Silent, StepReport
from rsbdali.training.options import TrainOptions
from rsbdali.training.train import make_state


class Listener(Silent):
    """Remembers what a reporter gets."""

    def __init__(self) -> None:
        self.steps: list[StepReport] = []
        self.epochs: list[EpochReport] = []

    def step(self, report: StepReport) -> None:
        self.steps.append(report)

    def epoch(self, report: EpochReport) -> None:
        self.epochs.append(report)


class Run:
    """One session of a toy run in a folder."""

    def __init__(self, folder: Path, recipe: Recipe, *, steps: int = 3, resume: str = "auto", **more: Any) -> None:
        name_of = more.pop("name_of", str)
        self.state: RunState = make_state(recipe, CLASSES, CPU)
        identity = Identity(recipe, tuple("abcd"), recipe.mix_groups, steps)
        resume_from(find_saved(resume, folder), self.state, identity)
        self.loader, self.eval_loader = FakeTrainLoader(recipe, steps=steps), FakeEvalLoader(recipe)
        self.loader.index.path = name_of
        self.listener = Listener()
        run = trainer.Run(
            state=self.state,
            identity=identity,
            loader=self.loader,
            eval_loader=self.eval_loader,
            device=CPU,
            amp_dtype=torch.float32,
            world=World(),
            reporter=self.listener,
            files=RunFolder(folder, epoch=self.state.epoch, step=self.state.step),
            saver=CheckpointManager(folder, recipe.checkpoint_hist, self.state.history),
        )
        self.trainer = trainer.Trainer(run, TrainOptions(recipe=recipe, data=folder, **more))

    def go(self) -> trainer.Outcome:
        return self.trainer.run()
