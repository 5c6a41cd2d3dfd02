"""Where the time of an image goes: the data path built up rung by rung, each rung measured like a contestant.

    read → decode → crop+resize → RandAugment → mix+normalise → on device

A rung runs everything up to and including its stage; what a stage costs is the difference to the rung below it. The
decode rung alone is the ceiling of any loader that starts from these JPEGs. read and decode are bare DALI graphs with
the plan's own windows; the rungs above are the executor itself with less asked of it.
"""

from collections.abc import Callable, Iterator, Sized
from typing import Any

import numpy as np
import torch
from nvidia.dali import fn, pipeline_def

from rsbdali.bench.race.feeds import PREFETCH, Feed, FeedSpec, RsbdaliFeed
from rsbdali.data.index import ImageIndex
from rsbdali.distributed.devices import resolve_device
from rsbdali.loader.train import create_executor
from rsbdali.ops.mix import mix_normalize
from rsbdali.pipelines.decode import decode_window
from rsbdali.pipelines.roi import use_roi
from rsbdali.plan.planner import BatchPlan, Planner

# variants of the decode rung, for `decode_modes`: whole images, with a share of them for the GPU's JPEG engine
HARDWARE_SHARE = {"decode-full": 0.9, "decode-full-hw0": 0.0, "decode-full-hw65": 0.65, "decode-full-hw100": 1.0}
WHOLE = {"read", *HARDWARE_SHARE}


def build_rung(spec: FeedSpec) -> Feed:
    """The feed of `stage:<name>`."""
    name = spec.kind.removeprefix("stage:")
    if name == "on device":
        return RsbdaliFeed(spec)
    if name.startswith(("read", "decode")):
        return GraphRung(spec, name)
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


class GraphRung:
    """Reads files, and decodes the plan's crop of each, by DALI's threads alone."""

    def __init__(self, spec: FeedSpec, name: str) -> None:
        self.ready, self.note = PREFETCH + 1, ""
        self._index = spec.load_index()
        self._plans, self._rows = _plans(spec, self._index), spec.batch_size
        device = resolve_device(spec.device)
        on_gpu = device.type == "cuda"
        source = self._paths if name in WHOLE else self._windows
        self._pipe = pipeline_def(_graph(name, device))(
            source, batch_size=spec.batch_size, num_threads=spec.workers,
            device_id=device.index if on_gpu else None, prefetch_queue_depth=PREFETCH, exec_dynamic=True,
        )  # fmt: skip
        self._pipe.build()

    def deliver(self) -> Sized:
        """The images' numbers; their bytes or pixels are dropped."""
        self._pipe.run()
        return range(self._rows)

    def close(self) -> None:
        """Let go of the pipeline."""
        del self._pipe

    def _paths(self) -> list[np.ndarray]:
        return self._paths_of(next(self._plans))

    def _windows(self) -> tuple[list[np.ndarray], np.ndarray, np.ndarray]:
        plan = next(self._plans)
        return self._paths_of(plan), plan.crop_N4[:, :2].copy(), plan.crop_N4[:, 2:].copy()

    def _paths_of(self, plan: BatchPlan) -> list[np.ndarray]:
        return [self._index.path_array(int(i)) for i in plan.sample_N]


def _graph(name: str, device: torch.device) -> Callable[[Callable[[], Any]], Any]:
    """The DALI graph of a bare rung, as a function of its source: paths, or paths and windows."""
    place = "gpu" if device.type == "cuda" else "cpu"

    def whole(source: Callable[[], Any]) -> Any:
        encoded = fn.io.file.read(fn.external_source(source=source, batch=True))
        if name == "read":
            return encoded
        decoder, load = ("mixed", HARDWARE_SHARE[name]) if place == "gpu" else ("cpu", None)
        return fn.decoders.image(encoded, device=decoder, adjust_orientation=False, hw_decoder_load=load)

    def windows(source: Callable[[], Any]) -> Any:
        path, start, shape = fn.external_source(source=source, num_outputs=3, batch=True)
        roi = name == "decode-roi" or use_roi("auto", device)
        return decode_window(path, start, shape, device=place, roi=roi)

    return whole if name in WHOLE else windows


class ExecutorRung:
    """The executor with the recipe it is given, its batches mixed and normalised or left as they come."""

    def __init__(self, spec: FeedSpec, *, mixed: bool) -> None:
        self.ready, self.note = 2 * PREFETCH + 1, ""
        index, self._recipe = spec.load_index(), spec.load_recipe()
        self._plans, self._mixed = _plans(spec, index), mixed
        self._executor = create_executor(
            spec.executor, index, self._recipe, rows=spec.batch_size, device=resolve_device(spec.device),
            num_threads=spec.workers, prefetch=PREFETCH,
        )  # fmt: skip
        self._queue: list[BatchPlan] = []
        for _ in range(PREFETCH):
            self._submit()

    def deliver(self) -> Sized:
        """The next batch: uint8 (N, H, W, 3), or mixed (N, 3, H, W) float32."""
        images_NHWC = self._executor.collect()
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
