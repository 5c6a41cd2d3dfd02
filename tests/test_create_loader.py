"""`create_loader` against timm's: arguments, targets, epochs, states, ranks."""

import inspect
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from timm.data import FastCollateMixup, ImageDataset, create_dataset
from timm.data import create_loader as timm_create_loader
from timm.data.loader import fast_collate
from timm.data.mixup import mixup_target
from torch.utils.data import ConcatDataset, Subset
from torchvision.datasets import FakeData, ImageFolder

from rsbdali import RsbdaliError, create_loader
from rsbdali.data.index import ImageIndex
from rsbdali.errors import CheckpointError, DataError, DeviceError, RecipeError
from rsbdali.integrations.timm_arguments import NO_BEARING, REFUSED
from rsbdali.integrations.tuple_loader import Pair, TupleLoader
from rsbdali.recipe import Recipe

SMALL: dict[str, Any] = {"device": "cpu", "num_workers": 1}
MIXING = {"img_size": 24, "test_img_size": 24, "aa": "none", "mixup": 0.1, "cutmix": 1.0}


@pytest.fixture
def tree(image_tree: Callable[..., Path]) -> Path:
    """A folder with train/: 3 classes of 6 images."""
    return image_tree(classes=3, per_class=6).parent


@pytest.fixture
def make(tree: Path) -> Iterator[Callable[..., TupleLoader]]:
    """`create_loader` on small images with the tree as default, closed at the end."""
    loaders = []

    def make_one(
        data: Any = None, size: Any = 24, rows: int | None = 4, training: bool = True, **more: Any
    ) -> TupleLoader:
        data = data or (tree if training else tree / "train")
        loaders.append(create_loader(data, size, rows, training, **{**SMALL, **more}))
        return loaders[-1]

    yield make_one
    for loader in loaders:
        loader.close()


def same(one: list[Pair], other: list[Pair]) -> bool:
    return len(one) == len(other) and all(
        torch.equal(a, b) and torch.equal(s, t) for (a, s), (b, t) in zip(one, other, strict=True)
    )


def collate(**settings: Any) -> FastCollateMixup:
    return FastCollateMixup(**{"mixup_alpha": 0.1, "cutmix_alpha": 1.0, "num_classes": 3, **settings})


def test_training_batches(make: Callable[..., TupleLoader], tree: Path) -> None:
    loader = make(auto_augment="rand-m6-mstd0.5-inc1", interpolation="random")
    pairs = list(loader)
    assert len(pairs) == len(loader) == 18 // 4
    assert (loader.batch_size, loader.batches_per_step, loader.mixup_enabled) == (4, 1, False)
    for images, targets in pairs:
        assert (images.shape, images.dtype, targets.dtype) == ((4, 3, 24, 24), torch.float32, torch.int64)
        assert images.is_contiguous(memory_format=torch.channels_last)
    assert isinstance(loader.dataset, ImageIndex)
    plain = make(auto_augment="rand-m6-mstd0.5-inc1", interpolation="random", channels_last=False)
    assert all(images.is_contiguous() for images, _ in plain)
    half = next(iter(make(auto_augment="rand-m6-mstd0.5-inc1", interpolation="random", img_dtype=torch.float16)))
    torch.testing.assert_close(half[0].float(), pairs[0][0], atol=2e-3, rtol=2e-3)  # rounding to half precision


def test_settings_reach_the_recipe(make: Callable[..., TupleLoader]) -> None:
    loader = make(
        size=(3, 24, 32),
        scale=(0.5, 1),
        ratio=[1, 2],
        hflip=0,
        auto_augment="rand-m7",
        interpolation="bicubic",
        mean=(0.5, 0.5, 0.5),
        std=np.array([0.1, 0.2, 0.3]),
        num_aug_repeats=3.0,
        seed=5,
    )
    recipe = loader.loader.recipe
    assert (recipe.train_size, recipe.scale, recipe.ratio, recipe.hflip) == ((24, 32), (0.5, 1.0), (1.0, 2.0), 0.0)
    assert (recipe.aa, recipe.train_interpolation, recipe.aug_repeats, recipe.seed) == ("rand-m7", "bicubic", 3, 5)
    assert (recipe.mean, recipe.std) == ((0.5, 0.5, 0.5), (0.1, 0.2, 0.3))
    assert (recipe.global_batch_size, recipe.mix_groups) == (4, 1)
    evaluation = make(training=False, size=(24, 32), crop_pct=0.9, interpolation="bicubic").loader.recipe
    assert (evaluation.test_size, evaluation.crop_pct, evaluation.interpolation) == ((24, 32), 0.9, "bicubic")
    defaults, theirs = make(training=False).loader.recipe, inspect.signature(timm_create_loader).parameters
    assert defaults.crop_pct == 0.875  # timm.data.constants.DEFAULT_CROP_PCT
    assert defaults.interpolation == theirs["interpolation"].default
    assert (defaults.mean, defaults.std) == (theirs["mean"].default, theirs["std"].default)


def test_recipe_gives_what_is_not_given(make: Callable[..., TupleLoader]) -> None:
    recipe = Recipe.load("a3", {"global_batch_size": 16, **MIXING})
    loader = make(size=None, rows=None, recipe=recipe)
    assert loader.loader.recipe == recipe
    assert (loader.batch_size, loader.batches_per_step, len(loader)) == (4, 4, 4)  # one step of four mix groups
    loader = make(size=None, rows=6, recipe=recipe, auto_augment="rand-m1")
    assert (loader.batch_size, loader.batches_per_step, len(loader)) == (6, 1, 3)
    assert loader.loader.recipe.aa == "rand-m1"
    assert make(size=None, training=False, recipe="a3").loader.recipe.test_size == (224, 224)


def test_timms_targets(make: Callable[..., TupleLoader]) -> None:
    loader = make(collate_fn=collate(label_smoothing=0.1, num_classes=7))
    raw = list(loader.loader)
    loader.set_epoch(0)
    lams = set()
    for (images, targets), batch in zip(loader, raw, strict=True):
        assert torch.equal(images, batch.images)
        lams.add(float(batch.lam_N[0]))
        assert len(batch.lam_N.unique()) == 1  # one λ for each rank and batch
        torch.testing.assert_close(targets, mixup_target(batch.label_N, 7, float(batch.lam_N[0]), 0.1))
    assert len(lams) == 4


def test_fast_collate_mixup_is_translated(make: Callable[..., TupleLoader]) -> None:
    mixup = collate(mixup_alpha=0.2, prob=0.7, switch_prob=0.4, mode="elem", label_smoothing=0.05)
    recipe = make(collate_fn=mixup).loader.recipe
    assert (recipe.mixup, recipe.cutmix, recipe.mixup_prob, recipe.mixup_switch_prob) == (0.2, 1.0, 0.7, 0.4)
    assert (recipe.mixup_mode, recipe.smoothing) == ("elem", 0.05)
    mixup.mixup_enabled = False
    assert not make(collate_fn=mixup).mixup_enabled
    assert make(collate_fn=fast_collate).num_classes is None


def test_mixup_can_be_turned_off_and_on(make: Callable[..., TupleLoader]) -> None:
    loader, plain = make(collate_fn=collate(label_smoothing=0.0)), make()
    loader.mixup_enabled = plain.mixup_enabled = False
    unmixed, hard = list(loader), list(plain)
    loader.mixup_enabled = True
    for (images, soft), (plain_images, labels) in zip(unmixed, hard, strict=True):
        assert torch.equal(images, plain_images)  # the draws are the same
        assert torch.equal(soft.argmax(1), labels)
        assert torch.equal(soft.max(1).values, torch.ones(4))
    assert any(len(soft.unique()) > 2 for _, soft in loader)


@pytest.mark.parametrize("training", [True, False])
def test_uint8(make: Callable[..., TupleLoader], training: bool) -> None:
    raw, normalized = list(make(training=training, output="uint8")), list(make(training=training))
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (Recipe().mean, Recipe().std))
    for (pixels, labels), (images, same_labels) in zip(raw, normalized, strict=True):
        assert (pixels.dtype, pixels.is_contiguous(memory_format=torch.channels_last)) == (torch.uint8, True)
        torch.testing.assert_close((pixels / 255 - mean) / std, images, atol=2e-5, rtol=2e-6)  # another order of sums
        assert torch.equal(labels, same_labels)


def test_without_prefetcher_batches_stay_on_the_cpu(make: Callable[..., TupleLoader]) -> None:
    loader = make(use_prefetcher=False, device="cuda", img_dtype=torch.float16)
    images, targets = next(iter(loader))
    assert (images.device.type, images.dtype, targets.dtype) == ("cpu", torch.float32, torch.int64)


def test_epochs_breaks_and_several_loaders(make: Callable[..., TupleLoader]) -> None:
    loader, other = make(), make()
    first = list(loader)
    for _ in other:
        break  # the next pass is the next epoch, from its start
    second = list(loader)
    assert same(list(other), second)
    assert not same(first, second)
    for setter in (loader.set_epoch, other.sampler.set_epoch):
        setter(0)
    # two loaders taken in turns
    assert same([pair for both in zip(loader, other, strict=True) for pair in both], [p for p in first for _ in (0, 1)])
    assert len(other.sampler) == 16


def test_evaluation_repeats_itself_after_a_break(make: Callable[..., TupleLoader]) -> None:
    loader = make(training=False, rows=5)
    whole = list(loader)
    assert [len(targets) for _, targets in whole] == [5, 5, 5, 3]
    for _ in loader:
        break
    loader.set_epoch(7)
    assert same(list(loader), whole)


# timm's folder reader leaves its files for the garbage collector to close
@pytest.mark.filterwarnings("ignore:Exception ignored in:pytest.PytestUnraisableExceptionWarning")
def test_evaluation_is_timms(make: Callable[..., TupleLoader], tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tree)  # train.py's --data-dir may be relative
    dataset = ImageDataset("train")
    theirs = timm_create_loader(dataset, 32, 4, crop_pct=0.9, num_workers=0, device=torch.device("cpu"))
    ours = make(dataset, size=32, training=False, crop_pct=0.9)
    assert ours.dataset is dataset
    assert len(ours) == len(theirs)
    for (our_images, our_labels), (images, labels) in zip(ours, theirs, strict=True):
        assert torch.equal(our_labels, labels)
        # the resize differs from Pillow's by a level here and there (docs/PARITY.md): 1 level is about 0.017
        assert (our_images - images).abs().mean() < 0.01


def test_validation_counts_in_the_order_of_training(
    make: Callable[..., TupleLoader], image_tree: Callable[..., Path]
) -> None:
    image_tree(classes=3, per_class=1, name="d")
    val = image_tree(classes=2, per_class=2, name="d", split="val")
    (val / "class0").rename(val / "class2")  # the first class of training is missing here
    labels = torch.cat([targets for _, targets in make(val.parent, training=False)])
    assert labels.tolist() == [1, 1, 2, 2]


class Backward(ImageFolder):
    """Classes numbered from the last."""

    def find_classes(self, directory: Any) -> tuple[list[str], dict[str, int]]:
        classes, numbers = super().find_classes(directory)
        return classes[::-1], {name: len(classes) - 1 - number for name, number in numbers.items()}


@pytest.mark.parametrize("kind", ["timm", "torchvision"])
def test_datasets_are_translated(make: Callable[..., TupleLoader], tree: Path, kind: str) -> None:
    if kind == "timm":
        dataset = create_dataset("", root=str(tree), split="train", class_map={"class0": 2, "class1": 1, "class2": 0})
    else:
        dataset = Backward(tree / "train")
    labels = torch.cat([targets for _, targets in make(dataset, training=False)])
    assert labels.tolist() == [2] * 6 + [1] * 6 + [0] * 6


def _grey(dataset: ImageDataset) -> ImageDataset:
    dataset.input_img_mode = "L"
    return dataset


def _relabeled(dataset: ImageDataset) -> ImageDataset:
    dataset.target_transform = int
    return dataset


def _with_a_gap(dataset: ImageDataset) -> ImageDataset:
    dataset.reader.class_to_idx["class2"] = 9
    return dataset


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_grey, "dataset.input_img_mode='L' cannot be honored"),
        (_relabeled, "target_transform cannot be honored"),
        (_with_a_gap, "class map has gaps"),
        (lambda dataset: Subset(_grey(dataset), [0]), "dataset.input_img_mode='L' cannot be honored"),
        (lambda dataset: ConcatDataset([dataset]), "ConcatDataset: join the lists of its parts: ImageIndex.from_lists"),
        (lambda _: FakeData(), "dataset of type FakeData"),
    ],
)
def test_datasets_that_cannot_be_translated(
    make: Callable[..., TupleLoader], tree: Path, change: Callable[[ImageDataset], Any], message: str
) -> None:
    with pytest.raises(DataError, match=re.escape(message)):
        make(change(ImageDataset(str(tree / "train"))))


def test_resume_in_the_middle(make: Callable[..., TupleLoader]) -> None:
    settings = {"recipe": Recipe.load("a3", {"global_batch_size": 8, **MIXING, "mix_groups": 2}), "rows": None}
    loader = make(**settings)
    list(loader)
    second = iter(loader)
    next(second)
    state = loader.state_dict()  # epoch 1, behind its first batch, in the middle of an optimizer step
    assert (state["epoch"], state["step"], state["part"]) == (1, 0, 1)
    rest, after = list(second), list(loader)
    for set_epoch in (False, True):
        resumed = make(**settings)
        resumed.load_state_dict(state)
        if set_epoch:
            resumed.set_epoch(1)  # as a loop over epochs does in any case
        assert same(list(resumed), rest)
        assert same(list(resumed), after)
    resumed.load_state_dict(state)
    resumed.set_epoch(2)  # another epoch, from its start
    assert same(list(resumed), after)


def test_states_at_the_ends_of_an_epoch(make: Callable[..., TupleLoader]) -> None:
    loader, resumed = make(), make()
    assert loader.state_dict()["epoch"] == 0
    batches = iter(loader)
    for _ in range(len(loader)):
        next(batches)
    resumed.load_state_dict(loader.state_dict())  # all given, the pass is not over
    assert list(resumed) == []
    assert next(batches, None) is None
    assert (loader.state_dict()["epoch"], loader.state_dict()["step"]) == (1, 0)
    assert same(list(resumed), list(loader))


def test_states_of_other_loaders_are_refused(make: Callable[..., TupleLoader]) -> None:
    state = make().state_dict()
    for other in ({"seed": 1}, {"rows": 3}, {"num_aug_repeats": 3}):
        with pytest.raises(CheckpointError, match="the loader's state is for"):
            make(**other).load_state_dict(state)
    make(hflip=0.1, auto_augment="rand-m3").load_state_dict(state)  # decides no order


def test_states_of_other_images(
    make: Callable[..., TupleLoader], image_tree: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    other = image_tree(classes=3, per_class=6, name="other", seed=1).parent  # the same names and number, other sizes
    loader = make()
    between, passing = loader.state_dict(), iter(loader)
    next(passing)
    within = loader.state_dict()
    for _ in range(len(loader) - 1):
        next(passing)
    behind = loader.state_dict()
    loader.load_state_dict(within)
    earlier = {**within, "identity": {name: value for name, value in within["identity"].items() if name != "digest"}}
    make(other).load_state_dict({name: value for name, value in earlier.items() if name not in ("length", "pixels")})
    assert caplog.text == ""
    for data, count in ((other, 18), (image_tree(classes=3, per_class=7, name="more").parent, 21)):
        changed = make(data)
        with pytest.raises(CheckpointError, match=rf"within an epoch of other images: 18 then, {count} now"):
            changed.load_state_dict(within)
        changed.load_state_dict(behind)
        assert list(changed) == []  # the epoch was over
        changed.load_state_dict(between)
        assert len(list(changed)) == len(changed)
        assert caplog.text.count(f"behind an epoch of other images: 18 then, {count} now") == 2
    caplog.clear()
    make(decode="graph").load_state_dict(within)
    assert "come from the graph executor on cpu, decoding regions, and came from the host executor" in caplog.text


def test_closed(make: Callable[..., TupleLoader]) -> None:
    with make() as loader:
        batches = iter(loader)
        images, _ = next(batches)
    with pytest.raises(RsbdaliError, match="closed"):
        next(batches)
    with pytest.raises(RsbdaliError, match="closed"):
        iter(loader)
    loader.close()
    assert images.isfinite().all()


def test_ranks_share_an_epoch(make: Callable[..., TupleLoader], tree: Path) -> None:
    ranks = [make(rank=rank, world_size=2, rows=3) for rank in range(2)]
    assert [len(loader) for loader in ranks] == [3, 3]
    whole = make(rows=6)
    for one, other, (_, labels) in zip(*ranks, whole, strict=True):
        assert torch.equal(torch.stack([one[1], other[1]], 1).ravel(), labels)  # position p goes to rank p mod W
    alone = [make(rank=0, world_size=1), make(distributed=False)]
    assert same(list(alone[0]), list(alone[1]))


@pytest.mark.parametrize(("pad", "counts"), [(True, [5, 5, 5, 5]), (False, [5, 5, 4, 4])])
def test_evaluation_on_several_ranks(make: Callable[..., TupleLoader], pad: bool, counts: list[int]) -> None:
    ranks = [make(training=False, rank=rank, world_size=4, rows=2, pad_eval=pad) for rank in range(4)]
    batches = [list(loader) for loader in ranks]
    assert [len(pairs) for pairs in batches] == [3] * 4
    assert [sum(len(labels) for _, labels in pairs) for pairs in batches] == counts


def test_environment_says_the_ranks(make: Callable[..., TupleLoader], monkeypatch: pytest.MonkeyPatch) -> None:
    variables = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert same(list(make()), list(make(rank=1, world_size=2)))
    assert len(make(distributed=False)) == 4


def test_every_argument_of_timm_is_known() -> None:
    ours = set(inspect.signature(create_loader).parameters)
    theirs = set(inspect.signature(timm_create_loader).parameters)
    assert theirs <= ours | set(REFUSED) | set(NO_BEARING)
    assert not ours & (set(REFUSED) | set(NO_BEARING))
    assert set(REFUSED) | set(NO_BEARING) <= theirs


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({"no_aug": True}, "no_aug"),
        ({"re_prob": 1.25}, "re_prob"),
        ({"re_mode": "noise"}, "re_mode"),
        ({"re_count": 0}, "re_count"),
        ({"re_prob": 0.5, "re_split": True}, "re_split"),
        ({"vflip": -0.5}, "vflip"),
        ({"color_jitter": (0, 0.1)}, "color_jitter"),
        ({"train_crop_mode": "rkrr"}, "train_crop_mode"),
        ({"num_aug_splits": 3}, "num_aug_splits"),
        ({"training": False, "crop_mode": "whole"}, "crop_mode"),
        ({"training": False, "crop_border_pixels": 4}, "crop_border_pixels"),
        ({"tf_preprocessing": True}, "tf_preprocessing"),
        ({"fp16": True}, "fp16"),
        ({"input_size_choices": (24, 32)}, "input_size_choices"),
        ({"num_batches": 3}, "num_batches"),
        ({"worker_seeding": print}, "worker_seeding"),
        ({"auto_augment": "augmix-m5"}, "auto_augment"),
        ({"auto_augment": "3aw"}, "auto_augment"),
        ({"interpolation": "lanczos"}, "interpolation"),
        ({"training": False, "interpolation": "random"}, "interpolation"),
        ({"num_aug_repeats": 1.5}, "num_aug_repeats"),
        ({"size": (1, 24, 24)}, "input_size"),
        ({"size": "a3"}, "input_size"),
        ({"scale": (0.5, 2)}, "scale"),
        ({"hflip": 2}, "hflip"),
        ({"mean": (0.5,)}, "mean"),
        ({"collate_fn": list}, "collate_fn"),
        ({"collate_fn": collate(mode="half")}, "mixup_mode"),
        ({"collate_fn": collate(correct_lam=False)}, "correct_lam"),
        ({"collate_fn": collate(cutmix_minmax=(0.1, 0.9))}, "cutmix_minmax"),
        ({"training": False, "collate_fn": collate()}, "collate_fn"),
        ({"output": "float16"}, "output"),
        ({"output": "uint8", "collate_fn": collate()}, "output"),
        ({"output": "uint8", "re_prob": 0.5}, "output"),
        ({"use_prefetcher": False, "collate_fn": collate()}, "use_prefetcher"),
        ({"img_dtype": torch.uint8}, "img_dtype"),
        ({"size": None}, "input_size"),
        ({"rows": None}, "batch_size"),
        ({"rows": 0}, "batch_size"),
    ],
)
def test_refused_by_name(make: Callable[..., TupleLoader], arguments: dict[str, Any], name: str) -> None:
    with pytest.raises(RecipeError, match=name) as caught:
        make(**arguments)
    assert "\n" not in str(caught.value)


def test_harmless_arguments(make: Callable[..., TupleLoader]) -> None:
    timm_default_jitter = {"color_jitter": 0.4}
    neutral = {
        "re_prob": 0.0,
        "re_mode": "pixel",
        "re_count": 1,
        "re_split": False,
        "train_crop_mode": None,
        "vflip": 0.0,
        "color_jitter_prob": None,
        "pin_memory": True,
        "persistent_workers": True,
        "worker_seeding": "all",
        "use_multi_epochs_loader": True,
        "num_aug_splits": 0,
        "tf_preprocessing": False,
        "no_aug": False,
    }
    randaugment = {"auto_augment": "rand-m6"}
    assert same(list(make(**neutral, **randaugment, **timm_default_jitter)), list(make(**randaugment)))
    # what is for training only changes nothing in evaluation, as in timm
    evaluation = {"re_prob": 0.5, "no_aug": True, "hflip": 1.0, "scale": (0.5, 0.6), **timm_default_jitter}
    assert same(list(make(training=False, **evaluation)), list(make(training=False)))


def test_augmentations_are_the_recipes(make: Callable[..., TupleLoader]) -> None:
    given = {
        "vflip": 0.5,
        "color_jitter": (0.4, 0.3, 0.2),
        "color_jitter_prob": 0.8,
        "grayscale_prob": 0.1,
        "gaussian_blur_prob": 0.2,
        "re_prob": 0.5,
        "re_mode": "pixel",
        "re_count": 2,
        "train_crop_mode": "rkrc",
    }
    loader = make(**given, auto_augment="original-mstd0.5")
    recipe = loader.loader.recipe
    names = {"re_prob": "reprob", "re_mode": "remode", "re_count": "recount"}
    assert {name: getattr(recipe, names.get(name, name)) for name in given} == given
    assert recipe.aa == "original-mstd0.5"
    assert all(torch.isfinite(images).all() for images, _ in loader)
    assert make(re_prob=0.5, train_crop_mode="", auto_augment="").loader.recipe.remode == "const"  # timm's default
    assert make(training=False, crop_mode="border").loader.recipe.crop_mode == "border"


def test_an_epoch_has_the_batch_that_timms_padding_completes(make: Callable[..., TupleLoader], tree: Path) -> None:
    theirs = len(list((tree / "train").rglob("*.*")))
    rows = -(-theirs // 4)
    assert theirs % 4
    loader = make(rows=rows, rank=0, world_size=4)
    assert len(loader) == 1
    assert len(list(loader)) == 1


def test_other_mistakes(make: Callable[..., TupleLoader], tree: Path) -> None:
    with pytest.raises(RecipeError, match="no argument 'color_jiter', did you mean 'color_jitter'"):
        make(color_jiter=0.4)
    three = Recipe.load("a3", {"global_batch_size": 9, "mix_groups": 3})
    with pytest.raises(RecipeError, match=r"mix_groups=3 on 2 processes: create_loader .* takes 1, 3 processes"):
        make(recipe=three, rows=None, rank=1, world_size=2)
    with pytest.raises(DataError, match="batch_size=10 on 2 ranks is more than an epoch of 18 images"):
        make(rows=10, rank=0, world_size=2)
    with pytest.raises(DataError, match="num_classes=2"):
        make(collate_fn=collate(num_classes=2))
    with pytest.raises(DataError, match="no val folder"):
        make(tree, training=False)
    with pytest.raises(DataError, match="no such folder"):
        make(tree / "nowhere")
    with pytest.raises(DeviceError, match="go together"):
        make(rank=1)
    with pytest.raises(DeviceError, match="rank=2 is not one of 2"):
        make(rank=2, world_size=2)
    with pytest.raises(DeviceError, match="no process group"):
        make(distributed=True)


def test_docs_tables_name_every_argument() -> None:
    text = (Path(__file__).parents[1] / "docs" / "LOADER.md").read_text(encoding="utf-8")
    names = {*inspect.signature(create_loader).parameters, *REFUSED, *NO_BEARING} - {"others"}
    assert not {name for name in names if f"`{name}`" not in text}


def test_docs_code_runs(image_tree: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    image_tree(classes=3, per_class=2, split="val")
    folder = str(image_tree(classes=3, per_class=6).parent)
    text = (Path(__file__).parents[1] / "docs" / "LOADER.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(blocks) == 10
    small = {
        '"IMAGENET': f'"{folder}',
        ", 160, 512": ", 24, 4",
        "batch_size=512": "batch_size=4",
        '"batch_size": 512': '"batch_size": 4',
        "range(100)": "range(1)",
    }
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    names: dict[str, Any] = {}
    for block in blocks:
        for long, short in small.items():
            block = block.replace(long, short)
        exec(block, names)
    assert names["state"]["step"] == 2
