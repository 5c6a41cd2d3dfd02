"""A model as one ONNX file: any number of images, compared with torch by onnxruntime before it is kept.

    images (N, 3, H, W) float32, normalized by the mean and std of the file's metadata  ─>  logits (N, C) float32

Normalizing stays outside, as it does for the model in torch.
"""

import importlib.util
import json
import logging
import warnings
from pathlib import Path

import numpy as np
import torch

from rsbdali.errors import RsbdaliError
from rsbdali.tools.export.source import Source

PACKAGES = ("onnx", "onnxscript", "onnxruntime")
FILE = "model.onnx"
BATCHES = (1, 3)  # that are compared: one image, and more than the two that the export traces with
TOLERANCE = 1e-4  # of the largest logit: float32 sums in another order, over some hundred layers
MAX_BYTES = 2**31 - 2**24  # a protobuf message ends at 2 GiB: larger weights go into a file beside it


def require_onnx() -> None:
    """Check that the packages of the extra are there.

    Raises:
        RsbdaliError: one is missing.
    """
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise RsbdaliError(f"--format onnx needs more packages: pip install {' '.join(missing)}")


def write_onnx(source: Source, folder: Path, metadata: dict[str, str]) -> str:
    """Write `model.onnx`.

    Args:
        source: model and sizes.
        folder: exists.
        metadata: goes into the file's own properties.

    Returns:
        One line that says how well onnxruntime agrees with torch.

    Raises:
        RsbdaliError: the model cannot be exported, or gives other outputs there.
    """
    height, width = source.recipe.test_size
    path = folder / FILE
    _export(source, torch.zeros(2, 3, height, width, dtype=torch.float32, device="cpu"), path)
    _add_metadata(path, metadata)
    return _compare(source, path)


def _export(source: Source, images_NCHW: torch.Tensor, path: Path) -> None:
    size = sum(p.numel() * p.element_size() for p in source.model.state_dict().values())
    # the exporter reports its passes, in logs and in warnings of its own dependencies
    logging.getLogger("onnxscript").setLevel(logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            torch.onnx.export(
                source.model,
                (images_NCHW,),
                str(path),
                dynamo=True,
                verbose=False,
                external_data=size > MAX_BYTES,
                input_names=["images"],
                output_names=["logits"],
                dynamic_shapes=({0: torch.export.Dim("N")},),
            )
        except torch.onnx.OnnxExporterError as error:
            reason = str(error).strip().splitlines()[0]
            raise RsbdaliError(f"{source.recipe.model} cannot be exported to ONNX: {reason}") from error


def _add_metadata(path: Path, metadata: dict[str, str]) -> None:
    import onnx

    model = onnx.load(str(path), load_external_data=False)
    onnx.helper.set_model_props(model, metadata)
    onnx.save(model, str(path))


def _compare(source: Source, path: Path) -> str:
    import onnxruntime

    # by name only where it has to find weights in another file: it takes no name that is not UTF-8
    model = str(path) if len(list(path.parent.iterdir())) > 1 else path.read_bytes()
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    height, width = source.recipe.test_size
    worst, largest = 0.0, 0.0
    for rows in BATCHES:
        generator = torch.Generator("cpu").manual_seed(rows)
        images = torch.randn(rows, 3, height, width, generator=generator, dtype=torch.float32, device="cpu")
        with torch.inference_mode():
            expected_NC = source.model(images).numpy()
        (found_NC,) = session.run(None, {"images": images.numpy()})
        worst = max(worst, float(np.abs(found_NC - expected_NC).max()))
        largest = max(largest, float(np.abs(expected_NC).max()))
    if not worst <= TOLERANCE * max(largest, 1.0):
        raise RsbdaliError(f"onnxruntime differs from torch by {worst:.3g} in logits up to {largest:.3g}: not exported")
    return f"onnxruntime agrees with torch: logits up to {largest:.3g} differ by {worst:.2g} at most"


def preprocessing(source: Source) -> dict[str, str]:
    """What a user of the bare weights has to know, as texts."""
    recipe = source.recipe
    return {
        "architecture": recipe.model,
        "num_classes": str(len(source.class_names)),
        "class_names": json.dumps(list(source.class_names)),  # in ASCII: a folder's name may be no text
        "layout": "NCHW, RGB, float32: (pixel / 255 - mean) / std",
        "input_size": json.dumps([3, *recipe.test_size]),
        "mean": json.dumps(list(recipe.mean)),
        "std": json.dumps(list(recipe.std)),
        "crop_pct": str(recipe.crop_pct),
        "interpolation": recipe.interpolation,
    }
