"""Train a recipe: from a folder of images to a validated checkpoint that a run can go on from.

    TrainOptions ─> train ─> indexes, folder, model, loaders ─> Trainer.run (trainer.py) ─> TrainSummary

Under torchrun every process does the same; rank 0 writes and talks.
"""

import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager, nullcontext
from dataclasses import dataclass, fields, replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import torch
from timm.utils import ModelEmaV3

from rsbdali.data.index import ImageIndex
from rsbdali.data.sources.location import Location
from rsbdali.data.splits import load_indexes
from rsbdali.distributed import collectives, devices, process_group
from rsbdali.distributed.affinity import pinned
from rsbdali.distributed.devices import default_threads, resolve_device
from rsbdali.distributed.launch import NPROC, exit_code
from rsbdali.distributed.shares import uneven_shares
from rsbdali.distributed.world import World
from rsbdali.environment import versions
from rsbdali.errors import LostRankError, RsbdaliError
from rsbdali.loader import EvalLoader, TrainLoader
from rsbdali.loader.decode_mode import choose_decode, resumed_decode
from rsbdali.loader.eval import eval_batch_size
from rsbdali.loader.tuned import DEFAULT_PREFETCH, LoaderSettings
from rsbdali.progress_bar import counting, waiting
from rsbdali.recipe import Recipe
from rsbdali.runs.args_history import keep_earlier
from rsbdali.runs.checkpoint_manager import CheckpointManager, Saved, find_saved, resume_from
from rsbdali.runs.claim import claimed
from rsbdali.runs.folder import BEST, LAST, add_bad_image, one_line, read_args
from rsbdali.runs.loggers import Place, require
from rsbdali.runs.loggers.run_log import LoggedFolder, RunLog, open_loggers
from rsbdali.runs.resume_command import OPTIONS, options_text, resume_command
from rsbdali.runs.state import Identity, RunState
from rsbdali.training.acceleration import OFF, Acceleration
from rsbdali.training.banner import banner
from rsbdali.training.gpu_memory import say_memory
from rsbdali.training.live_display import Reporter, Silent, make_reporter
from rsbdali.training.loader_settings import tuned_settings, tuned_threads
from rsbdali.training.model import check_model, create_model
from rsbdali.training.nonfinite import OnNan
from rsbdali.training.optim import check_optimizer, create_optimizer
from rsbdali.training.precision import amp_dtype, kernel_policy, warn_if_emulated
from rsbdali.training.save_interval import Interval
from rsbdali.training.trainer import Outcome, Trainer

# stand elsewhere (recipe, folder), or act when a run begins
OF_THE_START = {"recipe", "output", "experiment", "resume", "initial_checkpoint", "pretrained", "prepare"}
log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """One training run.

    Attributes:
        recipe: what to train and how.
        data: folder with train/<class>/… and val/<class>/… (or validation).
        output: folder of all experiments.
        experiment: folder of this one below it; None: `<recipe>-<model>`, numbered.
        resume: a checkpoint to go on from, a run's folder for its newest whole one, or 'auto' for the experiment's, if
            there is one.
        checkpoint_every: save that often besides the ends of epochs, as '500steps' or '10m'; None: never.
        on_nan: what a loss that is not finite does: stop the run, or skip the step's update.
        initial_checkpoint: file with weights to start from.
        pretrained: start from timm's published weights.
        device: auto, cpu, cuda or cuda:N.
        workers: CPU threads of the loader; None: all cores of this rank's share.
        decode: where images are decoded: auto, gpu, gpu-roi or cpu (`rsbdali.loader.decode_mode`).
        hw_decoder_load: share of a batch's JPEGs for the GPU's JPEG engine; None: DALI's own.
        tuned: take the loader's settings that `rsbdali tune` keeps for this machine, but for those given here.
        deterministic: bitwise repeatable steps.
        torch_compile: mode of torch.compile, or off (`rsbdali.training.acceleration`).
        cuda_graph: capture the step and replay it.
        max_bad_images: more images that do not decode end the run; None: no limit.
        val_labels: label file of a flat val folder.
        class_map: file of class names in label order, instead of the training set's own order.
        eval_batch_size: rows of an evaluation batch on each rank; None: 256 on a GPU, 64 on a CPU.
        affinity: whether each of several ranks keeps to its share of the cores.
        rank_timeout: minutes that ranks wait for each other in a step or an evaluation.
        prepare: called by rank 0 before the data is read; the others wait for it.
        loggers: services that get the figures besides the files: tensorboard, wandb, mlflow.
    """

    recipe: Recipe
    data: Path
    output: Path = Path("output")
    experiment: str | None = None
    resume: str | None = None
    checkpoint_every: str | None = None
    on_nan: OnNan = "stop"
    initial_checkpoint: Path | None = None
    pretrained: bool = False
    device: str = "auto"
    workers: int | None = None
    decode: str = "auto"
    hw_decoder_load: float | None = None
    tuned: bool = False
    deterministic: bool = False
    torch_compile: str = OFF
    cuda_graph: bool = False
    max_bad_images: int | None = None
    val_labels: Path | None = None
    class_map: Path | None = None
    eval_batch_size: int | None = None
    affinity: bool = True
    rank_timeout: float = process_group.TIMEOUT.total_seconds() / 60
    prepare: Callable[[], object] | None = None
    loggers: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name, least in (("workers", 1), ("eval_batch_size", 1), ("max_bad_images", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise RsbdaliError(f"{name}={value}: expected at least {least}")

    @property
    def acceleration(self) -> Acceleration:
        """Of the step."""
        return Acceleration(torch_compile=self.torch_compile, cuda_graph=self.cuda_graph)


@dataclass(frozen=True)
class TrainSummary:
    """How a run ended.

    Attributes:
        folder: its files.
        outcome: epochs done, best and last evaluation, the signal that ended it, if one did.
        seconds: of the whole run, all sessions together.
        is_rank_zero: whether this process is the one that talks.
        again: the command that goes on with it.
    """

    folder: Path
    outcome: Outcome
    seconds: float
    is_rank_zero: bool = True
    again: str = ""

    @property
    def exit_code(self) -> int:
        """0, or what the signal that stopped the run stands for: 130 on an interrupt, else 143."""
        return 0 if self.outcome.signal is None else exit_code(self.outcome.signal)

    @property
    def checkpoint(self) -> Path:
        """The best checkpoint where there is one, else the last."""
        best = self.folder / BEST
        return best if best.exists() else self.folder / LAST

    def lines(self) -> list[str]:
        """Rank 0's last words: how to go on after a signal, best top-1, where the checkpoint lies."""
        outcome, lines = self.outcome, []
        if not self.is_rank_zero:
            return []
        if outcome.signal is not None:
            lines.append(f"stopped by {outcome.signal.name} in epoch {outcome.epochs + 1}, saved; go on with")
            lines.append(f"  {self.again}")
        if outcome.is_idle:
            done = f"all {outcome.epochs} epochs are" if outcome.epochs > 1 else "its one epoch is"
            lines.append(f"nothing is left: {done} done; more of them, at rates drawn anew, with")
            lines.append(f"  {self.again} --epochs {2 * outcome.epochs}")
        if outcome.best_top1 is not None and outcome.best_epoch is not None:
            # files count epochs from 0, as timm's do
            lines.append(f"best top-1 {outcome.best_top1:.2f} % (epoch {outcome.best_epoch + 1}, {self._best_file})")
        return [*lines, f"checkpoint {self.checkpoint}"]

    @property
    def _best_file(self) -> str:
        name = f"checkpoint-{self.outcome.best_epoch}.pth.tar"
        return name if (self.folder / name).exists() else BEST


def train(options: TrainOptions) -> TrainSummary:
    """Train, and leave checkpoints and logs in `<output>/<experiment>/`.

    Returns at the end of the last epoch, or after a stop signal (`rsbdali.training.signals`) once the state is saved.

    Raises:
        RsbdaliError: the data, the recipe, the device or a checkpoint cannot work; one line says why.
    """
    check_model(options.recipe.model)  # before anything that takes time, or complains of what it leads to
    check_optimizer(options.recipe.opt)
    require(options.loggers)
    save_every = None if options.checkpoint_every is None else Interval.parse(options.checkpoint_every)
    world = World.from_env()
    device = resolve_device(devices.local_device(options.device, world))
    options.acceleration.check(options.recipe, device, world)
    on_all_ranks = partial(collectives.on_all_ranks, world=world)
    with (
        _way_back_named(options, world),
        process_group.process_group(world, device, timedelta(minutes=options.rank_timeout)),
        ExitStack() as held,
    ):
        on_all_ranks(lambda: _prepare(options, world))
        named = {"class_map": options.class_map, "val_labels": options.val_labels}
        with counting("index") if world.is_rank_zero else nullcontext() as advance:
            train_index, val_index = load_indexes(options.data, world, **named, progress=advance)
        folder = collectives.broadcast_object(on_all_ranks(lambda: _folder(options, world, held)), world)
        saved = find_saved(options.resume, folder, world)
        tuned = _tuned(options, saved, world, device)  # before the cores are shared out: it is kept by their number
        place = world, device, folder
        with pinned(world, device, enabled=options.affinity) as threads:
            chosen = _with_decoding(_with_tuned(options, tuned, saved), saved, train_index, world, device, threads)
            with (
                closing(on_all_ranks(lambda: _started(chosen, train_index, *place, threads, tuned))) as loader,
                closing(on_all_ranks(lambda: _eval_loader(chosen, val_index, *place, threads))) as eval_loader,
                kernel_policy(device, deterministic=options.deterministic),
            ):
                outcome, seconds = _run(chosen, world, device, folder, loader, eval_loader, save_every, saved, tuned)
        collectives.barrier(world)
    again = resume_command(folder, world, launched=NPROC in os.environ)
    return TrainSummary(folder, outcome, seconds, world.is_rank_zero, again)


@contextmanager
def _way_back_named(options: TrainOptions, world: World) -> Iterator[None]:
    """Put the whole command that goes on with the run behind the news that a rank was lost."""
    try:
        yield
    except LostRankError as lost:
        if options.experiment is None:
            raise
        again = resume_command(options.output / options.experiment, world, launched=NPROC in os.environ)
        raise LostRankError(f"{lost}; by hand: {again}") from lost


def make_state(
    recipe: Recipe,
    num_classes: int,
    device: torch.device,
    *,
    initial_checkpoint: Path | None = None,
    pretrained: bool = False,
) -> RunState:
    """Model, optimizer, GradScaler and averaged weights of a run at its start, on the device."""
    model = create_model(recipe, num_classes, initial_checkpoint=initial_checkpoint, pretrained=pretrained)
    model.to(device)
    scaled = amp_dtype(recipe.amp_dtype, device) is torch.float16
    return RunState(
        model=model,
        optimizer=create_optimizer(model, recipe),
        scaler=torch.amp.GradScaler(device.type, enabled=scaled),
        ema=ModelEmaV3(model, decay=recipe.model_ema_decay) if recipe.model_ema else None,
    )


def _prepare(options: TrainOptions, world: World) -> None:
    if options.prepare is not None and world.is_rank_zero:
        options.prepare()


def _folder(options: TrainOptions, world: World, held: ExitStack) -> Path:
    if not world.is_rank_zero:
        return Path()
    return held.enter_context(claimed(options.output, options.experiment, options.recipe, resume=options.resume))


def _started(options: TrainOptions, index: ImageIndex, world: World, *place: Any) -> TrainLoader:
    """The training loader, whose first start compiles code, which may take a minute."""
    with waiting("start the loader") if world.is_rank_zero else nullcontext():
        return _train_loader(options, index, world, *place)


def _tuned(options: TrainOptions, saved: Saved | None, world: World, device: torch.device) -> LoaderSettings | None:
    record = None if saved is None else saved.record
    recorded, path = (None, None) if saved is None or record is None else (record.tuned, saved.path)
    return tuned_settings(options.recipe, device, world, use_tuned=options.tuned, recorded=recorded, path=path)


def _with_tuned(options: TrainOptions, tuned: LoaderSettings | None, saved: Saved | None) -> TrainOptions:
    """The options with decode mode and JPEG engine's share as tuned, unless given or those of the run that goes on."""
    if tuned is None or (saved is not None and saved.record is not None):
        return options
    decode = tuned.decode if options.decode == "auto" else options.decode
    return replace(options, decode=decode, hw_decoder_load=tuned.load_for(decode, options.hw_decoder_load))


def _with_decoding(
    options: TrainOptions,
    saved: Saved | None,
    index: ImageIndex,
    world: World,
    device: torch.device,
    threads: int | None,
) -> TrainOptions:
    """The options with the decode mode of this run: the one given, the checkpoint's, or the one chosen."""
    record = None if saved is None else saved.record
    before = ("", None) if record is None else (record.decode, record.hw_decoder_load)
    asked = collectives.on_all_ranks(lambda: resumed_decode(options.decode, before[0], device), world)
    workers = options.workers or threads or default_threads(world)
    decode = choose_decode(asked, index, options.recipe, device=device, num_threads=workers, world=world)
    load = before[1] if options.decode == "auto" and options.hw_decoder_load is None else options.hw_decoder_load
    return replace(options, decode=decode, hw_decoder_load=load)


def _train_loader(
    options: TrainOptions,
    index: ImageIndex,
    world: World,
    device: torch.device,
    folder: Path,
    threads: int | None,
    tuned: LoaderSettings | None,
) -> TrainLoader:
    return TrainLoader(
        index,
        options.recipe,
        rank=world.rank,
        world_size=world.size,
        device=device,
        decode=options.decode,
        hw_decoder_load=options.hw_decoder_load,
        num_threads=options.workers or tuned_threads(tuned, world, threads),
        prefetch=DEFAULT_PREFETCH if tuned is None else tuned.prefetch,
        chunk=None if tuned is None else tuned.chunk,
        dtype=amp_dtype(options.recipe.amp_dtype, device),
        on_bad=partial(_note_bad, folder, "does not decode, another takes its place"),
        max_bad_images=options.max_bad_images,
    )


def _eval_loader(
    options: TrainOptions,
    index: ImageIndex,
    world: World,
    device: torch.device,
    folder: Path,
    threads: int | None,
) -> EvalLoader:
    return EvalLoader(
        index,
        options.recipe,
        rank=world.rank,
        world_size=world.size,
        device=device,
        decode=options.decode,
        hw_decoder_load=options.hw_decoder_load,
        batch_size=options.eval_batch_size or eval_batch_size(device),
        num_threads=options.workers or threads,
        dtype=amp_dtype(options.recipe.amp_dtype, device),
        on_bad=partial(_note_bad, folder, "does not decode, not evaluated"),
    )


def _run(
    options: TrainOptions,
    world: World,
    device: torch.device,
    folder: Path,
    loader: TrainLoader,
    eval_loader: EvalLoader,
    save_every: Interval | None,
    saved: Saved | None,
    tuned: LoaderSettings | None,
) -> tuple[Outcome, float]:
    recipe, classes = options.recipe, loader.index.classes
    start = {"initial_checkpoint": options.initial_checkpoint, "pretrained": options.pretrained}
    state = make_state(recipe, len(classes), device, **start)  # type: ignore[arg-type]
    identity = Identity(
        recipe,
        classes,
        loader.planner.groups,
        loader.steps_per_epoch,
        images=len(loader.index),
        digest=loader.index.digest,
        pixels=loader.pixels,
        decode=loader.decode,
        hw_decoder_load=options.hw_decoder_load,
        tuned={} if tuned is None else tuned.to_dict(),
    )
    resume_from(saved, state, identity, world)
    collectives.barrier(world)  # nobody writes before everybody has read
    files = saver = None
    sizes = {"train_images": len(loader.index), "val_images": len(eval_loader.index), "classes": len(classes)}
    facts = {
        **_facts(options, world, device),
        "tuned": tuned or "no",
        **sizes,
        "steps_per_epoch": loader.steps_per_epoch,
    }
    if state.updates:  # what the run began with stays what it was
        facts |= {key: value for key, value in read_args(folder)[0].items() if key in start}
    run_log = _run_log(options, folder, state, facts) if world.is_rank_zero else RunLog((), {}, 1)
    if world.is_rank_zero:
        files = LoggedFolder(folder, run_log, epoch=state.epoch, step=state.step)
        source = None if saved is None else saved.path.parent
        keep_earlier(folder, (state.epoch, state.step), recipe, facts, source=source)
        files.write_args(recipe, facts)
        saver = CheckpointManager(folder, recipe.checkpoint_hist, state.history, first=files.sync)
        for bad in (*loader.index.bad, *eval_loader.index.bad):
            _note_bad(folder, "left out", bad.path, bad.reason)
        parameters = sum(p.numel() for p in state.model.parameters())
        lines = banner(identity, parameters, (loader.index, eval_loader.index), folder, world, device)
        _introduce(state, identity, world, device, lines, fine_tunes=any(map(bool, start.values())))
    collectives.barrier(world)
    reporter: Reporter = make_reporter(recipe, loader.steps_per_epoch, epoch=state.epoch) if files else Silent()
    dtype = amp_dtype(recipe.amp_dtype, device)
    with closing(reporter), run_log:
        outcome = Trainer(
            state,
            identity,
            loader,
            eval_loader,
            device=device,
            amp_dtype=dtype,
            world=world,
            reporter=reporter,
            files=files,
            saver=saver,
            on_nan=options.on_nan,
            save_every=save_every,
            name_of=loader.index.path,
            acceleration=options.acceleration,
        ).run()
        run_log.status = "finished" if outcome.signal is None else "stopped"
    return outcome, state.seconds


def _note_bad(folder: Path, fate: str, path: str, reason: str) -> None:
    log.warning("%s: %s (%s)", fate, path, reason)
    add_bad_image(folder, path, reason)


def _facts(options: TrainOptions, world: World, device: torch.device) -> dict[str, object]:
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    started = {"initial_checkpoint": options.initial_checkpoint, "pretrained": options.pretrained}
    # as `replay` needs them: from whatever folder it is called
    source: dict[str, object] = {"data": Location.parse(options.data).text, "decode": options.decode}
    if options.hw_decoder_load is not None:
        source["hw_decoder_load"] = options.hw_decoder_load
    if options.class_map is not None:
        source["class_map"] = options.class_map.absolute()
    taken_up = {OPTIONS: options_text(_kept(options))}
    return {**versions(), **source, "device": where, "processes": world.size, **started, **taken_up}


def _kept(options: TrainOptions) -> dict[str, object]:
    """What a run that is taken up again is started with: all options but those that only begin one."""
    kept = {f.name: getattr(options, f.name) for f in fields(options) if f.name not in OF_THE_START}
    kept |= {name: path.absolute() for name, path in kept.items() if isinstance(path, Path)}
    kept["data"] = Location.parse(options.data).text
    kept["nproc"] = int(os.environ.get(NPROC, 1))
    return kept


def _run_log(options: TrainOptions, folder: Path, state: RunState, facts: Mapping[str, Any]) -> RunLog:
    per_epoch = int(facts["steps_per_epoch"])
    place = Place(folder=folder, step=state.epoch * per_epoch + state.step, resumed=state.updates > 0)
    config = {**options.recipe.to_dict(), **{key: one_line(value) for key, value in facts.items()}}
    return RunLog(open_loggers(options.loggers, place), config, per_epoch)


def _introduce(
    state: RunState, identity: Identity, world: World, device: torch.device, lines: list[str], *, fine_tunes: bool
) -> None:
    recipe, dtype = identity.recipe, amp_dtype(identity.recipe.amp_dtype, device)
    for line in lines:
        log.info("%s", line)
    if (shares := uneven_shares(identity.mix_groups, world.size)) is not None:
        log.warning("%s (docs/CLUSTERS.md)", shares)
    if (advice := recipe.rate_advice) and not (fine_tunes and " of the rate" in advice):  # a low one is meant there
        log.warning("%s", advice)
    warn_if_emulated(dtype, device)
    if device.type == "cuda":
        say_memory(state, recipe, world, device, dtype)
