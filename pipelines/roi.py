"""Whether to decode only regions of interest: always on the CPU; on a GPU where a self-test has shown it to work.

nvImageCodec 0.9.0 is reported to break ROI decoding of JPEGs on GPUs, with an error or with a crash of the process;
hence a test, and one in a child process (`roi_check.py`).
"""

import logging
import subprocess
import sys
from functools import cache
from typing import Literal

import torch

from rsbdali.errors import DeviceError

DecodeMode = Literal["auto", "full", "roi"]
SELF_TEST_TIMEOUT_S = 180
log = logging.getLogger(__name__)


def use_roi(mode: DecodeMode, device: torch.device) -> bool:
    """True to decode only the window needed of each image.

    Raises:
        DeviceError: 'roi' was asked for on a GPU that fails the self-test.
    """
    if mode == "full":
        return False
    if device.type != "cuda":
        return True
    failure = self_test_failure(device.index or 0)
    if failure is None:
        return True
    if mode == "roi":
        raise DeviceError(f"decode=roi does not work on {device}: {failure}; use decode=full")
    log.warning("%s decodes whole images: decoding regions failed its self-test (%s)", device, failure)
    return False


@cache
def self_test_failure(gpu: int) -> str | None:
    """Run `roi_check` for one GPU in a child process, once; None if it passes, else what went wrong."""
    command = [sys.executable, "-m", "rsbdali.pipelines.roi_check", str(gpu)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SELF_TEST_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired:
        return f"no answer within {SELF_TEST_TIMEOUT_S} s"
    if done.returncode == 0:
        return None
    if done.returncode < 0:
        return f"killed by signal {-done.returncode}"
    lines = done.stderr.strip().splitlines()
    return lines[-1] if lines else f"exit code {done.returncode}"
