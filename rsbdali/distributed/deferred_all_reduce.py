"""Numbers of the device that the host reads one call late, so that neither waits for the other.

    step s      GPU: [ step s ........ ][copy s]
    host:       queue s+1, then read s: the GPU has s+1 to do meanwhile

Reading happens behind one whole queued step. It also keeps the host from running further ahead than that.
"""

import torch

from rsbdali.distributed import collectives
from rsbdali.distributed.world import World


class DeferredAllReduce:
    """A vector of numbers summed over the ranks, delivered one call late.

    Every rank gets the same numbers at the same call, so decisions taken from them (stop, fail) are common ones.

    Args:
        device: where the numbers come from.
        world: the processes to sum over.
    """

    def __init__(self, device: torch.device, world: World) -> None:
        self._device, self._world = device, world
        self._pending: tuple[torch.Tensor, torch.cuda.Event | None] | None = None

    def submit(self, value_K: torch.Tensor) -> list[float] | None:
        """Queue numbers (float32 or float64, shape (K,), on the device) and return those of the call before, if any."""
        total_K = collectives.all_reduce_sum(value_K.detach().clone(), self._world)
        before = self.result()
        if self._device.type == "cuda":
            host_K = torch.empty(total_K.shape, dtype=total_K.dtype, device="cpu", pin_memory=True)
            host_K.copy_(total_K, non_blocking=True)
            event = torch.cuda.Event(blocking=True)  # waiting for any other spins a core that the loader could use
            event.record()
            self._pending = host_K, event
        else:
            self._pending = total_K, None
        return before

    def result(self) -> list[float] | None:
        """The numbers still under way, waiting for them; None where there are none."""
        if self._pending is None:
            return None
        host_K, event = self._pending
        self._pending = None
        if event is not None:
            event.synchronize()
        numbers: list[float] = host_K.tolist()
        return numbers
