"""The loaders by one name: of this package's own trainer, and `create_loader` for a trainer that already exists."""

from rsbdali.devices import default_threads, resolve_device
from rsbdali.eval_loader import EvalBatch, EvalLoader
from rsbdali.loader_factory import create_loader
from rsbdali.train_loader import TrainBatch, TrainLoader, create_executor
from rsbdali.tuple_loader import TupleLoader

__all__ = [
    "EvalBatch", "EvalLoader", "TrainBatch", "TrainLoader", "TupleLoader", "create_executor", "create_loader",
    "default_threads", "resolve_device",
]  # fmt: skip
