"""What a loader says of itself: who makes its batches, and how far ahead. By its attributes, whatever class it has."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import GeneratorType
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Traits:
    """How a loader works.

    Attributes:
        workers: processes or threads that make its batches; 0: the loop's own thread does; None: not known.
        option: the argument that sets their number; empty: not known.
        processes: whether they are processes.
        prefetch: batches that each process has ahead, where that is known.
        persistent: whether processes live longer than a pass.
        takes_turns: batch k comes from process k mod `workers`.
    """

    workers: int | None = None
    option: str = ""
    processes: bool = False
    prefetch: int = 1
    persistent: bool = True
    takes_turns: bool = False


def traits_of(loader: Any) -> Traits:
    """By what torch's DataLoader, DALI's iterators, FFCV's Loader and our loaders have; else nothing is known."""
    workers = getattr(loader, "num_workers", None)
    if isinstance(workers, int) and hasattr(loader, "prefetch_factor"):  # torch's DataLoader
        return Traits(
            workers=workers,
            option="num_workers",
            processes=workers > 0,
            prefetch=loader.prefetch_factor or 1,
            persistent=bool(getattr(loader, "persistent_workers", False)),
            takes_turns=getattr(loader, "in_order", True),
        )
    if isinstance(workers, int):  # FFCV's Loader: threads
        return Traits(workers=workers, option="num_workers")
    ours = getattr(loader, "loader", loader)
    if isinstance(threads := getattr(ours, "num_threads", None), int):
        return Traits(workers=threads, option="num_workers" if ours is not loader else "num_threads")
    if pipelines := getattr(loader, "_pipes", None):  # DALI's iterators
        return Traits(workers=sum(pipeline.num_threads for pipeline in pipelines), option="num_threads")
    return Traits(workers=0) if isinstance(loader, GeneratorType) else Traits()


def worker_ids(iterator: Any) -> list[int]:
    """Process ids of the workers behind an iterator of torch's DataLoader; none of another one."""
    return [worker.pid for worker in getattr(iterator, "_workers", ()) if isinstance(worker.pid, int)]


def batches_ready(iterator: Any) -> int:
    """Batches that torch's DataLoader has got before their turn; -1 where that is not known."""
    tasks = getattr(iterator, "_task_info", None)
    return sum(len(task) > 1 for task in tasks.values()) if isinstance(tasks, dict) else -1


def rows_of(batch: Any) -> int | None:
    """Rows of a batch: the length of the first tensor or array in it, however nested; None where there is none."""
    if (shape := getattr(batch, "shape", None)) is not None:
        return int(shape[0]) if len(shape) else None
    if isinstance(batch, Mapping):
        parts: Sequence[Any] = list(batch.values())
    elif isinstance(batch, list | tuple):
        parts = batch
    else:
        parts = [images] if (images := getattr(batch, "images", None)) is not None else []
    return next((rows for part in parts if (rows := rows_of(part)) is not None), None)


def is_pageable(batch: Any) -> bool:
    """Whether a batch is in host memory that a GPU can only copy from while the host waits."""
    torch = sys.modules.get("torch")
    if torch is None:
        return False
    if isinstance(batch, torch.Tensor):
        return batch.device.type == "cpu" and not batch.is_pinned()
    parts = batch.values() if isinstance(batch, Mapping) else batch if isinstance(batch, list | tuple) else ()
    return any(map(is_pageable, parts))
