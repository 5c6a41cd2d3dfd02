"""A plain PyTorch loop with rsbdali's loader: one process or several, taken up again in the middle of an epoch.

    python examples/plain.py --data IMAGENET --recipe a3 --batch-size 512
    torchrun --nproc-per-node 4 examples/plain.py --data IMAGENET --recipe a3 --batch-size 512

The recipe gives the batches; model, optimizer and loop are this file's own.
"""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

import timm
import torch
import torch.distributed as dist
from timm.loss import BinaryCrossEntropy
from torch.nn.parallel import DistributedDataParallel

import rsbdali
from rsbdali import Recipe, TupleLoader


def main(argv: Sequence[str] | None = None) -> tuple[list[float], float]:
    """Train; returns this session's mean loss of each epoch, and top-1 of the validation images in per cent."""
    args = parse(argv)
    recipe = Recipe.load(args.recipe, dict(pair.split("=", 1) for pair in args.set))
    device, rank = start()
    settings = {"batch_size": args.batch_size, "recipe": recipe, "device": device, "num_workers": args.workers}
    with (
        rsbdali.create_loader(args.data, is_training=True, **settings) as loader,
        rsbdali.create_loader(args.data, is_training=False, **settings) as val_loader,
    ):
        torch.manual_seed(0)
        model = timm.create_model(args.model, num_classes=loader.dataset.num_classes).to(device)
        optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr)
        parts = {"model": model, "optimizer": optimizer, "loader": loader}
        epoch = resume(parts, args.checkpoint)
        network = DistributedDataParallel(model) if dist.is_initialized() else model
        loss_of = BinaryCrossEntropy(target_threshold=recipe.bce_target_thresh)
        losses = []
        for number in range(epoch, args.epochs):
            loader.set_epoch(number)  # right after a resume this keeps the place in the epoch
            model.train()
            total, steps = torch.zeros((), device=device), 0
            for images, targets in loader:
                loss = loss_of(network(images), targets)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                total, steps = total + loss.detach(), steps + 1
                if rank == 0 and args.checkpoint and loader.state_dict()["step"] % args.save_every == 0:
                    save(parts, args.checkpoint)
            losses.append(float(total) / max(1, steps))
            if rank == 0:
                print(f"epoch {number + 1}: loss {losses[-1]:.4f}")
        top1 = evaluate(model, val_loader)
    if rank == 0:
        print(f"top-1 {top1:.2f} %")
    if dist.is_initialized():
        dist.destroy_process_group()
    return losses, top1


def start() -> tuple[torch.device, int]:
    """Join the others under torchrun; this process's device and rank."""
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if torch.cuda.is_available() else "cpu"
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return torch.device(device), 0
    if torch.cuda.is_available():
        torch.cuda.set_device(device)
    dist.init_process_group()
    return torch.device(device), dist.get_rank()


def save(parts: dict[str, object], path: Path) -> None:
    """Model, optimizer, and the place in the epoch: whole or not at all."""
    torch.save({name: part.state_dict() for name, part in parts.items()}, path.with_suffix(".part"))
    path.with_suffix(".part").replace(path)


def resume(parts: dict[str, object], path: Path | None) -> int:
    """Take up what `save` wrote, if it did; the epoch to go on with."""
    if path is None or not path.exists():
        return 0
    states = torch.load(path, map_location="cpu", weights_only=True)
    for name, part in parts.items():
        part.load_state_dict(states[name])
    return states["loader"]["epoch"]


@torch.inference_mode()
def evaluate(model: torch.nn.Module, loader: TupleLoader) -> float:
    """Top-1 in per cent over all ranks (a few images count twice if they do not divide by the ranks)."""
    model.eval()
    counts = torch.zeros(2, device=next(model.parameters()).device)
    for images, labels in loader:
        counts += torch.stack([(model(images).argmax(1) == labels).sum(), torch.tensor(len(labels)).to(labels)])
    if dist.is_initialized():
        dist.all_reduce(counts)
    return float(100 * counts[0] / counts[1])


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
    parser.add_argument("--checkpoint", type=Path, help="written every --save-every steps, taken up if it is there")
    parser.add_argument("--save-every", type=int, default=1000, metavar="STEPS")
    return parser.parse_args(argv)


if __name__ == "__main__":
    main()
