"""A folder that `timm.create_model("local-dir:…")` loads, which is also the layout of timm's models on the HF hub.

    config.json          architecture, label names, and how to preprocess (timm writes and reads it)
    model.safetensors    the weights

Both are written by timm itself.
"""

from pathlib import Path
from typing import Any

from timm.models import save_for_hf

from rsbdali.tools.export.source import Source


def write_timm(source: Source, folder: Path) -> None:
    """Write config.json and model.safetensors.

    Args:
        source: model, recipe and classes.
        folder: exists.
    """
    names = source.class_names
    config: dict[str, Any] = {"label_names": list(names)}
    if descriptions := source.label_descriptions:
        config["label_descriptions"] = descriptions
    # The registered configuration speaks of weights that are not these.
    config["pretrained_cfg"] = dict.fromkeys(("tag", "origin_url", "paper_ids", "license", "notes"))
    config["pretrained_cfg"]["crop_mode"] = "center"
    save_for_hf(
        source.model, str(folder), model_config=config, safe_serialization=True, data_config=_preprocessing(source)
    )


def _preprocessing(source: Source) -> dict[str, Any]:
    """In timm's words: `input_size` is that of training, `test_input_size` is used where one asks for test sizes."""
    recipe = source.recipe
    config: dict[str, Any] = {
        "input_size": (3, *recipe.train_size),
        "mean": recipe.mean,
        "std": recipe.std,
        "crop_pct": recipe.crop_pct,
        "interpolation": recipe.interpolation,
    }
    if recipe.test_size != recipe.train_size:
        config |= {"test_input_size": (3, *recipe.test_size), "test_crop_pct": recipe.crop_pct}
    return config
