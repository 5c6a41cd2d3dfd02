"""Every key of the recipe, set to another value on a resume: what its rule says is what happens.

The oracle of a key that acts is a run that had the new value all along, put at the same position. What is compared is
observed in the parts of a run that `train` has wired up: groups of the optimizer, batches, losses, files.
"""

import csv
import dataclasses
import json
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from timm.layers import DropPath

from helpers.cli import call
from helpers.common import TINY
from rsbdali.distributed.world import World
from rsbdali.errors import CheckpointError
from rsbdali.plan.planner import Planner
from rsbdali.recipe import AT_ONCE, NEXT_EPOCH, REFUSED, OnResume, Recipe
from rsbdali.runs import resume_rules
from rsbdali.training import throughput
from rsbdali.training.options import TrainOptions
from rsbdali.training.train import train
from rsbdali.training.trainer import Outcome, Trainer

BASE = {
    "name": "toy",
    **TINY,
    "epochs": 4,
    "global_batch_size": 8,
    "mix_groups": 2,
    "warmup_epochs": 2,
    "log_interval": 1,
    "amp_dtype": "float32",
    "model_ema": True,
    "model_ema_decay": 0.9,
    "aa": "rand-m6-mstd0.5-inc1",
    "aug_repeats": 3,
    "mixup": 0.1,
    "cutmix": 1.0,
    "reprob": 0.5,
}
RULES: dict[str, OnResume] = {f.name: f.metadata["on_resume"] for f in dataclasses.fields(Recipe)}
RUN = Trainer.run


def rates(t: Trainer) -> list[list[float]]:
    """The rate of each group at the beginning of each epoch from this one on."""
    found = []
    for epoch in range(t.state.epoch, 6):
        t._schedule.set_epoch(epoch)
        found.append([group["lr"] for group in t.state.optimizer.param_groups])
    return found


def groups(t: Trainer) -> list[Any]:
    t.loader.seek(t.state.epoch, t.state.step)
    return list(islice(t.loader, t.loader.groups_per_step))


def plan(t: Trainer) -> list[Any]:
    return [[v.tolist() for k, v in vars(batch.plan).items() if "_N" in k] for batch in groups(t)]


def images(t: Trainer) -> list[Any]:
    return [batch.images.tolist() for batch in groups(t)]


def jitter(t: Trainer) -> list[Any]:
    """The layers that the settings of color jitter make where `aa` leaves it on."""
    recipe = dataclasses.replace(t.recipe, aa=None, color_jitter=t.recipe.color_jitter or 0.4)
    size_N = np.full(8, 64)
    return [Planner(size_N, size_N, recipe).batch(0, 0).op_NL.tolist(), recipe.color_jitter]


def test_images(t: Trainer) -> list[Any]:
    return next(iter(t.eval_loader)).images.tolist()


test_images.__test__ = False  # type: ignore[attr-defined]


def decay(t: Trainer) -> list[Any]:
    return [(group["weight_decay"], [p.shape for p in group["params"]]) for group in t.state.optimizer.param_groups]


def loss(t: Trainer) -> float:
    """Of given logits, the images mixed one to one."""
    logits_NC, batch = torch.linspace(-2, 2, 12).reshape(4, 3), groups(t)[0]
    label_N = torch.tensor([0, 1, 2, 0])
    mixed = dataclasses.replace(batch, label_N=label_N, partner_label_N=label_N.flip(0), lam_N=torch.full((4,), 0.5))
    return float(t._step._loss(logits_NC, mixed, slice(None)))


def passes(t: Trainer) -> tuple[list[Any], float]:
    """Rows and dtype of the passes of one step, and the gradient's norm behind it."""
    seen: list[Any] = []
    hook = t.state.model.register_forward_hook(lambda _, __, out: seen.append((len(out), str(out.dtype))))
    t.state.model.train()
    t._step(groups(t), update=t.state.updates + 1, flags=t._flags)
    hook.remove()
    return seen, float(torch.stack([p.grad.norm() for p in t.state.model.parameters()]).norm())


def averaged(t: Trainer) -> float | None:
    """What one update keeps of averaged weights."""
    if t.state.ema is None:
        return None
    weight = next(t.state.ema.module.parameters())
    torch.nn.init.ones_(weight)
    torch.nn.init.zeros_(next(t.state.model.parameters()))
    t._step.ema.update(t.state.model, step=9)  # the first one keeps nothing
    return float(weight.detach().flatten()[0])


def shared(t: Trainer) -> list[bool]:
    seen: list[bool] = []
    t.world = World(size=2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("rsbdali.training.trainer.distribute_bn", lambda model, size, reduce: seen.append(reduce))
        t._share_statistics()
    return seen


def files(t: Trainer) -> dict[str, Any]:
    """What the rest of the run writes."""
    RUN(t)
    assert t.files is not None
    folder = t.files.path
    with (folder / "summary.csv").open() as file:
        rows = list(csv.DictReader(file))
    records = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return {
        "epochs": [row["epoch"] for row in rows],
        "evaluated": [row["epoch"] for row in rows if row["eval_top1"]],
        "steps": [(r["epoch"], r["step"]) for r in records if r["kind"] == "step"],
        "kept": len(list(folder.glob("checkpoint-*.pth.tar"))),
    }


def projected(t: Trainer) -> str:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Recipe, "is_reported", True)
        return throughput.projection(t.recipe, 3600)


def drop_paths(t: Trainer) -> list[float]:
    return [module.drop_prob for module in t.state.model.modules() if isinstance(module, DropPath)]


KEYS: dict[str, tuple[Any, Callable[[Trainer], Any] | None]] = {
    "name": ("other", projected),
    "model": ("test_efficientnet", None),
    "drop": (0.3, lambda t: t.state.model.drop_rate),
    "drop_path": (0.2, drop_paths),
    "zero_init_last": (False, None),
    "img_size": (40, lambda t: [batch.images.shape for batch in groups(t)]),
    "test_img_size": ([32, 48], test_images),
    "crop_pct": (0.5, test_images),
    "crop_mode": ("squash", test_images),
    "mean": ([0.5, 0.5, 0.5], images),
    "std": ([0.5, 0.5, 0.5], test_images),
    "epochs": (3, lambda t: (rates(t), files(t)["epochs"])),
    "global_batch_size": (4, lambda t: (plan(t), t.loader.steps_per_epoch)),
    "micro_batch_size": (2, lambda t: passes(t)[0]),
    "opt": ("sgd", None),
    "lr": (1e-3, rates),
    "min_lr": (1e-3, rates),
    "weight_decay": (0.3, decay),
    "warmup_epochs": (3, rates),
    "warmup_lr": (2e-3, rates),
    "clip_grad": (1e-3, lambda t: pytest.approx(passes(t)[1], rel=1e-3)),
    "smoothing": (0.1, loss),
    "bce_loss": (False, loss),
    "bce_target_thresh": (0.2, loss),
    "scale": ([0.5, 0.6], plan),
    "ratio": ([1, 1], plan),
    "train_crop_mode": ("rkrc", plan),
    "hflip": (1.0, plan),
    "vflip": (0.5, plan),
    "train_interpolation": ("bilinear", plan),
    "interpolation": ("bilinear", test_images),
    "aa": (None, plan),
    "color_jitter": (0.3, jitter),
    "color_jitter_prob": (0.0, jitter),
    "grayscale_prob": (0.5, plan),
    "gaussian_blur_prob": (0.5, plan),
    "aug_repeats": (2, plan),
    "aug_repeats_mode": ("decode_once", plan),
    "reprob": (1.0, plan),
    "remode": ("const", images),
    "recount": (3, plan),
    "mixup": (5.0, plan),
    "cutmix": (0.1, plan),
    "mixup_prob": (0.0, plan),
    "mixup_switch_prob": (0.0, plan),
    "mixup_mode": ("elem", plan),
    "mixup_off_epoch": (1, plan),
    "mix_groups": (4, None),
    "seed": (7, plan),
    "amp_dtype": ("bfloat16", lambda t: passes(t)[0]),
    "dist_bn": ("broadcast", shared),
    "model_ema": (False, averaged),
    "model_ema_decay": (0.5, averaged),
    "eval_every": (2, lambda t: files(t)["evaluated"]),
    "checkpoint_hist": (1, lambda t: files(t)["kept"]),
    "log_interval": (2, lambda t: files(t)["steps"]),
    "reported": ({"hours": 3.0}, projected),
}
"""Another legal value, and how to observe which value acts; None for a key that is refused."""


def options(data: Path, output: Path, name: str, **more: Any) -> TrainOptions:
    values = {"recipe": Recipe.from_dict(BASE), "device": "cpu", "workers": 1, **more}
    return TrainOptions(data=data, output=output, experiment=name, **values)


@dataclasses.dataclass
class Saved:
    """A run stopped in its second epoch.

    Attributes:
        data: what it was trained on.
        mid: checkpoint in the middle of epoch 1 (from 0).
        end: checkpoint at the end of epoch 0.
        unchanged: what was observed after a resume with the same settings.
    """

    data: Path
    mid: Path
    end: Path
    unchanged: dict[Any, Any] = dataclasses.field(default_factory=dict)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Saved]:
    root, rng = tmp_path_factory.mktemp("keys"), np.random.default_rng(0)
    for split, count in (("train", 8), ("val", 2)):
        for i in range(3 * count):
            path = root / f"data/{split}/class{i % 3}/{i}.JPEG"
            path.parent.mkdir(parents=True, exist_ok=True)
            height, width = rng.integers(40, 90, 2)
            Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(root / "cache"))
        steps = Trainer._steps

        def stop(t: Trainer) -> signal.Signals | None:
            if t.state.epoch == 1:  # all ranks know of it one step later
                os.kill(os.getpid(), signal.SIGTERM)
            return steps(t)

        patch.setattr(Trainer, "_steps", stop)
        folder = train(options(root / "data", root, "run")).folder
    saved = Saved(root / "data", root / "mid.pth.tar", root / "end.pth.tar")
    shutil.copy(folder / "last.pth.tar", saved.mid)
    shutil.copy(folder / "checkpoint-0.pth.tar", saved.end)
    positions = [torch.load(path, weights_only=True)["rsbdali"]["position"] for path in (saved.mid, saved.end)]
    assert positions == [{"epoch": 1, "step": 2}, {"epoch": 1, "step": 0}]
    yield saved
    shutil.rmtree(root)


def observe(look: Callable[[Trainer], Any], chosen: TrainOptions, place: tuple[int, int] | None = None) -> Any:
    """What there is to see in a run that `train` has set up and that is about to begin."""
    found: list[Any] = []

    def run(t: Trainer) -> Outcome:
        if place is not None:
            t.state.epoch, t.state.step = place
        found.append(look(t))
        return Outcome(0, None, None, None, None)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "run", run)
        train(chosen)
    return found[0]


def test_every_key_has_a_rule_and_a_check() -> None:
    assert set(RULES.values()) == set(OnResume)
    assert list(KEYS) == [f.name for f in dataclasses.fields(Recipe)]
    for key, (value, look) in KEYS.items():
        if look is None and RULES[key] is not REFUSED:
            bounds = Recipe.__dataclass_fields__[key].metadata
            assert value is None
            assert bounds["low"] == bounds["high"], f"{key} has another value to check"


@pytest.mark.parametrize("key", [key for key, rule in RULES.items() if rule is not REFUSED])
def test_another_value_acts_when_its_rule_says(
    saved: Saved, tmp_path: Path, caplog: pytest.LogCaptureFixture, key: str
) -> None:
    value, look = KEYS[key]
    assert look is not None
    old, recipe = Recipe.from_dict(BASE), Recipe.from_dict({**BASE, key: value})
    path, place = (saved.mid, (1, 2)) if RULES[key] is AT_ONCE else (saved.end, (1, 0))
    if RULES[key] is NEXT_EPOCH:
        with pytest.raises(CheckpointError, match="is in the middle of epoch 2, and") as refused:
            train(options(saved.data, tmp_path, "mid", recipe=recipe, resume=str(saved.mid)))
        assert f"{key} {old.to_dict()[key]} → {value} can only change between epochs: set {key}=" in str(refused.value)
        assert "\n" not in str(refused.value)
        assert not (tmp_path / "mid").exists()
    caplog.clear()
    resumed = observe(look, options(saved.data, tmp_path, "resumed", recipe=recipe, resume=str(path)))
    when = "acts at once" if RULES[key] is AT_ONCE else "acts from epoch 2 on"
    changed = f"{key} {old.to_dict()[key]} → {recipe.to_dict()[key]}"
    assert f"other settings: {changed} ({when})\n" in caplog.text
    assert Recipe.load(str(tmp_path / "resumed/args.yaml")) == recipe
    assert resumed == observe(look, options(saved.data, tmp_path, "fresh", recipe=recipe), place)
    caplog.clear()
    if (look, path) not in saved.unchanged:
        saved.unchanged[look, path] = observe(look, options(saved.data, tmp_path, "same", resume=str(path)))
        assert "other settings" not in caplog.text
    assert resumed != saved.unchanged[look, path]


def test_what_acts_at_once_leaves_the_order_of_the_images() -> None:
    """Else an epoch that goes on with another value repeats some of its images and skips others."""
    size_N = np.full(600, 64, np.int32)

    def order(**values: Any) -> list[Any]:
        planner = Planner(size_N, size_N, Recipe.from_dict({**BASE, **values}))
        return [planner.batch(1, step).sample_N.tolist() for step in range(planner.steps_per_epoch)]

    before = order()
    for key, (value, look) in KEYS.items():
        if look is not None:
            assert (order(**{key: value}) == before) == (RULES[key] is AT_ONCE), key


@pytest.mark.parametrize("key", [key for key, rule in RULES.items() if rule is REFUSED])
@pytest.mark.parametrize("place", ["mid", "end"])
def test_another_value_is_refused(saved: Saved, tmp_path: Path, key: str, place: str) -> None:
    value = KEYS[key][0]
    recipe = Recipe.from_dict({**BASE, key: value})
    old = Recipe.from_dict(BASE).to_dict()[key]
    with pytest.raises(CheckpointError) as refused:
        train(options(saved.data, tmp_path, "run", recipe=recipe, resume=str(getattr(saved, place))))
    said = str(refused.value)
    assert f"cannot be resumed with {key} {old} → {value}: set {key}={old}" in said
    assert "or start a new run" in said
    assert "\n" not in said
    assert not (tmp_path / "run").exists()


def test_weight_decay_is_turned_off_and_on(saved: Saved, tmp_path: Path) -> None:
    """timm makes other groups without it: the moments have to stay with their parameters."""
    off, on = (Recipe.from_dict({**BASE, "weight_decay": value}) for value in (0.0, 0.2))
    first = options(saved.data, tmp_path, "off", recipe=off, resume=str(saved.mid))
    train(dataclasses.replace(first, recipe=off.with_overrides({"epochs": 2})))
    last = tmp_path / "off/last.pth.tar"

    def moments(t: Trainer) -> list[Any]:
        return [t.state.optimizer.state[p]["exp_avg"].tolist() for p in t.state.model.parameters()]

    same = options(saved.data, tmp_path, "same", recipe=off, resume=str(last))
    changed = options(saved.data, tmp_path, "on", recipe=on, resume=str(last))
    assert observe(moments, changed) == observe(moments, same)
    assert {wd for wd, _ in observe(decay, same)} == {0.0}
    assert {wd for wd, _ in observe(decay, changed)} == {0.0, 0.2}


def test_state_of_the_optimizer_comes_from_the_checkpoint(saved: Saved, tmp_path: Path) -> None:
    content = torch.load(saved.mid, weights_only=True)["optimizer"]
    recipe = Recipe.from_dict({**BASE, "lr": 1e-3, "weight_decay": 0.3})

    def state(t: Trainer) -> dict[str, Any]:
        return t.state.optimizer.state_dict()

    loaded = observe(state, options(saved.data, tmp_path, "run", recipe=recipe, resume=str(saved.mid)))
    for name in ("exp_avg", "exp_avg_sq"):
        assert all(torch.equal(loaded["state"][i][name], entry[name]) for i, entry in content["state"].items())
    assert [float(group["step"]) for group in loaded["param_groups"]] == [5.0, 5.0]
    assert [group["initial_lr"] for group in loaded["param_groups"]] == [1e-3, 1e-3]
    assert [group["weight_decay"] for group in loaded["param_groups"]] == [0.0, 0.3]


def test_averaging_begins_at_the_checkpoints_weights(saved: Saved, tmp_path: Path) -> None:
    plain = Recipe.from_dict({**BASE, "model_ema": False, "epochs": 2})
    train(options(saved.data, tmp_path, "plain", recipe=plain, resume=str(saved.mid)))
    path = tmp_path / "plain/last.pth.tar"

    def weights(t: Trainer) -> list[list[float]]:
        assert t.state.ema is not None
        return [value.tolist() for value in t.state.ema.module.state_dict().values()]

    found = observe(weights, options(saved.data, tmp_path, "on", resume=str(path)))
    assert found == [value.tolist() for value in torch.load(path, weights_only=True)["state_dict"].values()]


def test_a_run_that_an_earlier_version_resumed_says_what_it_ran_with(
    saved: Saved, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It recorded the new rate and kept the old one."""
    content = torch.load(saved.mid, weights_only=True)
    content["rsbdali"]["recipe"].update(lr=1e-3, weight_decay=0.3)
    torch.save(content, tmp_path / "old.pth.tar")
    recipe = Recipe.from_dict({**BASE, "lr": 1e-3, "weight_decay": 0.3})
    observe(rates, options(saved.data, tmp_path, "run", recipe=recipe, resume=str(tmp_path / "old.pth.tar")))
    assert "lr 0.005 → 0.001 (acts at once), weight_decay 0.01 → 0.3 (acts at once)" in caplog.text


def test_other_images(saved: Saved, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """One more image leaves the steps of an epoch as many as they were, and gives each another image."""
    data = tmp_path / "data"
    shutil.copytree(saved.data, data)
    shutil.copy(data / "train/class0/0.JPEG", data / "train/class0/more.JPEG")
    with pytest.raises(
        CheckpointError, match=r"in the middle of epoch 2, .* other images than before: 24 then, 25 now"
    ):
        train(options(data, tmp_path, "mid", resume=str(saved.mid)))
    assert not (tmp_path / "mid").exists()
    observe(rates, options(data, tmp_path, "end", resume=str(saved.end)))
    assert "goes on with a training set of other images than before: 24 then, 25 now" in caplog.text
    caplog.clear()
    executor = dataclasses.replace(options(saved.data, tmp_path, "graph", resume=str(saved.mid)), decode="graph")
    observe(rates, executor)
    assert "not the same to the bit as before: their pixels come from the graph executor on cpu" in caplog.text


def test_image_size_of_a_model_with_position_embeddings_is_refused() -> None:
    before = Recipe(model="test_vit", img_size=32)
    other = before.with_overrides({"img_size": 48})
    assert [c.rule for c in resume_rules.changes(before.to_dict(), other)] == [REFUSED]
    assert [c.rule for c in resume_rules.changes({**before.to_dict(), "model": "test_resnet"}, other)][1] is REFUSED


def test_a_key_that_the_checkpoint_lacks_had_its_default() -> None:
    before = Recipe().to_dict()
    del before["seed"]
    assert resume_rules.changes(before, Recipe()) == []
    assert [str(change) for change in resume_rules.changes(before, Recipe(seed=3))] == ["seed 0 → 3"]


def test_command_line(saved: Saved, tmp_path: Path) -> None:
    """`--resume … --set lr=… --set weight_decay=…`: summary.csv and the next checkpoint follow."""
    shutil.copy(saved.mid, tmp_path / "mid.pth.tar")
    fixed = [word for key, value in BASE.items() for word in ("--set", f"{key}={json.dumps(value)}")]

    def resume(*overrides: str) -> "subprocess.CompletedProcess[str]":
        command = ["train", "--data", saved.data, "--device", "cpu", "--workers", "1"]
        command += ["--recipe", tmp_path / "base.yaml", "--resume", tmp_path / "mid.pth.tar"]
        command += ["--output", tmp_path, "--experiment", "run", *fixed]
        command += [word for pair in overrides for word in ("--set", pair)]
        return call(*command)

    (tmp_path / "base.yaml").write_text("name: toy\n")
    refused = resume("lr=1e-3", "seed=1")
    assert refused.returncode == 2, refused.stderr
    assert "seed 0 → 1 can only change between epochs" in " ".join((refused.stdout + refused.stderr).split())
    assert "Traceback" not in refused.stderr
    assert not (tmp_path / "run").exists()

    done = resume("lr=1e-3", "weight_decay=0.3")
    assert done.returncode == 0, done.stderr
    said = " ".join((done.stdout + done.stderr).split())
    assert "lr 0.005 → 0.001 (acts at once), weight_decay 0.01 → 0.3 (acts at once)" in said
    with (tmp_path / "run/summary.csv").open() as file:
        found = {int(row["epoch"]): float(row["lr"]) for row in csv.DictReader(file)}
    cosine = {epoch: 1e-6 + (1e-3 - 1e-6) * (1 + np.cos(np.pi * epoch / 4)) / 2 for epoch in (2, 3)}
    assert found == pytest.approx({1: (1e-4 + 1e-3) / 2, **cosine})  # in the warmup's middle, then the cosine
    end = torch.load(tmp_path / "run/last.pth.tar", weights_only=True)
    assert [group["weight_decay"] for group in end["optimizer"]["param_groups"]] == [0.0, 0.3]
    assert [group["initial_lr"] for group in end["optimizer"]["param_groups"]] == [1e-3, 1e-3]
    assert [group["lr"] for group in end["optimizer"]["param_groups"]] == [found[3]] * 2
    args = Recipe.load(str(tmp_path / "run/args.yaml"))
    assert (args.lr, args.weight_decay) == (1e-3, 0.3)
