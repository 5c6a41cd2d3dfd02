"""Script for torchrun: as run_toy.py, but rank 1 of the first start kills itself in the second epoch."""

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

from helpers import run_toy
from helpers.fakes import FakeTrainLoader


class Mortal(FakeTrainLoader):
    def __iter__(self) -> Iterator[SimpleNamespace]:
        if os.environ["RANK"] == "1" and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0" and self.place[0] == 1:
            sys.stderr.write("rank 1 ends itself\n")
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__iter__()


if __name__ == "__main__":
    run_toy.FakeTrainLoader = Mortal
    sys.exit(run_toy.main(Path(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:]))
