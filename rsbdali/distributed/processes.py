"""What Linux says of a process, of the cores, and of the container's share of them."""

import os
from collections.abc import Set
from pathlib import Path

PROC = Path("/proc")
_TICK_S = 1.0 / os.sysconf("SC_CLK_TCK")
_IDLE = (3, 4)  # idle and iowait among the fields of a core in /proc/stat


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


def busy_s(cores: Set[int], proc: Path = PROC) -> float:
    """CPU seconds since the start of the machine that some cores were not idle, whoever used them."""
    ticks = 0
    for line in (proc / "stat").read_text().splitlines():
        name, *fields = line.split()
        if name.startswith("cpu") and name[3:].isdigit() and int(name[3:]) in cores:
            # of user nice system idle iowait irq softirq steal; the guests' are in user and nice already
            ticks += sum(int(field) for i, field in enumerate(fields[:8]) if i not in _IDLE)
    return ticks * _TICK_S


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
