"""Where images are decoded: the modes, their executors, and what `auto` chooses.

    gpu      DALI decodes whole images on the GPU, then crops and resizes; kernels flip and augment
    gpu-roi  likewise, but only the crop's region of each image is decoded
    cpu      threads decode and resize; a GPU's kernels flip and augment, on a CPU the same threads do

Modes give slightly different pixels, so a run keeps to one: it is written to `args.yaml` and into checkpoints.
"""

import logging
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from functools import partial
from typing import Literal, get_args

import torch
import torch.distributed as dist

from rsbdali.distributed import collectives
from rsbdali.distributed.world import World
from rsbdali.errors import DeviceError, RecipeError
from rsbdali.ops.backend import missing_compiler
from rsbdali.pipelines.augmented import Augmented
from rsbdali.pipelines.eval import EvalExecutor
from rsbdali.pipelines.executor import Executor, ImageSource
from rsbdali.pipelines.host.eval import HostEvalExecutor
from rsbdali.pipelines.host.executor import HostExecutor
from rsbdali.pipelines.train import GraphExecutor
from rsbdali.plan.augmentation import cpu_only, fill_color
from rsbdali.plan.planner import BatchPlan, Planner
from rsbdali.recipe import Recipe

DecodeMode = Literal["auto", "gpu", "gpu-roi", "cpu"]
DECODE_MODES: tuple[str, ...] = get_args(DecodeMode)
# for tests and benchmarks alone: DALI's graph on a CPU, and the one in which DALI augments as well
GRAPH, DALI_EXACT = "graph", "dali-exact"
# with a hardware JPEG engine, by NVIDIA's data sheets: A100 and A30, H100 and H200, B200
WITH_JPEG_ENGINE = ((8, 0), (9, 0), (10, 0))
MEASURED = ("gpu", "cpu")
BATCHES = 4  # measured a mode, after one that is not

log = logging.getLogger(__name__)


def has_jpeg_engine(device: torch.device) -> bool:
    """Whether a device is a GPU with a hardware JPEG engine."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) in WITH_JPEG_ENGINE


def check_decode(decode: str, device: torch.device) -> None:
    """Refuse a mode that is unknown, or that this device cannot do.

    Raises:
        RecipeError: no such mode.
        DeviceError: a GPU's mode without a GPU, or without a compiler for its kernels.
    """
    if decode not in (*DECODE_MODES, GRAPH, DALI_EXACT):
        raise RecipeError(f"decode={decode!r}: use one of {', '.join(DECODE_MODES)}")
    if not decode.startswith("gpu"):
        return
    if device.type != "cuda":
        raise DeviceError(f"decode={decode} needs a GPU, and batches are made on the CPU here: use decode=cpu or auto")
    if lacking := missing_compiler():
        raise DeviceError(f"decode={decode} needs kernels on a GPU, and {lacking}: use decode=cpu")


def resumed_decode(asked: str, recorded: str, device: torch.device) -> str:
    """The mode to ask for on a resume: the run's own, unless another one than auto is given.

    Args:
        asked: a `DecodeMode`.
        recorded: the checkpoint's mode; empty where it knows none.
        device: where batches are made now.

    Raises:
        DeviceError: this machine cannot do what the run did, and nothing else was given.
    """
    if asked != "auto" or not recorded:
        return asked
    try:
        check_decode(recorded, device)
    except DeviceError as error:
        raise DeviceError(f"the run decoded otherwise ({error}): give --decode to go on with other pixels") from error
    return recorded


def evaluation_decode(recorded: str, device: torch.device) -> str:
    """The mode to evaluate a checkpoint with: its run's, whose figures are meant, where this machine can do it."""
    try:
        check_decode(recorded or "auto", device)
    except DeviceError as error:
        log.warning("the run evaluated otherwise, its figures may differ in the last digits: %s", error)
        return "auto"
    return recorded or "auto"


def choose_decode(
    decode: str,
    index: ImageSource,
    recipe: Recipe,
    *,
    device: torch.device,
    num_threads: int,
    world: World,
    clock: Callable[[], float] = time.perf_counter,
) -> str:
    """The mode that `auto` means, the same on all ranks; any other stays as it is.

    On a CPU it is cpu; on a GPU whose kernels cannot be compiled too. A GPU with a JPEG engine decodes by itself. Where
    nothing is known of the card, rank 0 measures a few batches of both ways.

    Args:
        decode: a `DecodeMode`.
        index: the training images.
        recipe: of the batches.
        device: where they are made.
        num_threads: CPU threads of this rank.
        world: the processes that call this together.
        clock: gives seconds.

    Raises:
        RecipeError, DeviceError: see `check_decode`.
    """
    check_decode(decode, device)
    if decode != "auto":
        return decode
    if device.type != "cuda":
        return "cpu"
    if lacking := missing_compiler():
        log.warning("%s, so batches are made on the CPU (decode=cpu)", lacking)
        return "cpu"
    if by_cpu := cpu_only(recipe):
        log.info("%s is made on the CPU only, so decode=auto takes cpu", by_cpu)
        return "cpu"
    if has_jpeg_engine(device):
        return "gpu"
    if world.size > 1 and not dist.is_initialized():
        return "gpu"  # ranks that cannot meet must not choose each by itself
    measure = partial(fastest, index, recipe, device=device, num_threads=num_threads, clock=clock)
    chosen = collectives.on_all_ranks(lambda: measure() if world.is_rank_zero else "", world)
    return collectives.broadcast_object(chosen, world)


def fastest(
    index: ImageSource,
    recipe: Recipe,
    *,
    device: torch.device,
    num_threads: int,
    clock: Callable[[], float] = time.perf_counter,
) -> str:
    """The mode of `MEASURED` that makes this recipe's batches faster, by a few batches of each, one after the other."""
    planner = Planner(index.width_N, index.height_N, recipe)
    plans = [planner.group(*divmod(i, planner.steps_per_epoch), 0) for i in range(1 + BATCHES)]
    rates = {}
    for mode in MEASURED:
        made = create_executor(mode, index, recipe, rows=planner.group_rows, device=device, num_threads=num_threads)
        with closing(made):
            rates[mode] = len(plans[0]) * BATCHES / _seconds(made, plans, device, clock)
    best = max(rates, key=lambda mode: rates[mode])
    said = ", ".join(f"{mode} {rate:,.0f} images/s" for mode, rate in rates.items())
    log.info("decode=auto takes %s: %s over %d batches", best, said, BATCHES)
    return best


def _seconds(made: Executor, plans: Sequence[BatchPlan], device: torch.device, clock: Callable[[], float]) -> float:
    """Seconds of all batches but the first, two in flight."""
    made.submit(plans[0])
    for plan in plans[1:]:
        made.submit(plan)
        made.collect()
        if plan is plans[1]:
            _wait(device)
            start = clock()
    made.collect()
    _wait(device)
    return max(clock() - start, 1e-9)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def create_executor(
    decode: str,
    index: ImageSource,
    recipe: Recipe,
    *,
    rows: int,
    device: torch.device,
    num_threads: int,
    hw_decoder_load: float | None = None,
    chunk: int | None = None,
) -> Executor:
    """The executor of a mode that was chosen (not auto).

    Where Triton cannot compile kernels for a GPU, `cpu` makes all of a batch on the CPU.

    Args:
        decode: a mode, or one of the two for tests and benchmarks.
        index: the training images.
        recipe: of the batches.
        rows: most rows of one.
        device: where they are made.
        num_threads: CPU threads.
        hw_decoder_load: share of a batch's JPEGs for the GPU's JPEG engine; None for DALI's own.
        chunk: most images that `cpu` gives DALI at a time; None: as many as are safe.

    Raises:
        RecipeError, DeviceError: see `check_decode`; also a recipe that only the CPU can make.
    """
    check_decode(decode, device)
    by_cpu = cpu_only(recipe)
    if decode == "cpu":
        by_kernels = device.type == "cuda" and missing_compiler() is None and not by_cpu
        work = {"rows": rows, "device": device, "num_threads": num_threads, "chunk": chunk}
        host = HostExecutor(index, recipe, **work, augment=not by_kernels)
        return Augmented(host, device, fill_color(recipe)) if by_kernels else host
    if by_cpu:
        raise RecipeError(f"{by_cpu} is made on the CPU only: use decode=cpu")
    graph = GraphExecutor(
        index,
        recipe,
        rows=rows,
        device=device,
        num_threads=num_threads,
        roi=device.type != "cuda" or decode == "gpu-roi",
        augment=decode == DALI_EXACT,
        hw_decoder_load=hw_decoder_load,
    )
    return graph if decode == DALI_EXACT else Augmented(graph, device, fill_color(recipe))


def create_eval_executor(
    decode: str,
    index: ImageSource,
    recipe: Recipe,
    *,
    rows: int,
    device: torch.device,
    num_threads: int,
    hw_decoder_load: float | None = None,
) -> EvalExecutor | HostEvalExecutor:
    """The executor for evaluation; arguments as of `create_executor`. A GPU decodes whole images in both its modes."""
    check_decode(decode, device)
    if decode == "cpu":
        return HostEvalExecutor(index, recipe, rows=rows, device=device, num_threads=num_threads)
    return EvalExecutor(
        index, recipe, rows=rows, device=device, num_threads=num_threads, hw_decoder_load=hw_decoder_load
    )
