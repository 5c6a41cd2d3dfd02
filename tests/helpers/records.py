"""The record of a run in a checkpoint, for tests that only care for its place."""

from collections.abc import Mapping
from typing import Any

from rsbdali.runs.checkpoint_record import Record


def record(epoch: int, step: int = 0, history: Mapping[str, float] | None = None) -> dict[str, Any]:
    """As a run of one class would write it."""
    return Record(
        recipe={},
        versions={},
        epoch=epoch,
        step=step,
        class_names=("a",),
        mix_groups=1,
        steps_per_epoch=9,
        updates=0,
        loss_sum=0.0,
        loss_steps=0,
        seconds=0.0,
        best_top1=None,
        best_epoch=None,
        history=history or {},
    ).to_dict()
