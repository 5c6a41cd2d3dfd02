"""Does reading only a crop's restart intervals pay? `python -m rsbdali.bench.seekable DATA PACKED [--json FILE]`.

DATA are the images as they were, PACKED the same ones written by `rsbdali pack --seekable`. One plan after another is
made from DATA, from PACKED read as a whole, and from PACKED read in part, in turn: plan, read, decode, resize, augment,
mix and normalize. All three must give the same batch, to the bit. CPU time is compared within each round, so that what
else runs on the machine disturbs it little; the splice alone is timed as well.
"""

import argparse
import dataclasses
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rsbdali.data.index import ImageIndex
from rsbdali.data.sources.base import ByteRange
from rsbdali.data.splits import find_images
from rsbdali.environment import machine_record, write_record
from rsbdali.errors import DataError
from rsbdali.ops.mix import mix_normalize
from rsbdali.pipelines.host.executor import HostExecutor
from rsbdali.pipelines.regions import find_splice
from rsbdali.plan.planner import Planner
from rsbdali.recipe import Recipe

CPU = torch.device("cpu")
WARM_UP = 2
SPLICES = 10  # of each image in a round


class Way:
    """One way of reading: the whole loader but for its threads that fetch ahead."""

    def __init__(self, index: ImageIndex, recipe: Recipe, threads: int) -> None:
        self._planner, self._recipe = Planner(index.width_N, index.height_N, recipe), recipe
        rows = recipe.global_batch_size
        self._executor = HostExecutor(index, recipe, rows=rows, device=CPU, num_threads=threads)
        self.us: list[float] = []

    def batch(self, number: int) -> torch.Tensor:
        """Make a batch and note its CPU-µs an image."""
        begin = time.process_time()
        plan = self._planner.group(*divmod(number, self._planner.steps_per_epoch), 0)
        self._executor.submit(plan)
        images_NHWC, bad = self._executor.collect()
        mix = plan.partner_N, plan.lam_N, plan.box_N4
        images = mix_normalize(images_NHWC, *mix, self._recipe.mean, self._recipe.std, torch.float32)
        self.us.append((time.process_time() - begin) / len(plan) * 1e6)
        if bad:
            raise DataError(f"an image does not decode: {next(iter(bad.values()))}")
        return images

    def close(self) -> None:
        """Stop the executor."""
        self._executor.close()


def measure_ways(indexes: dict[str, ImageIndex], recipe: Recipe, rounds: int, threads: int) -> dict[str, Any]:
    """CPU-µs an image of each way by rounds, in turn, and what reading in part gains."""
    ways = {name: Way(index, recipe, threads) for name, index in indexes.items()}
    try:
        for number in range(WARM_UP + rounds):
            turn = list(ways)[number % len(ways) :] + list(ways)[: number % len(ways)]
            images = {name: ways[name].batch(number) for name in turn}
            first = images["original"]
            if not all(torch.equal(first, other) for other in images.values()):
                raise DataError(f"batch {number} is not the same: are these the same images?")
    finally:
        for way in ways.values():
            way.close()
    us = {name: way.us[WARM_UP:] for name, way in ways.items()}
    return {
        "cpu_us_per_image": {name: _spread(values) for name, values in us.items()},
        "gain": {
            name: _spread([1 - mine / its for mine, its in zip(us["in part"], us[name], strict=True)])
            for name in ("original", "whole")
        },
        "rounds": us,
    }


def measure_splice(index: ImageIndex, recipe: Recipe, rounds: int) -> dict[str, Any]:
    """CPU-µs of finding and splicing the intervals, without reading, and the share of the bytes that is used."""
    loops, plan = find_splice(), Planner(index.width_N, index.height_N, recipe).group(0, 0, 0)
    if loops is None or index.intervals is None:
        raise DataError(f"{index.name}: no image can be read in part: pack it with --seekable")
    images = list[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]()
    read = whole = 0
    for i, window in zip(plan.sample_N.tolist(), plan.crop_N4.tolist(), strict=True):
        if (found := index.intervals_of(i)) is None:
            continue
        field_F = np.zeros(loops.FIELDS, np.int64)
        field_F[:8] = *window, index.height_N[i], index.width_N[i], *found.sampling
        loops.locate(found.length_K, field_F)
        header, lines = ByteRange(0, int(found.length_K[0])), ByteRange(*field_F[[loops.START, loops.BYTES]].tolist())
        raw_B, out_B = np.empty((2, header.nbytes + lines.nbytes), np.uint8)
        index.read_parts(i, (header, lines), raw_B)
        images.append((raw_B, found.length_K, field_F, out_B))
        read, whole = read + len(raw_B), whole + int(index.nbytes_N[i])
    us = []
    for _ in range(rounds):
        begin = time.process_time()
        for raw_B, length_K, field_F, out_B in images:
            for _ in range(SPLICES):  # in a row: the bytes have just been read, so the cache has them
                loops.locate(length_K, field_F)
                loops.splice(raw_B, length_K, field_F, out_B)
        us.append((time.process_time() - begin) / len(images) / SPLICES * 1e6)
    return {
        "cpu_us_per_image": _spread(us),
        "read_share": read / whole,
        "decoded_share": sum(loops.splice(*image) for image in images) / whole,
        "intervals": statistics.mean(len(length_K) - 1 for _, length_K, _, _ in images),
    }


def _spread(values: list[float]) -> dict[str, float]:
    low, median, high = np.percentile(values, [25, 50, 75]).tolist()
    return {"median": median, "quartile_1": low, "quartile_3": high, "min": min(values), "max": max(values)}


def main(data: Path, packed: Path, recipe: str, batch_size: int, threads: int, rounds: int, json: Path | None) -> None:
    """Measure, print, write the record."""
    changes: dict[str, Any] = {
        "global_batch_size": batch_size,
        "mix_groups": 1,
        "micro_batch_size": None,
        "mixup_off_epoch": 0,
    }
    chosen = dataclasses.replace(Recipe.load(recipe), **changes, aug_repeats=0)
    original, seekable = (ImageIndex.load(find_images(folder)) for folder in (data, packed))
    whole = dataclasses.replace(seekable, intervals=None)
    record = {
        "kind": "seekable",
        "machine": machine_record(),
        "config": {"recipe": recipe, "batch_size": batch_size, "threads": threads, "rounds": rounds},
        "images": len(original),
        "in_part": int((seekable.intervals.file_N >= 0).sum()) if seekable.intervals is not None else 0,
        "bytes_ratio": float(seekable.nbytes_N.sum() / original.nbytes_N.sum()),
        "splice": measure_splice(seekable, chosen, rounds),
        **measure_ways({"original": original, "whole": whole, "in part": seekable}, chosen, rounds, threads),
    }
    sys.stdout.write(summary(record))
    if json:
        write_record(json, record)


def summary(record: dict[str, Any]) -> str:
    """The figures as lines."""
    splice = record["splice"]
    lines = [
        f"{record['in_part']} of {record['images']} images in part, {record['bytes_ratio']:.3f} × the bytes; "
        f"{splice['read_share']:.0%} of them read, {splice['decoded_share']:.0%} decoded",
        f"splice    {splice['cpu_us_per_image']['median']:7.1f} CPU-µs an image",
    ]
    for name, us in record["cpu_us_per_image"].items():
        lines.append(
            f"{name:9s} {us['median']:7.0f} CPU-µs an image ({us['quartile_1']:.0f} to {us['quartile_3']:.0f})"
        )
    for name, gain in record["gain"].items():
        spread = f"quartiles {gain['quartile_1']:.1%} to {gain['quartile_3']:.1%}"
        lines.append(f"in part against {name}: {gain['median']:.1%} less, by rounds ({spread})")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("packed", type=Path)
    parser.add_argument("--recipe", default="a3")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--json", type=Path)
    main(**vars(parser.parse_args()))
