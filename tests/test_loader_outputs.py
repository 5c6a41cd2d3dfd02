"""What the loader gives besides mixed batches: bytes, soft targets, indices, batches that a user transforms."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from timm.loss import LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from torchvision.transforms import v2

from rsbdali import Recipe, create_loader
from rsbdali.errors import RecipeError
from rsbdali.integrations.tuple_loader import Pair, TupleLoader

SMALL: dict[str, Any] = {"input_size": 24, "batch_size": 4, "device": "cpu", "num_workers": 1, "is_training": True}
MIXING = {"img_size": 24, "test_img_size": 24, "aa": "none", "mixup": 0.1, "cutmix": 1.0}


@pytest.fixture
def tree(image_tree: Callable[..., Path]) -> Path:
    return image_tree(classes=3, per_class=6)


def loader_of(data: Any, **more: Any) -> TupleLoader:
    return create_loader(data, **{**SMALL, **more})


def batches(data: Any, **more: Any) -> list[Pair]:
    with loader_of(data, **more) as loader:
        return list(loader)


def same(one: list[Pair], other: list[Pair]) -> bool:
    equal = [torch.equal(a, b) for p, q in zip(one, other, strict=True) for a, b in zip(p, q, strict=True)]
    return bool(equal) and all(equal)


@pytest.mark.parametrize("arguments", [{"output": "uint8"}, {"use_prefetcher": False}])
def test_a_recipe_that_mixes_gives_plain_images(tree: Path, arguments: dict[str, Any]) -> None:
    mixing = Recipe.load("a1", {**MIXING, "aug_repeats": 0, "reprob": 0.5})
    assert mixing.smoothing > 0
    found = batches(tree, recipe=mixing, **arguments)
    without = {"mixup": 0, "cutmix": 0, "smoothing": 0, "reprob": 0 if "output" in arguments else 0.5}
    plain = batches(tree, recipe=mixing.with_overrides(without), **arguments)
    assert same(found, plain)
    assert {targets.dtype for _, targets in found} == {torch.int64}
    assert {images.dtype for images, _ in found} == {torch.uint8 if "output" in arguments else torch.float32}


@pytest.mark.parametrize("name", ["smoothing", "recipe"])
def test_smoothing_without_mixing(tree: Path, name: str) -> None:
    smoothed = (
        {"smoothing": 0.1} if name == "smoothing" else {"recipe": Recipe.from_dict({"smoothing": 0.1, "seed": 0})}
    )
    more: dict[str, Any] = {"interpolation": "bilinear", "num_classes": 5}
    with loader_of(tree, **more, **smoothed) as loader:
        soft = list(loader)
        assert not loader.mixup_enabled
        loader.mixup_enabled = True  # there is nothing to turn on
        assert not loader.mixup_enabled
    hard = batches(tree, **more)
    logits = torch.randn(4, 5, generator=torch.Generator().manual_seed(0))
    for (images, targets), (plain, labels) in zip(soft, hard, strict=True):
        assert torch.equal(images, plain)
        assert (targets.dtype, targets.shape) == (torch.float32, (4, 5))
        # timm smooths in its loss instead; torch's takes probabilities
        expected = LabelSmoothingCrossEntropy(0.1)(logits, labels)
        torch.testing.assert_close(SoftTargetCrossEntropy()(logits, targets), expected)
        torch.testing.assert_close(torch.nn.functional.cross_entropy(logits, targets), expected)


def test_mixed_targets_are_smoothed_as_asked(tree: Path) -> None:
    recipe = Recipe.load("a3", MIXING)
    for value in (0.0, 0.3):
        low = min(float(targets.min()) for _, targets in batches(tree, recipe=recipe, smoothing=value))
        assert low == pytest.approx(value / 3)


@pytest.mark.parametrize("arguments", [{"output": "uint8"}, {"use_prefetcher": False}])
def test_smoothing_of_plain_images_is_refused(tree: Path, arguments: dict[str, Any]) -> None:
    with pytest.raises(RecipeError, match="smoothing cannot be honored: output='uint8' and use_prefetcher=False"):
        loader_of(tree, smoothing=0.1, **arguments)


def test_indices_name_the_images_that_were_used(tree: Path, write_image: Callable[..., Path]) -> None:
    write_image(tree / "class0" / "cut.JPEG", "truncated", width=160, height=160)
    with loader_of(tree, return_index=True, on_bad=lambda *_: None) as loader:
        index = loader.loader.index
        cut = [index.relative_path(i) for i in range(len(index))].index("class0/cut.JPEG")
        for _ in range(3):
            for images, labels, rows in loader:
                assert (rows.dtype, len(rows)) == (torch.int64, len(images))
                assert labels.tolist() == [index.targets[i] for i in rows]
        replaced = index.path(cut) in loader.loader.bad.reasons
    assert replaced
    with create_loader(tree, 24, 5, device="cpu", return_index=True, on_bad=lambda *_: None) as evaluation:
        seen = [i for _, _, rows in evaluation for i in rows.tolist()]
    assert seen == [i for i in range(19) if i != cut]  # evaluation leaves it out, and says which are there


def shift(images: torch.Tensor) -> torch.Tensor:
    return (images + 1).clamp(max=255) - 1 + torch.randint(0, 2, images.shape, dtype=torch.uint8)


def test_a_transform_comes_before_mixing(tree: Path) -> None:
    recipe = Recipe.load("a3", MIXING)
    mixed = batches(tree, recipe=recipe, transform=lambda images: 255 - images)
    inverted = {"mean": [1 - m for m in recipe.mean]}
    expected = batches(tree, recipe=Recipe.load("a3", {**MIXING, **inverted}))
    for (images, targets), (theirs, same_targets) in zip(mixed, expected, strict=True):
        # mixing and normalizing are linear: of inverted pixels they are the negative about the inverted mean
        torch.testing.assert_close(images, -theirs, atol=3e-5, rtol=1e-5)
        assert torch.equal(targets, same_targets)
    raw = batches(tree, output="uint8", transform=lambda images: 255 - images)
    for (pixels, _), (plain, _) in zip(raw, batches(tree, output="uint8"), strict=True):
        assert torch.equal(pixels, 255 - plain)
        assert pixels.is_contiguous(memory_format=torch.channels_last)


def test_what_a_transform_sees(tree: Path) -> None:
    seen = []

    def look(images: torch.Tensor) -> torch.Tensor:
        seen.append((images.dtype, tuple(images.shape), images.is_contiguous(memory_format=torch.channels_last)))
        assert not torch.is_grad_enabled()
        return images.contiguous()  # another memory format is fine

    assert same(batches(tree, transform=look), batches(tree))
    assert set(seen) == {(torch.uint8, (4, 3, 24, 24), True)}


@pytest.mark.parametrize("transform", [shift, v2.RandomErasing(p=0.7), v2.ColorJitter(0.4, 0.4, 0.4)])
def test_random_transforms_resume_exactly(tree: Path, transform: Callable[[torch.Tensor], torch.Tensor]) -> None:
    before = torch.random.get_rng_state()
    with loader_of(tree, transform=transform) as loader:
        first = list(loader)
        second = iter(loader)
        next(second)
        state, rest = loader.state_dict(), list(second)
    assert torch.equal(torch.random.get_rng_state(), before)  # the program's own draws go on as without it
    torch.manual_seed(1)
    with loader_of(tree, transform=transform, num_workers=2, prefetch=3) as resumed:
        resumed.load_state_dict(state)
        assert same(list(resumed), rest)
        resumed.set_epoch(0)
        assert same(list(resumed), first)
    assert not same(first, batches(tree))
    torch.random.set_rng_state(before)


def test_transforms_draw_the_same_for_every_world_size(tree: Path) -> None:
    recipe = Recipe.load("a3", {**MIXING, "global_batch_size": 8, "mix_groups": 2})
    options: dict[str, Any] = {"recipe": recipe, "batch_size": None, "transform": shift}
    alone = batches(tree, **options)
    ranks = [batches(tree, **options, rank=rank, world_size=2) for rank in range(2)]
    assert same(alone, [pair for both in zip(*ranks, strict=True) for pair in both])


@pytest.mark.parametrize(
    ("transform", "message"),
    [
        (lambda images: images.float(), r"gives torch.float32 \(4, 3, 24, 24\) on cpu: expected torch.uint8"),
        (lambda images: images[:, :, ::2], r"gives torch.uint8 \(4, 3, 12, 24\)"),
        (lambda _: None, "gives NoneType: expected a uint8 tensor"),
    ],
)
def test_transforms_that_give_something_else(tree: Path, transform: Any, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        batches(tree, transform=transform)


def test_a_transform_that_fails_says_so_itself(tree: Path) -> None:
    def fail(images: torch.Tensor) -> torch.Tensor:
        raise KeyError("a mistake in the transform")

    with loader_of(tree, transform=fail) as loader, pytest.raises(KeyError, match="a mistake in the transform"):
        next(iter(loader))
