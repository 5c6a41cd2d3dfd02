"""Does one image decode? DALI seldom names the one that broke a batch, so the loader asks one by one."""

import os
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from nvidia.dali import fn

from rsbdali.errors import UnreadableImage
from rsbdali.pipelines.dali_queue import Runner
from rsbdali.pipelines.decode import decode
from rsbdali.pipelines.executor import DecodeFailure, ImageSource


def image_decodes(index: ImageSource, i: int) -> str | None:
    """Decode the whole of image i of an index with DALI on the CPU, be it a file or not.

    Returns:
        None if it decodes, else the reason in one line.

    Raises:
        DataError: the source of the images does not answer.
    """
    if index.has_files:
        return decodes(index.source_path(i))
    try:
        return _decode(index.read_bytes(i), files=False)
    except UnreadableImage as error:
        return str(error)


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
    return _decode(np.frombuffer(path.encode("utf-8", "surrogateescape"), np.uint8), files=True)


def _decode(source: np.ndarray, *, files: bool) -> str | None:
    def define(feed: Callable[[], Any]) -> Any:
        (node,) = fn.external_source(source=feed, num_outputs=1, batch=True)
        return decode(node, device="cpu", files=files)

    runner = Runner(define, rows=1, device=torch.device("cpu"), num_threads=1)
    try:
        runner.submit(([source],))
        runner.collect()
    except DecodeFailure as failure:
        return _reason(str(failure))
    finally:
        runner.close()
    return None


def _reason(message: str) -> str:
    """The one line of DALI's message that says what happened."""
    detail = message.partition("encountered:")[2].strip().partition("\n")[0].strip(" :")
    if detail.startswith("nvImageCodec failure"):
        return f"not an image that DALI decodes ({detail})"
    if not detail or detail.startswith("Failed to decode sample"):
        return "truncated or corrupt image data"
    return detail
