"""BatchNorm's running statistics of ranks that have seen unequal numbers of rows, made ready for their mean."""

import torch

from rsbdali.distributed.shares import own_groups
from rsbdali.distributed.world import World


@torch.no_grad()
def weigh_statistics(model: torch.nn.Module, groups: int, world: World) -> None:
    """Scale BatchNorm's running statistics by W times this rank's part of the mix groups, for a mean over W ranks.

    Args:
        model: not wrapped.
        groups: the recipe's mix groups; with as many ranks or more, and where all own equally many, nothing changes.
        world: the processes.
    """
    if groups % world.size == 0 or groups < world.size:
        return
    weight = len(own_groups(groups, world)) * world.size / groups
    for name, buffer in model.named_buffers():
        if "running_mean" in name or "running_var" in name:  # as timm's distribute_bn names them
            buffer *= weight
