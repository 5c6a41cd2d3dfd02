"""Small collectives between ranks; for a single process they do nothing."""

from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from rsbdali.distributed.process_group import patient_group
from rsbdali.distributed.world import World
from rsbdali.errors import RsbdaliError

T = TypeVar("T")


def barrier(world: World) -> None:
    """Wait for all processes, for as long as `PATIENCE`."""
    if world.size > 1:
        dist.barrier(group=patient_group())


def all_reduce_sum(tensor: torch.Tensor, world: World) -> torch.Tensor:
    """Sum a tensor over all processes in place, and return it. Does not wait for the GPU."""
    if world.size > 1:
        dist.all_reduce(tensor)
    return tensor


def broadcast_object(value: T, world: World) -> T:
    """Rank 0's plain value (text, numbers) on every rank."""
    if world.size == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0, group=patient_group())
    return box[0]


def from_all(value: T, world: World) -> list[T]:
    """Every rank's plain value, by rank."""
    if world.size == 1:
        return [value]
    box: list[Any] = [None] * world.size
    dist.all_gather_object(box, value, group=patient_group())
    return box


def rank_zero_first(make: Callable[[bool], T], world: World) -> T:
    """`make(True)` on rank 0, which may fill a cache; then `make(False)` on the others. Raises as `on_all_ranks`."""
    made: list[T] = []

    def take_turn(first: bool) -> None:
        if first == world.is_rank_zero:
            made.append(make(first))

    on_all_ranks(lambda: take_turn(True), world)
    on_all_ranks(lambda: take_turn(False), world)
    return made[0]


def on_all_ranks(make: Callable[[], T], world: World) -> T:
    """`make()` on every rank, and a mistake of the user on any of them ends all.

    Raises:
        RsbdaliError: from `make`. On ranks that it did not fail on, or failed on too, it is a copy of the first one's
            that is not printed (`reported_elsewhere`).
    """
    try:
        value, failure = make(), None
    except RsbdaliError as error:
        failure = error
    gathered = from_all(None if failure is None else (str(failure), failure.exit_code), world)
    failures = [(rank, *text) for rank, text in enumerate(gathered) if text is not None]
    if not failures:
        return value
    first, message, code = failures[0]
    if failure is not None and first == world.rank:
        raise failure
    copy = RsbdaliError(f"rank {first}: {message}")
    copy.reported_elsewhere, copy.exit_code = True, code
    raise copy from failure
