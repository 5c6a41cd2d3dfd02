"""One rank of timm's train.py on a CPU, which it cannot have by itself: it hands DistributedDataParallel a device.

torchrun --nproc-per-node 2 -m rsbdali.bench.timm_cpu_ranks ours|theirs TRAIN_PY ARGUMENT …
"""

import runpy
import sys
from typing import Any

import torch


class OnCpu(torch.nn.parallel.DistributedDataParallel):
    """Takes no notice of `device_ids`, which must be None for modules on a CPU."""

    def __init__(self, module: torch.nn.Module, device_ids: Any = None, **options: Any) -> None:
        super().__init__(module, **options)


if __name__ == "__main__":
    loader, script, *arguments = sys.argv[1:]
    torch.nn.parallel.DistributedDataParallel = OnCpu  # type: ignore[assignment,misc]  # before timm imports it by name
    sys.argv = [script, *arguments]
    if loader == "ours":
        sys.argv.insert(0, "rsbdali.integrations.timm")
        runpy.run_module("rsbdali.integrations.timm", run_name="__main__")
    else:
        runpy.run_path(script, run_name="__main__")
