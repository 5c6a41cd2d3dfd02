"""`rsbdali train --nproc N`: torchrun's own launcher, called from here, on one machine.

    rsbdali train --nproc 4 --recipe a3 …  =  torchrun --standalone --nproc-per-node 4 -m rsbdali train --recipe a3 …

Several machines, elastic sizes and restarts are torchrun's to start (docs/CLUSTERS.md).
"""

import ctypes
import dataclasses
import logging
import os
import signal
import sys
import uuid
from collections.abc import Sequence
from typing import Any

from rsbdali.distributed import slurm
from rsbdali.errors import DeviceError, counted

NPROC = "RSBDALI_NPROC"  # how many ranks there are, where they were started from here
LAUNCHER = "RSBDALI_LAUNCHER"  # number of the process that a rank ends with
OF_TORCHRUN = "TORCHELASTIC_RUN_ID"  # in the environment of its ranks
PR_SET_PDEATHSIG = 1  # of linux/prctl.h
SIGNALS = "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1"  # handed on to the ranks; torchrun's own default lacks SIGUSR1


def launch(nproc: int, arguments: Sequence[str], device: str) -> int:
    """Run `rsbdali ARGUMENTS` as `nproc` ranks on this machine, to their end.

    Args:
        nproc: number of ranks.
        arguments: of the command line, `--nproc` among them or not.
        device: that the ranks are asked to use: auto, cpu or cuda.

    Returns:
        0, or the exit code of the rank that failed first (128 + the number of a signal that ended it); what `exit_code`
        says where a signal to this process ended them all.

    Raises:
        DeviceError: this process is a rank already, or there are fewer GPUs than ranks.
    """
    _check(nproc, device)
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # as torchrun does; each rank then takes its share, see affinity.py
    os.environ[NPROC] = str(nproc)
    command = ["-u", "-m", "rsbdali", *without_nproc(arguments)]
    try:
        return run(launch_config(nproc), command, debug="--debug" in arguments)
    finally:
        del os.environ[NPROC]


def run(config: Any, command: Sequence[str], *, debug: bool) -> int:
    """Python with these arguments as each of the ranks; see `launch`.

    Args:
        config: a `LaunchConfig`.
        command: arguments of the interpreter.
        debug: whether torchrun's own report about a rank that failed is shown.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import elastic_launch

    if not debug:  # the ranks have said in one line what is wrong; this would say it in forty
        logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    os.environ[LAUNCHER] = str(os.getpid())
    before = signal.signal(signal.SIGUSR1, _stop_ranks)  # torch before 2.9 leaves this one alone; later ones replace it
    try:
        elastic_launch(config, sys.executable)(*command)
    except ChildFailedError as error:
        code: int = error.get_first_failure()[1].exitcode
        return code if code > 0 else 128 - code
    except SignalException as stopped:
        return exit_code(stopped.sigval)
    finally:
        signal.signal(signal.SIGUSR1, before)
        del os.environ[LAUNCHER]
    return 0


def _stop_ranks(number: int, _frame: object) -> None:
    """What torch's launcher does at a signal: end the ranks by the same one."""
    from torch.distributed.elastic.multiprocessing.api import SignalException

    raise SignalException(f"process {os.getpid()} got {signal.Signals(number).name}", sigval=signal.Signals(number))


def exit_code(number: signal.Signals) -> int:
    """What a process ends with that a signal stopped: 130 on an interrupt, 143 on SIGTERM and SIGUSR1 alike."""
    return 128 + (signal.SIGTERM if number == signal.SIGUSR1 else number)


def end_with_launcher() -> None:
    """Let the kernel kill this process when the launcher that started it, `--nproc` or torchrun's agent, is gone.

    However it went: a rank that outlived its agent would train on, and keep the others from forming anew. Nothing where
    no launcher started it, and where the system is not Linux. To be called once, at the start.
    """
    parent = str(os.getppid())
    launcher = os.environ.pop(LAUNCHER, parent if OF_TORCHRUN in os.environ else None)  # what it starts is no rank
    if launcher is None or sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGKILL))
    if launcher != str(os.getppid()):  # it went before the kernel knew
        os.kill(os.getpid(), signal.SIGKILL)


def launch_config(nproc: int) -> Any:
    """What torchrun's `--standalone --nproc-per-node` makes: a `LaunchConfig` for one machine, without restarts."""
    from torch.distributed.launcher.api import LaunchConfig

    known = {field.name for field in dataclasses.fields(LaunchConfig)}
    more: dict[str, Any] = {"signals_to_handle": SIGNALS} if "signals_to_handle" in known else {}  # since torch 2.9
    return LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=nproc,
        run_id=str(uuid.uuid4()),
        role="rsbdali",
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
        **more,
    )


def without_nproc(arguments: Sequence[str]) -> list[str]:
    """The arguments of each rank."""
    kept, skip = [], False
    for word in arguments:
        if skip:
            skip = False
        elif word == "--nproc":
            skip = True
        elif not word.startswith("--nproc="):
            kept.append(word)
    return kept


def _check(nproc: int, device: str) -> None:
    import torch

    if "RANK" in os.environ or slurm.torchrun_variables(os.environ):
        raise DeviceError("--nproc starts ranks, and this process is one of several already: leave --nproc out")
    gpus = torch.cuda.device_count()
    if device != "cpu" and gpus and nproc > gpus:
        raise DeviceError(f"--nproc {nproc}: {counted(gpus, 'GPU is', 'GPUs are')} here; lower it, or add --device cpu")
