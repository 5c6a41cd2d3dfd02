"""The doctor's checks of torch, GPUs, DALI and Triton."""

import importlib.util
import os
import re
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Sequence

import torch

from rsbdali.environment import driver_version, package_version
from rsbdali.ops.backend import missing_compiler
from rsbdali.tools.doctor.findings import Finding, Level

SELF_TEST_S = 120
WITHOUT_KERNELS = "plain torch does its work, slower on a GPU, and images are made on the CPU (--decode cpu)"
HARDWARE_JPEG = {(8, 0), (9, 0), (10, 0), (10, 3)}  # A100, A30; H100, H200; B200, B300


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
    found = Finding(Level.GOOD, "driver", f"{driver_version()}")
    return [found, *(f for i in range(torch.cuda.device_count()) for f in _check_gpu(i))]


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
        return [Finding(Level.WARNING, topic, text, "other processes hold most of its memory (nvidia-smi names them)")]
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
        return Finding(
            Level.WARNING, "GPU", f"{seen}: this torch is a CPU build", "pip install --force-reinstall torch"
        )
    if visible is not None and visible.strip() in ("", "-1"):
        return Finding(Level.WARNING, "GPU", f"{seen}: CUDA_VISIBLE_DEVICES={visible!r}", "unset CUDA_VISIBLE_DEVICES")
    fix = f"update the driver, or install a torch built for an older CUDA than {built_for} (2.7.1: CUDA 12.6)"
    return Finding(Level.WARNING, "GPU", f"{seen}{': ' + warning if warning else ''}", fix)


def judge_architecture(name: str, topic: str, capability: tuple[int, int], arch_list: Sequence[str]) -> Finding | None:
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
        fix = "pip install 'torch>=2.7.1,<2.11' (whose builds hold sm_70)" if fits else ""
        return Finding(Level.FATAL, topic, text, fix or "this GPU is too old for any torch that rsbdali runs with")
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
    found = [Finding(Level.GOOD, "DALI", text), _decode_in_child("cpu")]
    if torch.cuda.is_available():
        found.append(_decode_in_child("gpu"))
    return found


def _decode_in_child(device: str) -> Finding:
    topic = f"decode on {device.upper()}"
    with tempfile.TemporaryDirectory(prefix="rsbdali-doctor-") as folder:
        command = [sys.executable, "-m", "rsbdali.tools.doctor.decode_check", device, folder]
        try:
            child = subprocess.run(command, capture_output=True, text=True, timeout=SELF_TEST_S, check=False)
        except subprocess.TimeoutExpired:
            return Finding(Level.FATAL, topic, f"DALI did not decode a JPEG within {SELF_TEST_S} s")
    return judge_decode(topic, child.returncode, child.stdout, child.stderr)


def judge_decode(topic: str, code: int, out: str, err: str) -> Finding:
    """From the exit code and output of `rsbdali.tools.doctor.decode_check`."""
    if code == 0:
        return Finding(Level.GOOD, topic, out.strip())
    lines = err.strip().splitlines()
    said = f"killed by signal {-code}" if code < 0 else lines[-1] if lines else f"status {code}"
    fix = "" if topic.endswith("CPU") else "train with --device cpu, or look at the driver and nvidia-nvimgcodec-cu12"
    return Finding(Level.FATAL, topic, f"DALI does not decode a JPEG: {said}", fix)


def check_triton() -> list[Finding]:
    """Triton, and the C compiler that it needs on a GPU machine."""
    if importlib.util.find_spec("triton") is None:
        return [Finding(Level.NOTE, "Triton", f"not installed: {WITHOUT_KERNELS}")]
    text = f"{package_version('triton')}"
    lacking = missing_compiler()
    if lacking is not None and torch.cuda.is_available():
        fix = "install gcc and Python's headers (apt-get install gcc python3-dev)"
        return [Finding(Level.WARNING, "Triton", f"{text}, but {lacking}: {WITHOUT_KERNELS}", fix)]
    return [Finding(Level.GOOD, "Triton", text)]
