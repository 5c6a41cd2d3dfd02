"""A training script that knows timm alone, written as timm's own train.py is: it runs with and without rsbdali.

    python examples/timm_script.py --data-dir IMAGENET                                # timm's loader
    python -m rsbdali.integrations.timm examples/timm_script.py --data-dir IMAGENET   # ours, the script unmodified

timm's train.py itself is started the same way; it takes a recipe by `-c` (rsbdali recipe show a3 --as timm > a3.yaml).
"""

import argparse
import logging
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.distributed as dist
from timm import utils
from timm.data import FastCollateMixup, create_dataset, create_loader, resolve_data_config
from timm.loss import BinaryCrossEntropy
from timm.models import create_model
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2

_logger = logging.getLogger("train")

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--data-dir", required=True, help="folder with train/<class>/… and val/<class>/…")
parser.add_argument("--model", default="resnet50")
parser.add_argument("--num-classes", type=int)
parser.add_argument("--img-size", type=int, default=160)
parser.add_argument("--crop-pct", type=float, default=0.95)
parser.add_argument("-b", "--batch-size", type=int, default=128, help="of each process")
parser.add_argument("--epochs", type=int, default=100)
parser.add_argument("--opt", default="lamb")
parser.add_argument("--lr", type=float, default=5e-3)
parser.add_argument("--weight-decay", type=float, default=0.02)
parser.add_argument("--warmup-epochs", type=int, default=5)
parser.add_argument("--scale", type=float, nargs=2, default=[0.08, 1.0])
parser.add_argument("--ratio", type=float, nargs=2, default=[3 / 4, 4 / 3])
parser.add_argument("--hflip", type=float, default=0.5)
parser.add_argument("--vflip", type=float, default=0.0)
parser.add_argument("--color-jitter", type=float, default=0.4)
parser.add_argument("--aa", default="rand-m6-mstd0.5-inc1")
parser.add_argument("--aug-repeats", type=float, default=0)
parser.add_argument("--reprob", type=float, default=0.0)
parser.add_argument("--mixup", type=float, default=0.1)
parser.add_argument("--cutmix", type=float, default=1.0)
parser.add_argument("--mixup-prob", type=float, default=1.0)
parser.add_argument("--mixup-switch-prob", type=float, default=0.5)
parser.add_argument("--mixup-mode", default="batch")
parser.add_argument("--mixup-off-epoch", type=int, default=0)
parser.add_argument("--smoothing", type=float, default=0.0)
parser.add_argument("--bce-target-thresh", type=float, default=0.2)
parser.add_argument("--train-interpolation", default="random")
parser.add_argument("--no-prefetcher", action="store_true")
parser.add_argument("--seed", type=int, default=42)
parser.add_argument("-j", "--workers", type=int, default=4)
parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
parser.add_argument("--amp", action="store_true")


def main() -> None:
    """Train, and evaluate after each epoch."""
    utils.setup_default_logging()
    args = parser.parse_args()
    args.prefetcher = not args.no_prefetcher
    device = utils.init_distributed_device(args)
    utils.random_seed(args.seed, args.rank)

    dataset_train = create_dataset("", root=args.data_dir, split="train", is_training=True, seed=args.seed)
    dataset_eval = create_dataset("", root=args.data_dir, split="validation", is_training=False)
    num_classes = args.num_classes or len(dataset_train.reader.class_to_idx)
    model = create_model(args.model, num_classes=num_classes).to(device, memory_format=torch.channels_last)
    data_config = resolve_data_config(vars(args), model=model, verbose=utils.is_primary(args))
    if args.distributed:
        model = torch.nn.parallel.DistributedDataParallel(model)
    optimizer = create_optimizer_v2(model, opt=args.opt, lr=args.lr, weight_decay=args.weight_decay)
    loss_scaler = utils.NativeScaler(device=device.type) if args.amp else None
    autocast = torch.autocast(device.type) if args.amp else nullcontext()

    collate_fn = None
    if args.prefetcher and (args.mixup > 0 or args.cutmix > 0):
        collate_fn = FastCollateMixup(
            mixup_alpha=args.mixup,
            cutmix_alpha=args.cutmix,
            cutmix_minmax=None,
            prob=args.mixup_prob,
            switch_prob=args.mixup_switch_prob,
            mode=args.mixup_mode,
            label_smoothing=args.smoothing,
            num_classes=num_classes,
        )
    loader_train = create_loader(
        dataset_train,
        input_size=(3, args.img_size, args.img_size),
        batch_size=args.batch_size,
        is_training=True,
        no_aug=False,
        re_prob=args.reprob,
        re_mode="pixel",
        re_count=1,
        re_split=False,
        train_crop_mode=None,
        scale=args.scale,
        ratio=args.ratio,
        hflip=args.hflip,
        vflip=args.vflip,
        color_jitter=args.color_jitter,
        color_jitter_prob=None,
        grayscale_prob=0.0,
        gaussian_blur_prob=0.0,
        auto_augment=args.aa,
        num_aug_repeats=args.aug_repeats,
        num_aug_splits=0,
        interpolation=args.train_interpolation,
        mean=data_config["mean"],
        std=data_config["std"],
        num_workers=args.workers,
        distributed=args.distributed,
        collate_fn=collate_fn,
        pin_memory=False,
        device=device,
        use_prefetcher=args.prefetcher,
        use_multi_epochs_loader=False,
        worker_seeding="all",
    )
    loader_eval = create_loader(
        dataset_eval,
        input_size=(3, args.img_size, args.img_size),
        batch_size=args.batch_size,
        is_training=False,
        interpolation=data_config["interpolation"],
        mean=data_config["mean"],
        std=data_config["std"],
        num_workers=args.workers,
        distributed=args.distributed,
        crop_pct=args.crop_pct,
        pin_memory=False,
        device=device,
        use_prefetcher=args.prefetcher,
    )
    scheduler, num_epochs = create_scheduler_v2(
        optimizer,
        sched="cosine",
        num_epochs=args.epochs,
        warmup_epochs=args.warmup_epochs,
        warmup_lr=1e-4,
        updates_per_epoch=len(loader_train),
    )
    loss_fn = BinaryCrossEntropy(target_threshold=args.bce_target_thresh)
    for epoch in range(num_epochs):
        if args.distributed and hasattr(loader_train.sampler, "set_epoch"):
            loader_train.sampler.set_epoch(epoch)
        if args.mixup_off_epoch and epoch >= args.mixup_off_epoch and args.prefetcher and loader_train.mixup_enabled:
            loader_train.mixup_enabled = False
        loss = train_one_epoch(model, loader_train, optimizer, loss_fn, loss_scaler, autocast, device)
        top1 = validate(model, loader_eval, args, device)
        scheduler.step(epoch + 1, top1)
        if utils.is_primary(args):
            _logger.info(f"epoch {epoch + 1}: loss {loss:.4f} top-1 {top1:.2f} %")
    if args.distributed:
        dist.destroy_process_group()


def train_one_epoch(
    model: torch.nn.Module,
    loader: Iterable,
    optimizer: torch.optim.Optimizer,
    loss_fn: torch.nn.Module,
    loss_scaler: utils.NativeScaler | None,
    autocast: AbstractContextManager,
    device: torch.device,
) -> float:
    """The mean loss of an epoch."""
    losses = utils.AverageMeter()
    model.train()
    for images, target in loader:
        images, target = images.to(device), target.to(device)  # nothing to do unless without prefetcher
        with autocast:
            loss = loss_fn(model(images), target)
        optimizer.zero_grad()
        if loss_scaler is None:
            loss.backward()
            optimizer.step()
        else:
            loss_scaler(loss, optimizer, parameters=model.parameters())
        losses.update(loss.item(), images.size(0))
    return losses.avg


@torch.inference_mode()
def validate(model: torch.nn.Module, loader: Iterable, args: argparse.Namespace, device: torch.device) -> float:
    """Top-1 in per cent."""
    top1 = utils.AverageMeter()
    model.eval()
    for images, target in loader:
        acc1 = utils.accuracy(model(images.to(device)), target.to(device))[0]
        if args.distributed:
            acc1 = utils.reduce_tensor(acc1, args.world_size)
        top1.update(acc1.item(), images.size(0))
    return top1.avg


if __name__ == "__main__":
    main()
