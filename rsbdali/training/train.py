"""Train a recipe: from a folder of images to a validated checkpoint that a run can go on from.

    TrainOptions ─> train ─> indexes, folder, Session (loaders), model ─> Trainer.run (trainer.py) ─> TrainSummary

Under torchrun every process does the same; rank 0 writes files and prints.
"""

import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager, nullcontext
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
from rsbdali.distributed.devices import resolve_device
from rsbdali.distributed.launch import NPROC
from rsbdali.distributed.shares import raised_groups, uneven_shares
from rsbdali.distributed.world import World
from rsbdali.environment import versions
from rsbdali.errors import LostRankError
from rsbdali.loader import EvalLoader, TrainLoader
from rsbdali.progress_bar import counting, waiting
from rsbdali.recipe import Recipe
from rsbdali.runs.args_history import keep_earlier
from rsbdali.runs.checkpoint_manager import CheckpointManager
from rsbdali.runs.claim import claimed
from rsbdali.runs.find_checkpoint import find_saved, resume_from
from rsbdali.runs.folder import one_line, read_args
from rsbdali.runs.loggers import RunPosition, require
from rsbdali.runs.loggers.run_log import LoggedFolder, RunLog, open_loggers
from rsbdali.runs.resume_command import OPTIONS, options_text, resume_command
from rsbdali.runs.state import Identity, RunState
from rsbdali.training.banner import banner
from rsbdali.training.gpu_memory import say_memory
from rsbdali.training.live_display import Silent, make_reporter
from rsbdali.training.loader_settings import tuned_settings, with_decoding, with_tuned
from rsbdali.training.model import check_model, create_model
from rsbdali.training.optim import check_optimizer, create_optimizer
from rsbdali.training.options import TrainOptions
from rsbdali.training.precision import amp_dtype, kernel_policy, warn_if_emulated
from rsbdali.training.session import Session
from rsbdali.training.summary import TrainSummary
from rsbdali.training.trainer import Outcome, Run, Trainer

log = logging.getLogger(__name__)


def train(options: TrainOptions) -> TrainSummary:
    """Train, and leave checkpoints and logs in `<output>/<experiment>/`.

    Returns at the end of the last epoch, or after a stop signal (`rsbdali.training.signals`) once the state is saved.

    Raises:
        RsbdaliError: the data, the recipe, the device or a checkpoint cannot work; one line says why.
    """
    check_model(options.recipe.model)  # before anything that takes time, or complains of what it leads to
    check_optimizer(options.recipe.opt)
    require(options.loggers)
    world = World.from_env()
    device = resolve_device(devices.local_device(options.device, world))
    options.acceleration.check(options.recipe, device, world)
    timeout = timedelta(minutes=options.rank_timeout)
    with _resume_named(world) as found, process_group.process_group(world, device, timeout), ExitStack() as held:
        collectives.on_all_ranks(lambda: _prepare(options, world), world)
        indexes = _load_indexes(options, world)
        folder = collectives.on_all_ranks(lambda: _folder(options, world, held), world)
        folder = collectives.broadcast_object(folder, world)
        found(folder)
        outcome, seconds = _train(options, world, device, folder, *indexes)
        collectives.barrier(world)
    return TrainSummary(folder, outcome, seconds, world.is_rank_zero, _again(folder, world))


def _train(
    options: TrainOptions,
    world: World,
    device: torch.device,
    folder: Path,
    train_index: ImageIndex,
    val_index: ImageIndex,
) -> tuple[Outcome, float]:
    """Choose how images are decoded, start the loaders, and train; the outcome, and seconds of the whole run."""
    on_all_ranks = partial(collectives.on_all_ranks, world=world)
    saved = find_saved(options.resume, folder, world)
    tuned = tuned_settings(options, saved, world, device)  # before the cores are shared out: kept by their number
    with pinned(world, device, enabled=options.affinity) as threads:
        chosen = with_decoding(with_tuned(options, tuned, saved), saved, train_index, world, device, threads)
        session = Session(
            options=chosen, world=world, device=device, folder=folder, saved=saved, tuned=tuned, threads=threads
        )
        with (
            closing(on_all_ranks(lambda: _started(session, train_index))) as loader,
            closing(on_all_ranks(lambda: session.eval_loader(val_index))) as eval_loader,
            kernel_policy(device, deterministic=options.deterministic),
        ):
            return _run(session, loader, eval_loader)


@contextmanager
def _resume_named(world: World) -> Iterator[Callable[[Path], None]]:
    """Add the whole command that resumes the run to the error that a rank was lost.

    Gives a function that takes the run's folder, once it is known.
    """
    folders: list[Path] = []
    try:
        yield folders.append
    except LostRankError as lost:
        if not folders:
            raise
        raise LostRankError(f"{lost}; by hand: {_again(folders[0], world)}") from lost


def _again(folder: Path, world: World) -> str:
    return resume_command(folder, world, launched=NPROC in os.environ)


def _load_indexes(options: TrainOptions, world: World) -> tuple[ImageIndex, ImageIndex]:
    with counting("index") if world.is_rank_zero else nullcontext() as advance:
        named = {"class_map": options.class_map, "val_labels": options.val_labels}
        return load_indexes(options.data, world, **named, progress=advance)


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


def _started(session: Session, index: ImageIndex) -> TrainLoader:
    """The training loader, whose first start compiles code, which may take a minute."""
    with waiting("start the loader") if session.world.is_rank_zero else nullcontext():
        return session.train_loader(index)


def _run(session: Session, loader: TrainLoader, eval_loader: EvalLoader) -> tuple[Outcome, float]:
    """Train; the outcome, and seconds of the whole run."""
    options, world, device = session.options, session.world, session.device
    state = make_state(
        options.recipe,
        len(loader.index.classes),
        device,
        initial_checkpoint=options.initial_checkpoint,
        pretrained=options.pretrained,
    )
    identity = _identity(session, loader)
    resume_from(session.saved, state, identity, world)
    collectives.barrier(world)  # no rank writes before all have read
    files = saver = None
    facts = _facts(session, loader, eval_loader, state)
    run_log = _run_log(session, state, facts) if world.is_rank_zero else RunLog((), {}, 1)
    if world.is_rank_zero:
        files = LoggedFolder(session.folder, run_log, epoch=state.epoch, step=state.step)
        source = None if session.saved is None else session.saved.path.parent
        keep_earlier(session.folder, (state.epoch, state.step), options.recipe, facts, source=source)
        files.write_args(options.recipe, facts)
        saver = CheckpointManager(session.folder, options.recipe.checkpoint_hist, state.history, first=files.sync)
        _introduce(session, state, identity, (loader.index, eval_loader.index))
    collectives.barrier(world)
    reporter = make_reporter(options.recipe, loader.steps_per_epoch, epoch=state.epoch) if files else Silent()
    run = Run(
        state=state,
        identity=identity,
        loader=loader,
        eval_loader=eval_loader,
        device=device,
        amp_dtype=session.dtype,
        world=world,
        reporter=reporter,
        files=files,
        saver=saver,
    )
    with closing(reporter), run_log:
        outcome = Trainer(run, options).run()
        run_log.status = "finished" if outcome.signal is None else "stopped"
    return outcome, state.seconds


def _identity(session: Session, loader: TrainLoader) -> Identity:
    return Identity(
        session.options.recipe,
        loader.index.classes,
        loader.planner.groups,
        loader.steps_per_epoch,
        images=len(loader.index),
        digest=loader.index.digest,
        pixels=loader.pixels,
        decode=loader.decode,
        hw_decoder_load=session.options.hw_decoder_load,
        tuned={} if session.tuned is None else session.tuned.to_dict(),
    )


def _facts(session: Session, loader: TrainLoader, eval_loader: EvalLoader, state: RunState) -> dict[str, object]:
    """What args.yaml says besides the recipe; `replay` needs it, from whatever folder it is called."""
    options, device = session.options, session.device
    source: dict[str, object] = {"data": Location.parse(options.data).text, "decode": options.decode}
    if options.hw_decoder_load is not None:
        source["hw_decoder_load"] = options.hw_decoder_load
    if options.class_map is not None:
        source["class_map"] = options.class_map.absolute()
    start: dict[str, object] = {"initial_checkpoint": options.initial_checkpoint, "pretrained": options.pretrained}
    if state.updates:  # what the run began with stays as it was
        start |= {key: value for key, value in read_args(session.folder)[0].items() if key in start}
    return {
        **versions(),
        **source,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "processes": session.world.size,
        **start,
        OPTIONS: options_text(options.kept()),
        "tuned": session.tuned or "no",
        "train_images": len(loader.index),
        "train_digest": loader.index.digest,
        "val_images": len(eval_loader.index),
        "classes": len(loader.index.classes),
        "steps_per_epoch": loader.steps_per_epoch,
    }


def _run_log(session: Session, state: RunState, facts: Mapping[str, Any]) -> RunLog:
    per_epoch = int(facts["steps_per_epoch"])
    position = RunPosition(folder=session.folder, step=state.epoch * per_epoch + state.step, resumed=state.updates > 0)
    config = {**session.options.recipe.to_dict(), **{key: one_line(value) for key, value in facts.items()}}
    return RunLog(open_loggers(session.options.loggers, position), config, per_epoch)


def _introduce(session: Session, state: RunState, identity: Identity, indexes: tuple[ImageIndex, ImageIndex]) -> None:
    """Say what starts, and what of it is worth a warning."""
    options, recipe, world, device = session.options, identity.recipe, session.world, session.device
    for bad in (bad for index in indexes for bad in index.bad):
        session.note_bad("left out", bad.path, bad.reason)
    parameters = sum(p.numel() for p in state.model.parameters())
    for line in banner(identity, parameters, indexes, session.folder, world, device):
        log.info("%s", line)
    if (shares := uneven_shares(identity.mix_groups, world.size)) is not None:
        log.warning("%s (docs/CLUSTERS.md)", shares)
    if (raised := raised_groups(recipe.mix_groups, identity.mix_groups, recipe.global_batch_size)) is not None:
        log.warning("%s", raised)
    fine_tunes = options.initial_checkpoint is not None or options.pretrained
    if (advice := recipe.rate_advice) and not (fine_tunes and " of the rate" in advice):  # a low one is meant there
        log.warning("%s", advice)
    warn_if_emulated(session.dtype, device)
    if device.type == "cuda":
        say_memory(state, recipe, world, device, session.dtype)
