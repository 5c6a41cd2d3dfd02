"""What Linux says of a process."""

from pathlib import Path

PROC = Path("/proc")


def stat_fields(process: int, proc: Path = PROC) -> list[str]:
    """Fields of /proc/PROCESS/stat from the third on (proc(5) counts from 1); none where there is no such process.

    Args:
        process: its number.
        proc: where that file system is mounted.
    """
    try:
        text = (proc / str(process) / "stat").read_text(encoding="utf-8", errors="replace")
    except OSError:  # gone, of another host, or not to be seen from a container
        return []
    return text.rpartition(")")[2].split()  # the second field is a name that may hold anything
