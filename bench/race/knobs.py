"""What of our loader can be tuned: the knobs, their values on a machine, and whether they change pixels."""

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

from rsbdali.bench.race.feeds import PREFETCH, FeedSpec
from rsbdali.loader.tuned import LoaderSettings

MOST_CHUNK = 31  # images of a call to DALI (`rsbdali.pipelines.host.workers`)
CHUNKS, PREFETCHES = (4, 8, 16, MOST_CHUNK), (1, 2, 4)
LOADS = (0.0, 0.3, None, 0.9, 1.0)  # shares of the JPEGs for the GPU's JPEG engine; None: DALI's own, 0.65


@dataclass(frozen=True)
class Knob:
    """A setting that is searched.

    Attributes:
        name: of `LoaderSettings`.
        meaning: in words.
        values: that are tried.
        changes_pixels: batches are other ones; else it is a matter of speed only.
    """

    name: str
    meaning: str
    values: tuple[Any, ...]
    changes_pixels: bool = False

    def __str__(self) -> str:
        effect = "changes pixels" if self.changes_pixels else "speed only"
        return f"{self.name} ({self.meaning}; {effect}): {', '.join(map(_shown, self.values))}"


def _shown(value: Any) -> str:
    return "DALI's own" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def knobs(
    cores: int, device: str, *, allow_pixels: bool, gpu_decodes: bool = True, jpeg_engine: bool = False
) -> tuple[Knob, ...]:
    """All knobs, for a process that may use some cores."""
    # threads that wait for files leave cores idle, so more of them than cores may be best
    threads = {max(1, cores // 2), max(1, 3 * cores // 4), cores, cores + max(1, cores // 2)}
    return (
        Knob("threads", "CPU threads", tuple(sorted(threads))),
        Knob("chunk", "images a call to DALI of decode=cpu", CHUNKS),
        Knob("prefetch", "batches in flight", PREFETCHES),
        *(_of_pixels(decode_modes(device, gpu_decodes=gpu_decodes), jpeg_engine) if allow_pixels else ()),
    )


def _of_pixels(modes: tuple[str, ...], jpeg_engine: bool) -> Iterator[Knob]:
    yield Knob("decode", "where images are decoded", modes, changes_pixels=True)
    if jpeg_engine and "gpu" in modes:  # rounds otherwise than the GPU's other decoders
        meaning = "share of the JPEGs for the GPU's JPEG engine, of decode=gpu"
        yield Knob("hw_decoder_load", meaning, LOADS, changes_pixels=True)


def decode_modes(device: str, *, gpu_decodes: bool) -> tuple[str, ...]:
    """Where images may be decoded; not by regions on a GPU, where nvImageCodec 0.9 breaks."""
    if not device.startswith("cuda"):
        return ("auto",)
    return ("gpu", "cpu") if gpu_decodes else ("cpu",)


def default_settings(cores: int) -> LoaderSettings:
    """What a loader has that was not tuned."""
    return LoaderSettings(threads=cores, chunk=MOST_CHUNK, prefetch=PREFETCH)


def grid(
    cores: int,
    device: str,
    rows: int,
    *,
    allow_pixels: bool,
    gpu_decodes: bool = True,
    jpeg_engine: bool = False,
) -> list[LoaderSettings]:
    """All settings that differ in what they do, the default first, the others shuffled.

    So a search that has no time for all tries values of every knob. The order is the same each time.

    Args:
        cores: that this process may use.
        device: `cpu` or `cuda`.
        rows: of a batch: no call has more images than a thread's share of them.
        allow_pixels: the decode mode as well, and with a JPEG engine its share.
        gpu_decodes: a GPU can decode for this recipe.
        jpeg_engine: it has a JPEG engine.
    """
    can = {"gpu_decodes": gpu_decodes, "jpeg_engine": jpeg_engine}
    searched = knobs(cores, device, allow_pixels=allow_pixels, **can)
    names, values = [knob.name for knob in searched], product(*(knob.values for knob in searched))
    found = [LoaderSettings(**dict(zip(names, each, strict=True))) for each in values]
    others = dict.fromkeys(_distinct(found, device, rows))
    others.pop(default_settings(cores), None)
    return [default_settings(cores), *random.Random(0).sample(list(others), len(others))]


def _distinct(settings: list[LoaderSettings], device: str, rows: int) -> Iterator[LoaderSettings]:
    """With the largest chunk of those that do the same, and a share for the JPEG engine only where the GPU decodes."""
    for each in settings:
        if each.decode != "gpu":
            each = replace(each, hw_decoder_load=None)
        is_host = each.decode == "cpu" or not device.startswith("cuda")
        share = -(-rows // each.threads)
        yield each if is_host and each.chunk < min(MOST_CHUNK, share) else replace(each, chunk=MOST_CHUNK)


def spec_of(spec: FeedSpec, settings: LoaderSettings) -> FeedSpec:
    """The same task with other settings of the loader."""
    return replace(
        spec,
        workers=settings.threads,
        prefetch=settings.prefetch,
        chunk=settings.chunk,
        decode=settings.decode,
        hw_decoder_load=settings.hw_decoder_load,
    )
