"""`python -m rsbdali.tools.doctor.data_check DATA COUNT`: decode some images; for `doctor --data`, in a child."""

import json
import sys

import numpy as np
import torch

from rsbdali.data.header import ImageFlags
from rsbdali.data.index import ImageIndex
from rsbdali.data.splits import open_split
from rsbdali.errors import RsbdaliError
from rsbdali.pipelines.host.eval import HostEvalExecutor
from rsbdali.recipe import Recipe

ROWS = 25


def main(data: str, count: int) -> None:
    """Print what became of the images as JSON.

    Raises:
        SystemExit: with one line, where the data cannot be read at all.
    """
    try:
        index = open_split(data, "any", need_classes=False)
    except RsbdaliError as error:
        sys.exit(str(error))
    sample_N = np.unique(np.linspace(0, len(index) - 1, count).astype(np.int64))
    bad = [(index.path(i), reason) for i, reason in _decode(index, sample_N).items()]
    found = {
        "name": index.name,
        "images": len(index),
        "tried": len(sample_N),
        "bad": bad,
        "left_out": len(index.bad),
        "converted": int((index.flags_N[sample_N] & ImageFlags.CONVERT > 0).sum()),
    }
    sys.stdout.write(json.dumps(found))


def _decode(index: ImageIndex, sample_N: np.ndarray) -> dict[int, str]:
    """Image → why it does not decode."""
    executor = HostEvalExecutor(index, Recipe(), rows=ROWS, device=torch.device("cpu"), num_threads=2)
    bad: dict[int, str] = {}
    for start in range(0, len(sample_N), ROWS):
        part_K = sample_N[start : start + ROWS]
        executor.submit(part_K)
        bad |= {int(part_K[row]): reason for row, reason in executor.collect().bad.items()}
    executor.close()
    return bad


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
