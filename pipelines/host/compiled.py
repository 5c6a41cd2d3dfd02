"""Loops compiled by Numba: imported late, compiled once a machine, kept in our own folder under the XDG cache.

    kernels("rsbdali.pipelines.host.resize_numba") ──> a lock on the cache folder ──> import, where `@kernel` compiles
    each function for its one signature, or loads it from <cache>/compiled/<versions>

Numba's own `cache=True` raises an error where neither the package nor HOME can be written to; here a cache that cannot
be used is said once, and everything is compiled in memory.
"""

import fcntl
import hashlib
import importlib
import logging
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from pickle import UnpicklingError
from types import ModuleType
from typing import Any

from rsbdali.data.cache import default_folder
from rsbdali.errors import NumbaError

Function = Callable[..., Any]
CACHE_FAULTS = (OSError, RuntimeError, ValueError, EOFError, ImportError, AttributeError, LookupError, UnpicklingError)
log = logging.getLogger(__name__)


def kernels(module: str) -> ModuleType:
    """Import a module of kernels.

    Args:
        module: full name; it imports Numba and compiles its functions with `kernel`.

    Raises:
        NumbaError: Numba is missing, switched off by NUMBA_DISABLE_JIT, or does not work here.
    """
    try:
        return _kernels(module)
    except Exception as error:  # Numba raises what it likes where it cannot compile
        reason = str(error).strip().partition("\n")[0]
        raise NumbaError(f"Numba does not work here ({type(error).__name__}: {reason})") from error


def _kernels(module: str) -> ModuleType:
    import numba

    if numba.config.DISABLE_JIT:
        raise ImportError("NUMBA_DISABLE_JIT is set")
    folder = cache_folder()
    started = time.perf_counter()
    with _locked(folder):
        imported = _imported(module)
    seconds, kept_in = time.perf_counter() - started, folder or "no folder that can be written to: compiled each time"
    log.info("%s: ready in %.1f s (cache: %s)", module.rpartition(".")[2], seconds, kept_in)
    return imported


def _imported(module: str) -> ModuleType:
    """Import in a thread of its own: what Numba leaves for the collector holds the stack, and a loader is in ours."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(importlib.import_module, module).result()


def kernel(signature: str, **options: bool) -> Callable[[Function], Function]:
    """Compile a function for one signature (Numba's notation) that runs without the interpreter's lock.

    Floats are IEEE 754 in the order written, division by zero gives inf or nan: what C does.
    """
    import numba

    def compiled(function: Function) -> Function:
        arguments = {"nogil": True, "error_model": "numpy", **options}
        folder = cache_folder()
        if folder is not None:
            try:
                with _numba_cache(folder):
                    return numba.njit(signature, cache=True, **arguments)(function)
            except CACHE_FAULTS as error:
                # damaged, full, or gone meanwhile; a fault of the function itself is raised again below
                log.warning("the cache %s cannot be used for %s (%s)", folder, function.__name__, error)
        return numba.njit(signature, **arguments)(function)

    return compiled


def inner(signature: str) -> Callable[[Function], Function]:
    """As `kernel`, for a function that only other kernels call: without the way in from Python it compiles faster."""
    return kernel(signature, no_cpython_wrapper=True, no_cfunc_wrapper=True)


@cache
def cache_folder() -> Path | None:
    """Where compiled code of exactly these versions on this CPU is kept; None where it cannot be written to."""
    import llvmlite
    import llvmlite.binding
    import numba
    import numpy as np

    cpu = llvmlite.binding.get_host_cpu_name()
    versions = f"numba{numba.__version__}-llvmlite{llvmlite.__version__}-numpy{np.__version__}-{cpu}-{_source_hash()}"
    try:
        folder = default_folder() / "compiled" / versions
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except (OSError, RuntimeError) as error:  # RuntimeError: there is no home folder
        log.warning("compiled code cannot be cached (%s): each process compiles its own", error)
        return None
    return folder


def _source_hash() -> str:
    """Of all code beside this file: a function inlined from another file makes no file stale by itself."""
    digest = hashlib.blake2b(digest_size=6)
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


@contextmanager
def _numba_cache(folder: Path) -> Iterator[None]:
    """Let functions decorated meanwhile be cached in `folder`; those of other packages stay where they were."""
    import numba

    before = numba.config.CACHE_DIR
    numba.config.CACHE_DIR = str(folder)
    try:
        yield
    finally:
        numba.config.CACHE_DIR = before


@contextmanager
def _locked(folder: Path | None) -> Iterator[None]:
    """One process at a time, so that the ranks of a machine compile once; without a lock where there is none."""
    if folder is None:
        yield
        return
    descriptor = -1
    try:
        descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    except OSError as error:  # some network file systems have no locks
        log.warning("%s cannot be locked (%s): several processes may compile the same", folder, error)
    try:
        yield
    finally:
        if descriptor >= 0:
            os.close(descriptor)  # which unlocks
