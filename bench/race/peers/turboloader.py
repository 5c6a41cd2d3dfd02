"""turboloader: its fused path for training, `DataLoader(tar, train_aug=True)`.

One pass of its C++ threads decodes the crop's window, resizes, flips and normalizes into float32. It reads tar files
alone, so some of the images are packed into one beforehand, which is not timed.
"""

import os
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from rsbdali.bench.material import BATCHES_AN_EPOCH
from rsbdali.bench.race.feeds import PREFETCH, FeedSpec
from rsbdali.bench.race.peers.feed import PeerFeed, PlainMix, image_paths
from rsbdali.distributed.devices import resolve_device

NOTE = "no RandAugment, no labels; decodes at a reduced size; area 0.08 to 1; from a tar of JPEGs; mixed by plain torch"


def build(spec: FeedSpec) -> PeerFeed:
    """Turboloader's loader; its threads live in this process."""
    # its threads are as many as the process may use cores, and no argument says otherwise
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: spec.workers])
    import turboloader

    recipe, device = spec.load_recipe(), resolve_device(spec.device)
    archive = Path(spec.cache_dir) / "turboloader.tar"
    pack(image_paths(spec.root), archive, BATCHES_AN_EPOCH * spec.batch_size, recipe.seed)
    loader = turboloader.DataLoader(
        str(archive),
        batch_size=spec.batch_size,
        image_size=recipe.train_size,
        output_format="pytorch",
        transform=turboloader.Normalize(list(recipe.mean), list(recipe.std)),
        shuffle=True,
        seed=recipe.seed,
        drop_last=True,
        antialias=True,
        train_aug=True,
        hflip_prob=recipe.hflip,
        prefetch_batches=PREFETCH,
    )
    mix = PlainMix(recipe, device)

    def batches() -> Iterator[torch.Tensor]:
        epoch = 0
        while True:
            loader.set_epoch(epoch)
            for images, _ in loader:
                yield mix.mix(torch.from_numpy(images).to(device, non_blocking=True))
            epoch += 1

    return PeerFeed(batches(), PREFETCH + 1, NOTE)


def pack(paths: list[str], archive: Path, most: int, seed: int) -> None:
    """Write the files, or `most` of them drawn by the seed, into a tar file, links by what they point to."""
    chosen = np.random.default_rng(seed).permutation(len(paths))[:most]
    archive.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(archive, "w", format=tarfile.USTAR_FORMAT, dereference=True) as tar:
        for i in chosen:
            tar.add(paths[i], arcname=f"{i:08d}.jpg")
