"""`rsbdali replay`: a step's batch of a finished, failed or running run again, from what the run's folder records.

Nothing of a batch is kept while a run goes: seed, epoch and step bring it back, through the same loader and by the
settings that the run had at that step (`runs/args_history.py`). On the device
and by the executor that the run had, its pixels are those of the run, bit for bit; an image that has changed on the
disk since, or has rotted since, shows as it is now.
"""

import csv
import dataclasses
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from io import StringIO
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from rsbdali.atomic import naming, write_text
from rsbdali.data.index import ImageIndex
from rsbdali.data.splits import open_split
from rsbdali.distributed.devices import resolve_device
from rsbdali.errors import DataError, RecipeError, RsbdaliError, counted
from rsbdali.loader.batch import TrainBatch
from rsbdali.loader.decode_mode import GRAPH
from rsbdali.loader.train import TrainLoader
from rsbdali.recipe import Recipe
from rsbdali.runs.args_history import Position, Settings, position_of, read_history, settings_at
from rsbdali.runs.folder import ARGS
from rsbdali.tools.drawing import (
    CROP_COLORS,
    PAPER,
    Layout,
    class_name,
    describe,
    describe_mix,
    mixed_pixels,
    original,
    put,
    write_title,
)

DRAWS = 2  # tiles beside the original: augmented, and as the model got it


@dataclass(frozen=True, kw_only=True)
class ReplayOptions:
    """Which step to bring back.

    Attributes:
        run: the run's folder.
        step: counted from 0, within `epoch` or, without one, over the whole run.
        epoch: counted from 0.
        data: where the data is now; None: where it was.
        device: auto, cpu, cuda or cuda:N.
    """

    run: Path
    step: int
    epoch: int | None = None
    data: Path | None = None
    device: str = "auto"


@dataclass(frozen=True)
class Replay:
    """A step's global batch.

    Attributes:
        recipe: of the run.
        index: of its training images.
        epoch: counted from 0.
        step: within the epoch, from 0.
        batches: mix group by mix group; images uint8 (N, 3, H, W), augmented and not yet mixed; plans as they ran.
    """

    recipe: Recipe
    index: ImageIndex
    epoch: int
    step: int
    batches: list[TrainBatch]

    def lines(self) -> list[str]:
        """One line a row, as they are drawn: mix group, row in it, image, crop, what was done to it, and mixed in."""
        return [self._line(*row) for row in self._rows()]

    def write_csv(self, path: Path) -> Path:
        """Write all rows as a table: group, row, image, crop (y, x, h, w), augmentation, mixing, partner.

        Args:
            path: a .csv file; names that are no text are written with escapes.
        """
        table = StringIO()
        writer = csv.writer(table, lineterminator="\n")
        writer.writerow(("group", "row", "image", "y", "x", "h", "w", "augmentation", "mixing", "partner"))
        for batch, row in self._rows():
            name, partner = self._names(batch, row)
            plan = batch.plan
            done = ", ".join(describe(plan, row))
            crop = plan.crop_N4[row].tolist()
            writer.writerow((batch.group, row, name, *crop, done, describe_mix(plan, row), partner))
        write_text(path, table.getvalue())
        return path

    def _rows(self) -> list[tuple[TrainBatch, int]]:
        """The rows, taken in turn from the mix groups."""
        return [(batch, row) for row in range(len(self.batches[0].plan)) for batch in self.batches]

    def _names(self, batch: TrainBatch, row: int) -> tuple[str, str]:
        """The row's image, and the one that is mixed in, if one is."""
        plan = batch.plan
        name, partner = (self.index.path(int(plan.sample_N[i])) for i in (row, plan.partner_N[row]))
        return name, partner if plan.lam_N[row] < 1 else ""

    def _line(self, batch: TrainBatch, row: int) -> str:
        plan = batch.plan
        y, x, h, w = plan.crop_N4[row].tolist()
        done = ", ".join(describe(plan, row))
        name, partner = self._names(batch, row)
        mixed = describe_mix(plan, row) + (f" with {partner}" if partner else "")
        return f"group {batch.group} row {row}: {name}  crop {h} x {w} at ({y}, {x}), {done}; {mixed}"

    def draw(self, out: Path, images: int) -> Path:
        """Write a picture of the first `images` rows: the image with its crop, augmented, as the model got it.

        Args:
            out: a .png file.
            images: rows to draw, taken in turn from the mix groups.
        """
        rows = self._rows()[:images]
        layout = Layout.of_tiles(self.recipe, len(rows), DRAWS)
        canvas = Image.new("RGB", layout.size, PAPER)
        write_title(canvas, f"{self.recipe.name}: epoch {self.epoch + 1}, step {self.step + 1}", self.recipe)
        mixed = {batch.group: mixed_pixels(self.recipe, batch.plan, _rows_last(batch)) for batch in self.batches}
        for r, (batch, row) in enumerate(rows):
            self._draw_row(canvas, layout, r, batch, row, mixed[batch.group][row])
        with naming(out):
            out.parent.mkdir(parents=True, exist_ok=True)
            canvas.save(out)
        return out

    def _draw_row(
        self, canvas: Image.Image, layout: Layout, at: int, batch: TrainBatch, row: int, mixed_HWC: np.ndarray
    ) -> None:
        plan, index = batch.plan, self.index
        sample, partner = int(plan.sample_N[row]), int(plan.sample_N[plan.partner_N[row]])
        said = [class_name(index, sample), Path(index.path(sample)).name, f"group {batch.group}, row {row}"]
        put(canvas, layout, (at, 0), original(index, sample, layout.tile, plan.crop_N4[[row]]), said)
        augmented = Image.fromarray(_rows_last(batch)[row].numpy())
        put(canvas, layout, (at, 1), augmented, describe(plan, row), CROP_COLORS[0])
        other = f"{1 - float(plan.lam_N[row]):.2f} {class_name(index, partner)}"
        put(canvas, layout, (at, 2), Image.fromarray(mixed_HWC), [describe_mix(plan, row), other])


def replay(options: ReplayOptions) -> Replay:
    """Bring a step's batch back.

    Raises:
        RsbdaliError: no run's folder, no such step, or data that is not what the run was trained on.
    """
    history = read_history(options.run)
    if not history or not history[-1].recipe:
        raise RsbdaliError(f"{options.run} is no run's folder: it holds no {ARGS}")
    settings, at = _settings(options, history)
    recipe = Recipe.from_dict(settings.recipe)
    recipe = dataclasses.replace(recipe, mix_groups=max(recipe.mix_groups, _count(settings, "processes", 1)))
    index = _index(options, settings, history[-1])
    decode = settings.facts.get("decode", "cpu")
    device = torch.device("cpu") if decode == "cpu" else resolve_device(options.device)
    if device.type == "cpu" and decode.startswith("gpu"):
        decode = GRAPH  # what comes closest to the run's pixels without its GPU
    load = _load(settings)
    with closing(
        TrainLoader(index, recipe, device=device, decode=decode, hw_decoder_load=load, dtype=torch.uint8)
    ) as loader:
        epoch, step = _position(options, at, recipe, loader.steps_per_epoch)
        loader.mixup_enabled = True  # the plans say how rows were mixed
        loader.seek(epoch, step)
        batches = [_kept(batch) for batch in islice(loader, loader.groups_per_step)]
    return Replay(recipe, index, epoch, step, batches)


def _settings(options: ReplayOptions, history: Sequence[Settings]) -> tuple[Settings, Position | None]:
    """The settings that the step had, and its position; None where the loader's steps are to say it."""
    if options.epoch is not None:
        at = options.epoch, options.step
        return settings_at(history, at), at
    if len(history) == 1:
        return history[0], None
    at = position_of(history, options.step)
    return settings_at(history, at), at


def _index(options: ReplayOptions, settings: Settings, now: Settings) -> ImageIndex:
    facts = settings.facts
    if all(facts.get(key) == now.facts.get(key) for key in ("train_images", "train_digest")):
        facts = {**facts, **{key: now.facts[key] for key in ("data", "class_map") if key in facts and key in now.facts}}
    data = options.data or (Path(facts["data"]) if "data" in facts else None)
    if data is None:
        raise RsbdaliError(f"{options.run} does not say where its data is: say it (--data)")
    class_map = Path(facts["class_map"]) if "class_map" in facts else None
    index = open_split(data, "train", class_map=class_map)
    then = _count(settings, "train_images", len(index))
    if then != len(index):
        raise DataError(
            f"{index.name} has {counted(len(index), 'image')} now and had {then} in the run: its batches are gone"
        )
    if settings.facts.get("train_digest", index.digest) != index.digest:
        raise DataError(f"{index.name} has other images than in the run, by path, label and size: its batches are gone")
    return index


def _count(settings: Settings, key: str, default: int) -> int:
    text = settings.facts.get(key, str(default))
    if not (text.isdecimal() and len(text) < 16 and int(text) > 0):
        raise RsbdaliError(f"{settings.path} is damaged: {key}: {text}")
    return int(text)


def _load(settings: Settings) -> float | None:
    text = settings.facts.get("hw_decoder_load")
    if text is None:
        return None
    try:
        return float(text)
    except ValueError as error:
        raise RsbdaliError(f"{settings.path} is damaged: hw_decoder_load: {text}") from error


def _position(options: ReplayOptions, at: Position | None, recipe: Recipe, steps: int) -> Position:
    epoch, step = divmod(options.step, steps) if at is None else at
    if not (0 <= step < steps and 0 <= epoch < recipe.epochs):
        where = f" in epoch {epoch + 1}" if options.epoch is not None else ""
        raise RecipeError(
            f"the run has no step {options.step + 1}{where}: it has {counted(recipe.epochs, 'epoch')}, there of "
            f"{counted(steps, 'step')} each"
        )
    return epoch, step


def _kept(batch: TrainBatch) -> TrainBatch:
    """A batch whose pixels stay when the loader makes the next one."""
    return dataclasses.replace(batch, images=batch.images.to("cpu", copy=True))


def _rows_last(batch: TrainBatch) -> torch.Tensor:
    return batch.images.permute(0, 2, 3, 1).contiguous()
