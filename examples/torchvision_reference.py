"""A loop as torchvision's references/classification/train.py has it, with rsbdali's loader in place of its own.

    python examples/torchvision_reference.py --data-path IMAGENET --recipe a3 -b 512
    torchrun --nproc-per-node 4 examples/torchvision_reference.py --data-path IMAGENET --recipe a3 -b 512

`load_data` is all that is different: there are no transforms, no samplers and no collate function, since the loader
crops, augments and mixes. What torchvision does on each batch afterwards goes into `transform=` (here random erasing).
"""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.distributed as dist
import torchvision
from torch import nn
from torchvision.transforms import v2

import rsbdali
from rsbdali import Recipe, TupleLoader


def load_data(args: argparse.Namespace, device: torch.device) -> tuple[TupleLoader, TupleLoader]:
    """The loader of training and that of evaluation."""
    recipe = Recipe.load(args.recipe, dict(pair.split("=", 1) for pair in args.set))
    common = {"recipe": recipe, "batch_size": args.batch_size, "num_workers": args.workers, "device": device}
    erasing = v2.RandomErasing(p=args.random_erase) if args.random_erase else None
    data_loader = rsbdali.create_loader(
        args.data_path, is_training=True, smoothing=args.label_smoothing, transform=erasing, **common
    )
    return data_loader, rsbdali.create_loader(args.data_path, **common)


def train_one_epoch(
    model: nn.Module,
    criterion: nn.Module,
    optimizer: torch.optim.Optimizer,
    data_loader: TupleLoader,
    epoch: int,
) -> float:
    """The mean loss of an epoch."""
    model.train()
    data_loader.set_epoch(epoch)  # right after a resume this keeps the place in the epoch
    losses = []
    for image, target in data_loader:
        loss = criterion(model(image), target)  # soft targets, mixed and smoothed by the loader
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return float(torch.stack(losses).mean())


@torch.inference_mode()
def evaluate(model: nn.Module, data_loader: TupleLoader) -> float:
    """Top-1 in per cent over all ranks."""
    model.eval()
    counts = torch.zeros(2, device=next(model.parameters()).device)
    for image, target in data_loader:
        counts += torch.stack([(model(image).argmax(1) == target).sum(), torch.tensor(len(target)).to(target)])
    if dist.is_initialized():
        dist.all_reduce(counts)
    return float(100 * counts[0] / counts[1])


def init_distributed_mode() -> tuple[torch.device, int]:
    """Join the others under torchrun; this process's device and rank."""
    on_gpu = torch.cuda.is_available()
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if on_gpu else torch.device("cpu")
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return device, 0
    if on_gpu:
        torch.cuda.set_device(device)
    dist.init_process_group()
    return device, dist.get_rank()


def main(argv: Sequence[str] | None = None) -> tuple[list[float], float]:
    """Train; returns this session's mean loss of each epoch, and top-1 of the validation images in per cent."""
    args = get_args_parser().parse_args(argv)
    device, rank = init_distributed_mode()
    data_loader, data_loader_test = load_data(args, device)
    torch.manual_seed(0)
    model = torchvision.models.get_model(args.model, num_classes=data_loader.dataset.num_classes).to(device)
    network = nn.parallel.DistributedDataParallel(model) if dist.is_initialized() else model
    criterion = nn.CrossEntropyLoss()
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr)
    parts = {"model": model, "optimizer": optimizer, "loader": data_loader}
    if args.resume is not None:
        states = torch.load(args.resume, map_location="cpu", weights_only=True)
        for name, part in parts.items():
            part.load_state_dict(states[name])
    losses = []
    for epoch in range(data_loader.state_dict()["epoch"], args.epochs):
        losses.append(train_one_epoch(network, criterion, optimizer, data_loader, epoch))
        if rank == 0:
            print(f"epoch {epoch + 1}: loss {losses[-1]:.4f}")
        if rank == 0 and args.output_dir is not None:
            args.output_dir.mkdir(parents=True, exist_ok=True)
            states = {name: part.state_dict() for name, part in parts.items()}
            torch.save(states, args.output_dir / f"model_{epoch}.pth")
    top1 = evaluate(model, data_loader_test)
    if rank == 0:
        print(f"top-1 {top1:.2f} %")
    data_loader.close()
    data_loader_test.close()
    if dist.is_initialized():
        dist.destroy_process_group()
    return losses, top1


def get_args_parser() -> argparse.ArgumentParser:
    """The command line, under torchvision's names where it has them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-path", required=True, help="folder with train/<class>/… and val/<class>/…")
    parser.add_argument("--recipe", default="a3", help="what the batches are like")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change the recipe")
    parser.add_argument("--model", default="resnet50", help="a torchvision model")
    parser.add_argument("-b", "--batch-size", type=int, default=256, help="of each process")
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("-j", "--workers", type=int, help="CPU threads of each process")
    parser.add_argument("--label-smoothing", type=float, default=0.1)
    parser.add_argument("--random-erase", type=float, default=0.1, help="share of the batches")
    parser.add_argument("--output-dir", type=Path, help="a checkpoint after each epoch")
    parser.add_argument("--resume", type=Path, help="checkpoint to go on from")
    return parser


if __name__ == "__main__":
    main()
