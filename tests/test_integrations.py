"""The plugs alone: what they pass on, what they refuse, and how they take a run up again."""

import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import lightning.pytorch as pl
import pytest
import timm.data
import torch
from accelerate import Accelerator

from rsbdali import RsbdaliError
from rsbdali.integrations import lightning as lightning_plug
from rsbdali.integrations import timm as timm_plug
from rsbdali.integrations.accelerate import create_loader
from rsbdali.integrations.lightning import RSBDataModule
from rsbdali.integrations.tuple_loader import TupleLoader
from rsbdali.recipe import Recipe

RECIPE = Recipe.load("a3", {"img_size": 16, "test_img_size": 16, "aa": "none", "global_batch_size": 8})


@pytest.fixture
def data(image_tree: Callable[..., Path]) -> Path:
    """train/ and val/ of 3 classes: 18 and 6 images."""
    image_tree(classes=3, per_class=2, split="val")
    return image_tree(classes=3, per_class=6).parent


@pytest.fixture
def script(tmp_path: Path) -> Callable[[str], str]:
    """`script(body)` -> a script that has a dataset and timm's `create_loader`, as train.py imports it."""

    def write(body: str) -> str:
        path = tmp_path / "scripts" / "train.py"
        path.parent.mkdir(exist_ok=True)
        start = "import sys, torch\nfrom timm.data import create_dataset, create_loader\ncpu = torch.device('cpu')\n"
        path.write_text(start + "dataset = create_dataset('', root=sys.argv[1], split='train')\n" + body)
        return str(path)

    return write


def test_timm_is_replaced_and_put_back(data: Path) -> None:
    theirs = timm.data.create_loader
    with timm_plug.patched():
        assert timm.data.create_loader is timm.data.loader.create_loader is not theirs
        dataset = timm.data.create_dataset("", root=str(data), split="train")
        loader = timm.data.create_loader(dataset, 16, 4, device=torch.device("cpu"), num_workers=1)
        assert isinstance(loader, TupleLoader)
        loader.close()
    assert timm.data.create_loader is timm.data.loader.create_loader is theirs


def test_script_runs_as_if_started_alone(
    data: Path, script: Callable[[str], str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "scripts").mkdir()
    (tmp_path / "scripts" / "beside.py").write_text("word = 'neighbor'\n")
    path = script(
        "import beside\n"
        "for training in (True, False):\n"
        "    loader = create_loader(dataset, (3, 16, 16), batch_size=4, is_training=training, device=cpu,\n"
        "                           auto_augment='rand-m6', num_workers=1)\n"
        "    print(beside.word, sys.argv[2:], __name__, type(loader).__name__, len(loader))\n"
    )
    before, level = list(sys.path), logging.getLogger("rsbdali").level
    assert timm_plug.main([path, str(data), "--x"]) == 0
    out, err = capsys.readouterr()
    assert out.splitlines() == [f"neighbor ['--x'] __main__ TupleLoader {length}" for length in (4, 5)]
    lines = [line for line in err.splitlines() if ": ready in" not in line]  # Numba's, the first time in a process
    assert [line.split(" in place")[0] for line in lines] == [
        f"rsbdali: {which} loader by rsbdali" for which in ("training", "evaluation")
    ]
    assert (sys.path, logging.getLogger("rsbdali").level) == (before, level)


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ("auto_augment='rand-m6', num_aug_splits=3", "num_aug_splits"),
        ("auto_augment='augmix-m5'", "auto_augment"),
        ("auto_augment='rand-m6', collate_fn=print", "collate_fn"),
    ],
)
def test_script_that_asks_too_much(
    data: Path, script: Callable[[str], str], capsys: pytest.CaptureFixture[str], arguments: str, name: str
) -> None:
    path = script(f"create_loader(dataset, 16, 4, is_training=True, device=cpu, {arguments})\n")
    assert timm_plug.main([path, str(data)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"rsbdali: error: {name}=")


def test_script_that_wants_patches(
    data: Path, script: Callable[[str], str], capsys: pytest.CaptureFixture[str]
) -> None:
    path = script("from timm.data import create_naflex_loader\ncreate_naflex_loader(dataset, batch_size=4)\n")
    theirs = timm.data.create_naflex_loader
    assert timm_plug.main([path, str(data)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("rsbdali: error: --naflex-loader (create_naflex_loader) cannot be honored")
    assert timm.data.create_naflex_loader is timm.data.naflex_loader.create_naflex_loader is theirs


def test_script_chooses_the_seed(data: Path) -> None:
    dataset = timm.data.create_dataset("", root=str(data), split="train")
    seeds = []
    for seed in (3, 4, 3):
        torch.manual_seed(seed)
        with timm_plug.patched():
            loader = timm.data.create_loader(
                dataset, 16, 4, True, auto_augment="rand-m6", device=torch.device("cpu"), num_workers=1
            )
        seeds.append(loader.loader.recipe.seed)
        loader.close()
    assert seeds == [3, 4, 3]


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert timm_plug.main([]) == 2
    assert timm_plug.main(["--help"]) == 0
    assert timm_plug.main([str(tmp_path / "none.py")]) == 2
    assert capsys.readouterr().err.count("usage:") == 2
    with pytest.raises(RsbdaliError, match="no such script"):
        timm_plug.run("none.py", [])


class Recorder(pl.LightningModule):
    """Notes the images of each training batch; can stop the trainer at a batch of an epoch."""

    def __init__(self, stop: tuple[int, int] | None = None) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.seen: list[tuple[int, float]] = []
        self.labels: list[torch.Tensor] = []
        self.stop = stop

    def training_step(self, batch: tuple[torch.Tensor, torch.Tensor], number: int) -> torch.Tensor:
        images, targets = batch
        assert targets.shape == (len(images), 3)
        self.seen.append((self.current_epoch, float(images.sum())))
        if self.stop == (self.current_epoch, number):
            self.trainer.save_checkpoint(os.path.join(self.trainer.default_root_dir, "stop.ckpt"))
            raise KeyboardInterrupt
        return (self.weight * images.mean()).sum()

    def validation_step(self, batch: tuple[torch.Tensor, torch.Tensor]) -> None:
        self.labels.append(batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(data: Path, folder: Path, model: Recorder, resume: str | None = None, **settings: Any) -> RSBDataModule:
    module = RSBDataModule(data, RECIPE, batch_size=4, eval_batch_size=4, num_workers=1)
    trainer = pl.Trainer(
        max_epochs=3,
        accelerator="cpu",
        devices=1,
        default_root_dir=folder,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        num_sanity_val_steps=0,
        **settings,
    )
    trainer.fit(model, datamodule=module, ckpt_path=resume)
    return module


def test_lightning_trains_and_resumes_in_the_middle(data: Path, tmp_path: Path) -> None:
    whole, broken, resumed = Recorder(), Recorder(stop=(1, 1)), Recorder()
    module = fit(data, tmp_path, whole)
    assert [epoch for epoch, _ in whole.seen] == [0] * 4 + [1] * 4 + [2] * 4
    assert len(set(whole.seen)) == 12
    assert torch.cat(whole.labels).tolist() == [0, 0, 1, 1, 2, 2] * 3
    assert module._open == []  # closed by teardown
    with pytest.raises(SystemExit):  # Lightning's answer to an interrupt
        fit(data, tmp_path, broken)
    fit(data, tmp_path, resumed, resume=str(tmp_path / "stop.ckpt"))
    assert broken.seen + resumed.seen == whole.seen


def test_lightning_needs_a_trainer(data: Path) -> None:
    with pytest.raises(RsbdaliError, match="no trainer yet"):
        RSBDataModule(data).train_dataloader()


def test_the_lightning_that_is_in_use_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    assert lightning_plug._lightning() is pl
    other = ModuleType("pytorch_lightning")
    monkeypatch.setitem(sys.modules, "pytorch_lightning", other)
    monkeypatch.delitem(sys.modules, "lightning.pytorch")
    assert lightning_plug._lightning() is other


def test_without_lightning_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in lightning_plug.PACKAGES:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(RsbdaliError, match=r"pip install lightning"):
        lightning_plug._lightning()


def test_accelerate_keeps_the_place(data: Path, tmp_path: Path) -> None:
    accelerator = Accelerator(cpu=True)
    settings = {"recipe": RECIPE, "batch_size": 4, "num_workers": 1}
    with create_loader(accelerator, data, is_training=True, **settings) as loader:
        assert accelerator.prepare(loader) is loader  # left alone
        batches = iter(loader)
        next(batches)
        accelerator.save_state(str(tmp_path / "state"))
        rest = [images for images, _ in batches]
        accelerator.load_state(str(tmp_path / "state"))
        again = [images for images, _ in loader]
        assert len(rest) == 3
        assert all(torch.equal(one, other) for one, other in zip(rest, again, strict=True))
    with create_loader(accelerator, data, **settings) as evaluation:
        assert (evaluation.loader.device, len(evaluation)) == (torch.device("cpu"), 2)
    accelerator.end_training()
