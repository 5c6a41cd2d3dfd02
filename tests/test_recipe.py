"""Recipe: the shipped files, overrides, and what is refused."""

import dataclasses
import os
from pathlib import Path

import pytest
import yaml

from rsbdali.errors import RecipeError
from rsbdali.integrations.timm_arguments import LACKING, SAME, TRANSLATED, timm_arguments, timm_yaml
from rsbdali.plan.augmentation import parse_policy
from rsbdali.recipe import Recipe, demo_overrides, recipe_names, recipe_text


def test_the_three_recipes_are_the_papers() -> None:
    table = {name: Recipe.load(name) for name in ("a1", "a2", "a3")}

    def column(key: str) -> list[object]:
        return [getattr(table[name], key) for name in ("a1", "a2", "a3")]

    assert recipe_names() == ["a1", "a2", "a3", "deit3", "ra2", "torchvision_v2"]
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


@pytest.mark.parametrize(
    ("name", "source", "aa"),
    [
        ("deit3", "2204.07118", "3a"),
        ("torchvision_v2", "2103.10158", "trivial"),
        ("ra2", "training page", "rand-m7-mstd0.5-inc1"),
    ],
)
def test_recipes_of_the_family_say_their_source_and_that_they_were_not_run(name: str, source: str, aa: str) -> None:
    header, recipe = recipe_text(name).split("\nname:")[0], Recipe.load(name)
    for word in (source, "--recipe " + name, "Hardware:", "Hours:", "Not run here", f"{recipe.reported.top1} %"):
        assert word in header
    assert recipe.aa == aa
    policy = parse_policy(recipe.aa)
    assert policy is not None
    assert timm_yaml(recipe, world_size=8)


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
        ({"reprob": "1.25"}, "0 to 1"),
        ({"color_jitter": "[0.4, 0.4]"}, "a list of 3 numbers or a list of 4 numbers or none"),
        ({"scale": "[0.9, 0.1]"}, "low first"),
        ({"bce_loss": "false"}, "bce_target_thresh needs bce_loss"),
        ({"reported": "{top5: 1}"}, "unknown key reported.'top5'"),
        ({"mixup_prob": "[1"}, "not a YAML value"),
        ({"lr": ".inf"}, "lr=inf is out of range: at most"),
        ({"lr": "9" * 4000}, "expected a number"),
        ({"epochs": "9" * 5000}, "has a value of 5,000 characters"),
        ({"epochs": "99999999999"}, "at most 1e+09"),
        ({"name": "../../x"}, "name: '../../x' is no name: letters, digits, '.', '_' and '-'"),
        ({"name": ".."}, "is no name"),
        ({"name": "a\nb"}, "is no name"),
        ({"scale": ["x" * 10**6] * 9}, "scale=['xxx"),
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
    bomb = "a0: &a0 [x,x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1},*a{i - 1}]\n" for i in range(1, 99))
    for text, message in (
        ("- 1\n", "must hold keys"),
        ("a: [", "is no YAML"),
        (bomb, r"bad.yaml has an alias \(\*a0\) in line 2: write its value out"),
        ("lr: !!python/object:os.system x", "has a tag"),
        ("lr: 1\nepochs: 2\nlr: 3", "has the key 'lr' 2 times"),
        ("a: " + "[" * 1000, "is over 20 deep"),
        ("a: [" + "1," * 20_000, "has over 10,000 values"),
        ("a: " + "1:" * 10_000 + "1", "has a value of 20,001 characters"),
        ("#" * 300_000, "has 300,000 characters, over 262,144"),
        ("#" * (1 << 21), "has more than 1,048,576 bytes"),
        ("a: 0b_", "is no YAML: invalid literal"),
        ("a: \0", "is no YAML"),
    ):
        (tmp_path / "bad.yaml").write_text(text)
        with pytest.raises(RecipeError, match=message):
            Recipe.load(str(tmp_path / "bad.yaml"))
    (tmp_path / "bad.yaml").write_bytes("name: é".encode("latin-1"))
    with pytest.raises(RecipeError, match=r"is no UTF-8 \(unexpected end of data at byte 6\)"):
        Recipe.load(str(tmp_path / "bad.yaml"))
    os.mkfifo(tmp_path / "pipe.yaml")
    with pytest.raises(RecipeError, match="is no regular file"):
        Recipe.load(str(tmp_path / "pipe.yaml"))


def test_a_byte_order_mark_is_no_key(tmp_path: Path) -> None:
    (tmp_path / "windows.yaml").write_bytes("name: été_1\r\nlr: 5e-3\r\n".encode("utf-8-sig"))
    assert Recipe.load(str(tmp_path / "windows.yaml")) == Recipe(name="été_1", lr=0.005)


def test_as_timm() -> None:
    recipe = Recipe.load("a3")
    arguments = timm_arguments(recipe, world_size=4)
    assert arguments["batch_size"] == 512
    assert arguments["input_size"] == [3, 160, 160]
    assert arguments["bce_target_thresh"] == 0.2
    text = timm_yaml(recipe, world_size=4)
    assert "no test-size argument" in text
    assert yaml.safe_load(text) == arguments
    assert "8 an optimizer step here, where the recipe has 4" in timm_yaml(recipe, world_size=8)
    with pytest.raises(RecipeError, match="no multiple"):
        timm_arguments(recipe, world_size=3)


def test_every_key_has_an_argument_of_timms_or_none_by_decision() -> None:
    keys = [f.name for f in dataclasses.fields(Recipe)]
    assert sorted([*SAME, *TRANSLATED, *LACKING]) == sorted(keys)
    arguments = timm_arguments(Recipe.load("a3"), world_size=4)
    assert {name for names in TRANSLATED.values() for name in names} | set(SAME) <= arguments.keys()


@pytest.mark.parametrize(
    ("world_size", "overrides", "batch_size", "passes", "lambdas"),
    [
        (4, {}, 512, 1, 4),
        (1, {}, 512, 4, 4),  # one after the other on one GPU, each with a lambda, as here
        (8, {}, 256, 1, 8),
        (4, {"micro_batch_size": 128}, 128, 4, 16),
        (4, {"micro_batch_size": 100}, 64, 8, 32),  # the largest below 100 that divides the rows of a GPU
        (1, {"global_batch_size": 6, "mix_groups": 4}, 2, 3, 3),
    ],
)
def test_as_timm_a_step_has_as_many_images(
    world_size: int, overrides: dict[str, object], batch_size: int, passes: int, lambdas: int
) -> None:
    recipe = Recipe.load("a3", overrides)
    arguments = timm_arguments(recipe, world_size)
    assert (arguments["batch_size"], arguments["grad_accum_steps"]) == (batch_size, passes)
    assert batch_size * passes * world_size == recipe.global_batch_size
    said = f"{lambdas} an optimizer step here, where the recipe has 4" in timm_yaml(recipe, world_size)
    assert said == (lambdas != recipe.mix_groups)


@pytest.mark.parametrize(
    ("overrides", "arguments", "said"),
    [
        ({"amp_dtype": "auto"}, {"amp": True, "amp_dtype": "bfloat16"}, "before Ampere (V100, T4) float16"),
        ({"amp_dtype": "float16"}, {"amp": True, "amp_dtype": "float16"}, ""),
        ({"amp_dtype": "float32"}, {"amp": False, "amp_dtype": None}, ""),
        ({"zero_init_last": False}, {"model_kwargs": {"zero_init_last": False}}, ""),
        ({"zero_init_last": False, "model": "test_vit"}, {"model_kwargs": None}, "test_vit has no zero_init_last"),
        ({"drop_path": 0.0}, {"drop_path": None}, ""),
        ({"drop_path": 0.05}, {"drop_path": 0.05}, ""),
        ({"eval_every": 5}, {"val_interval": 5}, ""),
        ({"dist_bn": "none"}, {"dist_bn": ""}, ""),
        ({"aug_repeats": 3, "aug_repeats_mode": "decode_once"}, {"aug_repeats": 3}, "no aug_repeats_mode"),
        ({"mixup": 0, "cutmix": 0}, {"bce_loss": True}, "this would train with cross entropy"),
        ({"mixup": 0, "cutmix": 0, "smoothing": 0.1}, {"smoothing": 0.1}, ""),
    ],
)
def test_as_timm_each_setting(overrides: dict[str, object], arguments: dict[str, object], said: str) -> None:
    recipe = Recipe.load("a3", {"test_img_size": 160, "amp_dtype": "bfloat16", "model": "test_resnet", **overrides})
    text = timm_yaml(recipe, world_size=4)
    found = yaml.safe_load(text)
    assert {key: found.get(key) for key in arguments} == arguments
    notes = [line for line in text.splitlines() if line.startswith("#")][1:]
    assert [said in note for note in notes] == ([True] if said else [])
