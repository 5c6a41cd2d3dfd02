"""From folders of JPEGs to a validated checkpoint: `train` and `validate` as the command line calls them."""

import csv
import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch

from rsbdali.errors import CheckpointError, DataError, RecipeError, RsbdaliError
from rsbdali.recipe import Recipe
from rsbdali.training.options import TrainOptions
from rsbdali.training.summary import TrainSummary
from rsbdali.training.train import train
from rsbdali.training.validate import ValidateOptions, choose_recipe, validate

SMALL = {
    "model": "test_resnet",
    "img_size": 32,
    "test_img_size": 48,
    "epochs": 2,
    "global_batch_size": 8,
    "mix_groups": 2,
    "warmup_epochs": 0,
    "amp_dtype": "float32",
}
ODD = ("gray", "cmyk", "png", "truncated", "empty", "text")


@pytest.fixture
def data(image_tree: Callable[..., Path]) -> Path:
    """12 good images, six that need care, in train; 9 good ones in val."""
    image_tree(classes=3, per_class=3, split="val", seed=1)
    return image_tree(classes=3, per_class=4, split="train", odd=ODD).parent


@pytest.fixture
def options(data: Path, tmp_path: Path) -> TrainOptions:
    recipe = Recipe.load("a3", SMALL)
    return TrainOptions(recipe=recipe, data=data, output=tmp_path / "output", device="cpu", workers=1)


def with_recipe(options: TrainOptions, **values: object) -> TrainOptions:
    return dataclasses.replace(options, recipe=options.recipe.with_overrides(values))


def bad_images(summary: TrainSummary) -> list[str]:
    with (summary.folder / "bad_images.csv").open(newline="") as file:
        return sorted(Path(row["path"]).name for row in csv.DictReader(file))


def test_train_then_validate_gives_the_same_figures(options: TrainOptions, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", logger="rsbdali"):
        summary = train(options)
    assert summary.exit_code == 0
    assert summary.folder == options.output / "a3-test_resnet"
    assert summary.checkpoint == summary.folder / "model_best.pth.tar"
    assert summary.lines()[-1] == f"checkpoint {summary.checkpoint}"
    assert summary.lines()[0].startswith("best top-1 ")

    result = validate(
        ValidateOptions(data=options.data, checkpoint=summary.folder / "last.pth.tar", device="cpu", workers=1)
    )
    last = summary.outcome.last
    assert last is not None
    assert (result.n, result.top1, result.top5) == (9, last.top1, last.top5)
    assert result.loss == pytest.approx(last.loss, abs=1e-6)
    with (summary.folder / "summary.csv").open() as file:
        assert float(list(csv.DictReader(file))[-1]["eval_loss"]) == last.loss
    assert Recipe.load(str(summary.folder / "args.yaml")) == options.recipe
    timm.create_model("test_resnet", num_classes=3, checkpoint_path=str(summary.checkpoint))

    # each bad file was named once, the others were read
    names = bad_images(summary)
    assert len(names) == len(set(names))
    assert {"odd_empty.JPEG", "odd_text.JPEG"} <= set(names)
    assert set(names) <= {"odd_empty.JPEG", "odd_text.JPEG", "odd_truncated.JPEG"}  # it decodes above the cut
    for name in names:
        assert caplog.text.count(name) == 1


def test_a_run_goes_on_with_the_same_result(options: TrainOptions) -> None:
    whole = train(dataclasses.replace(options, experiment="whole"))
    short = with_recipe(dataclasses.replace(options, experiment="parts"))
    content = {}
    for epochs in (1, 2):  # a constant rate, so that the number of epochs does not shape the schedule
        constant = with_recipe(short, epochs=epochs, min_lr=options.recipe.lr)
        content[epochs] = torch.load(
            train(dataclasses.replace(constant, resume="auto")).folder / "last.pth.tar", weights_only=True
        )
    straight = train(with_recipe(dataclasses.replace(options, experiment="straight"), min_lr=options.recipe.lr))
    expected = torch.load(straight.folder / "last.pth.tar", weights_only=True)
    assert content[1]["epoch"] == 0
    for name, value in expected["state_dict"].items():
        assert torch.equal(content[2]["state_dict"][name], value), name
    assert whole.outcome.epochs == 2


def test_a_run_is_not_overwritten(options: TrainOptions) -> None:
    first = train(with_recipe(options, epochs=1))
    second = train(with_recipe(options, epochs=1))
    assert second.folder.name == first.folder.name + "-2"
    named = dataclasses.replace(options, experiment=first.folder.name)
    with pytest.raises(RsbdaliError, match="holds a run already"):
        train(named)
    for path in first.folder.glob("*.pth.tar"):  # hard links of one file: all are damaged
        path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match=r"no checkpoint in .* is valid.*last\.pth\.tar is truncated"):
        train(dataclasses.replace(named, resume="auto"))
    assert (first.folder / "last.pth.tar").stat().st_size == 1000


def test_fine_tuning_on_other_classes(options: TrainOptions, image_tree: Callable[..., Path]) -> None:
    first = train(with_recipe(options, epochs=1))
    image_tree(classes=5, per_class=1, split="val", name="other")
    other = image_tree(classes=5, per_class=2, split="train", name="other").parent
    tuned = train(
        dataclasses.replace(
            with_recipe(options, epochs=1, lr=0.0, warmup_lr=0.0, min_lr=0.0),
            data=other,
            initial_checkpoint=first.checkpoint,
            experiment="tuned",
        )
    )
    old, new = (torch.load(s.folder / "last.pth.tar", weights_only=True)["state_dict"] for s in (first, tuned))
    assert new["fc.weight"].shape[0] == 5
    assert torch.equal(old["conv1.0.weight"], new["conv1.0.weight"])
    with pytest.raises(CheckpointError, match=r"is of other classes \(3 there, 5 here\)"):
        train(dataclasses.replace(options, data=other, resume=str(first.checkpoint)))


def test_the_same_seed_gives_the_same_run(options: TrainOptions) -> None:
    one, two = (train(dataclasses.replace(options, deterministic=True)) for _ in range(2))
    assert one.outcome == two.outcome
    assert (one.folder / "summary.csv").read_text() == (two.folder / "summary.csv").read_text()


def test_non_square_images_and_small_passes(options: TrainOptions) -> None:
    wide = with_recipe(options, epochs=1, img_size=[32, 48], test_img_size=[48, 64], micro_batch_size=3)
    assert train(wide).outcome.last is not None


def test_a_users_mistakes(options: TrainOptions, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(DataError, match="no such folder"):
        train(dataclasses.replace(options, data=data / "nowhere"))
    with pytest.raises(RecipeError, match="global_batch_size=64 is larger than an epoch of"):
        train(with_recipe(options, global_batch_size=64))
    with pytest.raises(RsbdaliError, match="torch sees no GPU here"):
        train(dataclasses.replace(options, device="cuda"))
    assert not list(options.output.glob("*"))  # no folder of a run that could not begin
    shutil.move(data / "val/class2", data / "val/another")
    with pytest.raises(DataError, match="another"):
        train(options)


def test_too_many_bad_images(options: TrainOptions, data: Path, write_image: Callable[..., Path]) -> None:
    for i in range(6):
        write_image(data / f"train/class1/bad{i}.JPEG", "truncated")
    with pytest.raises(DataError, match="more than max_bad_images=0"):
        train(with_recipe(dataclasses.replace(options, max_bad_images=0), scale=[1, 1], ratio=[1, 1], epochs=8))


def test_what_validate_evaluates(options: TrainOptions, data: Path) -> None:
    with pytest.raises(RsbdaliError, match="nothing to validate"):
        validate(ValidateOptions(data=data))
    with pytest.raises(RsbdaliError, match="add --pretrained"):
        validate(ValidateOptions(data=data, model="resnet50"))
    with pytest.raises(CheckpointError, match="no checkpoint"):
        validate(ValidateOptions(data=data, checkpoint=data / "none.pth.tar"))
    published = choose_recipe(ValidateOptions(data=data, model="resnet50.a3_in1k", pretrained=True), None)
    assert published.model == "resnet50.a3_in1k"
    assert published.test_size == (224, 224)
    with pytest.raises(RecipeError, match="knows 1000 classes, the data has 3"):
        validate(ValidateOptions(data=data, model="resnet50", pretrained=True, device="cpu"))


def test_validate_takes_a_bare_state_dict_and_overrides(data: Path, tmp_path: Path) -> None:
    model = timm.create_model("test_resnet", num_classes=3)
    torch.save({"state_dict": model.state_dict()}, tmp_path / "bare.pth")
    bare = ValidateOptions(data=data, checkpoint=tmp_path / "bare.pth", device="cpu", overrides={"test_img_size": "32"})
    with pytest.raises(CheckpointError, match="does not say its model: add --model NAME"):
        validate(bare)
    assert validate(dataclasses.replace(bare, model="test_resnet")).n == 9
    with pytest.raises(CheckpointError, match="is of another model"):
        validate(dataclasses.replace(bare, model="test_efficientnet"))
