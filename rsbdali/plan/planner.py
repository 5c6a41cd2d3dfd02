"""Every random number of a training batch, drawn on the host as arrays: pure, vectorized, the same for every world.

A `BatchPlan` says for each row which image, which crop, flip, resize filter, RandAugment ops and mix it gets. The
executors (`pipelines/`) only carry it out. It is drawn for the whole global batch at once (`draws.py`); ranks and mix
groups are slices of it.

Shape suffixes: N rows, L layers of ops, K boxes to erase, 2 = (h, w) or (y, x),
4 = (y, x, h, w) for crops and (y0, y1, x0, x1) for boxes.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

import numpy as np

from rsbdali.errors import RecipeError, counted
from rsbdali.plan import sampler
from rsbdali.plan.augmentation import draw_layers, parse_policy
from rsbdali.plan.draws import Stream, draw_crops, draw_interpolation, generator, mix_rows
from rsbdali.plan.erasing import draw_erasing
from rsbdali.plan.keep_ratio import draw_keep_ratio
from rsbdali.plan.sampling import Sampling
from rsbdali.recipe import Recipe

KEPT = 2  # plans, and orders of epochs: batches of one step share them, and prefetching runs into the next

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class BatchPlan:
    """What happens to each of N rows. All arrays are read-only by convention.

    Attributes:
        epoch: counted from 0.
        step: optimizer step within the epoch.
        group: mix group, or -1 for the whole global batch.
        position_N: int64, position in the global batch.
        sample_N: int64, row of the `ImageIndex`.
        crop_N4: int32 (y, x, h, w) in source pixels.
        resized_N2: int32 (h, w), what the crop is resized to: the training size, but for `train_crop_mode: rkrc`.
        offset_N2: int32 (y, x), where the image begins in what was resized; below 0 it is mirrored at its edge.
        flip_N: bool, horizontal flip after the resize.
        interp_N: uint8, BILINEAR or BICUBIC, filter of the resize.
        op_NL: int8, `policy.Op` per layer, -1 for none.
        arg_NL: float64, argument per layer (`policy.level_to_arg`).
        op_interp_NL: uint8, BILINEAR or BICUBIC, for geometric ops.
        erase_NK4: int32 (y0, y1, x0, x1), half-open, in output pixels: erased once it is mixed; all zero for none.
        noise_N: int64, key of what is drawn there (`ops.erasing`).
        partner_N: int32, row within the same mix group that is mixed in (the group reversed).
        lam_N: float32, weight of the row's own label; for mixup also of its pixels.
        box_N4: int32 (y0, y1, x0, x1), half-open, in output pixels: CutMix; all zero where there is none.
    """

    epoch: int
    step: int
    group: int
    position_N: np.ndarray
    sample_N: np.ndarray
    crop_N4: np.ndarray
    resized_N2: np.ndarray
    offset_N2: np.ndarray
    flip_N: np.ndarray
    interp_N: np.ndarray
    op_NL: np.ndarray
    arg_NL: np.ndarray
    op_interp_NL: np.ndarray
    erase_NK4: np.ndarray
    noise_N: np.ndarray
    partner_N: np.ndarray
    lam_N: np.ndarray
    box_N4: np.ndarray

    def __len__(self) -> int:
        return len(self.sample_N)

    def rows(self, rows: slice | np.ndarray, *, group: int | None = None) -> "BatchPlan":
        """The plan of some rows only. `partner_N` keeps counting within the mix group."""
        arrays = {f.name: getattr(self, f.name)[rows] for f in fields(self) if "_N" in f.name}
        return replace(self, group=self.group if group is None else group, **arrays)


class Planner:
    """Plans of one data set under one recipe, for any epoch, step and mix group.

    Args:
        width_N: int32, widths of all images in pixels.
        height_N: int32, their heights.
        recipe: the recipe; seed, sizes, augmentation and mixing are read from it.
        world_size: number of ranks W.
        sampling: how an epoch's images are chosen; None: shuffled, each once.

    Raises:
        RecipeError: fewer images than one global batch, or a batch that the groups do not divide.
    """

    def __init__(
        self,
        width_N: np.ndarray,
        height_N: np.ndarray,
        recipe: Recipe,
        world_size: int = 1,
        sampling: Sampling | None = None,
    ) -> None:
        self.width_N, self.height_N, self.recipe = width_N, height_N, recipe
        self.sampling = sampling or Sampling()
        self.n = len(width_N)
        self.groups = max(recipe.mix_groups, world_size)
        _check_division(recipe, self.groups)
        self.group_rows = recipe.global_batch_size // self.groups
        self.repeats = max(1, recipe.aug_repeats)
        rows = sampler.rows_per_epoch(self.sampling.length(self.n), self.repeats, self.groups)
        self.steps_per_epoch = rows // recipe.global_batch_size
        self.rows_per_epoch = self.steps_per_epoch * recipe.global_batch_size
        if not self.sampling.drop_last:
            self.steps_per_epoch = -(-rows // recipe.global_batch_size)
            self.rows_per_epoch = -(-rows // self.groups) * self.groups
        if self.steps_per_epoch == 0:
            rows = sampler.rows_per_epoch(self.sampling.length(self.n), self.repeats)
            raise RecipeError(
                f"global_batch_size={recipe.global_batch_size} is larger than an epoch of {counted(rows, 'image')}: "
                f"set it to {rows} or less, say global_batch_size={_power_of_two(rows, self.groups)} and lr=auto"
            )
        self.policy = parse_policy(recipe.aa)
        self._orders: dict[tuple[int, ...], np.ndarray] = {}
        self._batches: dict[tuple[int, ...], BatchPlan] = {}

    def batch(self, epoch: int, step: int) -> BatchPlan:
        """The plan of a whole global batch, rows by global position."""
        return _kept(self._batches, self._plan_batch, epoch, step)

    def group(self, epoch: int, step: int, group: int) -> BatchPlan:
        """The plan of one mix group: rows group, group + G, group + 2 G, … of the global batch."""
        return self.batch(epoch, step).rows(slice(group, None, self.groups), group=group)

    def replacement(self, plan: BatchPlan, row: int, attempt: int) -> BatchPlan:
        """`plan` with the image of one row replaced by another drawn from the seed (the same on a resume).

        The new image gets a crop of its own; flip, ops and mix stay. `attempt` counts the tries for this row.
        """
        extra = (int(plan.position_N[row]) << 16) + attempt + 1
        rng = generator(self.recipe.seed, Stream.REPLACEMENT, plan.epoch, plan.step, extra)
        pool = self._order(plan.epoch) if self.sampling.is_choice else None
        chosen = rng.integers(self.n if pool is None else len(pool), size=1)
        chosen = self.sampling.in_canonical_order(chosen) if pool is None else pool[chosen]
        sample_N = plan.sample_N.copy()
        sample_N[row] = chosen[0]
        changed: dict[str, Any] = {"sample_N": sample_N}
        for name, new_1 in self._draw_windows(rng, chosen).items():
            changed[name] = getattr(plan, name).copy()
            changed[name][row] = new_1[0]
        return replace(plan, **changed)

    def transform_seed(self, plan: BatchPlan) -> int:
        """Seed of torch's generators while a user's transform runs on this mix group."""
        rng = generator(self.recipe.seed, Stream.TRANSFORM, plan.epoch, plan.step, plan.group + 1)
        return int(rng.integers(2**63))

    def order_digest(self, epoch: int) -> str:
        """Fingerprint of the order of an epoch, in hex."""
        return hashlib.blake2b(self._order(epoch).astype("<i8").tobytes(), digest_size=8).hexdigest()

    def _order(self, epoch: int) -> np.ndarray:
        return _kept(self._orders, self._epoch_order, epoch)

    def _epoch_order(self, epoch: int) -> np.ndarray:
        spread = 1 if self._local else self.repeats
        return sampler.repeat_order(self.sampling.order(self.n, self.recipe.seed, epoch), spread)

    @property
    def _local(self) -> bool:
        return self.repeats > 1 and self.recipe.aug_repeats_mode == "decode_once"

    def _samples(self, epoch: int, step: int) -> np.ndarray:
        rows = self.recipe.global_batch_size
        if not self._local:
            order, stop = self._order(epoch), min((step + 1) * rows, self.rows_per_epoch)
            # only a last batch goes round, one that is kept or that the padding completes
            return order[np.arange(step * rows, stop) % len(order)]
        first = step * self.groups
        by_group = [
            sampler.local_group(self._order(epoch), self.repeats, self.group_rows, first + g)
            for g in range(self.groups)
        ]
        return np.stack(by_group, axis=1).ravel()

    def _draw_windows(self, rng: np.random.Generator, sample_N: np.ndarray) -> dict[str, np.ndarray]:
        """What is cut out of each image, what that is resized to, and what is cut out of the result."""
        recipe, rows = self.recipe, len(sample_N)
        width_N, height_N = self.width_N[sample_N], self.height_N[sample_N]
        if recipe.train_crop_mode == "rrc":
            crop_N4 = draw_crops(rng, width_N, height_N, recipe.scale, recipe.ratio)
            resized_N2 = np.tile(np.array(recipe.train_size, np.int32), (rows, 1))
            return {"crop_N4": crop_N4, "resized_N2": resized_N2, "offset_N2": np.zeros((rows, 2), np.int32)}
        resized_N2, offset_N2 = draw_keep_ratio(rng, width_N, height_N, recipe)
        whole_N4 = np.stack([np.zeros_like(height_N), np.zeros_like(width_N), height_N, width_N], axis=1)
        return {"crop_N4": whole_N4.astype(np.int32), "resized_N2": resized_N2, "offset_N2": offset_N2}

    def _plan_batch(self, epoch: int, step: int) -> BatchPlan:
        recipe, sample_N = self.recipe, self._samples(epoch, step)
        rows = len(sample_N)

        def rng(stream: Stream) -> np.random.Generator:
            return generator(recipe.seed, stream, epoch, step)

        op_NL, arg_NL, op_interp_NL = draw_layers(recipe, self.policy, rows, rng)
        erase_NK4, noise_N = self._draw_erasing(rng(Stream.ERASING), rows)
        lam_N, box_N4 = mix_rows(recipe, self.groups, rows, epoch, step)
        return BatchPlan(
            epoch=epoch,
            step=step,
            group=-1,
            position_N=np.arange(rows),
            sample_N=sample_N,
            **self._draw_windows(rng(Stream.CROP), sample_N),
            flip_N=rng(Stream.FLIP).random(rows) < recipe.hflip,
            interp_N=draw_interpolation(rng(Stream.INTERPOLATION), (rows,), recipe.train_interpolation),
            op_NL=op_NL,
            arg_NL=arg_NL,
            op_interp_NL=op_interp_NL,
            erase_NK4=erase_NK4,
            noise_N=noise_N,
            partner_N=(rows // self.groups - 1 - np.arange(rows) // self.groups).astype(np.int32),
            lam_N=lam_N,
            box_N4=box_N4,
        )

    def _draw_erasing(self, rng: np.random.Generator, rows: int) -> tuple[np.ndarray, np.ndarray]:
        recipe = self.recipe
        if recipe.reprob:
            return draw_erasing(rng, rows, recipe.train_size, recipe.reprob, recipe.recount)
        return np.zeros((rows, recipe.recount, 4), np.int32), np.zeros(rows, np.int64)


def _kept(memory: dict[tuple[int, ...], T], make: Callable[..., T], *key: int) -> T:
    """`make(*key)`, remembered (functools' cache of a method would put the planner into a circle of references)."""
    if key not in memory:
        if len(memory) == KEPT:
            del memory[next(iter(memory))]
        memory[key] = make(*key)
    return memory[key]


def _check_division(recipe: Recipe, groups: int) -> None:
    if recipe.global_batch_size % groups:
        raise RecipeError(
            f"global_batch_size={recipe.global_batch_size} is no multiple of the {counted(groups, 'mix group')}: "
            f"take {recipe.global_batch_size // groups * groups or groups}, or set mix_groups"
        )


def _power_of_two(limit: int, groups: int) -> int:
    """The largest power of two times `groups` within `limit`, at least `groups`: a batch size that would work."""
    return groups * 2 ** max(0, (limit // groups).bit_length() - 1)
