"""Order against its oracles: timm's RepeatAugSampler and torch's DistributedSampler."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from timm.data.distributed_sampler import RepeatAugSampler
from torch.utils.data import DistributedSampler

from rsbdali.plan.sampler import epoch_order, local_group, rows_per_epoch


@pytest.mark.parametrize("n", [3, 100, 255, 256, 257, 1000, 2049])
@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 8])
def test_parity_repeat_aug_sampler(n: int, world_size: int) -> None:
    for epoch in (0, 7):
        ours = epoch_order(n, seed=0, epoch=epoch, repeats=3, world_size=world_size)
        for rank in range(world_size):
            sampler = RepeatAugSampler(range(n), num_replicas=world_size, rank=rank, num_repeats=3)
            sampler.set_epoch(epoch)
            assert ours[rank::world_size].tolist() == list(sampler)


@pytest.mark.parametrize(("n", "world_size"), [(100, 1), (100, 4), (101, 4), (1000, 7)])
def test_parity_distributed_sampler(n: int, world_size: int) -> None:
    for seed, epoch in ((0, 0), (0, 3), (42, 5)):
        ours = epoch_order(n, seed=seed, epoch=epoch, world_size=world_size)
        for rank in range(world_size):
            sampler = DistributedSampler(range(n), world_size, rank, shuffle=True, seed=seed, drop_last=True)
            sampler.set_epoch(epoch)
            assert ours[rank::world_size].tolist() == list(sampler)


@given(rows=st.integers(2, 300), repeats=st.integers(2, 5), index=st.integers(0, 20), n=st.integers(200, 400))
def test_local_group_properties(rows: int, repeats: int, index: int, n: int) -> None:
    group = local_group(np.arange(n), repeats, rows, index)
    images, counts = np.unique(group, return_counts=True)
    assert len(images) == -(-rows // repeats)
    assert counts.max() <= repeats
    if rows >= 2 * repeats:  # below, one image can fill more than half the rows
        mirrored = np.flatnonzero(group == group[::-1])
        assert mirrored.tolist() == ([rows // 2] if rows % 2 else [])


def test_local_group_of_the_issue() -> None:
    group = local_group(np.arange(10_000), 3, 512, 0)
    assert len(np.unique(group)) == 171
    assert np.bincount(group).tolist().count(2) == 1  # one repeat is dropped


def test_local_epoch_decodes_as_many_images_as_timm() -> None:
    n, repeats, rows = 100_000, 3, 512
    groups = rows_per_epoch(n, repeats) // rows
    order = np.arange(n)
    local = {int(i) for g in range(groups) for i in local_group(order, repeats, rows, g)}
    spread = {int(i) for i in epoch_order(n, 0, 0, repeats)[: groups * rows]}
    # 171 images for 512 rows where timm's average is 170.67
    assert len(local) == groups * 171
    assert len(local) / len(spread) == pytest.approx(171 / (512 / 3), rel=1e-3)
