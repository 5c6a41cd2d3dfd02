"""A Lightning module and trainer with rsbdali's data module.

    pip install '.[lightning]'
    python examples/lightning_module.py --data IMAGENET --recipe a3 --batch-size 512 --devices 4

`RSBDataModule` gives each process its part of every batch, on its device. Checkpoints hold the place in the epoch.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import lightning.pytorch as pl
import timm
import torch
from timm.loss import BinaryCrossEntropy

from rsbdali import Recipe
from rsbdali.integrations.lightning import RSBDataModule


class Classifier(pl.LightningModule):
    """A timm model under AdamW and binary cross entropy."""

    def __init__(self, model: str, num_classes: int, lr: float, threshold: float | None) -> None:
        super().__init__()
        self.model, self.lr = timm.create_model(model, num_classes=num_classes), lr
        self.loss_of = BinaryCrossEntropy(target_threshold=threshold)

    def training_step(self, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        """One batch: images (N, 3, H, W), soft targets (N, C)."""
        images, targets = batch
        loss = self.loss_of(self.model(images), targets)
        self.log("loss", loss, on_step=False, on_epoch=True, sync_dist=True, batch_size=len(images))
        return loss

    def validation_step(self, batch: tuple[torch.Tensor, torch.Tensor]) -> None:
        """One batch: images, labels (N,)."""
        images, labels = batch
        top1 = 100 * (self.model(images).argmax(1) == labels).float().mean()
        self.log("top1", top1, sync_dist=True, batch_size=len(images))

    def on_train_epoch_end(self) -> None:
        """Say how the epoch was."""
        self.print(f"epoch {self.current_epoch + 1}: loss {self.trainer.callback_metrics['loss']:.4f}")

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW at one rate."""
        return torch.optim.AdamW(self.parameters(), lr=self.lr)


def main(argv: Sequence[str] | None = None) -> float:
    """Train; returns top-1 of the validation images in per cent."""
    args = parse(argv)
    recipe = Recipe.load(args.recipe, dict(pair.split("=", 1) for pair in args.set))
    pl.seed_everything(0, verbose=False)
    data = RSBDataModule(
        args.data, recipe, batch_size=args.batch_size, eval_batch_size=args.batch_size, num_workers=args.workers
    )
    classes = len([folder for folder in Path(args.data, "train").iterdir() if folder.is_dir()])
    trainer = pl.Trainer(
        max_epochs=args.epochs,
        devices=args.devices,
        default_root_dir=args.output,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    model = Classifier(args.model, classes, args.lr, recipe.bce_target_thresh)
    trainer.fit(model, datamodule=data, ckpt_path=args.resume)
    top1 = float(trainer.callback_metrics["top1"])
    if trainer.is_global_zero:
        print(f"top-1 {top1:.2f} %")
    return top1


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="folder with train/<class>/… and val/<class>/…")
    parser.add_argument("--recipe", default="a3", help="what the batches are like")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change the recipe")
    parser.add_argument("--model", default="resnet50", help="a timm model")
    parser.add_argument("--batch-size", type=int, default=256, help="of each process")
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--workers", type=int, help="CPU threads of each process")
    parser.add_argument("--devices", default="auto", help="number of GPUs, or of processes on a CPU")
    parser.add_argument("--output", default="output/lightning", help="folder for checkpoints")
    parser.add_argument("--resume", metavar="CKPT", help="a checkpoint to go on from")
    return parser.parse_args(argv)


if __name__ == "__main__":
    main()
