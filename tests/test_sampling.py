"""Which image comes when, beyond the shuffle: in order, with the last batch, by weights, in a user's own order."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import (
    BatchSampler,
    DistributedSampler,
    RandomSampler,
    SequentialSampler,
    WeightedRandomSampler,
)

from rsbdali import ImageIndex, RsbdaliError, create_loader
from rsbdali.errors import CheckpointError
from rsbdali.integrations.tuple_loader import Pair, TupleLoader
from rsbdali.plan.planner import Planner
from rsbdali.plan.sampling import Sampling, class_balanced_weights
from rsbdali.recipe import Recipe

SMALL: dict[str, Any] = {"input_size": 24, "device": "cpu", "num_workers": 1, "return_index": True}


def planner(n: int, rows: int, world_size: int = 1, groups: int = 1, seed: int = 0, **sampling: Any) -> Planner:
    side_N = np.full(n, 100, np.int32)
    recipe = Recipe.from_dict({"global_batch_size": rows, "mix_groups": groups, "seed": seed})
    return Planner(side_N, side_N, recipe, world_size, Sampling(**sampling))


def epoch_of(planner: Planner, epoch: int) -> np.ndarray:
    return np.concatenate([planner.batch(epoch, step).sample_N for step in range(planner.steps_per_epoch)])


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize(("n", "rows", "world_size"), [(21, 4, 1), (21, 8, 2), (20, 4, 4), (3, 8, 4), (23, 12, 4)])
def test_the_last_batch_is_torchs(n: int, rows: int, world_size: int, shuffle: bool) -> None:
    """`DistributedSampler` without drop_last, batch by batch of each rank."""
    ours = planner(n, rows, world_size, groups=world_size, seed=5, shuffle=shuffle, drop_last=False)
    for epoch in (0, 3):
        for rank in range(world_size):
            sampler = DistributedSampler(range(n), world_size, rank, shuffle=shuffle, seed=5)
            sampler.set_epoch(epoch)
            expected = list(BatchSampler(sampler, rows // world_size, drop_last=False))
            steps = range(ours.steps_per_epoch)
            assert [ours.group(epoch, step, rank).sample_N.tolist() for step in steps] == expected
    last = ours.group(0, ours.steps_per_epoch - 1, 0)
    assert last.partner_N.tolist() == list(range(len(last)))[::-1]
    assert ours.rows_per_epoch == -(-n // world_size) * world_size


def test_draws_follow_the_weights() -> None:
    weight_N = np.array([0.0, 1.0, 2.0, 0.0, 5.0])
    ours = planner(5, 5, weight_N=weight_N)
    drawn = np.concatenate([epoch_of(ours, epoch) for epoch in range(2000)])
    count_N = np.bincount(drawn, minlength=5)
    expected_N = 10_000 * weight_N / weight_N.sum()
    assert count_N[[0, 3]].tolist() == [0, 0]
    # chi-square with two degrees of freedom: above 13.8 once in a thousand seeds, and this seed is fixed
    kept = weight_N > 0
    assert ((count_N - expected_N)[kept] ** 2 / expected_N[kept]).sum() < 13.8
    np.testing.assert_array_equal(epoch_of(ours, 7), epoch_of(planner(5, 5, weight_N=3 * weight_N), 7))
    assert epoch_of(ours, 7).tolist() != epoch_of(ours, 8).tolist()


def test_draws_at_the_edges_of_the_weights() -> None:
    """A draw that rounds up to the sum is the last image of a weight, never one of none."""
    sampling = Sampling(weight_N=np.array([0.0, 1e-300, 0.0]))
    assert set(sampling.order(3, 0, 0).tolist()) == {1}


def test_classes_are_balanced() -> None:
    label_N = np.array([0] * 90 + [2] * 10)
    weight_N = class_balanced_weights(label_N)
    ours = planner(100, 100, weight_N=weight_N)
    drawn = label_N[np.concatenate([epoch_of(ours, epoch) for epoch in range(100)])]
    assert abs((drawn == 2).mean() - 0.5) < 0.02  # four standard deviations of 10,000 fair coins


@pytest.mark.parametrize(
    "sampling",
    [
        {"shuffle": False, "drop_last": False},
        {"drop_last": False},
        {"weight_N": np.arange(21.0)},
        {"own_order": lambda epoch: (np.arange(14) * 3 + epoch) % 21, "own_length": 14, "drop_last": False},
    ],
)
def test_the_same_for_every_world_size(sampling: dict[str, Any]) -> None:
    one, two, four = (planner(21, 8, world_size, groups=4, **sampling) for world_size in (1, 2, 4))
    for step in range(one.steps_per_epoch):
        for group in range(4):
            expected = one.group(2, step, group)
            for other in (two, four):
                found = other.group(2, step, group)
                np.testing.assert_array_equal(found.sample_N, expected.sample_N)
                np.testing.assert_array_equal(found.crop_N4, expected.crop_N4)


def test_replacements_stay_within_the_epoch() -> None:
    """What a sampler or a weight leaves out, such as a fold held back, does not come in for a broken image."""
    for sampling in ({"own_order": lambda _: np.arange(8), "own_length": 8}, {"weight_N": np.arange(50) < 8.0}):
        ours = planner(50, 4, **sampling)
        plan = ours.group(0, 0, 0)
        assert {int(ours.replacement(plan, 1, attempt).sample_N[1]) for attempt in range(100)} == set(range(8))


def test_a_canonical_order_is_shuffled_in_place_of_rows() -> None:
    canonical_N = np.random.default_rng(0).permutation(20)
    plain, listed = planner(20, 4), planner(20, 4, canonical_N=canonical_N)
    np.testing.assert_array_equal(epoch_of(listed, 1), canonical_N[epoch_of(plain, 1)])
    plan = plain.group(0, 0, 0)
    assert listed.replacement(plan, 0, 0).sample_N[0] == canonical_N[plain.replacement(plan, 0, 0).sample_N[0]]


class Backward:
    """A sampler of torch's kind."""

    def __init__(self, n: int) -> None:
        self.n, self.epoch = n, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        return iter((np.arange(self.n)[::-1] + self.epoch) % self.n)


@pytest.fixture
def tree(image_tree: Callable[..., Path]) -> Path:
    """Three classes of 7 images."""
    return image_tree(classes=3, per_class=7)


def loader_of(data: Any, rows: int | None = 4, **more: Any) -> TupleLoader:
    return create_loader(data, batch_size=rows, is_training=True, **{**SMALL, **more})


def indices(pairs: list[Pair]) -> list[int]:
    return [i for pair in pairs for i in pair[2].tolist()]


WAYS: dict[str, dict[str, Any]] = {
    "in order": {"shuffle": False},
    "last batch": {"drop_last": False},
    "weights": {"weights": [0.0, 1.0, 2.0] * 7},
    "balanced": {"weights": "balanced"},
    "function": {"sampler": lambda epoch: [(i * 5 + epoch) % 21 for i in range(13)], "drop_last": False},
    "sampler": {"sampler": Backward(21)},
    "indices": {"sampler": np.array([3, 3, 20, 0])},
}


@pytest.mark.parametrize("way", WAYS)
def test_an_exact_resume(way: str, tree: Path) -> None:
    with loader_of(tree, **WAYS[way]) as loader:
        first, second = list(loader), iter(loader)
        head = [next(second)]
        state = loader.state_dict()
        rest, third = list(second), list(loader)
    with loader_of(tree, **WAYS[way]) as resumed:
        resumed.load_state_dict(state)
        again, after = list(resumed), list(resumed)
    for found, expected in ((again, rest), (after, third)):
        assert len(found) == len(expected)
        for ours, theirs in zip(found, expected, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    assert len(first) == len(loader) == 1 + len(rest)
    if way != "indices":
        assert indices(first) != indices([*head, *rest]) or way == "in order"


def test_what_each_way_gives(tree: Path) -> None:
    passes = {}
    for way, arguments in WAYS.items():
        with loader_of(tree, **arguments) as loader:
            pairs = list(loader)
            assert sum(len(labels) for _, labels, _ in pairs) == len(loader.sampler)
            passes[way] = indices(pairs)
    assert passes["in order"] == list(range(20))
    assert sorted(passes["last batch"]) == list(range(21))
    assert set(passes["weights"]) <= {i for i in range(21) if i % 3}
    assert passes["function"] == [i * 5 % 21 for i in range(13)]
    assert passes["sampler"] == list(range(20, 0, -1))
    assert passes["indices"] == [3, 3, 20, 0]


@pytest.mark.parametrize("decode", ["cpu", "graph"])
def test_mixing_in_a_smaller_last_batch(tree: Path, decode: str) -> None:
    settings = {"img_size": 24, "aa": "none", "global_batch_size": 8, "mix_groups": 2, "mixup": 1.0}
    recipe = Recipe.load("a3", settings)
    with loader_of(tree, None, input_size=None, recipe=recipe, drop_last=False, decode=decode) as loader:
        pairs = list(loader)
    assert [len(images) for images, _, _ in pairs] == [4, 4, 4, 4, 3, 3]  # 21 images and the first once more
    assert all(torch.allclose(targets.sum(1), torch.ones(())) for _, targets, _ in pairs)
    # fewer images than one batch
    with loader_of(tree, 32, drop_last=False) as loader:
        assert [len(images) for images, _, _ in loader] == [21]


def test_states_of_another_order_are_refused(tree: Path) -> None:
    with loader_of(tree) as plain, loader_of(tree, weights="balanced") as balanced:
        with pytest.raises(CheckpointError, match="is for sampling shuffled, this loader has weights"):
            balanced.load_state_dict(plain.state_dict())
        with pytest.raises(CheckpointError, match=r"is for sampling weights [0-9a-f]+, this loader has shuffled"):
            plain.load_state_dict(balanced.state_dict())
    calls = iter(range(100))
    with loader_of(tree, sampler=lambda _: [(next(calls) + i) % 21 for i in range(8)]) as loader:
        next(iter(loader))
        state = loader.state_dict()
    with (
        loader_of(tree, sampler=lambda _: [(next(calls) + 2 * i) % 21 for i in range(8)]) as other,
        pytest.raises(CheckpointError, match="its order must follow from the epoch alone"),
    ):
        other.load_state_dict(state)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"weights": "equal"}, "weights='equal': expected numbers, or 'balanced'"),
        ({"weights": [1.0]}, "weights= of shape (1,): expected one for each of 21 images"),
        ({"weights": [-1.0] * 21}, "expected finite numbers from 0"),
        ({"weights": [0.0] * 21}, "of which one is above 0"),
        ({"weights": "balanced", "shuffle": False}, "weights= draws in random order"),
        ({"weights": "balanced", "sampler": [0]}, "sampler= says the whole order"),
        ({"shuffle": True, "sampler": [0]}, "sampler= says the whole order"),
        ({"drop_last": False, "num_aug_repeats": 3}, "drop_last=False cannot be honored with num_aug_repeats"),
        ({"sampler": [0, 21, 1, 2]}, "sampler= gives image 21 of 21"),
        ({"sampler": [0.5]}, "expected whole numbers"),
        ({"sampler": lambda _: []}, "expected whole numbers"),
        ({"sampler": [0, 1]}, "batch_size=4 on 1 rank is more than an epoch of 2 images"),
        ({"sampler": RandomSampler(range(21))}, "RandomSampler has no set_epoch"),
        ({"sampler": WeightedRandomSampler([1.0], 4)}, "weights= for a WeightedRandomSampler"),
        ({"sampler": SequentialSampler(range(21))}, "shuffle=False for a SequentialSampler"),
        ({"sampler": DistributedSampler(range(21), 2, 0)}, "give the order of all ranks together"),
        ({"is_training": False, "shuffle": True}, "shuffle= cannot be honored in evaluation"),
        ({"is_training": False, "drop_last": True}, "drop_last= cannot be honored in evaluation"),
        ({"is_training": False, "sampler": [0]}, "ImageIndex.subset"),
        ({"is_training": False, "transform": torch.clone}, "transform= cannot be honored in evaluation"),
    ],
)
def test_refused_by_name(tree: Path, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(RsbdaliError, match=re.escape(message)) as caught:
        create_loader(tree, **{"batch_size": 4, "is_training": True, **SMALL, **arguments})
    assert "\n" not in str(caught.value)


def test_an_order_of_another_length_later(tree: Path) -> None:
    with loader_of(tree, sampler=lambda epoch: range(8 + epoch)) as loader:
        loader.set_epoch(1)
        with pytest.raises(RsbdaliError, match="sampler= gives 9 images in epoch 1 and 8 in epoch 0"):
            list(loader)


def test_evaluation_takes_what_it_does_anyway(tree: Path) -> None:
    index = ImageIndex.scan(tree).subset([4, 2, 9])
    with create_loader(index, batch_size=2, shuffle=False, drop_last=False, smoothing=0.0, **SMALL) as loader:
        pairs = list(loader)
        assert repr(loader) == (
            f"TupleLoader(evaluation on cpu: ImageIndex({str(tree)!r}: 3 images, 3 classes, 0 bad), 2 batches of 2, "
            "at epoch 1, batch 0)"
        )
    assert indices(pairs) == [0, 1, 2]
    assert [int(label) for _, labels, _ in pairs for label in labels] == [0, 0, 1]
