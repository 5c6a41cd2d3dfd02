"""The loaders that ours is compared with, each doing in training what its users make it do.

* timm: `create_loader` as timm's train.py calls it (FastCollateMixup in the workers, PrefetchLoader normalises on the
  device), kept running across epoch ends (`use_multi_epochs_loader`), which is kinder than its default.
* torchvision: tensors from `torchvision.io`, transforms v2 on uint8, its own RandAugment, in DataLoader workers.
* dali-basic: the graph that DALI's examples show: readers.file, image_random_crop, resize, its own RandAugment.

The last two have no mixup of their own that fits, so `mix_plainly` mixes a batch by plain torch operations.
"""

import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from rsbdali.bench.race.feeds import Feed, FeedSpec, forever
from rsbdali.distributed.devices import resolve_device
from rsbdali.plan.randaugment import FILL_RGB, RandAugmentPolicy
from rsbdali.recipe import Recipe

DALI_BINS = 31  # torchvision's and DALI's magnitude bins: timm's levels 0..10 are every third one
PREFETCH_FACTOR = 2  # DataLoader's default, batches for each worker


def missing(name: str) -> str | None:
    """Why a peer cannot take part here, None if it can."""
    module = REQUIRES[name]
    return None if importlib.util.find_spec(module) else f"{module} is not installed"


def build_peer(spec: FeedSpec) -> Feed:
    """The feed of a peer by its name."""
    return PEERS[spec.kind](spec)


class PeerFeed:
    """Batches from any iterable loader whose items begin with the images."""

    def __init__(self, batches: Iterator[torch.Tensor], ready: int, note: str) -> None:
        self.ready, self.note, self._batches = ready, note, batches

    def deliver(self) -> torch.Tensor:
        """The next batch: (N, 3, H, W) float32."""
        return next(self._batches)

    def close(self) -> None:
        """Let go of the loader; its workers end with it."""
        self._batches = iter(())


def build_timm(spec: FeedSpec) -> PeerFeed:
    """Timm's loader, its workers being processes."""
    from timm.data import FastCollateMixup, ImageDataset, create_loader

    recipe, device = spec.load_recipe(), resolve_device(spec.device)
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
        hflip=recipe.hflip,
        color_jitter=0.0,
        auto_augment=recipe.aa,
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


class TorchvisionImages(Dataset[torch.Tensor]):
    """uint8 CHW images, decoded, cropped, flipped and augmented by torchvision on tensors."""

    def __init__(self, root: str, recipe: Recipe) -> None:
        from torchvision.transforms import InterpolationMode, v2

        self.paths = [str(path) for path in sorted(Path(root).rglob("*")) if path.is_file()]
        cubic = recipe.train_interpolation == "bicubic"
        mode = InterpolationMode.BICUBIC if cubic else InterpolationMode.BILINEAR
        steps = [
            v2.RandomResizedCrop(recipe.train_size, recipe.scale, recipe.ratio, interpolation=mode, antialias=True),
            v2.RandomHorizontalFlip(recipe.hflip),
        ]
        policy = RandAugmentPolicy.parse(recipe.aa)
        if policy is not None:
            steps.append(
                v2.RandAugment(
                    policy.num_layers, dali_magnitude(policy), DALI_BINS, InterpolationMode.BILINEAR, list(FILL_RGB)
                )
            )
        self.transform = v2.Compose(steps)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> torch.Tensor:
        from torchvision.io import ImageReadMode, decode_image, read_file

        image: torch.Tensor = self.transform(decode_image(read_file(self.paths[index]), ImageReadMode.RGB))
        return image


def build_torchvision(spec: FeedSpec) -> PeerFeed:
    """Torchvision's tensor path, its workers being processes."""
    recipe, device = spec.load_recipe(), resolve_device(spec.device)
    loader = DataLoader(
        TorchvisionImages(spec.root, recipe),
        spec.batch_size,
        shuffle=True,
        num_workers=spec.workers,
        drop_last=True,
        persistent_workers=True,
        prefetch_factor=PREFETCH_FACTOR,
        pin_memory=device.type == "cuda",
    )
    mix = PlainMix(recipe, device)
    batches = (mix(images.to(device, non_blocking=True)) for images in forever(loader))
    return PeerFeed(batches, spec.workers * PREFETCH_FACTOR, "its own RandAugment; one filter; mixed by plain torch")


def build_dali_basic(spec: FeedSpec) -> PeerFeed:
    """A DALI graph of stock operators, as its examples write it."""
    from nvidia.dali.plugin.pytorch import DALIGenericIterator

    recipe, device = spec.load_recipe(), resolve_device(spec.device)
    pipe = _dali_graph(spec, recipe, device)
    loader = DALIGenericIterator([pipe], ["images"], auto_reset=True, reader_name="files")
    mix = PlainMix(recipe, device)

    def batches() -> Iterator[torch.Tensor]:
        for batch in forever(loader):
            images = batch[0]["images"]
            if len(images) == spec.batch_size:  # the last batch of an epoch may be short
                yield mix(images.permute(0, 3, 1, 2))

    return PeerFeed(batches(), 3, "its own RandAugment; one filter; mixed by plain torch")


def _dali_graph(spec: FeedSpec, recipe: Recipe, device: torch.device) -> "object":
    from nvidia.dali import fn, pipeline_def, types
    from nvidia.dali.auto_aug import rand_augment

    policy = RandAugmentPolicy.parse(recipe.aa)
    height, width = recipe.train_size
    filter_type = types.INTERP_CUBIC if recipe.train_interpolation == "bicubic" else types.INTERP_LINEAR

    @pipeline_def(enable_conditionals=True)
    def graph() -> object:
        encoded, _ = fn.readers.file(file_root=spec.root, random_shuffle=True, name="files", seed=recipe.seed)
        images = fn.decoders.image_random_crop(
            encoded,
            device="mixed" if device.type == "cuda" else "cpu",
            random_area=list(recipe.scale),
            random_aspect_ratio=list(recipe.ratio),
            num_attempts=10,
            adjust_orientation=False,
        )
        images = fn.resize(images, resize_y=height, resize_x=width, interp_type=filter_type, antialias=True)
        images = fn.flip(images, horizontal=fn.random.coin_flip(probability=recipe.hflip))
        if policy is not None:
            images = rand_augment.rand_augment(
                images,
                n=policy.num_layers,
                m=dali_magnitude(policy),
                num_magnitude_bins=DALI_BINS,
                shape=(height, width),
                max_translate_rel=0.45,
                fill_value=FILL_RGB[0],
            )
        return images

    on_gpu = device.type == "cuda"
    return graph(
        batch_size=spec.batch_size,
        num_threads=spec.workers,
        seed=recipe.seed,
        prefetch_queue_depth=2,
        device_id=device.index if on_gpu else None,
    )


def dali_magnitude(policy: RandAugmentPolicy) -> int:
    """Timm's mean level as one of torchvision's and DALI's 31 magnitude bins."""
    return round(policy.magnitude / 10 * (DALI_BINS - 1))


class PlainMix:
    """Normalise a uint8 batch and mix it with its reverse by ordinary torch operations, one λ a batch."""

    def __init__(self, recipe: Recipe, device: torch.device) -> None:
        self.recipe, self._rng = recipe, np.random.default_rng(recipe.seed)
        self._mean = torch.tensor(recipe.mean, device=device).view(1, 3, 1, 1) * 255
        self._std = torch.tensor(recipe.std, device=device).view(1, 3, 1, 1) * 255

    def __call__(self, images_NCHW: torch.Tensor) -> torch.Tensor:
        """Float32, normalised and mixed: (N, 3, H, W)."""
        images = images_NCHW.float().sub_(self._mean).div_(self._std)
        cut = self.recipe.cutmix > 0 and (self.recipe.mixup <= 0 or self._rng.random() < self.recipe.mixup_switch_prob)
        alpha = self.recipe.cutmix if cut else self.recipe.mixup
        if alpha <= 0 or self._rng.random() >= self.recipe.mixup_prob:
            return images
        lam = float(self._rng.beta(alpha, alpha))
        if not cut:
            return torch.lerp(images.flip(0), images, lam)
        height, width = images.shape[2:]
        cut_h, cut_w = int(height * (1 - lam) ** 0.5), int(width * (1 - lam) ** 0.5)
        y, x = int(self._rng.integers(height - cut_h + 1)), int(self._rng.integers(width - cut_w + 1))
        images[:, :, y : y + cut_h, x : x + cut_w] = images.flip(0)[:, :, y : y + cut_h, x : x + cut_w]
        return images


PEERS: dict[str, Callable[[FeedSpec], Feed]] = {
    "timm": build_timm,
    "torchvision": build_torchvision,
    "dali-basic": build_dali_basic,
}
REQUIRES = {"timm": "timm", "torchvision": "torchvision", "dali-basic": "nvidia.dali"}
