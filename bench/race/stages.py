"""Where the time of an image goes: the data path built up rung by rung, each rung measured like a contestant.

    read → decode → crop+resize → RandAugment → mix+normalise → on device

A rung runs everything up to and including its stage; what a stage costs is the difference to the rung below it. The
decode rung alone is the ceiling of any loader that starts from these JPEGs. read is the loader's reading threads,
decode a bare DALI graph behind them with the plan's own windows; the rungs above are the executor itself with less
asked of it.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sized
from typing import Any

import torch
from nvidia.dali import fn

from rsbdali.bench.race.feeds import PREFETCH, Feed, FeedSpec, RsbdaliFeed
from rsbdali.data.index import ImageIndex
from rsbdali.distributed.devices import resolve_device
from rsbdali.loader.train import create_executor
from rsbdali.ops.mix import mix_normalize
from rsbdali.pipelines.dali_queue import Fields, Runner
from rsbdali.pipelines.decode import decode_window
from rsbdali.pipelines.encoded import EncodedInput, PendingImages
from rsbdali.plan.planner import BatchPlan, Planner

# variants of the decode rung, for `decode_modes`: whole images, with a share of them for the GPU's JPEG engine
HARDWARE_SHARE = {"decode-full": 0.9, "decode-full-hw0": 0.0, "decode-full-hw65": 0.65, "decode-full-hw100": 1.0}


def build_rung(spec: FeedSpec) -> Feed:
    """The feed of `stage:<name>`."""
    name = spec.kind.removeprefix("stage:")
    if name == "on device":
        return RsbdaliFeed(spec)
    if name == "read":
        return ReadRung(spec)
    if name.startswith("decode"):
        return DecodeRung(spec, name)
    if name == "crop+resize":
        spec = spec.as_kind(spec.kind, aa=None)
    return ExecutorRung(spec, mixed=name == "mix+normalise")


def _plans(spec: FeedSpec, index: ImageIndex) -> Iterator[BatchPlan]:
    """Group plans in training's order, for ever."""
    planner = Planner(index.width_N, index.height_N, spec.load_recipe())
    epoch = 0
    while True:
        for step in range(planner.steps_per_epoch):
            yield planner.group(epoch, step, 0)
        epoch += 1


class ReadRung:
    """Reads and checks the encoded images, by the loader's reading threads alone."""

    def __init__(self, spec: FeedSpec) -> None:
        self.ready, self.note = PREFETCH + 1, ""
        index = spec.load_index()
        self._plans, self._input = _plans(spec, index), EncodedInput(index, spec.workers)
        self._pending = deque[PendingImages]()
        for _ in range(PREFETCH):
            self._submit()

    def deliver(self) -> Sized:
        """The encoded images of the next batch."""
        self._submit()
        return self._pending.popleft().arrays()

    def close(self) -> None:
        """End the threads."""
        self._input.close()

    def _submit(self) -> None:
        self._pending.append(self._input(next(self._plans).sample_N))


class DecodeRung:
    """Reads images, and decodes the plan's crop of each, or the whole image, by DALI's threads."""

    def __init__(self, spec: FeedSpec, name: str) -> None:
        self.ready, self.note = PREFETCH + 1, ""
        index, device = spec.load_index(), resolve_device(spec.device)
        self._plans, self._rows = _plans(spec, index), spec.batch_size
        self._input = EncodedInput(index, spec.workers)
        self._runner = Runner(_graph(name, device), rows=spec.batch_size, device=device, num_threads=spec.workers)
        for _ in range(PREFETCH):
            self._submit()

    def deliver(self) -> Sized:
        """As many numbers as the next batch has images; its pixels are dropped."""
        self._submit()
        self._runner.collect()
        return range(self._rows)

    def close(self) -> None:
        """Let go of the pipeline and the threads."""
        self._runner.close()
        self._input.close()

    def _submit(self) -> None:
        plan = next(self._plans)
        self._runner.submit([self._input(plan.sample_N), plan.crop_N4[:, :2], plan.crop_N4[:, 2:]])


def _graph(name: str, device: torch.device) -> Callable[[Callable[[], Fields]], Any]:
    """The DALI graph of a decode rung, as a function of its source: encoded images and windows."""
    place = "gpu" if device.type == "cuda" else "cpu"

    def define(source: Callable[[], Fields]) -> Any:
        encoded, start, shape = fn.external_source(source=source, num_outputs=3, batch=True)
        if name not in HARDWARE_SHARE:
            roi = name == "decode-roi" or device.type == "cpu"
            images = decode_window(encoded, start, shape, device=place, roi=roi)
        else:
            decoder, load = ("mixed", HARDWARE_SHARE[name]) if place == "gpu" else ("cpu", None)
            images = fn.decoders.image(encoded, device=decoder, adjust_orientation=False, hw_decoder_load=load)
        return images.shape()  # alike for all images, so that they make a dense batch

    return define


class ExecutorRung:
    """The executor with the recipe it is given, its batches mixed and normalised or left as they come."""

    def __init__(self, spec: FeedSpec, *, mixed: bool) -> None:
        self.ready, self.note = 2 * PREFETCH + 1, ""
        index, self._recipe = spec.load_index(), spec.load_recipe()
        self._plans, self._mixed = _plans(spec, index), mixed
        self._executor = create_executor(
            spec.executor,
            index,
            self._recipe,
            rows=spec.batch_size,
            device=resolve_device(spec.device),
            num_threads=spec.workers,
            prefetch=PREFETCH,
        )
        self._queue: list[BatchPlan] = []
        for _ in range(PREFETCH):
            self._submit()

    def deliver(self) -> Sized:
        """The next batch: uint8 (N, H, W, 3), or mixed (N, 3, H, W) float32."""
        images_NHWC, _ = self._executor.collect()
        plan = self._queue.pop(0)
        self._submit()
        if not self._mixed:
            return images_NHWC
        recipe = self._recipe
        images: torch.Tensor = mix_normalize(
            images_NHWC, plan.partner_N, plan.lam_N, plan.box_N4, recipe.mean, recipe.std, torch.float32
        )
        return images

    def close(self) -> None:
        """Stop the executor."""
        self._executor.close()

    def _submit(self) -> None:
        plan = next(self._plans)
        self._executor.submit(plan)
        self._queue.append(plan)
