"""What a step will hold in a GPU's memory, predicted at the start of a run, before it is out of memory an hour later.

    saved activations   of the largest pass, counted by a forward pass over fake tensors: shapes and devices, no memory
    state               weights, gradients, two moments (LAMB's and Adam's number), averaged weights

Not counted: the CUDA context, cuDNN's workspaces, what the backward pass holds for a moment, the loader's batches.
torch.compile may save less than this.
"""

import logging
from dataclasses import dataclass

import torch
from torch import nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
    UnsupportedOperatorException,
)

from rsbdali.distributed.world import World
from rsbdali.errors import counted
from rsbdali.recipe import Recipe
from rsbdali.runs.state import RunState
from rsbdali.training.precision import autocast
from rsbdali.training.step import pass_sizes

log = logging.getLogger(__name__)

GIB = 2**30
UNKNOWN = (DataDependentOutputException, DynamicOutputShapeException, UnsupportedOperatorException)
"""What a fake pass raises for a model whose shapes depend on its values."""


@dataclass(frozen=True)
class Memory:
    """Bytes of a GPU's memory.

    Attributes:
        saved: by the forward pass for the backward pass, 16-bit copies of the weights among it.
        state: weights, gradients, moments, averaged weights.
    """

    saved: int
    state: int

    @property
    def total(self) -> int:
        """Both."""
        return self.saved + self.state


def predict(
    model: nn.Module, rows: int, size: tuple[int, int], *, device: torch.device, dtype: torch.dtype, averaged: bool
) -> Memory:
    """Memory of a training step whose largest pass has `rows` images.

    Args:
        model: in training mode, on any device; left as it is.
        rows: of the pass.
        size: (H, W) in pixels.
        device: a GPU, which need not be there.
        dtype: of autocast; float32 means none.
        averaged: whether averaged weights are kept.
    """
    parameters = sum(_bytes(p) for p in model.parameters())
    buffers = sum(_bytes(b) for b in model.buffers())
    state = 4 * parameters + buffers + averaged * (parameters + buffers)
    return Memory(_saved(model, (rows, 3, *size), device, dtype), state)


def say_memory(state: RunState, recipe: Recipe, world: World, device: torch.device, dtype: torch.dtype) -> None:
    """Log what a run's step will take of its GPU; a warning if that is more than there is.

    Args:
        state: at the start of the run.
        recipe: size, batch.
        world: the processes.
        device: a GPU.
        dtype: of autocast.
    """
    rows = max(pass_sizes(recipe, world))
    height, width = recipe.train_size
    try:
        memory = predict(state.model, rows, (height, width), device=device, dtype=dtype, averaged=state.ema is not None)
    except UNKNOWN as error:
        log.info("GPU memory: not predicted, shapes of this model depend on its values (%s)", type(error).__name__)
        return
    there = torch.cuda.get_device_properties(device).total_memory
    line = (
        f"GPU memory: {memory.total / GIB:.1f} GiB predicted of {there / GIB:.1f}: {memory.saved / GIB:.1f} for a pass "
        f"of {counted(rows, 'image')} of {height} × {width}, {memory.state / GIB:.1f} for weights and optimizer; "
        "context, workspaces and decoding come on top"
    )
    if memory.total < there:
        log.info("%s", line)
    else:
        log.warning("%s. It will not fit: --set micro_batch_size=%d", line, max(1, rows // 2))


def _saved(model: nn.Module, shape: tuple[int, ...], device: torch.device, dtype: torch.dtype) -> int:
    """Bytes of what autograd saves in a forward pass, each memory once, parameters and buffers left out."""
    saved: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        saved[storage._cdata] = storage  # held, so that no other takes its number
        return tensor

    with FakeTensorMode(allow_non_fake_inputs=True):
        both = *model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)
        own = {name: _fake(tensor, device) for name, tensor in both}
        images = torch.empty(shape, dtype=dtype, device=device, memory_format=torch.channels_last)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), autocast(device, dtype):
            out = torch.func.functional_call(model, own, (images,))
    del out
    for tensor in own.values():
        saved.pop(tensor.untyped_storage()._cdata, None)
    return sum(storage.nbytes() for storage in saved.values())


def _fake(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    fake = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=device)
    return fake.requires_grad_(tensor.requires_grad)


def _bytes(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()
