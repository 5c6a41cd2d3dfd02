"""The loop of a run: steps, statistics, evaluation, files, epoch after epoch, until the end or a signal.

    steps of the epoch ─> dist_bn ─> evaluation at the test size ─> summary, checkpoints ─> next epoch
       signal: save (epoch, step) ──────── signal: save (epoch, all steps): a resume evaluates first
       interval: save, and on

All ranks decide alike: what they decide by (a signal, a save that rank 0's clock asks for, a loss that is not finite)
is summed over the ranks, together with the loss.
"""

import logging
import signal
import time
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from timm.utils import distribute_bn

from rsbdali.distributed import collectives
from rsbdali.distributed.world import World
from rsbdali.loader import EvalLoader, TrainLoader
from rsbdali.runs.checkpoint_manager import CheckpointManager
from rsbdali.runs.folder import RunFolder
from rsbdali.runs.state import Identity, RunState
from rsbdali.training.acceleration import make_step
from rsbdali.training.evaluate import EvalResult, Stopped, evaluate
from rsbdali.training.live_display import EpochReport, Reporter, StepReport
from rsbdali.training.nonfinite import LossWatch, UpdateGuard
from rsbdali.training.optim import Schedule
from rsbdali.training.options import TrainOptions
from rsbdali.training.save_interval import Due
from rsbdali.training.signals import StopRequest, from_row
from rsbdali.training.statistics import weigh_statistics
from rsbdali.training.step import StepResult
from rsbdali.training.throughput import ThroughputMeter, is_evaluated

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Outcome:
    """What the loop did.

    Attributes:
        epochs: epochs that are complete.
        best_top1: best evaluation, per cent.
        best_epoch: its epoch, from 0.
        last: the last evaluation of this session.
        signal: what ended the run before its time.
        updates: optimizer steps of this session.
    """

    epochs: int
    best_top1: float | None
    best_epoch: int | None
    last: EvalResult | None
    signal: signal.Signals | None
    updates: int = 0

    @property
    def is_idle(self) -> bool:
        """Whether this session found nothing left to do."""
        return self.updates == 0 and self.last is None and self.signal is None


@dataclass(frozen=True, kw_only=True)
class Run:
    """What a trainer works on.

    Attributes:
        state: model, optimizer and position, on the device.
        identity: goes into the checkpoints; holds the recipe.
        loader: training batches of this rank.
        eval_loader: evaluation batches of this rank.
        device: of the model.
        amp_dtype: of autocast.
        world: the processes.
        reporter: shows progress.
        files: of the run; None on ranks that write nothing.
        saver: of checkpoints; None on ranks that write nothing.
    """

    state: RunState
    identity: Identity
    loader: TrainLoader
    eval_loader: EvalLoader
    device: torch.device
    amp_dtype: torch.dtype
    world: World
    reporter: Reporter
    files: RunFolder | None = None
    saver: CheckpointManager | None = None


class Trainer:
    """Runs a `RunState` to the end of its recipe.

    Args:
        run: what is trained, and where its figures go.
        options: `on_nan`, `checkpoint_every` and the step's acceleration.
    """

    def __init__(self, run: Run, options: TrainOptions) -> None:
        self.state, self.identity, self.recipe = run.state, run.identity, run.identity.recipe
        self.loader, self.eval_loader, self.device, self.amp_dtype = (
            run.loader,
            run.eval_loader,
            run.device,
            run.amp_dtype,
        )
        self.world, self.reporter, self.files, self.saver = run.world, run.reporter, run.files, run.saver
        state = run.state
        self._step = make_step(
            state.model,
            state.optimizer,
            state.scaler,
            self.recipe,
            acceleration=options.acceleration,
            device=run.device,
            amp_dtype=run.amp_dtype,
            world=run.world,
            ema=state.ema,
            guard=UpdateGuard(state.model, run.world) if options.on_nan == "skip" else None,
        )
        self._scale = state.scaler.get_scale() if state.scaler.is_enabled() else None
        folder = run.files.path if run.files else None
        self._losses = LossWatch(
            options.on_nan, scale=self._scale, world=run.world, folder=folder, name_of=run.loader.index.path
        )
        self._schedule = Schedule(state.optimizer, self.recipe)
        self._pace = ThroughputMeter(self.recipe, run.loader.steps_per_epoch)
        self._stop, self._due = StopRequest(says=run.world.is_rank_zero), Due(options.save_every)
        self._lr = 0.0
        self._last: EvalResult | None = None
        self._began = time.perf_counter() - state.seconds

    def run(self) -> Outcome:
        """Train to the last epoch or to a signal; either way the state is saved, and on the disk.

        Raises:
            RecipeError: a loss was not finite, and `on_nan` says stop.
            CheckpointError: a checkpoint could not be written.
        """
        stopped, before = None, self.state.updates
        with self._stop, self.saver or nullcontext():  # waits for the last save while signals are still caught
            while self.state.epoch < self.recipe.epochs and stopped is None:
                stopped = self._epoch()
        self.state.seconds = time.perf_counter() - self._began
        best = self.state.best_top1, self.state.best_epoch
        return Outcome(self.state.epoch, *best, self._last, stopped, self.state.updates - before)

    def _epoch(self) -> signal.Signals | None:
        """One epoch, or what is left of it. Returns the signal that broke it off."""
        self._lr = self._schedule.set_epoch(self.state.epoch)
        stopped = self._steps()
        self._share_statistics()
        result: EvalResult | None = None
        more: dict[str, Any] = {}
        if stopped is None and is_evaluated(self.state.epoch, self.recipe.eval_every, self.recipe.epochs):
            try:
                result, more = self._evaluate()
            except Stopped:  # all ranks are here together
                row = torch.tensor(self._stop.as_row(), dtype=torch.float32, device=self.device)
                stopped = from_row(collectives.all_reduce_sum(row, self.world).tolist())
        if stopped is None:
            self._finish(result, more)
        elif self.saver is not None:
            self.saver.save_last(self._content(None))
        return stopped

    def _steps(self) -> signal.Signals | None:
        state, steps = self.state, self.loader.steps_per_epoch
        self._pace.start_epoch(self.loader.wait_s)
        if state.step == steps:  # resumed after the last step: only the evaluation is left
            return None
        state.model.train()
        self.loader.seek(state.epoch, state.step)
        batches = iter(self.loader)
        stopped = None
        while state.step < steps and stopped is None:
            groups = islice(batches, self.loader.groups_per_step)
            result = self._step(self._losses.passing(groups), update=state.updates + 1, flags=self._flags)
            state.step, state.updates = state.step + 1, state.updates + 1
            self._pace.step(self.loader.wait_s)
            stopped, is_due = self._observe(result, step=state.step - 2)
            self._show()
            if stopped is None and state.step < steps and (is_due or self._due.by_steps(state.updates)):
                stopped = self._save_between()
        last, _ = self._observe(self._step.last_result(), step=state.step - 1)
        return stopped or last

    def _flags(self) -> list[float]:
        """Flags of this rank, summed over the ranks: the signal it got, and on rank 0 whether a save is due."""
        return [*self._stop.as_row(), float(self.world.is_rank_zero and self._due.by_time())]

    def _observe(self, result: StepResult | None, step: int) -> tuple[signal.Signals | None, bool]:
        """Record a step's loss. Returns the signal that a rank got, if any, and whether a save is due."""
        if result is None:
            return None, False
        self._scale = None if self._scale is None else result.scale
        if self._losses.observe(result.loss, self.state.epoch, step, result.scale):
            self.state.loss_sum, self.state.loss_steps = self.state.loss_sum + result.loss, self.state.loss_steps + 1
        *stop, save = result.flags
        return from_row(stop), save > 0

    def _save_between(self) -> signal.Signals | None:
        """Save in mid-epoch, once the last step's loss is known. Returns the signal that arrived meanwhile."""
        stopped, _ = self._observe(self._step.last_result(), step=self.state.step - 1)
        if stopped is None:  # else it is saved on the way out
            self._share_statistics()
            if self.saver is not None:
                self.saver.save_last(self._content(None))
            self._due.saved()
        return stopped

    def _show(self) -> None:
        state = self.state
        if self.saver is not None:
            self.saver.check()
        speed = self._pace.speed(state.epoch, state.step)
        loss = state.mean_loss if state.loss_steps else None
        self.reporter.step(StepReport(state.epoch, state.step, loss, self._lr, speed, state.best_top1))
        if self.files is not None and state.step % self.recipe.log_interval == 0:
            figures = {"images_per_s": speed.images_per_s, "wait_share": speed.wait_share}
            position = {"kind": "step", "epoch": state.epoch, "step": state.step}
            if self._scale is not None:
                figures["loss_scale"] = self._scale
            self.files.add_metrics({**position, "loss": state.mean_loss, "lr": self._lr, **figures})

    def _share_statistics(self) -> None:
        """BatchNorm's running statistics, averaged over the ranks or taken from rank 0 (timm's `dist_bn`).

        The average is one over rows: a rank that owns more mix groups counts for more.
        """
        if self.world.size == 1 or self.recipe.dist_bn == "none":
            return
        for model in (self.state.model, self.state.ema.module if self.state.ema is not None else None):
            if model is not None:
                is_mean = self.recipe.dist_bn == "reduce"
                if is_mean:
                    weigh_statistics(model, self.recipe.mix_groups, self.world)
                distribute_bn(model, self.world.size, is_mean)

    def _evaluate(self) -> tuple[EvalResult, dict[str, Any]]:
        """The figures that count, and those of the raw weights where averaged ones count."""
        self.reporter.evaluating()
        start = time.perf_counter()
        result, more = self._figures(self.state.evaluated_model), {}
        if self.state.ema is not None:
            raw = self._figures(self.state.model)
            more = {"eval_raw_top1": raw.top1, "eval_raw_top5": raw.top5, "eval_raw_loss": raw.loss}
        self._pace.evaluated(time.perf_counter() - start)
        self._last = result
        return result, more

    def _figures(self, model: torch.nn.Module) -> EvalResult:
        return evaluate(
            model,
            self.eval_loader,
            device=self.device,
            amp_dtype=self.amp_dtype,
            world=self.world,
            should_stop=lambda: self._stop.signal is not None,
        )

    def _finish(self, result: EvalResult | None, more: dict[str, Any]) -> None:
        """Close an epoch: best figures, files, checkpoints, position."""
        state, epoch, loss = self.state, self.state.epoch, self.state.mean_loss
        is_best = result is not None and (state.best_top1 is None or result.top1 > state.best_top1)
        if result is not None and is_best:
            state.best_top1, state.best_epoch = result.top1, epoch
        state.epoch, state.step, state.loss_sum, state.loss_steps = epoch + 1, 0, 0.0, 0
        speed = self._pace.epoch_speed(epoch)
        if self.files is not None:
            row = {"epoch": epoch, "train_loss": loss, "lr": self._lr, **_eval_columns(result)}
            figures = {"images_per_s": speed.images_per_s, "wait_share": speed.wait_share}
            self.files.add_epoch(row, {**figures, **more})
        self._save(result, epoch, is_best=is_best)
        self.reporter.epoch(EpochReport(epoch, loss, self._lr, speed, result, state.best_top1))

    def _save(self, result: EvalResult | None, epoch: int, *, is_best: bool) -> None:
        self._due.saved()
        if self.saver is None:
            return
        if result is None:
            self.saver.save_last(self._content(None))
            return
        self.state.history = self.saver.history_with(epoch, result.top1)
        self.saver.save_epoch(self._content(result.top1), epoch, result.top1, is_best=is_best)

    def _content(self, metric: float | None) -> dict[str, Any]:
        self.state.seconds = time.perf_counter() - self._began
        return self.state.to_checkpoint(self.identity, metric)


def _eval_columns(result: EvalResult | None) -> dict[str, float]:
    if result is None:
        return {}
    return {"eval_loss": result.loss, "eval_top1": result.top1, "eval_top5": result.top5}
