"""rsbdali: the ResNet Strikes Back recipes at the speed of the GPU.

The public names are imported when first used, so that `import rsbdali` costs neither torch nor DALI.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # as importlib finds them below; type checkers and editors follow this
    from rsbdali.data.index import ImageIndex
    from rsbdali.errors import RsbdaliError
    from rsbdali.integrations.create_loader import create_loader
    from rsbdali.integrations.tuple_loader import TupleLoader
    from rsbdali.loader import EvalLoader, TrainLoader
    from rsbdali.ops.bce import bce_loss
    from rsbdali.ops.mix import mix_normalize
    from rsbdali.plan.planner import BatchPlan, Planner
    from rsbdali.recipe import Recipe
    from rsbdali.tools.watch.watched import watch
    from rsbdali.training.call import train

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
    "watch": "rsbdali.tools.watch.watched",
}
__all__ = [
    "BatchPlan",
    "EvalLoader",
    "ImageIndex",
    "Planner",
    "Recipe",
    "RsbdaliError",
    "TrainLoader",
    "TupleLoader",
    "__version__",
    "bce_loss",
    "create_loader",
    "mix_normalize",
    "train",
    "watch",
]


if not TYPE_CHECKING:  # to a type checker a name that is not there is an error

    def __getattr__(name: str) -> Any:
        if name not in _HOMES:
            raise AttributeError(f"module 'rsbdali' has no attribute {name!r}")
        return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return list(__all__)
