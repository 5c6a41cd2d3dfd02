"""Is the loader's host memory flat? Runs many epochs and prints the memory after each tenth of them.

`python -m rsbdali.bench.memory DATA EPOCHS host|graph`: A3's transform on DATA's images, four steps an epoch, on the
CPU.
"""

import os
import sys

from rich.console import Console

from rsbdali.bench.measure.meter import memory_bytes
from rsbdali.data.splits import open_split
from rsbdali.errors import counted
from rsbdali.loader import TrainLoader
from rsbdali.recipe import Recipe

STEPS = 4


def _main(data: str, epochs: int, decode: str) -> None:
    index = open_split(data, "any")
    recipe = Recipe.load("a3", {"global_batch_size": len(index) // STEPS, "mix_groups": 1})
    loader = TrainLoader(index, recipe, device="cpu", decode=decode)
    console = Console()
    for epoch in range(epochs):
        images = sum(len(batch.label_N) for batch in loader)
        if epoch == 0 or (epoch + 1) % max(1, epochs // 10) == 0:
            console.print(f"epoch {epoch + 1}: {counted(images, 'image')}, {memory_bytes(os.getpid()) / 2**20:.0f} MiB")
    loader.close()


if __name__ == "__main__":
    _main(sys.argv[1], int(sys.argv[2]), sys.argv[3])
