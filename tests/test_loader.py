"""The loaders as a trainer sees them: order, mixing, resume, bad images, evaluation."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from rsbdali.data.index import ImageIndex
from rsbdali.distributed.devices import resolve_device
from rsbdali.errors import DataError, DeviceError, RecipeError
from rsbdali.loader import EvalLoader, TrainBatch, TrainLoader
from rsbdali.ops.mix import mix_normalize
from rsbdali.recipe import Recipe

SMALL = {"img_size": 32, "test_img_size": 40, "global_batch_size": 16, "epochs": 2}
DECODE = ("graph", "cpu")


@pytest.fixture
def index(image_tree: Callable[..., Path]) -> ImageIndex:
    return ImageIndex.load(image_tree(classes=3, per_class=14))


def train_loader(index: ImageIndex, decode: str = "cpu", **options: object) -> TrainLoader:
    overrides = options.pop("overrides", {})
    settings = {"device": "cpu", "num_threads": 2, **options}
    return TrainLoader(index, Recipe.load("a3", {**SMALL, **overrides}), decode=decode, **settings)


def take(loader: TrainLoader, count: int | None = None) -> list[TrainBatch]:
    batches = []
    for batch in loader:
        batches.append(batch)
        if len(batches) == count:
            break
    return batches


def take_epochs(loader: TrainLoader, count: int) -> list[list[TrainBatch]]:
    return [take(loader) for _ in range(count)]


def same(one: TrainBatch, other: TrainBatch) -> bool:
    return torch.equal(one.images, other.images) and torch.equal(one.label_N, other.label_N)


@pytest.mark.parametrize("decode", DECODE)
def test_batches(index: ImageIndex, decode: str) -> None:
    loader = train_loader(index, decode)
    batches = take(loader)
    assert len(batches) == len(loader) == 2 * 4
    assert [(b.step, b.group) for b in batches] == [(s, g) for s in range(2) for g in range(4)]
    for batch in batches:
        assert batch.images.shape == (4, 3, 32, 32)
        assert batch.images.dtype == torch.float32
        assert batch.images.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(batch.partner_label_N, batch.label_N.flip(0))
        np.testing.assert_array_equal(batch.label_N, index.label_N[batch.plan.sample_N])
        assert batch.images.isfinite().all()
    loader.close()


@pytest.mark.parametrize("decode", DECODE)
def test_same_batches_for_every_world_size_and_thread_count(index: ImageIndex, decode: str) -> None:
    whole = {(b.step, b.group): b for b in take(train_loader(index, decode, num_threads=1))}
    for world_size in (2, 4):
        for rank in range(world_size):
            loader = train_loader(index, decode, rank=rank, world_size=world_size)
            assert len(loader) == len(whole) // world_size
            for batch in loader:
                assert batch.group % world_size == rank
                assert same(batch, whole[batch.step, batch.group])


@pytest.mark.parametrize("decode", DECODE)
def test_repeats_local_decode_once_equals_one_by_one(index: ImageIndex, decode: str) -> None:
    overrides = {"aug_repeats": 3, "aug_repeats_mode": "decode_once", "mix_groups": 2}
    loader = train_loader(index, decode, overrides=overrides)
    batch = take(loader, 1)[0]
    assert len(np.unique(batch.plan.sample_N)) == 3
    # row by row there is nothing to share
    single = train_loader(index, decode, overrides=overrides)
    mixed = [batch.plan.rows(np.array([row])) for row in range(len(batch.plan))]
    for row, plan in enumerate(mixed):
        alone_1HWC = single._prefetcher.run(plan).images_NHWC
        assert torch.equal(loader._prefetcher.run(batch.plan).images_NHWC[row], alone_1HWC[0])


def test_epochs_differ_and_follow_each_other(index: ImageIndex) -> None:
    loader = train_loader(index)
    first, second = take(loader), take(loader)
    assert [b.epoch for b in first + second] == [0] * 8 + [1] * 8
    assert not same(first[0], second[0])
    loader.set_epoch(0)
    assert all(same(a, b) for a, b in zip(take(loader), first, strict=True))


def test_seek_and_break_resume_exactly(index: ImageIndex) -> None:
    whole = take(train_loader(index))
    loader = train_loader(index)
    take(loader, 3)  # break in mid-epoch leaves stale batches
    loader.seek(0, 1)
    assert all(same(a, b) for a, b in zip(take(loader), whole[4:], strict=True))


@pytest.mark.parametrize("decode", DECODE)
def test_bad_images_are_replaced_and_named_once(image_tree: Callable[..., Path], decode: str, tmp_path: Path) -> None:
    tree = image_tree(classes=3, per_class=8, odd=("truncated", "empty", "text", "gray", "cmyk", "png"))
    index = ImageIndex.load(tree)
    assert {Path(b.path).name for b in index.bad} == {"odd_empty.JPEG", "odd_text.JPEG"}
    full_crops = {"scale": [1.0, 1.0], "ratio": [0.5, 2.0]}  # so that the cut is within every crop
    seen: list[tuple[str, str]] = []
    overrides = {"global_batch_size": 14, "mix_groups": 2, **full_crops}
    loader = train_loader(index, decode, overrides=overrides, on_bad=lambda *bad: seen.append(bad))
    runs = take_epochs(loader, 4)
    truncated = [path for path, _ in seen]
    assert [Path(path).name for path in truncated] == ["odd_truncated.JPEG"]
    bad_row = index_of(index, "odd_truncated.JPEG")
    assert not any(bad_row in b.plan.sample_N for run in runs for b in run)
    # a new loader, started in the middle, meets the same replacements
    again = train_loader(index, decode, overrides=overrides, on_bad=lambda *bad: None)
    again.seek(3, 0)
    assert all(same(a, b) for a, b in zip(take(again), runs[3], strict=True))


def index_of(index: ImageIndex, name: str) -> int:
    return next(i for i in range(len(index)) if index.path(i).endswith(name))


def test_too_many_bad_images(image_tree: Callable[..., Path]) -> None:
    index = ImageIndex.load(image_tree(per_class=6, odd=("truncated",)))
    overrides = {"scale": [1.0, 1.0], "global_batch_size": 16}
    loader = train_loader(index, overrides=overrides, max_bad_images=0)
    with pytest.raises(DataError, match="max_bad_images=0"):
        take_epochs(loader, 4)


@pytest.mark.parametrize(("world_size", "batch_size"), [(1, 16), (2, 8), (4, 16), (5, 1)])
def test_eval_counts_every_image_once(index: ImageIndex, world_size: int, batch_size: int) -> None:
    labels, lengths = [], set()
    for rank in range(world_size):
        loader = EvalLoader(
            index,
            Recipe.load("a3", SMALL),
            rank=rank,
            world_size=world_size,
            device="cpu",
            batch_size=batch_size,
            num_threads=1,
        )
        lengths.add(len(loader))
        for _ in range(2):  # a second pass gives the same
            batches = list(loader)
            assert len(batches) == len(loader)
        assert all(b.images.shape[1:] == (3, 40, 40) for b in batches)
        labels += [b.label_N for b in batches]
        loader.close()
    assert len(lengths) == 1
    assert sorted(torch.cat(labels).tolist()) == sorted(index.label_N.tolist())


def test_eval_leaves_out_and_names_what_does_not_decode(image_tree: Callable[..., Path]) -> None:
    index = ImageIndex.load(image_tree(per_class=3, odd=("truncated",)))
    seen: list[str] = []
    recipe = Recipe.load("a3", SMALL)
    loader = EvalLoader(index, recipe, device="cpu", batch_size=4, on_bad=lambda path, _: seen.append(Path(path).name))
    assert sum(len(b.label_N) for b in loader) == len(index) - 1
    assert seen == ["odd_truncated.JPEG"]


@pytest.mark.parametrize("decode", DECODE)
def test_a_program_that_never_closes_its_loader_ends_quietly(image_tree: Callable[..., Path], decode: str) -> None:
    tree = image_tree(per_class=8)
    code = (
        "import rsbdali;"
        f"recipe = rsbdali.Recipe.load('a3', {SMALL!r});"
        f"loader = rsbdali.create_loader({str(tree.parent)!r}, is_training=True, recipe=recipe, device='cpu',"
        f"decode={decode!r});"
        "next(iter(loader))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("decode", DECODE)
def test_uint8_is_what_gets_normalized(index: ImageIndex, decode: str) -> None:
    raw, mixed = train_loader(index, decode, dtype=torch.uint8), train_loader(index, decode)
    for pixels, batch in zip(take(raw), take(mixed), strict=True):
        plan = batch.plan
        again = mix_normalize(
            pixels.images.permute(0, 2, 3, 1), plan.partner_N, plan.lam_N, plan.box_N4, raw.recipe.mean, raw.recipe.std
        )
        assert torch.equal(again, batch.images)
        assert (pixels.lam_N == 1).all()


def test_seek_by_batches(index: ImageIndex) -> None:
    whole = take(train_loader(index))
    loader = train_loader(index)
    loader.seek_batch(0, 5)
    assert all(same(a, b) for a, b in zip(take(loader), whole[5:], strict=True))
    assert take(loader, 1)[0].epoch == 1


def test_mistakes(index: ImageIndex) -> None:
    with pytest.raises(RecipeError, match="larger than an epoch of 42 images"):
        train_loader(index, overrides={"global_batch_size": 64})
    with pytest.raises(RecipeError, match="use one of auto, gpu, gpu-roi, cpu"):
        train_loader(index, "nvjpeg")
    with pytest.raises(DeviceError, match="only cpu and cuda"):
        resolve_device("meta")
    with pytest.raises(DeviceError, match="use auto, cpu"):
        resolve_device("tpu9")
    if not torch.cuda.is_available():
        with pytest.raises(DeviceError, match="torch sees no GPU"):
            resolve_device("cuda")
