"""`--nproc` and torchrun, Slurm's variables, and who gets which cores."""

import contextlib
import json
import logging
import os
import pty
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from torch.distributed import HashStore, TCPStore

from rsbdali.distributed import affinity, launch, rendezvous, slurm
from rsbdali.distributed.affinity import RankCores, share
from rsbdali.distributed.world import World
from rsbdali.errors import DeviceError

TASK = {
    "SLURM_JOB_ID": "4711",
    "SLURM_STEP_ID": "0",
    "SLURM_NTASKS": "7",
    "SLURM_STEP_NUM_TASKS": "7",
    "SLURM_PROCID": "6",
    "SLURM_LOCALID": "0",
    "SLURM_NODEID": "3",
    "SLURM_STEP_TASKS_PER_NODE": "2(x3),1",
    "SLURM_JOB_NODELIST": "node[01-04]",
}
TORCHRUN = {
    "RANK": "6",
    "WORLD_SIZE": "7",
    "LOCAL_RANK": "0",
    "LOCAL_WORLD_SIZE": "1",
    "MASTER_ADDR": "node01",
    "MASTER_PORT": str(12_000 + 4711),
}


@pytest.fixture(autouse=True)
def quiet_again() -> Iterator[None]:
    """What `launch` sets in this process is put back."""
    log = logging.getLogger("torch.distributed.elastic")
    level, threads = log.level, os.environ.get("OMP_NUM_THREADS")
    yield
    log.setLevel(level)
    os.environ.pop("OMP_NUM_THREADS", None)
    if threads is not None:
        os.environ["OMP_NUM_THREADS"] = threads


def test_slurm_speaks_torchruns_words() -> None:
    assert slurm.torchrun_variables(TASK) == TORCHRUN
    world = World.from_env(TASK)
    assert world == World(6, 7, 0, 1, f"tcp://node01:{12_000 + 4711}")
    first = {**TASK, "SLURM_PROCID": "1", "SLURM_LOCALID": "1", "SLURM_NODEID": "0"}
    assert slurm.torchrun_variables(first)["LOCAL_WORLD_SIZE"] == "2"
    assert slurm.torchrun_variables({**TASK, "MASTER_ADDR": "a", "MASTER_PORT": "1"})["MASTER_ADDR"] == "a"
    assert slurm.torchrun_variables({**TASK, "SLURM_STEP_ID": "1"})["MASTER_PORT"] != TORCHRUN["MASTER_PORT"]


@pytest.mark.parametrize(
    "env",
    [
        {},
        {**TASK, "RANK": "0", "WORLD_SIZE": "2"},  # torchrun, started by srun
        {key: value for key, value in TASK.items() if "STEP" not in key},  # the shell of salloc, a batch script
        {**TASK, "SLURM_STEP_ID": str(0xFFFF_FFFB)},  # the batch script's own step
        {**TASK, "SLURM_STEP_NUM_TASKS": "1"},
    ],
)
def test_slurm_is_silent_where_no_tasks_run(env: dict[str, str]) -> None:
    assert slurm.torchrun_variables(env) == {}


SHELL = """
import json, os, sys
from rsbdali.distributed import slurm
env = {**json.loads(sys.argv[1]), "SLURM_TASK_PID": str(os.getpid())}
print(bool(slurm.torchrun_variables(env)), flush=True)  # rsbdali as the task itself
child = os.fork()
if not child:
    os.setsid()  # as a notebook's kernel: no terminal of its own
    print(bool(slurm.torchrun_variables(env)), flush=True)
else:
    os.waitpid(child, 0)
"""


@pytest.mark.parametrize("terminal", [False, True])
def test_slurm_is_silent_in_a_shell_at_a_terminal(terminal: bool) -> None:
    command = [sys.executable, "-c", SHELL, json.dumps(TASK)]
    if not terminal:  # a script that srun started, as it has no terminal
        done = subprocess.run(command, capture_output=True, text=True, check=True, start_new_session=True)
        assert done.stdout.split() == ["True", "True"]
        return
    child, master = pty.fork()
    if not child:
        os.execv(sys.executable, command)
    said = b""
    with contextlib.suppress(OSError):  # Linux's way to say that nobody has the other end any more
        while more := os.read(master, 1000):
            said += more
    os.close(master)
    os.waitpid(child, 0)
    assert said.split() == [b"True", b"False"]


def test_slurms_mistakes_are_named() -> None:
    with pytest.raises(DeviceError, match="SLURM_PROCID=''"):
        slurm.torchrun_variables({k: v for k, v in TASK.items() if k != "SLURM_PROCID"})
    with pytest.raises(DeviceError, match="set MASTER_ADDR"):
        slurm.torchrun_variables({k: v for k, v in TASK.items() if k != "SLURM_JOB_NODELIST"})
    with pytest.raises(DeviceError, match="SLURM_NODEID=9"):
        slurm.torchrun_variables({**TASK, "SLURM_NODEID": "9"})


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("alone", "alone"),
        ("node[01-04,07]", "node01"),
        ("node[7,9-12],other3", "node7"),
        ("gpu-a1,gpu-a2", "gpu-a1"),
        ("rack[1-2]node[03-10]", "rack1node03"),
        ("n[003].cluster.example", "n003.cluster.example"),
    ],
)
def test_first_host(nodes: str, first: str) -> None:
    assert slurm.first_host(nodes) == first


@pytest.mark.parametrize("nodes", ["node[", ",b", "node[]x"])
def test_a_node_list_that_cannot_be_read(nodes: str) -> None:
    with pytest.raises(DeviceError, match="cannot be read"):
        slurm.first_host(nodes)


def rank_cores(cores: str, near: str = "", machine: str = "a") -> RankCores:
    numbers = tuple(sorted(affinity.parse_list(cores)))
    return RankCores(machine, numbers, tuple(sorted(affinity.parse_list(near))) or numbers)


@pytest.mark.parametrize(
    ("places", "shares"),
    [
        ([rank_cores("0-7")] * 4, ["0-1", "2-3", "4-5", "6-7"]),
        ([rank_cores("0-5")] * 4, ["0", "1-2", "3", "4-5"]),  # none is left over
        ([rank_cores("0-1")] * 4, ["0", "1", "0", "1"]),  # fewer cores than ranks
        ([rank_cores("0-3"), rank_cores("0-3"), rank_cores("0-3", machine="b")], ["0-1", "2-3", "0-3"]),
        ([rank_cores("0-3"), rank_cores("4-7")], ["0-3", "4-7"]),  # bound by the launcher
        ([rank_cores("2-3"), rank_cores("2-3")], ["2", "3"]),  # a cpuset
        # near the GPU, since together they use every core
        ([rank_cores("0-7", "4-7"), rank_cores("0-7", "0-3"), rank_cores("0-7", "4-7")], ["4-5", "0-3", "6-7"]),
        # both GPUs on one NUMA node: its cores alone would leave half of the machine idle
        ([rank_cores("0-7", "0-3"), rank_cores("0-7", "0-3")], ["0-3", "4-7"]),
    ],
)
def test_shares_of_the_cores(places: list[RankCores], shares: list[str]) -> None:
    assert [set(share(places, rank)) for rank in range(len(places))] == [affinity.parse_list(text) for text in shares]


def test_threads_of_a_core_stay_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(affinity, "SYS", tmp_path)
    for cpu in range(4):
        file = tmp_path / f"devices/system/cpu/cpu{cpu}/topology/thread_siblings_list"
        file.parent.mkdir(parents=True)
        file.write_text(f"{cpu % 2},{cpu % 2 + 2}\n")
    assert affinity.by_core({0, 1, 2, 3}) == [0, 2, 1, 3]
    near = tmp_path / "bus/pci/devices/0000:3b:00.0/local_cpulist"
    near.parent.mkdir(parents=True)
    near.write_text("0-1,3\n")
    assert affinity.cores_near("0000:3b:00.0") == {0, 1, 3}
    assert affinity.cores_near("0000:00:00.0") == affinity.cores_near("") == set()


def test_a_single_process_is_left_alone() -> None:
    before = os.sched_getaffinity(0)
    with affinity.pinned(World(), torch.device("cpu")) as threads:
        assert threads is None
        assert os.sched_getaffinity(0) == before


def test_ranks_get_the_arguments_without_nproc() -> None:
    arguments = ["train", "--nproc", "4", "--recipe", "a3", "--set", "epochs=1"]
    assert launch.without_nproc(arguments) == ["train", "--recipe", "a3", "--set", "epochs=1"]
    assert launch.without_nproc(["train", "--nproc=4", "--demo"]) == ["train", "--demo"]


def test_ranks_start_no_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(DeviceError, match="--nproc 4: 2 GPUs are here"):
        launch.launch(4, [], "auto")
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(DeviceError, match="leave --nproc out"):
        launch.launch(2, [], "cpu")


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("import os, sys; sys.exit(0 if os.environ['WORLD_SIZE'] == '2' else 9)", 0),
        ("import os, sys; sys.exit(0 if os.environ['RSBDALI_LAUNCHER'] == str(os.getppid()) else 9)", 0),
        ("import os, sys; sys.exit(3 if os.environ['RANK'] == '1' else 0)", 3),
        ("import os; os.kill(os.getpid(), 9)", 137),
    ],
)
def test_the_exit_code_is_that_of_the_first_to_fail(
    code: str, expected: int, capfd: pytest.CaptureFixture[str]
) -> None:
    assert launch.run(launch.launch_config(2), ["-c", code], debug=False) == expected
    assert capfd.readouterr().err == ""


def test_a_signal_to_the_launcher_reaches_the_ranks(capfd: pytest.CaptureFixture[str]) -> None:
    rank = "import signal, os; os.kill(os.getppid(), signal.SIGUSR1); print(signal.sigwait([signal.SIGUSR1]).name)"
    block = "import signal; signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1]);"
    code = launch.run(launch.launch_config(1), ["-u", "-c", block + rank], debug=False)
    assert code == 143  # as a rank that SIGUSR1 stopped
    assert capfd.readouterr().out == "SIGUSR1\n"


STARTER = """
import os, signal, subprocess, sys
env = {**os.environ, "RSBDALI_LAUNCHER": str(os.getpid())}
subprocess.Popen([sys.executable, "-c", sys.argv[1]], env=env)
signal.pause()
"""
RANK = """
import os, signal
from rsbdali.distributed.launch import end_with_launcher
end_with_launcher()
print(os.getpid(), os.environ.get("RSBDALI_LAUNCHER"), flush=True)
signal.pause()
"""


def test_a_rank_ends_with_its_launcher() -> None:
    launcher = subprocess.Popen([sys.executable, "-c", STARTER, RANK], stdout=subprocess.PIPE, text=True)
    assert launcher.stdout is not None
    rank, variable = launcher.stdout.readline().split()
    assert variable == "None"  # what the rank starts is no rank
    launcher.kill()
    try:
        assert launcher.communicate(timeout=60)[0] == ""  # the pipe is closed: the rank, which has it too, is gone
    except subprocess.TimeoutExpired:
        os.kill(int(rank), signal.SIGKILL)
        raise


def test_the_command_line_looks_for_its_launcher() -> None:
    env = {**os.environ, "RSBDALI_LAUNCHER": "1"}  # that went before, so that this process is a child of another one
    command = [sys.executable, "-m", "rsbdali", "recipe", "list"]
    assert subprocess.run(command, env=env, capture_output=True, check=False).returncode == -signal.SIGKILL


def test_each_start_has_keys_of_its_own() -> None:
    store = HashStore()
    store.set("hello/1", "somebody who is gone")
    for start in (1, 2):
        found: dict[int, object] = {}

        def join(rank: int, found: dict[int, object] = found) -> None:
            found[rank] = rendezvous.of_this_start(store, rank, 3, timedelta(seconds=20))

        threads = [threading.Thread(target=join, args=(rank,)) for rank in (2, 1, 0)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        views = [found[rank] for rank in range(3)]
        assert not views[0].check(["who"])  # nothing of the start before
        views[1].set("who", str(start))
        assert [view.get("who") for view in views] == [str(start).encode()] * 3


def test_a_start_without_all_ranks_says_who_is_missing() -> None:
    with pytest.raises(torch.distributed.DistNetworkError, match=r"ranks \[1, 2\] did not come"):
        rendezvous.of_this_start(HashStore(), 0, 3, timedelta(0))


def test_only_torchruns_own_store_outlives_a_start() -> None:
    assert rendezvous.agent_store({"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}, timedelta(seconds=1)) is None
    server = TCPStore("127.0.0.1", 0, is_master=True)
    env = {"TORCHELASTIC_USE_AGENT_STORE": "True", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(server.port)}
    store = rendezvous.agent_store(env, timedelta(seconds=10))
    assert store is not None
    store.set("key", "value")
    assert server.get("key") == b"value"


def test_nproc_trains(image_tree: Callable[..., Path], tmp_path: Path) -> None:
    image_tree(classes=2, per_class=2, split="val")
    data = image_tree(classes=2, per_class=4).parent
    settings = ["model=test_resnet", "img_size=32", "test_img_size=32", "epochs=1", "global_batch_size=8"]
    sets = [word for pair in [*settings, "mix_groups=2", "warmup_epochs=0"] for word in ("--set", pair)]
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "rsbdali",
            "train",
            "--nproc",
            "2",
            "--data",
            str(data),
            "--device",
            "cpu",
            "--output",
            str(tmp_path / "out"),
            "--experiment",
            "run",
            *sets,
        ],
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count(", 2 processes") == 1  # rank 0 alone prints
    assert done.stdout.splitlines()[-1] == f"checkpoint {tmp_path / 'out/run/model_best.pth.tar'}"
    assert done.stdout.count("\ncheckpoint ") == 1
