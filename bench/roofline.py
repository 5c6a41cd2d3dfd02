"""What the fused ops and the step cannot go below: `python -m rsbdali.bench.roofline` prints the table as Markdown.

Bytes over the memory's bandwidth, operations over the tensor cores' rate, both by NVIDIA's data sheets: a floor, not a
forecast. Copies reach some 90 % of that bandwidth, and kernels are held against the copy (`bench.kernels`).
"""

import sys
from dataclasses import dataclass

import torch

from rsbdali.bench.race.flops import flops_per_image
from rsbdali.bench.race.kernel_cases import mix_rows
from rsbdali.bench.race.synthetic import NUM_CLASSES
from rsbdali.ops.bce import bce_bytes
from rsbdali.ops.lamb import lamb_bytes
from rsbdali.ops.mix import mix_bytes
from rsbdali.recipe import Recipe
from rsbdali.training.model import create_model

ROWS = 512  # a mix group of the paper's four GPUs
HALF = torch.float16  # bfloat16 has the same size and rate


@dataclass(frozen=True)
class Gpu:
    """A data sheet: bytes a second of memory, dense 16-bit operations a second with 32-bit sums."""

    name: str
    bytes_per_s: float
    flops_per_s: float


GPUS = (
    Gpu("V100 SXM2", 0.9e12, 125e12),
    Gpu("A100 40 GB", 1.555e12, 312e12),
    Gpu("A100 80 GB", 2.039e12, 312e12),
    Gpu("H100 SXM", 3.35e12, 989e12),
    Gpu("H200", 4.8e12, 989e12),
)


@dataclass(frozen=True)
class Work:
    """What one call has to do: bytes to move, or operations to make."""

    name: str
    bytes: int = 0
    flops: int = 0

    def floor_s(self, gpu: Gpu) -> float:
        """Seconds it takes at least."""
        return max(self.bytes / gpu.bytes_per_s, self.flops / gpu.flops_per_s)


def works() -> list[Work]:
    """Mixing and RandAugment (a pixel read once, written once) by size, BCE, LAMB on ResNet-50, the step itself."""
    found = []
    for size in (160, 224):
        for kind in ("plain", "mixup", "cutmix"):
            partner_N, lam_N, box_N4 = mix_rows(kind, ROWS, size, size)
            nbytes = mix_bytes(partner_N, lam_N, box_N4, size, size, HALF)
            found.append(Work(f"mix, {kind}, {ROWS} × {size} px", bytes=nbytes))
        pixels = ROWS * size * size
        found.append(Work(f"RandAugment and flip, {ROWS} × {size} px", bytes=2 * 3 * pixels))
    found.append(Work(f"BCE with gradient, {ROWS} × {NUM_CLASSES}", bytes=bce_bytes(ROWS, NUM_CLASSES, HALF)))
    model = create_model(Recipe.load("a3"), NUM_CLASSES)
    found.append(Work("LAMB, ResNet-50", bytes=lamb_bytes(model.parameters())))
    for name in ("a3", "a1"):
        recipe = Recipe.load(name)
        flops = ROWS * flops_per_image(recipe)
        found.append(Work(f"ResNet-50 forward and backward, {ROWS} × {recipe.train_size[0]} px", flops=flops))
    return found


def table() -> str:
    """A Markdown table, times in microseconds."""
    lines = ["| work | MB or GFLOP | " + " | ".join(gpu.name for gpu in GPUS) + " |", "|---|---|" + "---|" * len(GPUS)]
    for work in works():
        amount = f"{work.bytes / 1e6:,.1f} MB" if work.bytes else f"{work.flops / 1e9:,.0f} GFLOP"
        cells = [f"{1e6 * work.floor_s(gpu):,.1f}" for gpu in GPUS]
        lines.append(f"| {work.name} | {amount} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.stdout.write(table() + "\n")
