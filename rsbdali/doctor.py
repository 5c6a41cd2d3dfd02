"""`rsbdali doctor`: what this machine can do, what is amiss, and how to mend it.

Each check looks at one thing and returns findings; the judging of what was seen is in pure functions, so that machines
other than this one can be tested. A machine without a GPU is not ill: it trains on its CPU.
"""

import importlib.util
import os
import platform
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from rsbdali import __version__
from rsbdali.bench.machine import cpu_model, driver_version, package_version
from rsbdali.index_cache import default_folder

OPEN_FILES = 4096  # DALI's readers, checkpoints and a console leave this far from used up
MEMORY_PER_THREAD = 1 << 30  # bytes; decoding needs much less, a training process with torch and CUDA several GiB
SELF_TEST_S = 120
HARDWARE_JPEG = {(8, 0), (9, 0), (10, 0), (10, 3)}  # A100, A30; H100, H200; B200, B300
CGROUP = Path("/sys/fs/cgroup")


class Level(Enum):
    """How good or bad a finding is; the value is the mark that is printed."""

    GOOD = "✓"
    NOTE = "·"
    AMISS = "!"
    FATAL = "✗"


@dataclass(frozen=True)
class Finding:
    """What was found about one thing, and how to mend it where it is amiss."""

    level: Level
    topic: str
    text: str
    mend: str = ""


def examine() -> list[Finding]:
    """Run every check; takes a few seconds, as DALI is tried in a child process."""
    checks: tuple[Callable[[], list[Finding]], ...] = (
        check_python, check_torch, check_gpus, check_dali, check_triton, check_cpu, check_memory, check_limits,
        check_cache,
    )  # fmt: skip
    return [finding for check in checks for finding in check()]


def can_train(findings: Sequence[Finding]) -> bool:
    """Whether nothing found stands in the way of training on this machine."""
    return all(f.level is not Level.FATAL for f in findings)


def print_findings(console: Console, findings: Sequence[Finding]) -> int:
    """Print a table and a last line that sums it up.

    Returns:
        The exit code: 0 if this machine can train, else 1.
    """
    colour = {Level.GOOD: "green", Level.NOTE: "dim", Level.AMISS: "yellow", Level.FATAL: "red"}
    table = Table(box=None, show_header=False, padding=(0, 1))
    for f in findings:
        text = f.text + (f"\n→ {f.mend}" if f.mend else "")
        table.add_row(f"[{colour[f.level]}]{f.level.value}[/]", f.topic, text.replace("[", r"\["))
    console.print(table)
    fit = can_train(findings)
    amiss = sum(f.level is Level.AMISS for f in findings)
    device = "its GPU" if any(f.topic.startswith("GPU") and f.level is Level.GOOD for f in findings) else "its CPU only"
    hint = f"; {amiss} {'thing' if amiss == 1 else 'things'} to mend" if amiss else ""
    said = f"This machine can train, on {device}{hint}." if fit else "This machine cannot train until ✗ is mended."
    console.print(said, style="bold", markup=False)
    return 0 if fit else 1


def check_python() -> list[Finding]:
    """Versions of rsbdali, Python, timm."""
    text = f"{__version__}, Python {platform.python_version()}, timm {package_version('timm')}"
    return [Finding(Level.GOOD, "rsbdali", text)]


def check_torch() -> list[Finding]:
    """torch, the CUDA it was built for, and the GPU architectures it holds code for."""
    cuda = torch.version.cuda
    text = f"{torch.__version__}, " + (f"built for CUDA {cuda}" if cuda else "built without CUDA")
    # get_arch_list is empty where torch sees no GPU, so ask the build itself
    flags = torch._C._cuda_getArchFlags() if cuda else None
    return [Finding(Level.GOOD, "torch", text + (f", code for {flags}" if flags else ""))]


def check_gpus() -> list[Finding]:
    """Every GPU: its name and memory, whether this torch has code for it, whether a kernel runs."""
    with warnings.catch_warnings(record=True) as caught:  # torch warns when the driver is too old
        warnings.simplefilter("always")
        available = torch.cuda.is_available()
    if not available:
        said = str(caught[0].message).splitlines()[0] if caught else ""
        driver, built = driver_version(), torch.version.cuda
        return [judge_no_gpu(driver, built, said, os.environ.get("CUDA_VISIBLE_DEVICES"))]
    driver = Finding(Level.GOOD, "driver", f"{driver_version()}")
    return [driver, *(f for i in range(torch.cuda.device_count()) for f in _check_gpu(i))]


def _check_gpu(index: int) -> list[Finding]:
    properties = torch.cuda.get_device_properties(index)
    capability = (properties.major, properties.minor)
    topic = f"GPU {index}"
    name = f"{properties.name}, sm_{properties.major}{properties.minor}"
    wrong = judge_architecture(name, topic, capability, torch.cuda.get_arch_list())
    if wrong:
        return [wrong]
    free, total = torch.cuda.mem_get_info(index)
    ones = torch.ones(64, 64, device=f"cuda:{index}")
    if float((ones @ ones).sum()) != 64**3:
        return [Finding(Level.FATAL, topic, f"{name}: a matrix product came out wrong: GPU or driver is ill")]
    jpeg = "has a JPEG engine" if capability in HARDWARE_JPEG else "decodes JPEG on its cores"
    text = f"{name}, {free / 2**30:.1f} of {total / 2**30:.1f} GiB free, {jpeg}"
    if free < total * 0.5:
        return [Finding(Level.AMISS, topic, text, "other processes hold most of its memory (nvidia-smi names them)")]
    return [Finding(Level.GOOD, topic, text)]


def judge_no_gpu(driver: str | None, built_for: str | None, warning: str, visible: str | None) -> Finding:
    """Why torch sees no GPU.

    Args:
        driver: version of the NVIDIA driver, None where there is none.
        built_for: CUDA version of this torch, None for a CPU build.
        warning: what torch said, may be empty.
        visible: the environment's CUDA_VISIBLE_DEVICES.
    """
    if driver is None:
        return Finding(Level.NOTE, "GPU", "none, nor an NVIDIA driver: everything runs on the CPU")
    seen = f"driver {driver} is loaded, but torch sees no GPU"
    if built_for is None:
        return Finding(Level.AMISS, "GPU", f"{seen}: this torch is a CPU build", "pip install --force-reinstall torch")
    if visible is not None and visible.strip() in ("", "-1"):
        return Finding(Level.AMISS, "GPU", f"{seen}: CUDA_VISIBLE_DEVICES={visible!r}", "unset CUDA_VISIBLE_DEVICES")
    mend = f"update the driver, or install a torch built for an older CUDA than {built_for} (2.7.1: CUDA 12.6)"
    return Finding(Level.AMISS, "GPU", f"{seen}{': ' + warning if warning else ''}", mend)


def judge_architecture(
    name: str, topic: str, capability: tuple[int, int], arch_list: Sequence[str]
) -> Finding | None:
    """None if a torch with code for `arch_list` (sm_80, compute_90, …) runs on a GPU of this capability.

    Machine code (sm_XY) runs on the same major version at or above it, intermediate code (compute_XY) on all above.
    """
    for kind, number in _architectures(arch_list):
        major, minor = divmod(number, 10)
        if (kind == "sm" and major == capability[0] and minor <= capability[1]) or (
            kind == "compute" and (major, minor) <= capability
        ):
            return None
    text = f"{name}: this torch ({torch.__version__}) has no code for it, only for {', '.join(arch_list)}"
    if capability < (7, 5):
        fits = capability == (7, 0)
        mend = "pip install 'rsbdali[v100]' (torch 2.7.1, whose CUDA 12.6 build holds sm_70)" if fits else ""
        return Finding(Level.FATAL, topic, text, mend or "this GPU is too old for any torch that rsbdali runs with")
    return Finding(Level.FATAL, topic, text, "pip install --upgrade torch")


def _architectures(arch_list: Sequence[str]) -> list[tuple[str, int]]:
    found = (re.match(r"(sm|compute)_(\d+)", arch) for arch in arch_list)
    return [(match[1], int(match[2])) for match in found if match]


def check_dali() -> list[Finding]:
    """Versions of DALI and its decoder, and a JPEG decoded on each device in a child process."""
    versions = [(name, package_version(name)) for name in ("nvidia-dali-cuda120", "nvidia-nvimgcodec-cu12")]
    if versions[0][1] is None:
        other = next((n for n in ("nvidia-dali-cuda130", "nvidia-dali-cuda110") if package_version(n)), None)
        if other is None:
            return [Finding(Level.FATAL, "DALI", "not installed", "pip install 'nvidia-dali-cuda120==2.4.*'")]
        versions[0] = other, package_version(other)
    text = ", ".join(f"{name} {version}" for name, version in versions if version)
    devices = ("cpu", "gpu") if torch.cuda.is_available() else ("cpu",)
    return [Finding(Level.GOOD, "DALI", text), *(_decode_in_child(device) for device in devices)]


def _decode_in_child(device: str) -> Finding:
    topic = f"decode on {device.upper()}"
    with tempfile.TemporaryDirectory(prefix="rsbdali-doctor-") as folder:
        command = [sys.executable, "-m", "rsbdali.decode_check", device, folder]
        try:
            child = subprocess.run(command, capture_output=True, text=True, timeout=SELF_TEST_S, check=False)
        except subprocess.TimeoutExpired:
            return Finding(Level.FATAL, topic, f"DALI did not decode a JPEG within {SELF_TEST_S} s")
    return judge_decode(topic, child.returncode, child.stdout, child.stderr)


def judge_decode(topic: str, code: int, out: str, err: str) -> Finding:
    """From the exit code and output of `rsbdali.decode_check`."""
    if code == 0:
        return Finding(Level.GOOD, topic, out.strip())
    lines = err.strip().splitlines()
    said = f"killed by signal {-code}" if code < 0 else lines[-1] if lines else f"status {code}"
    mend = "" if topic.endswith("CPU") else "train with --device cpu, or look at the driver and nvidia-nvimgcodec-cu12"
    return Finding(Level.FATAL, topic, f"DALI does not decode a JPEG: {said}", mend)


def check_triton() -> list[Finding]:
    """Triton, and the C compiler that it needs on a GPU machine."""
    if importlib.util.find_spec("triton") is None:
        return [Finding(Level.NOTE, "Triton", "not installed: plain torch operations do its work, slower on a GPU")]
    text = f"{package_version('triton')}"
    if shutil.which("cc") is None and shutil.which("gcc") is None and torch.cuda.is_available():
        return [Finding(Level.AMISS, "Triton", f"{text}, but no C compiler", "install gcc (apt-get install gcc)")]
    return [Finding(Level.GOOD, "Triton", text)]


def check_cpu() -> list[Finding]:
    """Processor, and how much of it this process may use."""
    return [judge_cpu(cpu_model(), os.cpu_count() or 1, len(os.sched_getaffinity(0)), cpu_quota(CGROUP))]


def judge_cpu(model: str, cores: int, usable: int, quota: float | None) -> Finding:
    """Cores of the machine, of the affinity mask, and of the container's quota (None: no quota)."""
    text = f"{model}, {cores} cores"
    if quota is not None and quota < usable:
        mend = f"give --workers {max(1, round(quota))}, or the container more"
        return Finding(Level.AMISS, "CPU", f"{text}, {usable} usable, but a quota of {quota:g} slows them down", mend)
    if usable < cores:
        return Finding(Level.NOTE, "CPU", f"{text}, of which this process may use {usable} (affinity)")
    return Finding(Level.GOOD, "CPU", f"{text}, all usable")


def cpu_quota(cgroup: Path) -> float | None:
    """Cores that a container's control group (version 2 or 1) grants, None without a limit."""
    unified, quota, period = (cgroup / name for name in ("cpu.max", "cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us"))
    if unified.is_file():
        limit, span = unified.read_text().split()
        return None if limit == "max" else int(limit) / int(span)
    if quota.is_file() and period.is_file():
        microseconds = int(quota.read_text())
        return None if microseconds < 0 else microseconds / int(period.read_text())
    return None


def check_memory() -> list[Finding]:
    """Main memory, and page-locked memory where there is a GPU to copy to."""
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    threads = len(os.sched_getaffinity(0))
    text = f"{total / 2**30:.1f} GiB, {free / 2**30:.1f} GiB unused"
    found = [Finding(Level.GOOD, "memory", text)]
    if total < threads * MEMORY_PER_THREAD:
        found = [Finding(Level.AMISS, "memory", f"{text}: little for {threads} cores", "use fewer --workers")]
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
        small = Finding(Level.AMISS, "shared memory", text, "docker run --shm-size=8g (NCCL, worker processes)")
        found.append(small if size < 1 << 30 else Finding(Level.GOOD, "shared memory", text))
    return found


def judge_open_files(soft: int, hard: int) -> Finding:
    """The limit of open files, as `resource.getrlimit` gives it (-1: none)."""
    if soft == resource.RLIM_INFINITY or soft >= OPEN_FILES:
        return Finding(Level.GOOD, "open files", "no limit" if soft == resource.RLIM_INFINITY else f"up to {soft:,}")
    raised = OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, OPEN_FILES)
    return Finding(Level.AMISS, "open files", f"only {soft:,} at a time", f"ulimit -n {raised}")


def check_cache() -> list[Finding]:
    """Whether the cache folder of indexes can be written."""
    folder = default_folder()
    parent = next(p for p in (folder, *folder.parents) if p.exists())
    if os.access(parent, os.W_OK):
        return [Finding(Level.GOOD, "cache", f"{folder}")]
    return [Finding(Level.AMISS, "cache", f"{folder} cannot be written", "set XDG_CACHE_HOME to a folder that can")]
