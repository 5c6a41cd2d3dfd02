"""rsbdali: the ResNet Strikes Back recipes at the speed of the GPU.

The public names are imported when first used, so that `import rsbdali` costs neither torch nor DALI.
"""

import importlib
from typing import Any

__version__ = "0.2.0"

_HOMES = {
    "BatchPlan": "rsbdali.plan.planner",
    "EvalLoader": "rsbdali.loader",
    "ImageIndex": "rsbdali.data.index",
    "Planner": "rsbdali.plan.planner",
    "Recipe": "rsbdali.recipe",
    "RsbdaliError": "rsbdali.errors",
    "TrainLoader": "rsbdali.loader",
    "TupleLoader": "rsbdali.integrations.tuple_loader",
    "bce_loss": "rsbdali.ops.bce",
    "create_loader": "rsbdali.integrations.create_loader",
    "mix_normalize": "rsbdali.ops.mix",
    "train": "rsbdali.training.call",
}
__all__ = ["__version__", *sorted(_HOMES)]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'rsbdali' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return list(__all__)
