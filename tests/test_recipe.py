"""Recipe: the shipped files, overrides, and what is refused."""

import dataclasses
from pathlib import Path

import pytest
import yaml

from rsbdali.errors import RecipeError
from rsbdali.integrations.timm_arguments import timm_arguments, timm_yaml
from rsbdali.recipe import Recipe, demo_overrides, recipe_names, recipe_text


def test_the_three_recipes_are_the_papers() -> None:
    table = {name: Recipe.load(name) for name in ("a1", "a2", "a3")}

    def column(key: str) -> list[object]:
        return [getattr(table[name], key) for name in ("a1", "a2", "a3")]

    assert recipe_names() == ["a1", "a2", "a3"]
    assert column("epochs") == [600, 300, 100]
    assert column("lr") == [5e-3, 5e-3, 8e-3]
    assert column("weight_decay") == [0.01, 0.02, 0.02]
    assert column("train_size") == [(224, 224), (224, 224), (160, 160)]
    assert column("test_size") == [(224, 224)] * 3
    assert column("smoothing") == [0.1, 0.0, 0.0]
    assert column("bce_target_thresh") == [None, 0.2, 0.2]
    assert column("drop_path") == [0.05, 0.05, 0.0]
    assert column("aug_repeats") == [3, 3, 0]
    assert column("aa") == ["rand-m7-mstd0.5-inc1", "rand-m7-mstd0.5-inc1", "rand-m6-mstd0.5-inc1"]
    assert column("mixup") == [0.2, 0.1, 0.1]
    assert [r.reported.top1 for r in table.values()] == [80.4, 79.8, 78.1]


@pytest.mark.parametrize("name", ["a1", "a2", "a3"])
def test_header_says_paper_command_hardware_hours_and_top1(name: str) -> None:
    header = recipe_text(name).split("\nname:")[0]
    for word in ("2110.00476", "--recipe " + name, "Hardware:", "Hours:", "Expected:"):
        assert word in header


def test_round_trip_and_frozen() -> None:
    recipe = Recipe.load("a1", {"img_size": "[160, 128]"})
    assert Recipe.from_dict(recipe.to_dict()) == recipe
    assert Recipe.from_dict(yaml.safe_load(yaml.safe_dump(recipe.to_dict()))) == recipe
    assert recipe.train_size == (160, 128)
    with pytest.raises(dataclasses.FrozenInstanceError):
        recipe.lr = 1.0  # type: ignore[misc]


def test_load_from_a_path(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("model: resnet18\nlr: 5e-3\n")
    recipe = Recipe.load(str(path), {"epochs": "3"})
    assert (recipe.model, recipe.lr, recipe.epochs) == ("resnet18", 0.005, 3)


def test_demo_lays_over_a_recipe() -> None:
    recipe = Recipe.load("a3", demo_overrides())
    assert recipe.name == "demo"
    assert (recipe.mixup, recipe.cutmix, recipe.aa) == (0.1, 1.0, "rand-m6-mstd0.5-inc1")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"learning_rat": 1}, "unknown key 'learning_rat'"),
        ({"weight_deca": 1}, "did you mean 'weight_decay'"),
        ({"mean": [123.7, 116.3, 103.5]}, "out of range: 0 to 1 (a share of 255: divide by 255 what counts from 0"),
        ({"mean": [float("nan"), 0.5, 0.5]}, "mean="),
        ({"std": [58.4, 57.1, 57.4]}, "std=(58.4, 57.1, 57.4) is out of range: 1e-06 to 1 (a share of 255"),
        ({"std": [0, 1, 1]}, "std=(0.0, 1.0, 1.0) is out of range: 1e-06 to 1"),
        ({"std": [-0.2, 0.2, 0.2]}, "std="),
        ({"std": [float("nan"), 0.5, 0.5]}, "std="),
        ({"lr": "fast"}, "lr='fast': expected a number"),
        ({"epochs": "1.5"}, "expected a whole number"),
        ({"epochs": "0"}, "at least 1"),
        ({"bce_loss": "3"}, "true or false"),
        ({"amp_dtype": "int8"}, "auto or float16 or bfloat16 or float32"),
        ({"img_size": "[1, 2, 3]"}, "a whole number or a list of 2 numbers"),
        ({"reprob": "0.25"}, "only 0 is supported"),
        ({"scale": "[0.9, 0.1]"}, "low first"),
        ({"bce_loss": "false"}, "bce_target_thresh needs bce_loss"),
        ({"reported": "{top5: 1}"}, "unknown key reported.'top5'"),
        ({"mixup_prob": "[1"}, "not a YAML value"),
    ],
)
def test_what_is_refused(overrides: dict[str, object], message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        Recipe.load("a3", overrides)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("name", "message"), [("a4", "unknown recipe 'a4'"), ("no.yaml", "no recipe file no.yaml")])
def test_unknown_recipe(name: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        Recipe.load(name)


def test_file_that_is_no_mapping(tmp_path: Path) -> None:
    for text, message in (("- 1\n", "must hold keys"), ("a: [", "is no YAML")):
        (tmp_path / "bad.yaml").write_text(text)
        with pytest.raises(RecipeError, match=message):
            Recipe.load(str(tmp_path / "bad.yaml"))


def test_as_timm() -> None:
    recipe = Recipe.load("a3")
    arguments = timm_arguments(recipe, world_size=4)
    assert arguments["batch_size"] == 512
    assert arguments["input_size"] == [3, 160, 160]
    assert arguments["bce_target_thresh"] == 0.2
    text = timm_yaml(recipe, world_size=4)
    assert "no test-size argument" in text
    assert yaml.safe_load(text) == arguments
    assert "one lambda per GPU" in timm_yaml(recipe, world_size=8)
    with pytest.raises(RecipeError, match="no multiple"):
        timm_arguments(recipe, world_size=3)
