"""dali-basic: the graph that DALI's examples show: readers.file, image_random_crop, resize, its own RandAugment."""

from collections.abc import Iterator

import torch

from rsbdali.bench.race.feeds import FeedSpec, forever
from rsbdali.bench.race.peers.feed import BINS, PeerFeed, PlainMix, magnitude_bin
from rsbdali.distributed.devices import resolve_device
from rsbdali.plan.randaugment import FILL_RGB, RandAugmentPolicy
from rsbdali.recipe import Recipe


def build(spec: FeedSpec) -> PeerFeed:
    """A DALI graph of stock operators, as its examples write it."""
    from nvidia.dali.plugin.pytorch import DALIGenericIterator

    recipe, device = spec.load_recipe(), resolve_device(spec.device)
    pipe = _graph(spec, recipe, device)
    loader = DALIGenericIterator([pipe], ["images"], auto_reset=True, reader_name="files")
    mix = PlainMix(recipe, device)

    def batches() -> Iterator[torch.Tensor]:
        for batch in forever(loader):
            images = batch[0]["images"]
            if len(images) == spec.batch_size:  # the last batch of an epoch may be short
                yield mix(images.permute(0, 3, 1, 2))

    return PeerFeed(batches(), 3, "its own RandAugment; one filter; no labels; mixed by plain torch")


def _graph(spec: FeedSpec, recipe: Recipe, device: torch.device) -> "object":
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
                m=magnitude_bin(policy),
                num_magnitude_bins=BINS,
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
