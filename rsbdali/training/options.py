"""The options of one training run, besides its recipe."""

import os
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import get_args

from rsbdali.bounded import is_count, is_number, shown
from rsbdali.data.sources.location import Location
from rsbdali.distributed import process_group
from rsbdali.distributed.launch import NPROC
from rsbdali.errors import RsbdaliError
from rsbdali.recipe import Recipe
from rsbdali.training.acceleration import OFF, Acceleration
from rsbdali.training.nonfinite import OnNan
from rsbdali.training.save_interval import Interval

MOST_MINUTES = 1_000_000  # of waiting for other ranks
# kept elsewhere (recipe, folder), or of effect only when a run begins
OF_THE_START = {"recipe", "output", "experiment", "resume", "initial_checkpoint", "pretrained", "prepare"}


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """One training run.

    Attributes:
        recipe: what to train and how.
        data: folder with train/<class>/… and val/<class>/… (or validation), or another source (docs/DATA.md).
        output: folder of all experiments.
        experiment: folder of this one below it; None: `<recipe>-<model>`, numbered.
        resume: a checkpoint to go on from, a run's folder for its newest valid one, or 'auto' for the experiment's, if
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
        """Refuse what no run takes.

        Raises:
            RsbdaliError: names the option and what it may be.
        """
        for name, least in (("workers", 1), ("eval_batch_size", 1), ("max_bad_images", 0)):
            value = getattr(self, name)
            self._expect(name, value is None or (is_count(value) and value >= least), f"a whole number from {least} on")
        load, wait = self.hw_decoder_load, self.rank_timeout
        self._expect("hw_decoder_load", load is None or (is_number(load) and 0 <= load <= 1), "a share from 0 to 1")
        self._expect("rank_timeout", is_number(wait) and 0 < wait <= MOST_MINUTES, f"minutes, up to {MOST_MINUTES:,}")
        self._expect("on_nan", self.on_nan in get_args(OnNan), " or ".join(get_args(OnNan)))
        self._expect("loggers", isinstance(self.loggers, tuple | list), 'a sequence of names, such as ("wandb",)')
        every = self.checkpoint_every
        self._expect(
            "checkpoint_every", every is None or isinstance(every, str), "steps or a time, '500steps' or '10m'"
        )
        _ = self.save_every  # refuses what it cannot read

    def _expect(self, name: str, is_right: bool, expected: str) -> None:
        if not is_right:
            raise RsbdaliError(f"{name}={shown(getattr(self, name))}: expected {expected}")

    @property
    def acceleration(self) -> Acceleration:
        """Of the step."""
        return Acceleration(torch_compile=self.torch_compile, cuda_graph=self.cuda_graph)

    @property
    def save_every(self) -> Interval | None:
        """When to save besides the ends of epochs.

        Raises:
            RsbdaliError: `checkpoint_every` is neither steps nor a time.
        """
        return None if self.checkpoint_every is None else Interval.parse(self.checkpoint_every)

    def kept(self) -> dict[str, object]:
        """What a resumed run starts with: all options but those that only begin one, paths made absolute."""
        kept = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in OF_THE_START}
        kept |= {name: path.absolute() for name, path in kept.items() if isinstance(path, Path)}
        kept["data"] = Location.parse(self.data).text
        kept["nproc"] = int(os.environ.get(NPROC, 1))
        return kept
