"""The public names of the package: frozen, as the command line is, and typed for whoever uses them."""

import dataclasses
import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_type_hints

import pytest
from mypy import api

import rsbdali
from rsbdali.integrations.timm_arguments import NO_BEARING, REFUSED, OtherTimmArguments
from rsbdali.loader.decode_mode import DecodeMode
from rsbdali.recipe import Recipe
from rsbdali.training.arguments import TrainArguments
from rsbdali.training.options import TrainOptions

ROOT = Path(__file__).parents[1]
SURFACE = {
    "BatchPlan": ".",
    "BatchPlan.rows": "rows group",
    "EvalLoader": (
        "index recipe rank world_size device decode hw_decoder_load batch_size num_threads dtype prefetch on_bad pad"
    ),
    "EvalLoader.close": "",
    "EvalLoader.seek_batch": "epoch batch",
    "ImageIndex": ".",
    "ImageIndex.class_to_idx": ".",
    "ImageIndex.digest": ".",
    "ImageIndex.fetch_ahead": "sample_N parts",
    "ImageIndex.from_dataset": "dataset cache_dir check threads progress",
    "ImageIndex.from_lists": "paths labels classes root cache_dir threads progress",
    "ImageIndex.intervals_of": "i",
    "ImageIndex.load": (
        "root cache_dir classes labels need_classes check rebuild threads progress class_map image_root"
    ),
    "ImageIndex.memory_bytes": ".",
    "ImageIndex.num_classes": ".",
    "ImageIndex.path": "i",
    "ImageIndex.read_bytes": "i",
    "ImageIndex.read_copy": "i",
    "ImageIndex.read_parts": "i parts out_B",
    "ImageIndex.read_stored": "i",
    "ImageIndex.relative_path": "i",
    "ImageIndex.scan": "root classes labels need_classes threads progress class_map image_root",
    "ImageIndex.split": "fraction seed",
    "ImageIndex.subset": "rows",
    "ImageIndex.targets": ".",
    "Planner": "width_N height_N recipe world_size sampling",
    "Planner.batch": "epoch step",
    "Planner.group": "epoch step group",
    "Planner.order_digest": "epoch",
    "Planner.replacement": "plan row attempt",
    "Planner.transform_seed": "plan",
    "Recipe": ".",
    "Recipe.from_dict": "values",
    "Recipe.is_reported": ".",
    "Recipe.load": "name_or_path overrides",
    "Recipe.rate_advice": ".",
    "Recipe.test_size": ".",
    "Recipe.to_dict": "",
    "Recipe.train_size": ".",
    "Recipe.with_overrides": "overrides",
    "RsbdaliError": ".",
    "RsbdaliError.exit_code": ".",
    "RsbdaliError.reported_elsewhere": ".",
    "TrainLoader": (
        "index recipe rank world_size device decode hw_decoder_load num_threads dtype prefetch chunk on_bad "
        "max_bad_images sampling transform"
    ),
    "TrainLoader.close": "",
    "TrainLoader.groups_per_step": ".",
    "TrainLoader.seek": "epoch step",
    "TrainLoader.seek_batch": "epoch batch",
    "TrainLoader.set_epoch": "epoch",
    "TrainLoader.steps_per_epoch": ".",
    "TrainLoader.wait_s": ".",
    "TupleLoader": "loader num_classes smoothing channels_last dataset return_index item_N",
    "TupleLoader.batch_sampler": ".",
    "TupleLoader.batch_size": ".",
    "TupleLoader.batches_per_step": ".",
    "TupleLoader.close": "",
    "TupleLoader.load_state_dict": "state",
    "TupleLoader.mixup_enabled": ".",
    "TupleLoader.sampler": ".",
    "TupleLoader.set_epoch": "epoch",
    "TupleLoader.state_dict": "",
    "__version__": ".",
    "bce_loss": "logits_NC label_N partner_label_N lam_N smoothing threshold",
    "create_loader": (
        "dataset input_size batch_size is_training recipe scale ratio train_crop_mode hflip vflip color_jitter "
        "color_jitter_prob grayscale_prob gaussian_blur_prob auto_augment num_aug_repeats re_prob re_mode re_count "
        "interpolation crop_pct crop_mode mean std collate_fn num_classes smoothing shuffle drop_last weights "
        "sampler transform return_index num_workers distributed rank world_size device img_dtype channels_last "
        "use_prefetcher output pad_eval seed decode hw_decoder_load prefetch tuned max_bad_images on_bad others"
    ),
    "mix_normalize": "images_NHWC partner_N lam_N box_N4 mean std dtype out",
    "train": "recipe data resume more",
    "watch": "loader probe say machine",
}

# what mypy would take most of its time for, and what it cannot find under its installed name
SKIPPED = (
    "torch torchvision timm numpy PIL yaml nvidia numba llvmlite triton fsspec pyarrow datasets rsbdali.pipelines "
    "rsbdali.bench rsbdali.recipes"
)
RIGHT = """\
import numpy as np
import rsbdali

index = rsbdali.ImageIndex.from_lists(["a.jpg", "b.jpg"], np.array([0, 1]), classes=["cat", "dog"])
train, val = index.split(0.2, seed=1)
path, label = train[0]
print(path.upper(), label + 1, train.class_to_idx["cat"] + train.targets[0])
with rsbdali.create_loader(
    train, 160, 4, is_training=True, output="uint8", weights="balanced", re_prob=0.0, transform=lambda images: images
) as loader:
    loader.set_epoch(3)
    for images, targets in loader:
        print(images.shape, targets)
    loader.load_state_dict(loader.state_dict())
own = rsbdali.create_loader("DATA", recipe="a3", is_training=True, sampler=lambda epoch: range(9), return_index=True)
for images, targets, rows in own:
    print(rows)
recipe: rsbdali.Recipe = rsbdali.Recipe.load("a3", {"epochs": 1})
summary = rsbdali.train(recipe, "DATA", epochs=3, lr="auto", output="runs", decode="cpu", loggers=["wandb"])
rsbdali.train(resume=summary.folder, epochs=6)
for batch in rsbdali.watch([1, 2]):
    print(batch + 1)
"""
WRONG = {
    'rsbdali.create_loader("DATA", 160, 4, outptu="uint8")': 'Unexpected keyword argument "outptu"',
    'rsbdali.create_loader("DATA", 160, 4, output="int8")': 'Argument "output" to "create_loader"',
    'rsbdali.create_loader("DATA", 160, 4, decode="graph")': 'Argument "decode" to "create_loader"',
    'rsbdali.create_loader("DATA", 160, 4, weights="equal")': 'Argument "weights" to "create_loader"',
    'rsbdali.create_loader("DATA", 160, 4).set_epoch("a")': 'Argument 1 to "set_epoch" of "TupleLoader"',
    'rsbdali.ImageIndex.load("DATA").split("0.2")': 'Argument 1 to "split" of "ImageIndex"',
    'rsbdali.ImageIndex.load("DATA")["cat"]': 'Invalid index type "str" for "ImageIndex"',
    'rsbdali.train("a3", "DATA", epoch=3)': 'Unexpected keyword argument "epoch" for "train"; did you mean "epochs"?',
    'rsbdali.train("a3", "DATA", epochs="3")': 'Argument "epochs" to "train"',
    'rsbdali.train("a3", "DATA", on_nan="go")': 'Argument "on_nan" to "train"',
    "rsbdali.watch(3)": 'Argument 1 to "watch" has incompatible type "int"',
    "rsbdali.create_loder": 'Module has no attribute "create_loder"',
}


def names_of(function: Any) -> str:
    return " ".join(name for name in inspect.signature(function).parameters if name not in ("self", "cls"))


def surface() -> dict[str, str]:
    """Public functions, classes and methods with the names of their arguments; attributes and dataclasses by "."."""
    found = {}
    for name in rsbdali.__all__:
        thing = getattr(rsbdali, name)
        if not inspect.isclass(thing):
            found[name] = names_of(thing) if callable(thing) else "."
            continue
        fields = {field.name for field in dataclasses.fields(thing)} if dataclasses.is_dataclass(thing) else set()
        found[name] = "." if fields or issubclass(thing, Exception) else names_of(thing)
        for key in [key for key in vars(thing) if not key.startswith("_") and key not in fields]:
            value = getattr(thing, key)
            found[f"{name}.{key}"] = names_of(value) if callable(value) else "."
    return found


def test_the_public_names_are_frozen() -> None:
    """A name that appears or goes is a decision: change SURFACE with it, and CHANGELOG.md."""
    assert surface() == SURFACE


def test_types_and_lazy_names_are_the_same() -> None:
    assert sorted(rsbdali.__all__) == sorted(["__version__", *rsbdali._HOMES])
    assert set(OtherTimmArguments.__annotations__) == set(REFUSED) | set(NO_BEARING)


def test_the_arguments_of_train_are_its_options_and_the_recipes_keys() -> None:
    """By the types of both, but for paths, which may be text, and what is wider on purpose."""
    wider = {"lr": float | Literal["auto"], "decode": DecodeMode, "loggers": Sequence[str]}
    options, keys = get_type_hints(TrainOptions), get_type_hints(Recipe)
    left_out = {"recipe", "data", "resume", "name", "reported"}
    expected = {name: hint for name, hint in {**options, **keys}.items() if name not in left_out} | wider
    paths = {Path: str | Path, Path | None: str | Path | None}
    found = get_type_hints(TrainArguments)
    assert found.keys() == {f.name for cls in (TrainOptions, Recipe) for f in dataclasses.fields(cls)} - left_out
    assert {
        name: (hint, expected[name])
        for name, hint in found.items()
        if paths.get(expected[name], expected[name]) != hint
    } == {}


@pytest.fixture(scope="module")
def checked(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """What mypy says of two programs in a folder of their own, by file."""
    folder = tmp_path_factory.mktemp("program")
    (folder / "right.py").write_text(RIGHT, encoding="utf-8")
    (folder / "wrong.py").write_text("import rsbdali\n" + "\n".join(WRONG) + "\n", encoding="utf-8")
    patterns = ",".join(f"{name},{name}.*" for name in SKIPPED.split())
    (folder / "mypy.ini").write_text(
        f"[mypy]\nstrict = true\nmypy_path = {ROOT}\nfollow_imports = silent\nexplicit_package_bases = true\n"
        f"[mypy-{patterns}]\nfollow_imports = skip\nignore_missing_imports = true\n",
        encoding="utf-8",
    )
    options = ["--config-file", str(folder / "mypy.ini"), "--cache-dir", str(folder / "cache")]
    out, err, _ = api.run([*options, str(folder / "right.py"), str(folder / "wrong.py")])
    assert err == ""
    lines = [line for line in out.splitlines() if ": error: " in line]
    return {name: [line for line in lines if f"{name}:" in line] for name in ("right.py", "wrong.py")}


def test_right_use_passes_mypy(checked: dict[str, list[str]]) -> None:
    assert checked["right.py"] == []


def test_wrong_use_fails_mypy(checked: dict[str, list[str]]) -> None:
    assert len(checked["wrong.py"]) == len(WRONG)
    for number, (line, message) in enumerate(WRONG.items(), 2):
        said = next((each for each in checked["wrong.py"] if f"wrong.py:{number}:" in each), "nothing")
        assert message in said, line
