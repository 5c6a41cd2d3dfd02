"""GPU time of a feed, by CUPTI: it sees the kernels and copies of every library in this process, DALI's too."""

from collections.abc import Callable, Sized

import torch

BATCHES = 20


def gpu_us_per_image(deliver: Callable[[], Sized], ready: int) -> float:
    """Microseconds an image that the GPU is busy with a feed's batches.

    Args:
        deliver: hands over the next batch.
        ready: batches to take beforehand: those that were made before anybody looked.
    """
    from torch._C._autograd import DeviceType
    from torch.profiler import ProfilerActivity, profile

    for _ in range(ready + 1):
        deliver()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as trace:
        images = sum(len(deliver()) for _ in range(BATCHES))
        torch.cuda.synchronize()
    # the host's own calls carry the time of what they launched once more
    on_device = [event for event in trace.key_averages() if event.device_type == DeviceType.CUDA]
    return sum(event.self_device_time_total for event in on_device) / images
