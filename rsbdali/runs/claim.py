"""One run at a time in a folder: its maker alone gets a new one, and a lock in it is held while a run trains there.

    run.lock    host, process and start time of the run that trains here, as text. The process holds a lock (flock) on
                it, which ends with the process however that ends; the file is removed when the run is over.

Where a file system knows no locks the text alone counts. It is believed while its process lives on this host; of
another host this cannot be known, so the run goes on with a warning.
"""

import datetime
import errno
import fcntl
import logging
import os
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import IO

from rsbdali.distributed.processes import stat_fields
from rsbdali.errors import RsbdaliError
from rsbdali.recipe import Recipe
from rsbdali.runs.folder import check_free, choose_folder

LOCK = "run.lock"
MOST_BYTES = 4096  # of another program's lock file
HELD = (errno.EAGAIN, errno.EACCES)  # another process has the lock; any other error: there are no locks here

log = logging.getLogger(__name__)


@contextmanager
def claimed(output: Path, experiment: str | None, recipe: Recipe, *, resume: str | None) -> Iterator[Path]:
    """The run's folder (see `choose_folder`), made and held while the block runs; no other run gets it meanwhile.

    A folder that was made and is empty at the end, because the run could not begin, is removed again.

    Raises:
        RsbdaliError: another run is there or trains there, or the folder cannot be made or written to.
    """
    try:
        folder, is_new = _make(partial(choose_folder, output, experiment, recipe, resume=resume))
    except OSError as error:
        raise RsbdaliError(f"cannot make a folder in {output} ({error.strerror})") from error
    try:
        with _locked(folder):
            check_free(folder, experiment, resume)
            yield folder
    finally:
        if is_new:
            with suppress(OSError):  # the run has left something in it
                folder.rmdir()


def _make(choose: Callable[[], Path]) -> tuple[Path, bool]:
    """The folder, and whether it was made now: it is there already where a run is to go on in it."""
    folder = choose()
    while True:
        folder.parent.mkdir(parents=True, exist_ok=True)
        try:
            folder.mkdir()  # only one process can
        except FileExistsError:
            if (again := choose()) == folder:
                return folder, False
            folder = again  # another run was faster: the next number
        else:
            return folder, True


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    path = folder / LOCK
    try:
        file = _open(path)
    except OSError as error:
        raise RsbdaliError(f"cannot write {path} ({error.strerror})") from error
    with file:
        try:
            yield
        finally:
            with suppress(OSError):
                path.unlink()  # while it is locked: whoever comes next makes a new one


def _open(path: Path) -> IO[bytes]:
    """The lock file, locked, with our text in it."""
    while True:
        file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666), "r+b")
        try:
            _lock(file, path)
            if _is_at(file, path):  # else its holder has removed it in the meantime
                _write(file, path)
                return file
        except BaseException:
            file.close()
            raise
        file.close()


def _write(file: IO[bytes], path: Path) -> None:
    try:
        file.truncate()
        file.write("".join(f"{key}: {value}\n" for key, value in _this_process().items()).encode())
        file.flush()
    except OSError:  # a full disk
        path.unlink()
        raise


def _lock(file: IO[bytes], path: Path) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        holder = _holder(file)
        if error.errno in HELD or _lives(holder):
            raise RsbdaliError(
                f"{path.parent} is in use: process {holder.get('process', '?')} on {holder.get('host', '?')} trains "
                f"there since {holder.get('since', '?')}; wait for it, or name another experiment"
            ) from error
        said = f", and the last run here ({_text(holder)}) has left no word of its end" if holder else ""
        log.warning("%s knows no locks (%s): see that no other run uses it%s", path.parent, error.strerror, said)


def _holder(file: IO[bytes]) -> dict[str, str]:
    """What a lock file says."""
    lines = file.read(MOST_BYTES).decode("utf-8", "replace").splitlines()
    file.seek(0)
    return {key: value for key, colon, value in (line.partition(": ") for line in lines) if colon}


def _text(holder: Mapping[str, str]) -> str:
    return ", ".join(f"{key} {value}" for key, value in holder.items())


def _this_process() -> dict[str, str]:
    return {
        "host": socket.gethostname(),
        "process": str(os.getpid()),
        "since": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "clock ticks from boot to its start": _start_of(os.getpid()) or "unknown",
    }


def _lives(holder: Mapping[str, str]) -> bool:
    """Whether that process runs on this host: its number alone would not do, since numbers come again."""
    number = holder.get("process", "")
    if holder.get("host") != socket.gethostname() or not number.isdecimal() or int(number) == os.getpid():
        return False
    start = _start_of(int(number))
    return start is not None and start == holder.get("clock ticks from boot to its start")


def _start_of(process: int) -> str | None:
    """When a process began, as Linux counts it; None where there is no such process."""
    return next(iter(stat_fields(process)[19:20]), None)  # starttime


def _is_at(file: IO[bytes], path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False
