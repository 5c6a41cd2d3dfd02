"""`rsbdali doctor`: what this machine can do, what is wrong, and how to fix it.

Each check looks at one thing and returns findings; the judging of what was seen is in pure functions, so that machines
other than this one can be tested. A machine without a GPU is not ill: it trains on its CPU.
"""

import os
import platform
import resource
import shutil
from collections.abc import Callable
from pathlib import Path

import torch

from rsbdali import __version__
from rsbdali.data.cache import default_folder
from rsbdali.distributed.processes import cpu_quota
from rsbdali.environment import cpu_model, package_version
from rsbdali.errors import counted
from rsbdali.tools.doctor.data import check_data
from rsbdali.tools.doctor.findings import Finding, Level, can_train, print_findings
from rsbdali.tools.doctor.gpu import check_dali, check_gpus, check_torch, check_triton

__all__ = ["can_train", "examine", "print_findings"]

OPEN_FILES = 4096  # DALI's readers, checkpoints and a console leave this far from used up
MEMORY_PER_THREAD = 1 << 30  # bytes; decoding needs much less, a training process with torch and CUDA several GiB
CGROUP = Path("/sys/fs/cgroup")


def examine(data: Path | None = None) -> list[Finding]:
    """Run every check; takes a few seconds, as DALI is tried in a child process. With `data`, try its images too."""
    checks: tuple[Callable[[], list[Finding]], ...] = (
        check_python,
        check_torch,
        check_gpus,
        check_dali,
        check_triton,
        check_cpu,
        check_memory,
        check_limits,
        check_cache,
    )
    found = [finding for check in checks for finding in check()]
    return found if data is None else found + check_data(data)


def check_python() -> list[Finding]:
    """Versions of rsbdali, Python, timm."""
    text = f"{__version__}, Python {platform.python_version()}, timm {package_version('timm')}"
    return [Finding(Level.GOOD, "rsbdali", text)]


def check_cpu() -> list[Finding]:
    """Processor, and how much of it this process may use."""
    return [judge_cpu(cpu_model(), os.cpu_count() or 1, len(os.sched_getaffinity(0)), cpu_quota(CGROUP))]


def judge_cpu(model: str, cores: int, usable: int, quota: float | None) -> Finding:
    """Cores of the machine, of the affinity mask, and of the container's quota (None: no quota)."""
    text = f"{model}, {counted(cores, 'core')}"
    if quota is not None and quota < usable:
        fix = f"give --workers {max(1, round(quota))}, or the container more"
        return Finding(Level.WARNING, "CPU", f"{text}, {usable} usable, but a quota of {quota:g} slows them down", fix)
    if usable < cores:
        return Finding(Level.NOTE, "CPU", f"{text}, of which this process may use {usable} (affinity)")
    return Finding(Level.GOOD, "CPU", f"{text}, all usable")


def check_memory() -> list[Finding]:
    """Main memory, and page-locked memory where there is a GPU to copy to."""
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    threads = len(os.sched_getaffinity(0))
    text = f"{total / 2**30:.1f} GiB, {free / 2**30:.1f} GiB unused"
    found = [Finding(Level.GOOD, "memory", text)]
    if total < threads * MEMORY_PER_THREAD:
        found = [
            Finding(Level.WARNING, "memory", f"{text}: little for {counted(threads, 'core')}", "use fewer --workers")
        ]
    if torch.cuda.is_available():
        found.append(_check_pinned())
    return found


def _check_pinned() -> Finding:
    try:
        torch.empty(1 << 28, dtype=torch.uint8, pin_memory=True)
    except RuntimeError as error:
        said = str(error).splitlines()[0]
        return Finding(Level.FATAL, "pinned memory", f"256 MiB cannot be page-locked: {said}", "ulimit -l unlimited")
    return Finding(Level.GOOD, "pinned memory", "256 MiB can be page-locked")


def check_limits() -> list[Finding]:
    """Open files and shared memory."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    found = [judge_open_files(soft, hard)]
    shared = Path("/dev/shm")
    if shared.is_dir():
        size = shutil.disk_usage(shared).total
        text = f"/dev/shm of {size / 2**30:.1f} GiB"
        # ours shares nothing between processes, NCCL and other loaders' worker processes do
        small = Finding(Level.WARNING, "shared memory", text, "docker run --shm-size=8g (NCCL, worker processes)")
        found.append(small if size < 1 << 30 else Finding(Level.GOOD, "shared memory", text))
    return found


def judge_open_files(soft: int, hard: int) -> Finding:
    """The limit of open files, as `resource.getrlimit` gives it (-1: none)."""
    if soft == resource.RLIM_INFINITY or soft >= OPEN_FILES:
        return Finding(Level.GOOD, "open files", "no limit" if soft == resource.RLIM_INFINITY else f"up to {soft:,}")
    raised = OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, OPEN_FILES)
    return Finding(Level.WARNING, "open files", f"only {soft:,} at a time", f"ulimit -n {raised}")


def check_cache() -> list[Finding]:
    """Whether the cache folder of indexes can be written."""
    folder = default_folder()
    parent = next(p for p in (folder, *folder.parents) if p.exists())
    if os.access(parent, os.W_OK):
        return [Finding(Level.GOOD, "cache", f"{folder}")]
    return [Finding(Level.WARNING, "cache", f"{folder} cannot be written", "set XDG_CACHE_HOME to a folder that can")]
