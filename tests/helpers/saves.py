"""Script: children that save in a loop, and end badly; see test_faults.py. Prints one JSON object.

    python -m helpers.saves kills FOLDER TIMES SEED   SIGKILL at a random moment, TIMES times, one child after the other
    python -m helpers.saves full FOLDER BYTES         one child whose disk is full after BYTES in one file (0: as it is)

The parent forks children with torch already imported, so that a child takes milliseconds.
"""

import json
import os
import random
import resource
import select
import signal
import sys
from collections.abc import Callable
from itertools import count
from pathlib import Path

import torch

from helpers.records import record
from rsbdali.errors import CheckpointError
from rsbdali.runs import checkpoint
from rsbdali.runs.checkpoint_manager import CheckpointManager
from rsbdali.runs.checkpoint_record import OURS
from rsbdali.runs.find_checkpoint import newest_valid
from rsbdali.runs.folder import LAST

VALUES = 100_000  # float32: 0.4 MB a tensor


def content_of(number: int, saver: CheckpointManager) -> dict[str, object]:
    tensors = {name: torch.full((VALUES,), float(number)) for name in ("a", "b", "c")}
    return {"state_dict": tensors, OURS: record(number, history=saver.history_with(number, number % 5))}


def forked(work: Callable[[int], None]) -> tuple[int, int]:
    """A child that runs `work(pipe to write into)`: its process id, and the end of the pipe to read from."""
    reading, writing = os.pipe()
    child = os.fork()
    if child:
        os.close(writing)
        return child, reading
    code = 1
    try:
        work(writing)
        code = 0
    except CheckpointError as error:
        os.write(writing, str(error).encode())
        code = 2
    finally:
        os._exit(code)


def save_for_ever(folder: Path, pipe: int) -> None:
    """Every second save is one at the end of an epoch; each is told of once it is complete."""
    path, _ = newest_valid(folder)
    ours = checkpoint.read(path)[OURS] if path else None
    saver = CheckpointManager(folder, 2, ours["history"] if ours else {})
    for number in count(ours["position"]["epoch"] + 1 if ours else 0):
        content = content_of(number, saver)
        if number % 2:
            saver.save_epoch(content, number, number % 5, is_best=number % 5 == 4)
        else:
            saver.save_last(content)
        saver.wait()
        os.write(pipe, f"{number}\n".encode())


def kill_at_random(folder: Path, rng: random.Random) -> list[int]:
    """Saves that a child completed before it was killed."""
    child, pipe = forked(lambda writing: save_for_ever(folder, writing))
    select.select([pipe], [], [])  # it is at work
    select.select([], [], [], rng.uniform(0, 0.05))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return [int(line) for line in rest_of(pipe).split()]


def rest_of(pipe: int) -> str:
    """What comes until the other end is closed."""
    with os.fdopen(pipe, encoding="utf-8") as file:
        return file.read()


def check(folder: Path, completed: int) -> int:
    """The number of the newest whole checkpoint; every file under its name must be whole."""
    path, wrong = newest_valid(folder)
    assert not wrong, wrong
    assert path is not None
    for name in {path, *folder.glob("*.pth.tar")}:
        content = checkpoint.read_verified(name)
        number = content[OURS]["position"]["epoch"]
        for tensor in content["state_dict"].values():
            assert torch.equal(tensor, torch.full((VALUES,), float(number))), name
        if name == path:
            newest = number
    assert newest >= completed, f"save {completed} was complete, {newest} is the newest"
    return int(newest)


def kills(folder: Path, times: int, seed: int) -> dict[str, object]:
    rng, in_midst, newest, completed = random.Random(seed), 0, -1, 0
    for _ in range(times):
        done = kill_at_random(folder, rng)
        completed += len(done)
        in_midst += bool(list(folder.glob(".*.tmp")))
        newest = check(folder, max(done, default=newest))
    CheckpointManager(folder, 2)
    litter = [path.name for path in folder.iterdir() if not path.name.endswith(".pth.tar")]
    return {"newest": newest, "completed": completed, "in_midst": in_midst, "litter": litter}


def full(folder: Path, limit: int) -> dict[str, object]:
    with CheckpointManager(folder, 2) as saver:
        saver.save_last({**content_of(0, saver), "state_dict": {"a": torch.full((VALUES,), 0.0)}})

    def work(pipe: int) -> None:
        if limit:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        with CheckpointManager(folder, 2) as saver:
            saver.save_last(content_of(1, saver))

    child, pipe = forked(work)
    error = rest_of(pipe)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    kept = checkpoint.read_verified(folder / LAST)[OURS]["position"]["epoch"]
    return {"code": code, "error": error, "kept": kept, "files": sorted(path.name for path in folder.iterdir())}


if __name__ == "__main__":
    torch.set_num_threads(1)
    kind, folder, *numbers = sys.argv[1:]
    found = {"kills": kills, "full": full}[kind](Path(folder), *map(int, numbers))
    sys.stdout.write(json.dumps(found) + "\n")
