"""Exports give the outputs of the model they were made from, in each format, read by the programs they are for."""

import importlib.util
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import yaml
from click.testing import CliRunner

from helpers.common import CPU
from rsbdali.cli.main import cli
from rsbdali.errors import CheckpointError, RsbdaliError
from rsbdali.recipe import Recipe, Reported
from rsbdali.runs import checkpoint
from rsbdali.runs.folder import RunFolder
from rsbdali.runs.state import Identity
from rsbdali.tools.export import onnx
from rsbdali.tools.export.export import ExportOptions, export
from rsbdali.tools.export.model_card import card
from rsbdali.tools.export.source import read_source
from rsbdali.training.train import make_state

NAMES = ("bell pepper", "cock's comb", 'a "quoted" `class`', "n01440764")
SMALL = {
    "model": "test_resnet",
    "img_size": 48,
    "test_img_size": 64,
    "mean": [0.4, 0.5, 0.6],
    "crop_pct": 0.9,
    "drop_path": 0.05,
    "model_ema": True,
}


def make_checkpoint(
    path: Path, *, metric: float | None = 71.25, names: tuple[str, ...] = NAMES, **keys: object
) -> Path:
    """A checkpoint as `rsbdali train` writes it, whose averaged weights are others than the raw ones."""
    recipe = Recipe.load("a3", {**SMALL, **keys})
    state = make_state(recipe, len(names), CPU)
    state.epoch, generator = 3, torch.Generator().manual_seed(1)
    for model in (state.model, *([state.ema.module] if state.ema else [])):
        for name, value in model.state_dict().items():
            if value.is_floating_point() and "running_var" not in name:
                value += 0.05 * torch.randn(value.shape, generator=generator)
    path.parent.mkdir(parents=True, exist_ok=True)
    checkpoint.write(state.to_checkpoint(Identity(recipe, names, 4, 10), metric), path)
    return path


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    return make_checkpoint(tmp_path / "run/last.pth.tar")


@pytest.fixture
def images_NCHW() -> torch.Tensor:
    return torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(5))


def outputs_of(model: torch.nn.Module, images_NCHW: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        return model.eval()(images_NCHW)


def expected(path: Path, images_NCHW: torch.Tensor, *, ema: bool) -> torch.Tensor:
    """By timm alone, straight from the checkpoint's own keys."""
    content = torch.load(path, weights_only=True)
    model = timm.create_model(content["arch"], num_classes=content["args"]["num_classes"])
    model.load_state_dict(content["state_dict_ema" if ema else "state_dict"])
    return outputs_of(model, images_NCHW)


@pytest.mark.parametrize(("flag", "ema"), [(None, True), (True, True), (False, False)])
def test_safetensors(trained: Path, tmp_path: Path, images_NCHW: torch.Tensor, flag: bool | None, ema: bool) -> None:
    from safetensors import safe_open
    from safetensors.torch import load_file

    lines = export(ExportOptions(checkpoint=trained, format="safetensors", out=tmp_path / "out", use_ema=flag))
    kind = "averaged weights" if ema else "weights"
    assert lines == [f"{kind} of test_resnet after 3 epochs in {tmp_path / 'out'}: model.safetensors"]
    file = tmp_path / "out/model.safetensors"
    model = timm.create_model("test_resnet", num_classes=4)
    model.load_state_dict(load_file(file))
    # the same weights in the same program: nothing to forgive
    assert torch.equal(outputs_of(model, images_NCHW), expected(trained, images_NCHW, ema=ema))
    with safe_open(file, "pt") as opened:
        facts = opened.metadata()
    assert json.loads(facts["class_names"]) == list(NAMES)
    assert json.loads(facts["input_size"]) == [3, 64, 64]
    assert json.loads(facts["mean"]) == [0.4, 0.5, 0.6]
    assert Recipe.from_dict(json.loads(facts["recipe"])) == read_source(trained).recipe
    assert facts["averaged"] == str(ema).lower()
    assert facts.get("top1") == ("71.2500" if ema else None)  # the run's figure is that of the averaged weights
    # and our own reader takes the file to start from
    assert checkpoint.weights(checkpoint.read(file)).keys() == model.state_dict().keys()


@pytest.mark.parametrize("form", ["timm", "hf"])
def test_timm_loads_the_folder(trained: Path, tmp_path: Path, images_NCHW: torch.Tensor, form: str) -> None:
    export(ExportOptions(checkpoint=trained, format=form, out=tmp_path / "out"))  # type: ignore[arg-type]
    model = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True)
    assert torch.equal(outputs_of(model, images_NCHW), expected(trained, images_NCHW, ema=True))
    content = json.loads((tmp_path / "out/config.json").read_text())
    assert content["architecture"] == "test_resnet"
    assert content["label_names"] == list(NAMES)
    others = ("tag", "url", "hf_hub_id", "paper_ids", "license", "origin_url")  # of timm's own weights
    assert not [key for key in others if content["pretrained_cfg"].get(key) is not None]
    test = timm.data.resolve_model_data_config(model, use_test_size=True)
    assert (test["input_size"], test["crop_pct"], tuple(test["mean"])) == ((3, 64, 64), 0.9, (0.4, 0.5, 0.6))
    assert (test["crop_mode"], test["interpolation"]) == ("center", "bicubic")
    assert timm.data.resolve_model_data_config(model)["input_size"] == (3, 48, 48)
    assert (tmp_path / "out/README.md").exists() == (form == "hf")


def test_a_transformer_at_another_size(tmp_path: Path) -> None:
    square = {"img_size": 64, "test_img_size": 64}
    made = make_checkpoint(tmp_path / "run/last.pth.tar", model="test_vit", drop_path=0.0, **square)
    export(ExportOptions(checkpoint=made, format="timm", out=tmp_path / "out"))
    model = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True)
    images_NCHW = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(5))
    assert torch.equal(outputs_of(model, images_NCHW), outputs_of(read_source(made).model, images_NCHW))


@pytest.fixture(scope="module")
def onnx_export(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, list[str]]:
    """A checkpoint, its ONNX folder and what was said; the exporter takes seconds, so once."""
    folder = tmp_path_factory.mktemp("onnx")
    made = make_checkpoint(folder / "run/last.pth.tar")
    return made, folder / "out", export(ExportOptions(checkpoint=made, format="onnx", out=folder / "out"))


def test_onnx_takes_any_batch(onnx_export: tuple[Path, Path, list[str]]) -> None:
    import onnxruntime

    trained, out, lines = onnx_export
    assert lines[0].startswith("onnxruntime agrees with torch: ")
    assert [path.name for path in out.iterdir()] == ["model.onnx"]
    session = onnxruntime.InferenceSession(str(out / "model.onnx"))
    assert [(i.name, i.shape[1:]) for i in session.get_inputs()] == [("images", [3, 64, 64])]
    for rows in (1, 2, 5):
        images_NCHW = torch.randn(rows, 3, 64, 64, generator=torch.Generator().manual_seed(rows))
        (found_NC,) = session.run(["logits"], {"images": images_NCHW.numpy()})
        # float32 sums in another order; logits are of size 1 to 10
        np.testing.assert_allclose(found_NC, expected(trained, images_NCHW, ema=True).numpy(), rtol=1e-3, atol=1e-4)
    facts = session.get_modelmeta().custom_metadata_map
    assert json.loads(facts["class_names"]) == list(NAMES)
    assert (facts["crop_pct"], facts["interpolation"]) == ("0.9", "bicubic")


def test_onnx_that_differs_is_not_kept(
    onnx_export: tuple[Path, Path, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained, out, _ = onnx_export

    def spoil(source: onnx.Source, _: torch.Tensor, path: Path) -> None:
        shutil.copyfile(out / "model.onnx", path)
        source.model.get_parameter("fc.bias").data += 0.1

    monkeypatch.setattr(onnx, "_export", spoil)
    with pytest.raises(RsbdaliError, match=r"onnxruntime differs from torch by 0\.1 in logits up to .*: not exported"):
        export(ExportOptions(checkpoint=trained, format="onnx", out=tmp_path / "out"))
    assert not list(tmp_path.iterdir())


def test_the_card(image_tree: Callable[..., Path], trained: Path, tmp_path: Path) -> None:
    facts = {"data": "/home/somebody/secret/flowers", "train_images": 1200, "val_images": 300}
    RunFolder(trained.parent).write_args(read_source(trained).recipe, facts)
    export(ExportOptions(checkpoint=trained, format="hf", out=tmp_path / "flower-net"))
    text = (tmp_path / "flower-net/README.md").read_text()
    _, head, body = text.split("---\n", 2)
    assert yaml.safe_load(head) == {"tags": ["image-classification", "timm", "rsbdali"], "library_name": "timm"}
    assert "# flower-net" in body
    assert "71.250 %" in body
    assert "| evaluated at | 64 x 64 px, crop 0.9, bicubic |" in body
    assert "folder `flowers`, 1,200 images in training, 300 in validation, 4 classes: `bell pepper`" in body
    assert "secret" not in body
    assert "`a quoted class`" in body  # what would end the code span is gone
    assert "averaged over training (EMA), after 3 of 100 epochs" in body.replace("\n", " ")
    recipe = yaml.safe_load(body.split("```yaml\n")[1].split("```")[0])
    # but for the paper's figures, which are another model's
    assert Recipe.from_dict(recipe) == replace(read_source(trained).recipe, reported=Reported())
    # its example runs as it stands
    code = body.split("```python\n")[1].split("```")[0].replace("local-dir:", f"local-dir:{tmp_path}/")
    image = next(image_tree(classes=1, per_class=1).rglob("*.JPEG"))
    scope: dict[str, object] = {}
    exec("from PIL import Image\nimage = Image.open(path).convert('RGB')\n" + code, {"path": image}, scope)
    assert scope["logits"].shape == (1, 4)  # type: ignore[attr-defined]
    assert scope["config"]["input_size"] == (3, 64, 64)  # type: ignore[index]


def test_a_card_without_figures_says_so(tmp_path: Path) -> None:
    made = make_checkpoint(tmp_path / "last.pth.tar", metric=None, model_ema=False)
    export(ExportOptions(checkpoint=made, format="hf", out=tmp_path / "out"))
    text = (tmp_path / "out/README.md").read_text()
    assert "| top-1 on the validation images | not evaluated |" in text
    assert "of the last step, not averaged" in text
    assert "4 classes: `bell pepper`" in text


def test_synsets_get_words(tmp_path: Path) -> None:
    made = make_checkpoint(tmp_path / "last.pth.tar", names=("n01440764", "n02085620", "n99999999"))
    export(ExportOptions(checkpoint=made, format="timm", out=tmp_path / "out"))
    content = json.loads((tmp_path / "out/config.json").read_text())
    assert content["label_descriptions"]["n01440764"] == "tench, Tinca tinca"
    assert set(content["label_descriptions"]) == {"n01440764", "n02085620"}
    assert read_source(make_checkpoint(tmp_path / "other.pth.tar")).label_descriptions == {}


def test_a_users_mistakes(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken = ExportOptions(checkpoint=trained, format="timm", out=trained.parent)
    with pytest.raises(RsbdaliError, match="is there already: name another --out"):
        export(taken)
    foreign = tmp_path / "foreign.pth"
    torch.save({"state_dict": timm.create_model("test_resnet").state_dict()}, foreign)
    with pytest.raises(CheckpointError, match="is not of rsbdali train"):
        export(ExportOptions(checkpoint=foreign, format="timm", out=tmp_path / "out"))
    raw = make_checkpoint(tmp_path / "raw.pth.tar", model_ema=False)
    with pytest.raises(CheckpointError, match="holds no averaged weights: leave --ema out"):
        export(ExportOptions(checkpoint=raw, format="timm", out=tmp_path / "out", use_ema=True))
    assert not (tmp_path / "out").exists()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(RsbdaliError, match=r"pip install "):
        export(ExportOptions(checkpoint=raw, format="onnx", out=tmp_path / "out"))


def test_the_command(trained: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    arguments = ["--checkpoint", str(trained), "--format", "hf", "--no-ema", "--out", str(tmp_path / "empty")]
    result = CliRunner().invoke(cli, ["export", *arguments])
    assert result.exit_code == 0, result.exception
    assert result.output == (
        f"weights of test_resnet after 3 epochs in {tmp_path / 'empty'}: README.md, config.json, model.safetensors\n"
    )


def test_nothing_breaks_out_of_the_card(tmp_path: Path) -> None:
    hostile = "</b><script>alert(1)</script> ![x](http://x/y) `` ~~~ \udcff"
    made = make_checkpoint(tmp_path / "run/last.pth.tar", names=("``<script>", "`", "a|b\n# c"))
    content = checkpoint.read(made)
    content["rsbdali"]["versions"]["torch"] = hostile
    content["rsbdali"]["recipe"]["aa"] = "x " * 45 + "\n```\n<script>x</script> ```` "
    checkpoint.write(content, made)
    (made.parent / "args.yaml").write_text("# data: /x/<script>`\n# train_images: many\n# val_images: 1\nname: x\n")
    text = card(read_source(made), "out <script>*x*")
    assert r"# out \<script\>\*x\*" in text
    assert r"torch \<\/b\>\<script\>alert\(1\)\<\/script\> \!\[x\]\(http:\/\/x\/y\) \`\` \~\~\~" in text
    assert "folder `<script>`, 3 classes: `<script>`, `?`, `ab# c`." in text
    fence, body = re.split(r"(?m)^(`{5,})yaml\n", text)[1:]
    recipe, rest = body.split(fence)
    # the paper's figures are those of another model
    assert yaml.safe_load(recipe) == {k: v for k, v in content["rsbdali"]["recipe"].items() if k != "reported"}
    assert rest == "\n"
    outside = re.sub(r"`[^`]*`", "", text.split("## Use")[0])  # without code spans
    assert not re.search(r"(?<!\\)<", outside)
    text.encode()
