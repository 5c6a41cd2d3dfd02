"""A Hugging Face Accelerate loop with rsbdali's loader.

    pip install '.[accelerate]'
    accelerate launch examples/accelerate_loop.py --data IMAGENET --recipe a3 --batch-size 512

Model and optimizer go through `accelerator.prepare`. The loader does not, being sharded and on the device already; it
is registered, so that `save_state` and `load_state` keep its place in the epoch.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import timm
import torch
from accelerate import Accelerator
from timm.loss import BinaryCrossEntropy

from rsbdali import Recipe
from rsbdali.integrations.accelerate import create_loader


def main(argv: Sequence[str] | None = None) -> tuple[list[float], float]:
    """Train; returns this session's mean loss of each epoch, and top-1 of the validation images in per cent."""
    args = parse(argv)
    recipe = Recipe.load(args.recipe, dict(pair.split("=", 1) for pair in args.set))
    accelerator = Accelerator()
    settings = {"batch_size": args.batch_size, "recipe": recipe, "num_workers": args.workers}
    with (
        create_loader(accelerator, args.data, is_training=True, **settings) as loader,
        create_loader(accelerator, args.data, is_training=False, **settings) as val_loader,
    ):
        torch.manual_seed(0)
        model = timm.create_model(args.model, num_classes=loader.dataset.num_classes)
        optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr)
        model, optimizer = accelerator.prepare(model, optimizer)
        epoch = 0
        if args.checkpoint and args.checkpoint.exists():
            accelerator.load_state(str(args.checkpoint))
            epoch = loader.state_dict()["epoch"]
        loss_of = BinaryCrossEntropy(target_threshold=recipe.bce_target_thresh)
        losses = []
        for number in range(epoch, args.epochs):
            loader.set_epoch(number)  # right after a resume this keeps the place in the epoch
            model.train()
            total, steps = torch.zeros((), device=accelerator.device), 0
            for images, targets in loader:
                loss = loss_of(model(images), targets)
                optimizer.zero_grad()
                accelerator.backward(loss)
                optimizer.step()
                total, steps = total + loss.detach(), steps + 1
                if args.checkpoint and loader.state_dict()["step"] % args.save_every == 0:
                    accelerator.save_state(str(args.checkpoint))
            losses.append(float(total) / max(1, steps))
            accelerator.print(f"epoch {number + 1}: loss {losses[-1]:.4f}")
        model.eval()
        hits = []
        with torch.inference_mode():
            for images, labels in val_loader:
                hits.append(accelerator.gather((model(images).argmax(1) == labels).float()))
    top1 = float(100 * torch.cat(hits).mean())
    accelerator.print(f"top-1 {top1:.2f} %")
    accelerator.end_training()
    return losses, top1


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
    parser.add_argument("--checkpoint", type=Path, help="folder, written every --save-every steps, taken up if there")
    parser.add_argument("--save-every", type=int, default=1000, metavar="STEPS")
    return parser.parse_args(argv)


if __name__ == "__main__":
    main()
