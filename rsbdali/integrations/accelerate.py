"""Our loader under Hugging Face Accelerate.

The loader is made for this process and gives its batches on this process's device, so it is not passed through
`accelerator.prepare`. It is registered for checkpointing instead: `accelerator.save_state` and `load_state` keep its
place, to the batch.
"""

from typing import TYPE_CHECKING, Any

from rsbdali.integrations.create_loader import create_loader as create_plain_loader
from rsbdali.integrations.tuple_loader import TupleLoader

if TYPE_CHECKING:
    from accelerate import Accelerator


def create_loader(accelerator: "Accelerator", dataset: Any, **arguments: Any) -> TupleLoader:
    """`rsbdali.create_loader` for the processes and the device of an `Accelerator`.

    Args:
        accelerator: says rank, world size and device.
        dataset: as in `rsbdali.create_loader`.
        **arguments: likewise. A training loader is registered for checkpointing.

    Raises:
        RsbdaliError: as in `rsbdali.create_loader`.
    """
    process = {"rank": accelerator.process_index, "world_size": accelerator.num_processes, "device": accelerator.device}
    loader = create_plain_loader(dataset, **{**process, **arguments})
    if arguments.get("is_training"):
        accelerator.register_for_checkpointing(loader)
    return loader
