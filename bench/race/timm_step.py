"""timm's training step on synthetic data, in the order of its train.py (1.0.31) with --amp --channels-last.

Its loss, its optimizer by its factory, its GradScaler where float16 asks for one. It reads the loss after every step,
as train.py does. The batch is what its loader hands over: normalized float32, channels first, on the device.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from timm.data import Mixup
from timm.data.mixup import mixup_target
from timm.loss import BinaryCrossEntropy, SoftTargetCrossEntropy
from timm.optim import create_optimizer_v2
from timm.utils import NativeScaler, dispatch_clip_grad
from torch import nn

from rsbdali.bench.measure.phases import Mark, MarkedScaler, unmarked
from rsbdali.bench.race.synthetic import NUM_CLASSES
from rsbdali.recipe import Recipe
from rsbdali.training.model import create_model
from rsbdali.training.precision import amp_dtype, autocast


class TimmStep:
    """One optimizer step of timm's at each call.

    Args:
        recipe: from `synthetic.step_recipe`.
        device: of the model and the batch.
        mixed: call its `Mixup` on the batch in each step (train.py --no-prefetcher); else the batch was mixed and its
            dense targets made beforehand, as by its workers.
        compile_mode: of torch.compile (train.py --torchcompile); None: eager.

    Attributes:
        model: what is trained.
    """

    def __init__(
        self, recipe: Recipe, device: torch.device, *, mixed: bool = True, compile_mode: str | None = None
    ) -> None:
        self._recipe, self._device, self._rows = recipe, device, recipe.global_batch_size
        self._dtype = amp_dtype(recipe.amp_dtype, device)
        self.model: nn.Module = create_model(recipe, NUM_CLASSES).to(device).train()
        self._parameters = list(self.model.parameters())
        self._optimizer = create_optimizer_v2(
            self.model, opt=recipe.opt, lr=recipe.lr, weight_decay=recipe.weight_decay
        )
        if compile_mode is not None:
            self.model = torch.compile(self.model, mode=compile_mode)  # type: ignore[assignment]  # a Module it is
        threshold = recipe.bce_target_thresh
        self._loss = BinaryCrossEntropy(target_threshold=threshold) if recipe.bce_loss else SoftTargetCrossEntropy()
        self._scaler = _Scaler(device) if self._dtype is torch.float16 else None
        self._mixup = _mixup(recipe) if mixed else None
        rng = torch.Generator().manual_seed(recipe.seed)
        # mixed in place again and again, it stays noise of about the same spread
        self._images = torch.randn((self._rows, 3, *recipe.train_size), generator=rng).to(device)
        self._labels = torch.randint(NUM_CLASSES, (self._rows,), generator=rng).to(device)
        self._targets = mixup_target(self._labels, NUM_CLASSES, lam=0.7, smoothing=recipe.smoothing)
        self._mark: Mark = unmarked

    def __call__(self) -> int:
        """Make a step; how many rows it took."""
        images, targets = self._images, self._targets
        if self._mixup is not None:
            images, targets = self._mixup(images, self._labels)
            self._mark("mix")
        images = images.contiguous(memory_format=torch.channels_last)
        with autocast(self._device, self._dtype):
            logits = self.model(images)
            self._mark("forward")
            loss = self._loss(logits, targets)
        if self._scaler is not None:
            clip = {"clip_grad": self._recipe.clip_grad, "parameters": self._parameters}
            self._scaler(loss, self._optimizer, **clip)
        else:
            self._mark("loss")
            loss.backward()
            self._mark("backward")
            if self._recipe.clip_grad is not None:
                dispatch_clip_grad(self._parameters, self._recipe.clip_grad)
            self._optimizer.step()
        loss.item()
        self._optimizer.zero_grad()
        self._mark("optimizer")
        return self._rows

    def use(self, images_NCHW: torch.Tensor, targets_NC: torch.Tensor) -> None:
        """Train on this batch instead of noise (not for `mixed`)."""
        self._images, self._targets = images_NCHW, targets_NC

    @contextmanager
    def marked(self, mark: Mark) -> Iterator[None]:
        """See `phases.Markable`."""
        self._mark = mark
        if self._scaler is not None:
            self._scaler.set_mark(mark)
        yield
        self._mark = unmarked
        if self._scaler is not None:
            self._scaler.set_mark(unmarked)


class _Scaler(NativeScaler):
    """timm's scaler over one that marks where the parts of a step end."""

    def __init__(self, device: torch.device) -> None:
        super().__init__(device.type)
        self._scaler = MarkedScaler(device.type)

    def set_mark(self, mark: Mark) -> None:
        self._scaler.mark = mark


def _mixup(recipe: Recipe) -> Mixup:
    return Mixup(
        mixup_alpha=recipe.mixup,
        cutmix_alpha=recipe.cutmix,
        prob=recipe.mixup_prob,
        switch_prob=recipe.mixup_switch_prob,
        mode=recipe.mixup_mode,
        label_smoothing=recipe.smoothing,
        num_classes=NUM_CLASSES,
    )
