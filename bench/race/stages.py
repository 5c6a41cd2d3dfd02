"""Where the time of an image goes: the data path built up stage by stage, each stage measured like a candidate.

    read → decode → crop+resize → RandAugment → mix+normalize → on device

A candidate runs everything up to and including its stage; what a stage costs is the difference to the candidate before.
The decode stage alone is the ceiling of any loader that starts from these JPEGs. read is the loader's reading threads,
decode a bare DALI graph behind them with the plan's own windows; the stages above are the executor itself with less
asked of it.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sized
from dataclasses import dataclass
from typing import Any

import torch
from nvidia.dali import fn

from rsbdali.bench.race.feeds import PREFETCH, Feed, FeedSpec, RsbdaliFeed
from rsbdali.data.index import ImageIndex
from rsbdali.distributed.devices import resolve_device
from rsbdali.distributed.world import World
from rsbdali.loader.decode_mode import choose_decode, create_executor
from rsbdali.ops.mix import mix_normalize
from rsbdali.pipelines.dali_queue import Fields, PipelineQueue
from rsbdali.pipelines.decode import decode, decode_window, gpu_settings
from rsbdali.pipelines.encoded import EncodedInput, PendingImages
from rsbdali.pipelines.executor import ImageSource
from rsbdali.plan.planner import BatchPlan, Planner


@dataclass(frozen=True, kw_only=True)
class Mode:
    """A way of decoding.

    Attributes:
        backend: DALI's, `cpu` or `gpu`.
        roi: decode the crop's window alone, else the whole image.
        load: share of a batch for the GPU's JPEG engine; None for DALI's own.
        fancy: upsample chroma on the GPU as libjpeg-turbo and Pillow do.
    """

    backend: str
    roi: bool = False
    load: float | None = None
    fancy: bool = True


# Variants of the decode stage, for `decode_modes`. The engine may not know fancy upsampling: with and without, by load.
LOADS = (0.0, 0.3, 0.65, 0.9, 1.0)
CPU_MODES = {"decode-cpu": Mode(backend="cpu", roi=True), "decode-cpu-full": Mode(backend="cpu")}
GPU_MODES = {
    **{f"decode-hw{load:.0%}".rstrip("%"): Mode(backend="gpu", load=load) for load in LOADS},
    **{
        f"decode-hw{load:.0%}".rstrip("%") + "-plain": Mode(backend="gpu", load=load, fancy=False)
        for load in (0.0, 0.9)
    },
    "decode-roi": Mode(backend="gpu", roi=True),
}


def build_stage(spec: FeedSpec) -> Feed:
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
    return ExecutorRung(spec, mixed=name == "mix+normalize")


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
        return self._pending.popleft().fields()[0]

    def close(self) -> None:
        """End the threads."""
        self._input.close()

    def _submit(self) -> None:
        plan = next(self._plans)
        self._pending.append(self._input(plan.sample_N, plan.crop_N4))


class DecodeRung:
    """Reads images, and decodes the plan's crop of each, or the whole image, by DALI's threads."""

    def __init__(self, spec: FeedSpec, name: str) -> None:
        self.ready, self.note = PREFETCH + 1, ""
        index, device = spec.load_index(), resolve_device(spec.device)
        mode = mode_of(name, device)
        self._roi = mode.roi
        if mode.backend == "cpu":
            device = torch.device("cpu")
        self._plans, self._rows = _plans(spec, index), spec.batch_size
        self._input = EncodedInput(index, spec.workers)
        graph = decode_graph(mode, index)
        self._queue = PipelineQueue(graph, rows=spec.batch_size, device=device, num_threads=spec.workers)
        for _ in range(PREFETCH):
            self._submit()

    def deliver(self) -> Sized:
        """As many numbers as the next batch has images; its pixels are dropped."""
        self._submit()
        self._queue.collect()
        return range(self._rows)

    def close(self) -> None:
        """Let go of the pipeline and the threads."""
        self._queue.close()
        self._input.close()

    def _submit(self) -> None:
        plan = next(self._plans)
        self._queue.submit([self._input(plan.sample_N, plan.crop_N4 if self._roi else None)])


def mode_of(name: str, device: torch.device) -> Mode:
    """The mode of a stage by its name; plain `decode` is what the executors do: whole images on a GPU, windows else."""
    if name == "decode":
        return Mode(backend="gpu") if device.type == "cuda" else CPU_MODES["decode-cpu"]
    return {**CPU_MODES, **GPU_MODES}[name]


def decode_graph(mode: Mode, index: ImageSource) -> Callable[[Callable[[], Fields]], Any]:
    """The DALI graph of a decode stage, as a function of its source: encoded images, and windows if it takes them."""
    on_gpu = mode.backend == "gpu"
    settings = gpu_settings(index, mode.load) | {"jpeg_fancy_upsampling": mode.fancy} if on_gpu else {}

    def define(source: Callable[[], Fields]) -> Any:
        encoded, *window = fn.external_source(source=source, num_outputs=3 if mode.roi else 1, batch=True)
        if mode.roi:
            images = decode_window(encoded, *window, device=mode.backend, roi=True)
        else:
            images = decode(encoded, device=mode.backend, settings=settings)
        sizes = images.shape()  # alike for all images, so that they make a dense batch
        return sizes.gpu() if on_gpu else sizes

    return define


class ExecutorRung:
    """The executor with the recipe it is given, its batches mixed and normalized or left as they come."""

    def __init__(self, spec: FeedSpec, *, mixed: bool) -> None:
        self.ready, self.note = 2 * PREFETCH + 1, ""
        index, self._recipe = spec.load_index(), spec.load_recipe()
        self._plans, self._mixed = _plans(spec, index), mixed
        resources = {"device": resolve_device(spec.device), "num_threads": spec.workers}
        self._executor = create_executor(
            choose_decode(spec.decode, index, self._recipe, **resources, world=World()),
            index,
            self._recipe,
            rows=spec.batch_size,
            hw_decoder_load=spec.hw_decoder_load,
            **resources,
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
