"""Does one file decode? DALI seldom names the file that broke a batch, so the loader asks one by one."""

import os
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from nvidia.dali import fn

from rsbdali.pipelines.decode import decode
from rsbdali.pipelines.executor import DecodeFailure
from rsbdali.pipelines.runner import Runner


def decodes(path: str) -> str | None:
    """Decode the whole file with DALI on the CPU.

    Args:
        path: an image file.

    Returns:
        None if it decodes, else the reason in one line.
    """
    try:
        if os.stat(path).st_size == 0:
            return "empty file"
        with open(path, "rb"):
            pass
    except OSError as error:
        return error.strerror or str(error)
    runner = Runner(_define, rows=1, device=torch.device("cpu"), num_threads=1)
    try:
        runner.submit(([np.frombuffer(path.encode("utf-8", "surrogateescape"), np.uint8)],))
        runner.collect()
    except DecodeFailure as failure:
        return _reason(str(failure))
    finally:
        runner.close()
    return None


def _define(source: Callable[[], Any]) -> Any:
    (path,) = fn.external_source(source=source, num_outputs=1, batch=True)
    return decode(path, device="cpu")


def _reason(message: str) -> str:
    """The one line of DALI's message that says what happened."""
    detail = message.partition("encountered:")[2].strip().partition("\n")[0].strip(" :")
    if detail.startswith("nvImageCodec failure"):
        return f"not an image that DALI decodes ({detail})"
    if not detail or detail.startswith("Failed to decode sample"):
        return "truncated or corrupt image data"
    return detail
