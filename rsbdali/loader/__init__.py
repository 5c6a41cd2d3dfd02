"""Plans → batches on the device."""

from rsbdali.distributed.devices import default_threads, resolve_device
from rsbdali.loader.batch import EvalBatch, TrainBatch
from rsbdali.loader.decode_mode import DecodeMode, create_executor
from rsbdali.loader.eval import EvalLoader
from rsbdali.loader.train import TrainLoader

__all__ = [
    "DecodeMode",
    "EvalBatch",
    "EvalLoader",
    "TrainBatch",
    "TrainLoader",
    "create_executor",
    "default_threads",
    "resolve_device",
]
