"""Ways of decoding, side by side: `python -m rsbdali.bench.decode_modes DATA --device cuda`.

The crop's region only, the whole image, and on a GPU the whole image with more or less of the work given to its JPEG
engine (`hw_decoder_load`; a GPU without one ignores it).
"""

import argparse
import dataclasses
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

from rsbdali.bench.material import enough_images
from rsbdali.bench.race.feeds import FeedSpec
from rsbdali.bench.race.race import race, start
from rsbdali.bench.race.stages import HARDWARE_SHARE
from rsbdali.bench.report.figures import LoaderFigures
from rsbdali.bench.report.presence import busy_warning
from rsbdali.data.index import ImageIndex
from rsbdali.data.splits import find_images
from rsbdali.distributed.devices import default_threads, resolve_device
from rsbdali.recipe import Recipe


def main(data: Path, device: str, batch_size: int, workers: int, seconds: float, rounds: int) -> None:
    """Measure and print a line for each mode."""
    recipe = dataclasses.replace(Recipe.load("a3"), global_batch_size=batch_size, mix_groups=1)
    modes = ["decode-roi", *(HARDWARE_SHARE if device != "cpu" else ["decode-full"])]
    with tempfile.TemporaryDirectory(prefix="rsbdali-decode-") as folder, ExitStack() as stack:
        root, _ = enough_images(ImageIndex.load(find_images(data)), batch_size, Path(folder))
        specs = [
            FeedSpec(
                kind=f"stage:{mode}",
                root=str(root),
                cache_dir=f"{folder}/cache",
                recipe=recipe.to_dict(),
                batch_size=batch_size,
                workers=workers,
                device=str(resolve_device(device)),
            )
            for mode in modes
        ]
        failed: dict[str, str] = {}
        found = race(start(specs, failed, stack, _quiet), rounds, seconds, failed, _quiet)
    all_figures = [LoaderFigures(name=name, rounds=tuple(done)) for name, done in found.items()]
    for figures in all_figures:
        rate, cpu = figures.images_per_s.median, figures.cpu_us_per_image
        sys.stdout.write(
            f"{figures.name.removeprefix('stage:'):18s} {rate:9,.0f} images/s {cpu:7,.0f} CPU-µs an image\n"
        )
    if warning := busy_warning({figures.name: figures.presence for figures in all_figures}):
        sys.stdout.write(warning + "\n")
    for name, why in failed.items():
        sys.stdout.write(f"{name.removeprefix('stage:'):18s} failed: {why}\n")


def _quiet(_: str) -> None:
    """The figures are printed when all are there."""


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--workers", type=int, default=default_threads())
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--rounds", type=int, default=2)
    main(**vars(parser.parse_args()))
