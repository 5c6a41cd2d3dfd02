"""Losses that are not finite: `--on-nan stop` ends the run and names the batch, `skip` leaves that step's update out.

    stop: the loss is read a step late, so the host never waits; the step and its images go to nan-<epoch>-<step>.json
    skip: loss and gradients are looked at before each update, so the host waits for the GPU once a step

float16's GradScaler leaves out steps by itself while it looks for a scale that fits, and halves it at each. Below 1 it
would make gradients smaller than they are: nothing fits any more, and the run is stopped, whatever its losses.
"""

import json
import logging
import math
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from rsbdali.distributed import collectives
from rsbdali.distributed.launch import NPROC
from rsbdali.distributed.world import World
from rsbdali.errors import RecipeError
from rsbdali.loader.batch import TrainBatch
from rsbdali.runs.resume_command import resume_command, shell_word

log = logging.getLogger(__name__)

OnNan = Literal["stop", "skip"]
MAX_IN_A_ROW = 20  # GradScaler's first scale, 65536, is below 1 after 17
MIN_SCALE = 1.0


class LossWatch:
    """Observes every loss, and ends the run at the first that is not finite, or the last of too many.

    Args:
        on_nan: stop or skip.
        scale: GradScaler's at the start; None where none is at work.
        world: the processes; each gets the same losses at the same time.
        folder: of the run, where the batch is noted; None on ranks that write nothing.
        name_of: the name of an image by its row of the index.
    """

    def __init__(
        self,
        on_nan: OnNan,
        *,
        scale: float | None,
        world: World,
        folder: Path | None = None,
        name_of: Callable[[int], str] = str,
    ) -> None:
        self._allowed = MAX_IN_A_ROW if scale is not None or on_nan == "skip" else 1
        self._world, self._folder, self._name_of = world, folder, name_of
        self._in_a_row, self._scale = 0, scale
        # what the last two steps were made of, as losses come a step late
        self._seen: dict[tuple[int, int], list[dict[str, Any]]] = {}

    def passing(self, batches: Iterable[TrainBatch]) -> Iterator[TrainBatch]:
        """The batches of a step, remembered as they pass."""
        for batch in batches:
            key = batch.epoch, batch.step
            if key not in self._seen:
                self._seen = {**dict(list(self._seen.items())[-1:]), key: []}
            self._seen[key].append({"group": batch.group, "samples": batch.plan.sample_N})
            yield batch

    def observe(self, loss: float, epoch: int, step: int, scale: float = 1.0) -> bool:
        """Whether the loss of a step (both counted from 0) is finite; `scale` is GradScaler's after it.

        Raises:
            RecipeError: it is not, or the scale is below 1, and the run cannot go on; all ranks raise it at the same
                step.
        """
        before, self._scale = self._scale, scale
        if math.isfinite(loss):
            self._in_a_row = 0
            if before is not None and scale < before:
                self._note_overflow(before, scale, epoch, step)
            return True
        self._in_a_row += 1
        if self._in_a_row >= self._allowed or scale < MIN_SCALE:
            raise RecipeError(self._end(loss, epoch, step))
        log.warning("the loss of epoch %d step %d is %s: its update is left out", epoch + 1, step + 1, loss)
        return False

    def _note_overflow(self, before: float, scale: float, epoch: int, step: int) -> None:
        position = f"epoch {epoch + 1} step {step + 1}"
        if scale < MIN_SCALE:
            raise RecipeError(
                f"float16's loss scale fell to {scale:g} in {position}: gradients overflow at every scale, and such an "
                "update is left out: lower lr, set clip_grad, or set amp_dtype=float32 (bfloat16 from sm_80 on)"
            )
        log.info("float16's loss scale went from %g to %g: the update of %s is left out", before, scale, position)

    def _end(self, loss: float, epoch: int, step: int) -> str:
        groups = _from_all_ranks(self._seen.get((epoch, step), []), self._world)
        times = f" for {self._in_a_row} steps in a row, up to" if self._in_a_row > 1 else " in"
        said = f"the loss was {loss}{times} epoch {epoch + 1} step {step + 1}"
        advice = "lower lr or set clip_grad; the last checkpoint is from before"
        if self._folder is None:
            return f"{said}: {advice}"
        advice += f": {resume_command(self._folder, self._world, launched=NPROC in os.environ)} --clip-grad 1"
        file = self._folder / f"nan-{epoch}-{step}.json"
        for group in groups:
            group["samples"] = [int(sample) for sample in group["samples"]]
            group["names"] = [self._name_of(sample) for sample in group["samples"]]
        # the command line counts as the run's lines do, from 1
        replay = f"rsbdali replay --run {shell_word(str(self._folder))} --epoch {epoch + 1} --step {step + 1}"
        record = {"epoch": epoch, "step": step, "loss": str(loss), "replay": replay, "groups": groups}
        file.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        return f"{said}: its images are listed in {file}, `{replay}` shows them; {advice}"


def _from_all_ranks(groups: list[dict[str, Any]], world: World) -> list[dict[str, Any]]:
    """The mix groups of all ranks in their order, each with its rank."""
    mine = [{"rank": world.rank, **group} for group in groups]
    everyones = collectives.from_all(mine, world)
    return sorted((group for each in everyones for group in each), key=lambda group: int(group["group"]))


class UpdateGuard:
    """Says before each update whether it may be made, and takes a step's traces out of BatchNorm's statistics if not.

    Args:
        model: not wrapped.
        world: the processes; all of them get the same answer.
    """

    def __init__(self, model: nn.Module, world: World) -> None:
        self._parameters, self._world = list(model.parameters()), world
        self._buffers = list(model.buffers())
        self._before: list[torch.Tensor] = []
        self._in_a_row = 0

    def remember(self) -> None:
        """Before the forward pass: keep the statistics as they are."""
        self._before = [buffer.clone() for buffer in self._buffers]

    @torch.no_grad()
    def allows(self, loss: torch.Tensor) -> bool:
        """After the backward pass: whether loss (of this rank) and gradients are finite. Waits for the GPU.

        Raises:
            RecipeError: too many in a row were not.
        """
        total = collectives.all_reduce_sum(loss.detach().clone(), self._world)
        # DDP has brought the gradients of all ranks together; a norm without a limit changes nothing
        norm = nn.utils.clip_grad_norm_(self._parameters, math.inf)
        if bool(torch.isfinite(total) & torch.isfinite(norm)):
            self._in_a_row = 0
            return True
        for buffer, before in zip(self._buffers, self._before, strict=True):
            buffer.copy_(before)
        self._in_a_row += 1
        if self._in_a_row >= MAX_IN_A_ROW:
            raise RecipeError(
                f"the loss or its gradient was not finite for {self._in_a_row} steps in a row, each left out: lower lr "
                "or set clip_grad; the last checkpoint is from before"
            )
        return False
