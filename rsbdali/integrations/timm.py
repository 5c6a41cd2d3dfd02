"""Run a timm training script, unmodified, with our loader in place of timm's.

    python -m rsbdali.integrations.timm train.py --data-dir IMAGENET -c a3.yaml …
    torchrun --nproc-per-node 4 -m rsbdali.integrations.timm train.py …

`timm.data.create_loader` is replaced before the script is imported, so both of its loaders are ours, the one for
training and the one for evaluation. What it asks for and we cannot honor ends it with a line that names the argument;
`timm.data.create_naflex_loader` is replaced by such a line.
"""

import functools
import inspect
import logging
import os
import runpy
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from types import ModuleType
from typing import Any, NoReturn

import timm.data
import torch

from rsbdali.distributed.collectives import broadcast_object
from rsbdali.distributed.devices import find_world, meeting
from rsbdali.distributed.world import World
from rsbdali.errors import RsbdaliError, counted
from rsbdali.integrations.create_loader import create_loader
from rsbdali.integrations.tuple_loader import TupleLoader

USAGE = "usage: python -m rsbdali.integrations.timm SCRIPT [ARGUMENT ...]"
SEEDS = 2**31

log = logging.getLogger("rsbdali")


@contextmanager
def patched() -> Iterator[None]:
    """`timm.data.create_loader` is ours while the block runs, also for code that imports it by name meanwhile."""
    stand_ins = {"create_loader": _stand_in(timm.data.create_loader), "create_naflex_loader": _refuse_naflex}
    with ExitStack() as stack:
        for name, ours in stand_ins.items():
            for module in _holders(name):
                stack.enter_context(_replaced(module, name, ours))
        yield


def _holders(name: str) -> list[ModuleType]:
    """Modules of timm that hold its function of this name."""
    theirs = getattr(timm.data, name)
    modules = [module for key, module in list(sys.modules.items()) if key.split(".")[0] == "timm"]
    return [module for module in modules if vars(module).get(name) is theirs]


def _refuse_naflex(*_: Any, **__: Any) -> NoReturn:
    raise RsbdaliError(
        "--naflex-loader (create_naflex_loader) cannot be honored: rsbdali makes no batches of patches; leave it out, "
        "or run the script by itself"
    )


@contextmanager
def _replaced(holder: Any, name: str, value: Any) -> Iterator[None]:
    before = getattr(holder, name)
    setattr(holder, name, value)
    try:
        yield
    finally:
        setattr(holder, name, before)


def _stand_in(theirs: Callable[..., Any]) -> Callable[..., TupleLoader]:
    signature = inspect.signature(theirs)

    @functools.wraps(theirs)
    def ours(*args: Any, **kwargs: Any) -> TupleLoader:
        # bound by timm's own signature, so that a default of timm's that we cannot honor is refused as well
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        world = find_world(bound.arguments["distributed"], None, None)
        loader = create_loader(**bound.arguments, seed=_seed(world))
        if world.is_rank_zero:
            _tell(loader, is_training=bound.arguments["is_training"])
        return loader

    return ours


def _seed(world: World) -> int:
    """The seed that the script gave torch, of rank 0: ours has to be the same on all ranks."""
    return broadcast_object(torch.initial_seed() % SEEDS, meeting(world))


def _tell(loader: TupleLoader, *, is_training: bool) -> None:
    below = loader.loader
    log.info(
        "%s loader by rsbdali in place of timm's: %s, %s of %d, %s, %s%s",
        "training" if is_training else "evaluation",
        counted(len(below.index), "image"),
        counted(len(loader), "batch", "batches"),
        loader.batch_size,
        counted(below.num_threads, "thread"),
        below.device,
        ", mixing" if loader.mixup_enabled else "",
    )


def run(script: str, arguments: Sequence[str]) -> None:
    """Run a script as `python SCRIPT ARGUMENT …` would, with our loader.

    Args:
        script: path of the script; its folder is where it imports from.
        arguments: its command line.

    Raises:
        RsbdaliError: no such script, or it asks for something that we cannot honor.
    """
    if not os.path.isfile(script):
        raise RsbdaliError(f"{script}: no such script")
    folder = os.path.dirname(os.path.abspath(script))
    with (
        patched(),
        _replaced(sys, "argv", [script, *arguments]),
        _replaced(sys, "path", [folder, *sys.path[1:]]),
        _logging_to_stderr(),
    ):
        runpy.run_path(script, run_name="__main__")


@contextmanager
def _logging_to_stderr() -> Iterator[None]:
    """Our lines on stderr, however the script sets its own logging up."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("rsbdali: %(message)s"))
    before = log.level, log.propagate
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.level, log.propagate = before


def main(arguments: Sequence[str]) -> int:
    """The command line; returns the exit code."""
    if not arguments or arguments[0].startswith("-"):
        sys.stderr.write(USAGE + "\n")
        return 0 if arguments and arguments[0] in ("-h", "--help") else 2
    try:
        run(arguments[0], arguments[1:])
    except RsbdaliError as error:
        if not error.reported_elsewhere:
            sys.stderr.write(f"rsbdali: error: {error}\n")
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
