"""torchvision: tensors from `torchvision.io`, transforms v2 on uint8, its own RandAugment, in DataLoader workers."""

import torch
from torch.utils.data import DataLoader, Dataset

from rsbdali.bench.race.feeds import FeedSpec, forever
from rsbdali.bench.race.peers.feed import BINS, PREFETCH_FACTOR, PeerFeed, PlainMix, image_paths, magnitude_bin
from rsbdali.distributed.devices import resolve_device
from rsbdali.plan.randaugment import FILL_RGB, RandAugmentPolicy
from rsbdali.recipe import Recipe


class TorchvisionImages(Dataset[torch.Tensor]):
    """uint8 CHW images, decoded, cropped, flipped and augmented by torchvision on tensors."""

    def __init__(self, root: str, recipe: Recipe) -> None:
        from torchvision.transforms import InterpolationMode, v2

        self.paths = image_paths(root)
        cubic = recipe.train_interpolation == "bicubic"
        mode = InterpolationMode.BICUBIC if cubic else InterpolationMode.BILINEAR
        steps = [
            v2.RandomResizedCrop(recipe.train_size, recipe.scale, recipe.ratio, interpolation=mode, antialias=True),
            v2.RandomHorizontalFlip(recipe.hflip),
        ]
        policy = RandAugmentPolicy.parse(recipe.aa)
        if policy is not None:
            fill, bilinear = list(FILL_RGB), InterpolationMode.BILINEAR
            steps.append(v2.RandAugment(policy.num_layers, magnitude_bin(policy), BINS, bilinear, fill))
        self.transform = v2.Compose(steps)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> torch.Tensor:
        from torchvision.io import ImageReadMode, decode_image, read_file

        image: torch.Tensor = self.transform(decode_image(read_file(self.paths[index]), ImageReadMode.RGB))
        return image


def build(spec: FeedSpec) -> PeerFeed:
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
    note = "its own RandAugment; one filter; no labels; mixed by plain torch"
    return PeerFeed(batches, spec.workers * PREFETCH_FACTOR, note)
