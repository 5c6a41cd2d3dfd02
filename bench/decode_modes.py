"""Ways of decoding, side by side: `python -m rsbdali.bench.decode_modes DATA --device cuda [--json FILE]`.

On a GPU whole images, with more or less of them given to its JPEG engine (`hw_decoder_load`; a GPU without one ignores
it), chroma upsampled as Pillow does or plainly, the crop's window alone, and the CPU's own decoding. On a CPU windows
and whole images. Each has a process of its own: one that crashes is left out.
"""

import argparse
import dataclasses
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rsbdali.bench.material import enough_images
from rsbdali.bench.measure.meter import Round
from rsbdali.bench.race.feeds import FeedSpec
from rsbdali.bench.race.race import race, start
from rsbdali.bench.race.stages import CPU_MODES, GPU_MODES
from rsbdali.bench.report.figures import LoaderFigures, round_record
from rsbdali.bench.report.presence import busy_warning
from rsbdali.data.index import ImageIndex
from rsbdali.data.splits import open_split
from rsbdali.distributed.devices import default_threads, resolve_device
from rsbdali.environment import machine_record, write_record
from rsbdali.recipe import Recipe


def main(
    data: Path, device: str, batch_size: int, workers: int, seconds: float, rounds: int, json: Path | None = None
) -> dict[str, Any]:
    """Measure, write the record after each round, print a line for each mode; the record."""
    target = str(resolve_device(device))
    recipe = dataclasses.replace(Recipe.load("a3"), global_batch_size=batch_size, mix_groups=1)
    config = {"device": target, "batch_size": batch_size, "workers": workers, "seconds": seconds, "rounds": rounds}
    modes = list(CPU_MODES) if target == "cpu" else [*GPU_MODES, "decode-cpu"]
    failed: dict[str, str] = {}
    record: dict[str, Any] = {"kind": "decode_modes", "machine": machine_record(), "config": config, "skipped": failed}

    def keep(found: Mapping[str, Sequence[Round]]) -> None:
        record.update(finished=False, results=[_result(name, done) for name, done in found.items()])
        if json:
            write_record(json, record)

    with tempfile.TemporaryDirectory(prefix="rsbdali-decode-") as folder, ExitStack() as stack:
        root, _ = enough_images(open_split(data, "any"), batch_size, Path(folder))
        ImageIndex.load(root, cache_dir=Path(folder, "cache"))  # once, for all modes
        spec = FeedSpec(
            kind="",
            root=str(root),
            cache_dir=f"{folder}/cache",
            recipe=recipe.to_dict(),
            batch_size=batch_size,
            workers=workers,
            device=target,
        )
        specs = [dataclasses.replace(spec, kind=f"stage:{mode}") for mode in modes]
        found = race(start(specs, failed, stack, _quiet), rounds, seconds, failed, _quiet, keep)
    for result in record["results"]:
        rate, cpu = result["images_per_s"]["median"], result["cpu_us_per_image"]
        sys.stdout.write(f"{result['name']:18s} {rate:9,.0f} images/s {cpu:7,.0f} CPU-µs an image\n")
    if warning := busy_warning({name: _figures(name, done).presence for name, done in found.items()}):
        sys.stdout.write(warning + "\n")
    for name, why in failed.items():
        sys.stdout.write(f"{name.removeprefix('stage:'):18s} failed: {why}\n")
    record["finished"] = True
    if json:
        write_record(json, record)
    return record


def _figures(name: str, rounds: Sequence[Round]) -> LoaderFigures:
    return LoaderFigures(name=name.removeprefix("stage:"), rounds=tuple(rounds))


def _result(name: str, rounds: Sequence[Round]) -> dict[str, Any]:
    figures = _figures(name, rounds)
    return {
        "name": figures.name,
        "images_per_s": asdict(figures.images_per_s),
        "cpu_us_per_image": figures.cpu_us_per_image,
        **asdict(figures.presence),
        "rounds": [round_record(r) for r in rounds],
    }


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
    parser.add_argument("--json", type=Path)
    main(**vars(parser.parse_args()))
