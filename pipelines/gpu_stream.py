"""A CUDA stream of its own for what makes batches, and memory lent to a stream; the host never waits.

    DALI's stream ──event──> side stream: kernels ──event──> the caller's stream

The priority is high: small kernels would queue behind the model's large ones.
"""

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


class SideStream:
    """Where the kernels of a loader run, beside the model's.

    Args:
        device: a CUDA device.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device, priority=-1)

    @contextmanager
    def current(self) -> Iterator[None]:
        """Let what is launched meanwhile run on this stream, on this device."""
        with torch.cuda.device(self._device), torch.cuda.stream(self._stream):
            yield

    def hand_over(self, made: torch.Tensor) -> torch.Tensor:
        """Let the caller's stream, which may use this tensor of this stream from now on, wait until it is made."""
        with torch.cuda.device(self._device):
            event = torch.cuda.Event()
            event.record(self._stream)
            caller = torch.cuda.current_stream(self._device)
            caller.wait_event(event)
        made.record_stream(caller)
        return made


class Lent:
    """Memory of DALI's that kernels on the current stream read: kept until they have ended, which DALI cannot know.

    Args:
        device: a CUDA device.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._read: Any = None
        self._held: deque[tuple[torch.cuda.Event, Any]] = deque()

    def lend(self, memory: Any) -> None:
        """Keep this while it is read, by kernels that are launched before the next call."""
        with torch.cuda.device(self._device):
            event = torch.cuda.Event()
            event.record()
        self._held.append((event, self._read))
        self._read = memory
        while self._held and self._held[0][0].query():
            self._held.popleft()

    def close(self) -> None:
        """Wait for what has been launched, and give everything back."""
        torch.cuda.synchronize(self._device)
        self._held.clear()
        self._read = None
