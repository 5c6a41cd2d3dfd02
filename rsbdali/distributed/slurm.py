"""Slurm's variables as torchrun names them, for ranks that `srun` starts itself.

    srun --ntasks 8 rsbdali train …      one task a GPU, no torchrun between

`srun --ntasks 8 --pty bash` starts eight tasks too, of which the one with the terminal stays: a shell, whose variables
say that it is task 0 of 8. So what is run in it must not take them for its own. Its sign is that the task itself
(`SLURM_TASK_PID`) has a terminal, which tasks of other steps have not.

The first host of the step's node list is where the ranks meet; the port comes from the job's and the step's number.
Nothing is asked of `scontrol`: everything is in the environment.
"""

import os
import re
from collections.abc import Mapping

from rsbdali.distributed.processes import stat_fields
from rsbdali.errors import DeviceError

# Below Linux's range of ports that outgoing connections take (32768 and up), above most services.
FIRST_PORT, PORTS = 12_000, 20_000
NO_REAL_STEP = 0xFFFF_FFF0  # Slurm numbers its batch, extern and interactive steps from here up


def torchrun_variables(env: Mapping[str, str]) -> dict[str, str]:
    """RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR and MASTER_PORT of a task that `srun` started.

    Empty where torchrun's own are there, where no step runs (the shell of `salloc` or of a batch script), in the shell
    of `srun --pty`, and for a step of a single task. MASTER_ADDR and MASTER_PORT stay as they are where they are set.

    Raises:
        DeviceError: Slurm's variables are there in part, or cannot be read.
    """
    if "WORLD_SIZE" in env or "RANK" in env or not _step_runs(env) or _in_a_shell(env):
        return {}
    size = _number(env, "SLURM_STEP_NUM_TASKS" if "SLURM_STEP_NUM_TASKS" in env else "SLURM_NTASKS", 1)
    if size == 1:
        return {}
    return {
        "RANK": str(_number(env, "SLURM_PROCID")),
        "WORLD_SIZE": str(size),
        "LOCAL_RANK": str(_number(env, "SLURM_LOCALID")),
        "LOCAL_WORLD_SIZE": str(_tasks_here(env, size)),
        "MASTER_ADDR": env.get("MASTER_ADDR") or first_host(_nodes(env)),
        "MASTER_PORT": env.get("MASTER_PORT") or str(_port(env)),
    }


def first_host(nodes: str) -> str:
    """The first host of a node list as Slurm writes it: `node[01-04,07]` is node01, `a[1-2]b[3-4],c` is a1b3."""
    match = re.match(r"((?:\[[^\]]*\]|[^,\[])+)(?:,|$)", nodes)  # up to the first comma that is not within brackets
    host = re.sub(r"\[(\w+)[^\]]*\]", r"\1", match.group(1)) if match else ""
    if not host or set("[], ") & set(host):
        raise DeviceError(f"SLURM_JOB_NODELIST={nodes!r} cannot be read: set MASTER_ADDR to the first host's name")
    return host


def _step_runs(env: Mapping[str, str]) -> bool:
    return _number(env, "SLURM_STEP_ID", NO_REAL_STEP) < NO_REAL_STEP


def _in_a_shell(env: Mapping[str, str]) -> bool:
    """Whether this process was started from a task that is a shell at a terminal."""
    task = env.get("SLURM_TASK_PID", "")
    return task.isdecimal() and int(task) != os.getpid() and _has_terminal(int(task))


def _has_terminal(process: int) -> bool:
    return stat_fields(process)[4:5] not in ([], ["0"])  # tty_nr


def _nodes(env: Mapping[str, str]) -> str:
    nodes = env.get("SLURM_STEP_NODELIST") or env.get("SLURM_JOB_NODELIST") or env.get("SLURM_NODELIST")
    if not nodes:
        raise DeviceError("a Slurm step without SLURM_JOB_NODELIST: set MASTER_ADDR to the first host's name")
    return nodes


def _port(env: Mapping[str, str]) -> int:
    """The same on all ranks; other jobs, and other steps of this job, get another one."""
    return FIRST_PORT + (_number(env, "SLURM_JOB_ID") + 7919 * _number(env, "SLURM_STEP_ID")) % PORTS


def _tasks_here(env: Mapping[str, str], size: int) -> int:
    """Tasks on this node, of `2(x3),1`: three nodes with two tasks, then one with one."""
    text = env.get("SLURM_STEP_TASKS_PER_NODE") or env.get("SLURM_TASKS_PER_NODE") or str(size)
    counts: list[int] = []
    for count, times in re.findall(r"(\d+)(?:\(x(\d+)\))?", text):
        counts += [int(count)] * int(times or 1)
    node = _number(env, "SLURM_NODEID", 0)
    if node >= len(counts):
        raise DeviceError(f"SLURM_NODEID={node} but SLURM_STEP_TASKS_PER_NODE={text!r} in the environment")
    return counts[node]


def _number(env: Mapping[str, str], key: str, default: int | None = None) -> int:
    text = env.get(key, "" if default is None else str(default))
    if not text.isdigit():
        raise DeviceError(f"{key}={text!r} in the environment: expected a whole number (srun sets it)")
    return int(text)
