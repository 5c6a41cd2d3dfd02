"""The step's acceleration: torch.compile and CUDA graphs. Neither changes what is computed beyond rounding.

| switch | what it does | measured on a GPU |
|---|---|---|
| `--torch-compile MODE` | forward and backward of the model by Inductor, as timm's `--torchcompile` | not run |
| `--cuda-graph` | the host starts three graphs a step instead of some thousand kernels | not run |

channels_last is no switch: models and batches always are. As in timm, torch.compile goes around
DistributedDataParallel, so that gradients travel while the backward pass runs. Checkpoints hold the model's own names,
and evaluation runs the model as it is.
"""

import os
import shutil
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn

from rsbdali.distributed.world import World
from rsbdali.errors import DeviceError, RecipeError
from rsbdali.ops.backend import VARIABLE, use_kernels
from rsbdali.recipe import Recipe
from rsbdali.training.cuda_graph import CudaGraphTrainStep
from rsbdali.training.step import TrainStep, parallel, pass_sizes

OFF = "off"
COMPILE_MODES = (OFF, "default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")
HOLDS_GRAPHS = ("reduce-overhead", "max-autotune")  # these modes capture graphs of their own


@dataclass(frozen=True, kw_only=True)
class Acceleration:
    """How the step runs.

    Attributes:
        torch_compile: mode of torch.compile, or off.
        cuda_graph: capture the whole step and replay it.
    """

    torch_compile: str = OFF
    cuda_graph: bool = False

    def check(self, recipe: Recipe, device: torch.device, world: World) -> None:
        """Refuse what cannot work, before a run begins.

        Raises:
            DeviceError: the device or the number of processes does not allow a switch.
            RecipeError: the recipe does not.
        """
        if self.torch_compile not in COMPILE_MODES:
            raise RecipeError(f"torch_compile={self.torch_compile!r}: expected {', '.join(COMPILE_MODES)}")
        if self.torch_compile != OFF and device.type == "cpu" and _compiler() is None:
            raise DeviceError("--torch-compile on the CPU needs a C++ compiler (g++, or CXX): none found")
        if self.cuda_graph:
            self._check_graph(recipe, device, world)
        if self.torch_compile in HOLDS_GRAPHS and device.type == "cuda":
            self._check_held_graphs(len(pass_sizes(recipe, world)))

    def _check_held_graphs(self, passes: int) -> None:
        if passes > 1:  # the second pass's graph writes where the first one left its gradients
            raise RecipeError(
                f"--torch-compile {self.torch_compile} holds CUDA graphs, whose results do not outlast the next pass: "
                f"here a step takes {passes} passes (mix groups of a process × slices by micro_batch_size). Use "
                "default or max-autotune-no-cudagraphs, or a process for each mix group and no micro_batch_size"
            )

    def _check_graph(self, recipe: Recipe, device: torch.device, world: World) -> None:
        if device.type != "cuda":
            raise DeviceError(f"--cuda-graph needs a GPU: the device is {device.type}")
        if world.size > 1:
            raise DeviceError(f"--cuda-graph is for one process: there are {world.size}")
        if recipe.opt.lower() != "lamb":
            raise RecipeError(f"--cuda-graph needs opt=lamb: opt={recipe.opt} reads its learning rate on the host")
        if not use_kernels(device):
            raise DeviceError(f"--cuda-graph needs LAMB's kernels: take {VARIABLE} out of the environment")
        if self.torch_compile in HOLDS_GRAPHS:
            raise RecipeError(
                f"--torch-compile {self.torch_compile} captures CUDA graphs itself: use it alone, or --cuda-graph with "
                "default or max-autotune-no-cudagraphs"
            )
        if len(set(pass_sizes(recipe, world))) > 1:
            rows = recipe.global_batch_size // recipe.mix_groups
            raise RecipeError(f"--cuda-graph needs passes of one size: set micro_batch_size to a divisor of {rows}")


PLAIN = Acceleration()


def make_step(
    model: nn.Module, *args: Any, acceleration: Acceleration, device: torch.device, world: World, **kwargs: Any
) -> TrainStep:
    """The training step of a model, wrapped for all processes and compiled as the acceleration say.

    Args:
        model: not wrapped, on the device.
        *args: as `TrainStep`: optimizer, scaler, recipe.
        acceleration: checked before.
        device: of the model.
        world: the processes.
        **kwargs: as `TrainStep`.
    """
    wrapped = compiled(parallel(model, world, device), acceleration.torch_compile)
    kind = CudaGraphTrainStep if acceleration.cuda_graph else TrainStep
    return kind(wrapped, *args, device=device, world=world, **kwargs)


def compiled(model: nn.Module, mode: str) -> nn.Module:
    """The model by torch.compile, for fixed sizes; itself where the mode is off. It shares its weights with `model`."""
    if mode == OFF:
        return model
    return cast(nn.Module, torch.compile(model, mode=mode, dynamic=False))


def _compiler() -> str | None:
    return shutil.which(os.environ.get("CXX", "g++"))
