"""Models from timm's names: heads, sizes, start from a file, and drop path that depends on the place alone."""

from pathlib import Path

import pytest
import timm
import torch

from helpers.common import TINY
from rsbdali.errors import CheckpointError, RecipeError
from rsbdali.recipe import Recipe
from rsbdali.runs import checkpoint
from rsbdali.training.model import check_model, create_model, reseed


def small(**values: object) -> Recipe:
    return Recipe.from_dict({**TINY, **values})


def test_weights_depend_on_the_seed_alone() -> None:
    torch.manual_seed(5)
    first = create_model(small(), 3).state_dict()
    torch.manual_seed(6)
    second = create_model(small(), 3).state_dict()
    for name, value in first.items():
        assert torch.equal(value, second[name])
    assert not torch.equal(first["fc.weight"], create_model(small(seed=1), 3).state_dict()["fc.weight"])


def test_model_is_channels_last_with_the_datas_classes() -> None:
    model = create_model(small(), 7)
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 7)
    assert model.conv1[0].weight.is_contiguous(memory_format=torch.channels_last)


def test_the_last_norm_of_a_block_starts_at_zero() -> None:
    ours = create_model(small(model="resnet18"), 3)
    assert not ours.layer1[0].bn2.weight.any()
    assert create_model(small(model="resnet18", zero_init_last=False), 3).layer1[0].bn2.weight.all()


@pytest.mark.parametrize("name", ["test_vit", "test_efficientnet", "test_convnext", "test_nfnet", "test_byobnet"])
@pytest.mark.parametrize("drop_path", [0.0, 0.1])
def test_any_kind_of_model(name: str, drop_path: float) -> None:
    model = create_model(small(model=name, drop_path=drop_path, img_size=[32, 64], test_img_size=[32, 64]), 3)
    assert model(torch.zeros(1, 3, 32, 64)).shape == (1, 3)


def test_a_vit_is_evaluated_at_another_size() -> None:
    model = create_model(small(model="test_vit", img_size=32, test_img_size=[64, 48]), 3).eval()
    assert model(torch.zeros(1, 3, 64, 48)).shape == (1, 3)


def test_unknown_model_names_near_ones() -> None:
    with pytest.raises(RecipeError, match=r"model='resnet_50': timm has no such model, did you mean .*'resnet50'.*\?$"):
        create_model(small(model="resnet_50"), 3)


def test_weights_that_timm_does_not_have_are_refused() -> None:
    with pytest.raises(RecipeError, match=r"timm has no such weights of resnet18, did you mean 'resnet18\.a1_in1k'"):
        check_model("resnet18.a1_in1")
    check_model("resnet18.a1_in1k")


def test_a_setting_that_a_model_refuses_is_named() -> None:
    with pytest.raises(RecipeError, match=r"model='vgg11' does not take a setting: .*drop_path_rate"):
        create_model(small(model="vgg11", drop_path=0.1), 3)


def save(model: torch.nn.Module, path: Path, key: str = "state_dict") -> Path:
    torch.save({key: {f"module.{name}": value for name, value in model.state_dict().items()}}, path)
    return path


def test_fine_tuning_keeps_all_but_a_head_for_other_classes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = create_model(small(seed=3), 9)
    path = save(source, tmp_path / "a.pth")
    with caplog.at_level("INFO"):
        model = create_model(small(), 4, initial_checkpoint=path)
    assert "fc.weight, fc.bias start anew" in caplog.text
    assert model.fc.weight.shape == (4, source.fc.weight.shape[1])
    for name, value in source.state_dict().items():
        if not name.startswith("fc."):
            assert torch.equal(value, model.state_dict()[name]), name


def test_fine_tuning_with_the_same_classes_keeps_the_head(tmp_path: Path) -> None:
    source = create_model(small(seed=3), 4)
    model = create_model(small(), 4, initial_checkpoint=save(source, tmp_path / "a.pth", "model"))
    assert torch.equal(source.fc.weight, model.fc.weight)


def test_a_file_of_another_model_is_refused(tmp_path: Path) -> None:
    path = save(timm.create_model("test_efficientnet", num_classes=4), tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=r"a\.pth is of another model: it lacks .* more; has besides"):
        create_model(small(), 4, initial_checkpoint=path)


def test_published_safetensors_form_is_read(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    source = create_model(small(seed=3), 4)
    save_file({n: v.contiguous() for n, v in source.state_dict().items()}, tmp_path / "m.safetensors")
    model = create_model(small(), 4, initial_checkpoint=tmp_path / "m.safetensors")
    assert torch.equal(model.fc.weight, source.fc.weight)
    (tmp_path / "bad.safetensors").write_bytes(b"no tensors at all")
    with pytest.raises(CheckpointError, match="truncated or damaged"):
        checkpoint.read(tmp_path / "bad.safetensors")


def test_drop_path_depends_on_the_place_alone() -> None:
    model = create_model(small(model="test_convnext", drop_path=0.5), 3).train()
    images = torch.randn(4, 3, 32, 32)
    reseed(0, 1, 2, 3, 0)
    first = model(images)
    model(images)  # as if another group had come in between
    reseed(0, 1, 2, 3, 0)
    assert torch.equal(model(images), first)
    reseed(0, 1, 2, 4, 0)
    assert not torch.equal(model(images), first)
