"""Top-1, top-5 and cross entropy of a model over every image of a loader, counted exactly, over all ranks."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from rsbdali.distributed import collectives
from rsbdali.distributed.deferred_all_reduce import DeferredAllReduce
from rsbdali.distributed.world import World
from rsbdali.errors import DataError, counted
from rsbdali.loader.batch import EvalBatch
from rsbdali.training.precision import autocast


@dataclass(frozen=True)
class EvalResult:
    """Counts and means over `n` images.

    Attributes:
        top1: per cent of images whose class got the highest score.
        top5: per cent whose class is among the five highest (all of them where there are fewer classes).
        loss: mean cross entropy, without smoothing.
        n: images counted.
    """

    top1: float
    top5: float
    loss: float
    n: int

    def line(self) -> str:
        """All of it for people."""
        return f"top-1 {self.top1:.3f} %  top-5 {self.top5:.3f} %  CE {self.loss:.7f}  over {counted(self.n, 'image')}"


class Stopped(Exception):
    """The evaluation was given up because a stop was asked for on some rank."""


@torch.inference_mode()
def evaluate(
    model: nn.Module,
    loader: Iterable[EvalBatch],
    *,
    device: torch.device,
    amp_dtype: torch.dtype = torch.float32,
    world: World | None = None,
    should_stop: Callable[[], bool] = bool,
) -> EvalResult:
    """Evaluate a model; it is left in evaluation mode.

    The sums are float64 and run in the loader's order, so one checkpoint gives the same figures at every call.

    Args:
        model: not wrapped by DDP, on the device.
        loader: batches, equally many on all ranks; a label of -1 is padding and not counted, a batch may be empty.
        device: of the model.
        amp_dtype: of autocast; float32 means none.
        world: the processes whose counts are summed; None for this one alone.
        should_stop: asked at every batch; when any rank says yes, all of them raise `Stopped`, one batch later.

    Raises:
        DataError: there was no labeled image.
        Stopped: see should_stop.
    """
    world = world or World()
    model.eval()
    stop = DeferredAllReduce(device, world)
    total_4 = torch.zeros(4, dtype=torch.float64, device=device)
    for batch in loader:
        if len(batch.label_N):
            total_4 += _count(model, batch, device, amp_dtype)
        stops = stop.submit(torch.full((1,), float(should_stop()), dtype=torch.float32, device=device))
        if stops and stops[0]:
            raise Stopped
    top1, top5, loss, n = collectives.all_reduce_sum(total_4, world).tolist()
    if not n:
        raise DataError("there is no labeled image to evaluate on")
    return EvalResult(100 * top1 / n, 100 * top5 / n, loss / n, int(n))


def _count(model: nn.Module, batch: EvalBatch, device: torch.device, amp_dtype: torch.dtype) -> torch.Tensor:
    """Top-1 hits, top-5 hits, summed loss and images of one batch: float64, shape (4,), on the device."""
    with autocast(device, amp_dtype):
        logits_NC = model(batch.images).float()
    label_N = batch.label_N
    counted_N = label_N >= 0
    best_NK = logits_NC.topk(min(5, logits_NC.shape[1]), dim=1).indices
    hit_NK = (best_NK == label_N.unsqueeze(1)) & counted_N.unsqueeze(1)
    loss_N = F.cross_entropy(logits_NC, label_N, ignore_index=-1, reduction="none")
    sums = hit_NK[:, 0].sum(), hit_NK.sum(), loss_N.double().sum(), counted_N.sum()
    return torch.stack([value.double() for value in sums])
