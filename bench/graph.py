"""What a GPU is asked to do for a batch: `python -m rsbdali.bench.graph --recipe a3`. It needs none.

DALI's graph is written down, not built: its operators, and which of them call into Python. What follows it are our own
kernels, counted as `rsbdali.ops` launches them.
"""

import argparse
import sys
from collections import Counter
from collections.abc import Callable
from typing import Any

from nvidia.dali import pipeline_def
from nvidia.dali.data_node import DataNode

from rsbdali.pipelines.train import train_graph
from rsbdali.plan.randaugment import RandAugmentPolicy
from rsbdali.recipe import Recipe

RANDAUGMENT_LAUNCHES = 2  # a layer: tables, then pixels
PYTHON = ("PythonFunction", "DLTensorPythonFunction", "NumbaFunction", "TorchPythonFunction")


def operators(define: Callable[[Callable[[], Any]], Any], *, conditionals: bool = False) -> Counter[str]:
    """How often each operator is in a graph (as `train_graph` returns it)."""
    outputs: list[DataNode] = []

    def noted(source: Callable[[], Any]) -> Any:
        result = define(source)
        outputs.extend(result if isinstance(result, tuple) else (result,))
        return result

    pipeline_def(noted, enable_conditionals=conditionals)(
        lambda: (), batch_size=4, num_threads=1, device_id=0, prefetch_queue_depth=1, exec_dynamic=True
    )
    found: dict[int, str] = {}
    waiting = list(outputs)
    while waiting:
        source = waiting.pop().source
        if id(source) not in found:
            found[id(source)] = getattr(source._op, "schema_name", None) or "ExternalSource"
            waiting += source.inputs
    return Counter(found.values())


def main(recipe: Recipe, *, exact: bool) -> None:
    """Print operators, calls into Python, launches."""
    policy = RandAugmentPolicy.parse(recipe.aa)
    layers = policy.num_layers if policy else 0
    repeats = recipe.aug_repeats if recipe.aug_repeats > 1 and recipe.aug_repeats_mode == "decode_once" else 1
    graph = train_graph(
        size=recipe.train_size, repeats=repeats, device="gpu", roi=False, layers=layers if exact else None
    )
    found = operators(graph, conditionals=exact)
    python = sum(found[name] for name in PYTHON)
    launches = 0 if exact else max(layers, 1) * RANDAUGMENT_LAUNCHES
    rows = recipe.global_batch_size // recipe.mix_groups
    size = " × ".join(map(str, recipe.train_size))
    lines = [
        f"recipe {recipe.name}: {rows:,} rows of {size} px, {layers} RandAugment layers, {repeats} rows a decode",
        f"operators in DALI's graph   {found.total()}: {', '.join(f'{n} {c}' for n, c in sorted(found.items()))}",
        f"calls into Python           {python}",
        f"launches expected behind it {launches + 1}: flip and RandAugment at most {launches}, mix and normalize 1",
    ]
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="a3")
    parser.add_argument("--exact", action="store_true", help="the graph that flips and augments in DALI too")
    options = parser.parse_args()
    main(Recipe.load(options.recipe), exact=options.exact)
