"""timm: `create_loader` as timm's train.py calls it, its workers being processes.

FastCollateMixup runs in the workers and PrefetchLoader normalizes on the device. It is kept running across epoch ends
(`use_multi_epochs_loader`), which is kinder than its default.
"""

from rsbdali.bench.race.feeds import FeedSpec, forever
from rsbdali.bench.race.peers.feed import PREFETCH_FACTOR, PeerFeed
from rsbdali.distributed.devices import resolve_device
from rsbdali.errors import RecipeError


def build(spec: FeedSpec) -> PeerFeed:
    """Timm's loader."""
    from timm.data import FastCollateMixup, ImageDataset, create_loader

    recipe, device = spec.load_recipe(), resolve_device(spec.device)
    if recipe.aa == "trivial":
        raise RecipeError("aa=trivial: timm has no TrivialAugment, so leave the peer timm out, or set another aa")
    dataset = ImageDataset(spec.root)
    mixed = recipe.mixup > 0 or recipe.cutmix > 0
    collate = FastCollateMixup(
        mixup_alpha=recipe.mixup,
        cutmix_alpha=recipe.cutmix,
        prob=recipe.mixup_prob,
        switch_prob=recipe.mixup_switch_prob,
        mode=recipe.mixup_mode,
        label_smoothing=recipe.smoothing,
        num_classes=len(dataset.reader.class_to_idx),
    )
    loader = create_loader(
        dataset,
        input_size=(3, *recipe.train_size),
        batch_size=spec.batch_size,
        is_training=True,
        scale=recipe.scale,
        ratio=recipe.ratio,
        train_crop_mode=recipe.train_crop_mode,
        hflip=recipe.hflip,
        vflip=recipe.vflip,
        color_jitter=recipe.color_jitter,
        color_jitter_prob=recipe.color_jitter_prob,
        grayscale_prob=recipe.grayscale_prob,
        gaussian_blur_prob=recipe.gaussian_blur_prob,
        auto_augment=recipe.aa,
        re_prob=recipe.reprob,
        re_mode=recipe.remode,
        re_count=recipe.recount,
        interpolation=recipe.train_interpolation,
        mean=recipe.mean,
        std=recipe.std,
        num_workers=spec.workers,
        collate_fn=collate if mixed else None,
        pin_memory=device.type == "cuda",
        device=device,
        use_prefetcher=True,
        use_multi_epochs_loader=True,
    )
    note = "without repeats, which it has only under torchrun" if recipe.aug_repeats > 1 else ""
    ready = spec.workers * PREFETCH_FACTOR + 1
    return PeerFeed((images for images, _ in forever(loader)), ready, note)
