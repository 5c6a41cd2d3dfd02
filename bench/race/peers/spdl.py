"""spdl: Meta's `spdl.dataloader.DataLoader`, whose threads decode by FFmpeg (`spdl.io`).

As its documentation builds it: one filter graph an image (here crop, scale, flip, RGB), the frames of a batch copied
into one uint8 array, normalized on the device. The crop's size is an expression that FFmpeg evaluates, since the
image's own is not known before it is decoded.
"""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from rsbdali.bench.race.feeds import PREFETCH, FeedSpec
from rsbdali.bench.race.peers.feed import PeerFeed, PlainMix, image_paths
from rsbdali.distributed.devices import resolve_device
from rsbdali.errors import DeviceError
from rsbdali.recipe import Recipe

NOTE = "no RandAugment, no labels; crop and resize by FFmpeg, one filter; mixed by plain torch"


def build(spec: FeedSpec) -> PeerFeed:
    """SPDL's loader; its threads live in this process.

    Raises:
        DeviceError: there is no FFmpeg that it could use.
    """
    import spdl.io
    from spdl.dataloader import DataLoader

    try:
        spdl.io.utils.get_ffmpeg_versions()  # its libraries are looked for at first use
    except RuntimeError as error:
        raise DeviceError("it finds no shared libraries of FFmpeg here, which it decodes by") from error
    recipe, device = spec.load_recipe(), resolve_device(spec.device)

    def decode(item: tuple[str, str]) -> Any:
        path, filters = item
        return spdl.io.decode_packets(spdl.io.demux_image(path), filter_desc=filters)

    def batch(frames: list[Any]) -> torch.Tensor:
        images_NHWC: torch.Tensor = spdl.io.to_torch(spdl.io.convert_frames(frames))
        return images_NHWC

    loader = DataLoader(
        _items(image_paths(spec.root), recipe),
        preprocessor=decode,
        batch_size=spec.batch_size,
        aggregator=batch,
        drop_last=True,
        buffer_size=PREFETCH,
        num_threads=spec.workers,
    )
    mix = PlainMix(recipe, device)
    batches = (mix(images.permute(0, 3, 1, 2).to(device, non_blocking=True)) for images in loader)
    # behind the buffer: a batch with each aggregating thread, and one that is being gathered
    return PeerFeed(batches, PREFETCH + spec.workers + 1, NOTE)


def _items(paths: list[str], recipe: Recipe) -> Iterator[tuple[str, str]]:
    """Paths in a new order each epoch, for ever (the loader is never started anew), and the filters of each."""
    rng = np.random.default_rng(recipe.seed)
    while True:
        for i in rng.permutation(len(paths)):
            yield paths[i], filters(recipe, rng)


def filters(recipe: Recipe, rng: np.random.Generator) -> str:
    """FFmpeg's filter graph for one image: a random resized crop (its first try, cut to the image), flip, RGB.

    Args:
        recipe: scale, ratio, train_size, train_interpolation, hflip.
        rng: draws area, aspect, position and flip.
    """
    area, aspect = rng.uniform(*recipe.scale), math.exp(rng.uniform(*np.log(recipe.ratio)))
    left, top = rng.random(), rng.random()
    height, width = recipe.train_size
    filter_type = "bicubic" if recipe.train_interpolation == "bicubic" else "bilinear"
    steps = [
        f"crop=w='min(iw,sqrt(iw*ih*{area * aspect:.5f}))':h='min(ih,sqrt(iw*ih*{area / aspect:.5f}))'"
        f":x='(iw-ow)*{left:.5f}':y='(ih-oh)*{top:.5f}'",
        f"scale=w={width}:h={height}:flags={filter_type}",
        *(["hflip"] if rng.random() < recipe.hflip else []),
        "format=pix_fmts=rgb24",
    ]
    return ",".join(steps)
