"""`RSBDataModule`: our loaders for a Lightning trainer, by `lightning` or `pytorch_lightning`, whichever is in use.

The loaders are sharded and on the device already: Lightning puts no sampler of its own around them. Its checkpoints
hold the position of the training loader, so `ckpt_path=` goes on in the middle of an epoch, at the very batch.
"""

import importlib
import sys
from typing import TYPE_CHECKING, Any

from rsbdali.errors import RsbdaliError
from rsbdali.integrations.create_loader import create_loader
from rsbdali.integrations.sampling import TRAINING_ONLY
from rsbdali.integrations.tuple_loader import TupleLoader
from rsbdali.recipe import Recipe

PACKAGES = ("lightning.pytorch", "pytorch_lightning")


def _lightning() -> Any:
    """The Lightning package that the program has imported, else the first that is installed."""
    for name in sorted(PACKAGES, key=lambda name: name not in sys.modules):
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name is None or not name.startswith(error.name):
                raise  # Lightning is there and lacks something
    raise RsbdaliError("Lightning is not installed: pip install lightning")


if TYPE_CHECKING:
    from lightning.pytorch import LightningDataModule
else:
    LightningDataModule = _lightning().LightningDataModule


class RSBDataModule(LightningDataModule):
    """Training and evaluation batches of a recipe.

    Training gives `(images, soft targets)` where the recipe mixes; everything else gives `(images, labels)`.

    Args:
        data: folder with train/ and val/, as for `rsbdali.create_loader`.
        recipe: name, path or `Recipe`.
        batch_size: training rows of each process; None: the recipe's mix groups.
        eval_batch_size: evaluation rows of each process.
        num_workers: CPU threads of each process; None: its share of the cores.
        **arguments: more of `rsbdali.create_loader`: for training and evaluation alike (`img_dtype`, `executor`, …), or
            for training alone (`weights`, `transform`, …).
    """

    def __init__(
        self,
        data: Any,
        recipe: str | Recipe = "a3",
        *,
        batch_size: int | None = None,
        eval_batch_size: int = 256,
        num_workers: int | None = None,
        **arguments: Any,
    ) -> None:
        super().__init__()
        self.data, self.recipe, self.batch_size, self.eval_batch_size = data, recipe, batch_size, eval_batch_size
        self.num_workers, self.arguments = num_workers, arguments
        self._open: list[TupleLoader] = []

    def train_dataloader(self) -> TupleLoader:
        """Mixed training batches of this process."""
        return self._loader(is_training=True, batch_size=self.batch_size)

    def val_dataloader(self) -> TupleLoader:
        """The validation images, in order."""
        return self._loader(is_training=False, batch_size=self.eval_batch_size)

    def test_dataloader(self) -> TupleLoader:
        """As `val_dataloader`: ImageNet has no labels for its test images."""
        return self.val_dataloader()

    def predict_dataloader(self) -> TupleLoader:
        """As `val_dataloader`."""
        return self.val_dataloader()

    def teardown(self, stage: str) -> None:
        """Stop the threads of all loaders made so far."""
        while self._open:
            self._open.pop().close()

    def _loader(self, **arguments: Any) -> TupleLoader:
        trainer = self.trainer
        if trainer is None:
            raise RsbdaliError("RSBDataModule has no trainer yet: pass it to trainer.fit(model, datamodule=…)")
        ours = {k: v for k, v in self.arguments.items() if arguments["is_training"] or k not in TRAINING_ONLY}
        loader = create_loader(
            self.data,
            recipe=self.recipe,
            rank=trainer.global_rank,
            world_size=trainer.world_size,
            device=trainer.strategy.root_device,
            num_workers=self.num_workers,
            **arguments,
            **ours,
        )
        self._open.append(loader)
        return loader
