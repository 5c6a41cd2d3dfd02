"""`rsbdali export`: a checkpoint in a form that others read, written whole or not at all.

    safetensors    model.safetensors: the weights, and in its metadata how to use them
    onnx           model.onnx: any batch size, compared with torch by onnxruntime
    timm           config.json, model.safetensors: timm.create_model("local-dir:…", pretrained=True)
    hf             the same with a model card, ready for the Hugging Face hub

All hold float32 weights in evaluation mode, and say how images have to be prepared for them.
"""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from safetensors import SafetensorError
from timm.models import save_for_hf

from rsbdali.atomic import naming, write_text
from rsbdali.errors import RsbdaliError, counted
from rsbdali.tools.export.model_card import card
from rsbdali.tools.export.onnx import preprocessing, require_onnx, write_onnx
from rsbdali.tools.export.source import Source, read_source

Format = Literal["safetensors", "onnx", "timm", "hf"]


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """One export.

    Attributes:
        checkpoint: that `rsbdali train` wrote.
        format: what to write.
        out: the folder to make; it must not hold anything yet.
        use_ema: averaged weights or not; None: averaged where the checkpoint has some.
    """

    checkpoint: Path
    format: Format
    out: Path
    use_ema: bool | None = None


def export(options: ExportOptions) -> list[str]:
    """Write the folder.

    Returns:
        Lines that say what was written.

    Raises:
        RsbdaliError: the checkpoint cannot be exported, a package is missing, or the folder is taken.
    """
    if options.format == "onnx":
        require_onnx()
    out = options.out.absolute()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise RsbdaliError(f"{options.out} is there already: name another --out")
    source = read_source(options.checkpoint, use_ema=options.use_ema)
    unfinished = out.with_name(f".{out.name}.unfinished")
    with naming(options.out):
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        try:
            said = _write(source, options.format, unfinished, out.name)
            if out.is_dir():
                out.rmdir()
            unfinished.replace(out)
        except SafetensorError as error:
            raise RsbdaliError(f"{options.out}: {error}") from error
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
    which = "averaged weights" if source.averaged else "weights"
    files = ", ".join(sorted(path.name for path in out.iterdir()))
    return [
        *said,
        f"{which} of {source.recipe.model} after {counted(source.epochs, 'epoch')} in {options.out}: {files}",
    ]


def _write(source: Source, form: Format, folder: Path, name: str) -> list[str]:
    if form == "safetensors":
        _write_safetensors(source, folder / "model.safetensors")
        return []
    if form == "onnx":
        return [write_onnx(source, folder, _metadata(source))]
    write_timm(source, folder)
    if form == "hf":
        write_text(folder / "README.md", card(source, name))
    return []


def _write_safetensors(source: Source, path: Path) -> None:
    from safetensors.torch import save_file

    save_file(dict(source.model.state_dict()), path, metadata={"format": "pt", **_metadata(source)})


def _metadata(source: Source) -> dict[str, str]:
    """Texts, as both file formats want them."""
    more = {
        "averaged": str(source.averaged).lower(),
        "epochs": str(source.epochs),
        "recipe": json.dumps(source.recipe.to_dict()),
        "versions": json.dumps(dict(source.versions)),
    }
    return {**preprocessing(source), **more, **({} if source.top1 is None else {"top1": f"{source.top1:.4f}"})}


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
