"""Times of single calls on a device, and its two ceilings: a copy's bytes and a matmul's operations a second."""

import statistics
import time
from collections.abc import Callable, Sequence
from itertools import cycle, islice, pairwise

import torch

Call = Callable[[], object]
COPY_BYTES = {"cuda": 1 << 30, "cpu": 1 << 27}  # far more than any cache holds
MATMUL_SIDE = {"cuda": 8192, "cpu": 2048}
SLEEP_HZ = 2e9  # cycles of a GPU's second, about; the sleep only has to be long enough
REPEATS = {"cuda": 20, "cpu": 3}
MATMULS = {"cuda": 200, "cpu": 3}  # the clock of a GPU that has worked for a while
BURST = 4


def finisher(device: torch.device) -> Callable[[], None]:
    """A function that waits until the device has done what was queued."""
    return (lambda: torch.cuda.synchronize(device)) if device.type == "cuda" else _nothing


def _nothing() -> None:
    """A CPU has done what was called."""


def seconds_of(calls: Sequence[Call], device: torch.device, repeats: int | None = None) -> float:
    """Median seconds of one call, taking `calls` in turn: the same work on other memory, so that no cache holds it.

    On a GPU the calls are queued behind a sleep that is longer than queueing them takes: the times between their events
    are the device's own, without the host's. A call that waits for the device breaks this, and its wait counts.

    Args:
        calls: one or more.
        device: where they run.
        repeats: timed calls; each of `calls` is made once before.
    """
    count = repeats or max(REPEATS[device.type], len(calls) if device.type == "cuda" else 1)
    for call in calls:
        call()
    if device.type == "cpu":
        return statistics.median(_clocked(call) for call in islice(cycle(calls), count))
    turns = cycle(calls)
    # few at a time: a GPU's queue holds a thousand kernels, and then the host waits
    bursts = [list(islice(turns, BURST)) for _ in range(-(-count // BURST))]
    # all of them once before any is timed, else a burst would find its memory in the cache
    host_s = max(_queueing(burst, device) for burst in bursts)
    return statistics.median(seconds for burst in bursts for seconds in _behind_a_sleep(burst, 2 * host_s, device))


def _queueing(calls: Sequence[Call], device: torch.device) -> float:
    """Seconds that the host takes to queue some calls."""
    torch.cuda.synchronize(device)
    begin = time.perf_counter()
    for call in calls:
        call()
    return time.perf_counter() - begin


def _behind_a_sleep(calls: Sequence[Call], sleep_s: float, device: torch.device) -> list[float]:
    """Seconds of each call on the GPU, queued while it sleeps."""
    torch.cuda.synchronize(device)
    events = [torch.cuda.Event(enable_timing=True) for _ in range(len(calls) + 1)]
    torch.cuda._sleep(int(sleep_s * SLEEP_HZ))
    events[0].record()
    for call, event in zip(calls, events[1:], strict=True):
        call()
        event.record()
    torch.cuda.synchronize(device)
    return [first.elapsed_time(second) / 1e3 for first, second in pairwise(events)]


def _clocked(call: Call) -> float:
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def copy_bandwidth(device: torch.device) -> float:
    """Bytes a second, read and written together, of copying one large tensor to another."""
    count = COPY_BYTES[device.type]
    source = torch.randint(256, (count,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * count / seconds_of([lambda: target.copy_(source)], device)


def matmul_peak(device: torch.device, dtype: torch.dtype) -> float:
    """Operations a second (a multiplication and an addition are two) of a large square matmul of random numbers.

    Random, since a GPU that multiplies zeros draws less power and runs faster than it would on data.
    """
    side = MATMUL_SIDE[device.type]
    left, right = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    out = torch.empty(side, side, device=device, dtype=dtype)
    return 2 * side**3 / seconds_of([lambda: torch.mm(left, right, out=out)], device, MATMULS[device.type])
