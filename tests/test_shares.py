"""Mix groups shared out to any number of ranks: all of them, once, and what of the speed an uneven share costs."""

import re
from pathlib import Path

import pytest
import torch
from torch import nn

from helpers import fakes
from helpers.common import CPU
from rsbdali.distributed.shares import efficiency, most_groups, own_groups, raised_groups, uneven_shares
from rsbdali.distributed.world import World
from rsbdali.recipe import Recipe
from rsbdali.training.statistics import weigh_statistics
from rsbdali.training.step import TrainStep, pass_sizes

CLUSTERS = Path(__file__).parents[1] / "docs" / "CLUSTERS.md"


@pytest.mark.parametrize("groups", [1, 4, 7, 24])
def test_every_group_has_one_rank_and_rank_0_owns_most(groups: int) -> None:
    for ranks in range(1, groups + 1):
        owned = [own_groups(groups, World(rank, ranks)) for rank in range(ranks)]
        assert sorted(group for share in owned for group in share) == list(range(groups))
        sizes = [len(share) for share in owned]
        assert max(sizes) == sizes[0] == most_groups(groups, ranks)
        assert min(sizes) >= sizes[0] - 1 >= 0


@pytest.mark.parametrize(
    ("groups", "ranks", "said"),
    [
        (4, 1, None),
        (4, 4, None),
        (4, 3, "3 ranks own 2, 1, 1 of 4 groups: as fast as 2"),
        (24, 7, "7 ranks own 4, 4, 4, 3, 3, 3, 3 of 24 groups: as fast as 6"),
        (24, 5, "5 ranks own 5, 5, 5, 5, 4 of 24 groups: 96 % of the speed of equal shares"),
        (64, 40, "40 ranks own 2 each (24 of them) and 1 each (16) of 64 groups: as fast as 32"),
    ],
)
def test_what_is_said_of_uneven_shares(groups: int, ranks: int, said: str | None) -> None:
    assert uneven_shares(groups, ranks) == said


def test_more_groups_than_asked_for_are_said() -> None:
    assert raised_groups(4, 4, 64) is None
    said = "mix_groups=1 becomes 4, one a rank: rows are mixed in groups of 16, not of 64, and a resume keeps that"
    assert raised_groups(1, 4, 64) == said


def test_the_table_of_the_documentation_is_what_the_arithmetic_gives() -> None:
    rows = re.findall(r"^\| (\d+) \|((?: [\d–]+ \|){8}) (\d+) \|$", CLUSTERS.read_text(encoding="utf-8"), re.MULTILINE)
    assert [int(groups) for groups, *_ in rows] == [4, 8, 12, 16, 24, 32]
    for text, cells, batch in rows:
        groups = int(text)
        assert int(batch) % groups == 0
        expected = [f"{100 * efficiency(groups, r):.0f}" if r <= groups else "–" for r in range(1, 9)]
        assert cells.replace("|", "").split() == expected, groups


def test_the_fullest_rank_counts_for_memory_and_captured_graphs() -> None:
    recipe = fakes.recipe(mix_groups=4, micro_batch_size=4)  # groups of 8 rows
    assert [len(pass_sizes(recipe, World(rank, 3))) for rank in range(3)] == [4, 4, 4]


def test_losses_of_all_ranks_add_up_to_the_mean_over_the_global_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without DDP: W times the global mean's gradient is the sum of what DDP would average."""
    monkeypatch.setattr("rsbdali.distributed.collectives.all_reduce_sum", lambda tensor, world: tensor)
    recipe = fakes.recipe(mix_groups=4, opt="sgd", lr=0.0, micro_batch_size=5)
    whole_loss, whole = loss_and_gradient(recipe, World())
    for ranks in (2, 3, 4):
        each = [loss_and_gradient(recipe, World(rank, ranks)) for rank in range(ranks)]
        assert sum(loss for loss, _ in each) == pytest.approx(whole_loss, rel=1e-6)
        mean = torch.stack([gradient for _, gradient in each]).mean(dim=0)
        torch.testing.assert_close(mean, whole, rtol=1e-4, atol=1e-6)


def loss_and_gradient(recipe: Recipe, world: World) -> tuple[float, torch.Tensor]:
    """A rank's part of a step's loss, and its gradient before DDP."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(48, fakes.CLASSES))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    step = TrainStep(model, optimizer, scaler, recipe, device=CPU, amp_dtype=torch.float32, world=world)
    loader = fakes.FakeTrainLoader(recipe, rank=world.rank, world_size=world.size, steps=1)
    assert step(iter(loader), update=1) is None
    result = step.last_result()
    assert result is not None
    return result.loss, torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def test_running_statistics_are_weighed_by_rows() -> None:
    models = [nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 2)) for _ in range(3)]
    for rank, model in enumerate(models):
        model[0].running_mean.fill_(rank + 1.0)
        model[0].running_var.fill_(10.0 * (rank + 1))
        weigh_statistics(model, 4, World(rank, 3))
    mean = torch.stack([model[0].running_mean for model in models]).mean(dim=0)
    var = torch.stack([model[0].running_var for model in models]).mean(dim=0)
    torch.testing.assert_close(mean, torch.full((2,), (2 * 1 + 2 + 3) / 4))
    torch.testing.assert_close(var, torch.full((2,), 10 * (2 * 1 + 2 + 3) / 4))
    assert [int(model[0].num_batches_tracked) for model in models] == [0, 0, 0]


@pytest.mark.parametrize(("groups", "ranks"), [(4, 2), (4, 4), (2, 3)])
def test_equal_shares_leave_running_statistics_alone(groups: int, ranks: int) -> None:
    norm = nn.BatchNorm1d(2)
    before = norm.running_var.clone()
    weigh_statistics(norm, groups, World(0, ranks))
    assert torch.equal(norm.running_var, before)
