"""Hugging Face's `Trainer` with rsbdali's loader, taken up again in the middle of an epoch.

    pip install transformers
    python examples/hf_trainer.py --data IMAGENET --recipe a3 --batch-size 512
    torchrun --nproc-per-node 4 examples/hf_trainer.py --data IMAGENET --recipe a3 --batch-size 512

`LoaderTrainer` hands its own loaders out in place of a `DataLoader`. Skipping batches after a resume is left to the
loader (`ignore_data_skip`): a callback keeps its place beside each checkpoint, so nothing is decoded to be thrown away.
"""

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.functional import cross_entropy
from transformers import (
    EvalPrediction,
    ResNetConfig,
    ResNetForImageClassification,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.trainer_utils import get_last_checkpoint

import rsbdali
from rsbdali import Recipe, TupleLoader

PLACE = "loader.json"
DEPTHS = {"resnet18": ([64, 128, 256, 512], [2, 2, 2, 2], "basic"), "tiny": ([16, 32], [1, 1], "basic")}


class NamedBatches:
    """A loader's pairs as the dictionaries that a `Trainer` passes to its model."""

    def __init__(self, loader: TupleLoader) -> None:
        self.loader, self.dataset = loader, loader.dataset

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        return ({"pixel_values": images, "labels": targets} for images, targets in self.loader)

    def set_epoch(self, epoch: int) -> None:
        """The epoch of the next pass; right after a resume this keeps the place in it."""
        self.loader.set_epoch(epoch)


class LoaderTrainer(Trainer):
    """A `Trainer` that takes its batches from two loaders."""

    def __init__(self, *, train_loader: TupleLoader, val_loader: TupleLoader, **arguments: Any) -> None:
        super().__init__(eval_dataset=val_loader.dataset, compute_loss_func=loss_of, **arguments)
        self.train_loader, self.val_loader = train_loader, val_loader

    def get_train_dataloader(self) -> NamedBatches:
        """Batches of this process, on its device: Accelerate puts nothing around them."""
        return NamedBatches(self.train_loader)

    def get_eval_dataloader(self, eval_dataset: Any = None) -> NamedBatches:
        """The validation images, in order."""
        return NamedBatches(self.val_loader)


class KeepPlace(TrainerCallback):
    """Writes the loader's place into each checkpoint; it is the same on all ranks."""

    def __init__(self, loader: TupleLoader) -> None:
        self.loader = loader

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **others: object) -> None:
        """After the trainer has written `checkpoint-<step>`."""
        if state.is_world_process_zero:
            folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            (folder / PLACE).write_text(json.dumps(self.loader.state_dict()), encoding="utf-8")


def loss_of(outputs: Any, labels: torch.Tensor, num_items_in_batch: Any = None) -> torch.Tensor:
    """Cross entropy, of soft targets (N, classes) or labels (N,)."""
    return cross_entropy(outputs.logits, labels)


def top1_of(prediction: EvalPrediction) -> dict[str, float]:
    """Top-1 in per cent."""
    return {"top1": float(100 * np.mean(prediction.predictions.argmax(1) == prediction.label_ids))}


def main(argv: Sequence[str] | None = None) -> tuple[list[float], float]:
    """Train; returns the losses that were logged, and top-1 of the validation images in per cent."""
    args = parse(argv)
    recipe = Recipe.load(args.recipe, dict(pair.split("=", 1) for pair in args.set))
    training = TrainingArguments(
        output_dir=str(args.output),
        num_train_epochs=args.epochs,
        learning_rate=args.lr,
        lr_scheduler_type="constant",
        per_device_train_batch_size=args.batch_size,
        per_device_eval_batch_size=args.batch_size,
        save_steps=args.save_every,
        logging_strategy="epoch",
        ignore_data_skip=True,
        report_to="none",
        disable_tqdm=True,
        use_cpu=not torch.cuda.is_available(),
    )
    settings: dict[str, Any] = {
        "batch_size": args.batch_size,
        "recipe": recipe,
        "device": training.device,
        "rank": training.process_index,
        "world_size": training.world_size,
        "num_workers": args.workers,
    }
    with (
        rsbdali.create_loader(args.data, is_training=True, **settings) as loader,
        rsbdali.create_loader(args.data, **settings) as val_loader,
    ):
        torch.manual_seed(0)
        sizes, depths, layer = DEPTHS[args.model]
        config = ResNetConfig(
            embedding_size=sizes[0],
            hidden_sizes=sizes,
            depths=depths,
            layer_type=layer,
            num_labels=loader.dataset.num_classes,
        )
        trainer = LoaderTrainer(
            model=ResNetForImageClassification(config),
            args=training,
            train_loader=loader,
            val_loader=val_loader,
            compute_metrics=top1_of,
            callbacks=[KeepPlace(loader)],
        )
        last = get_last_checkpoint(str(args.output)) if args.output.is_dir() else None
        if last is not None:
            loader.load_state_dict(json.loads((Path(last) / PLACE).read_text(encoding="utf-8")))
        trainer.train(resume_from_checkpoint=last)
        losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        top1 = trainer.evaluate()["eval_top1"]
    if trainer.is_world_process_zero():
        print(f"loss {losses[-1]:.4f} top-1 {top1:.2f} %")
    return losses, top1


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="folder with train/<class>/… and val/<class>/…")
    parser.add_argument("--recipe", default="a3", help="what the batches are like")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change the recipe")
    parser.add_argument("--model", default="resnet18", choices=sorted(DEPTHS), help="a ResNet of transformers'")
    parser.add_argument("--batch-size", type=int, default=256, help="of each process")
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--workers", type=int, help="CPU threads of each process")
    parser.add_argument("--output", type=Path, default=Path("hf-trainer"), help="checkpoints; the last one is taken up")
    parser.add_argument("--save-every", type=int, default=1000, metavar="STEPS")
    return parser.parse_args(argv)


if __name__ == "__main__":
    main()
