"""Two gloo processes train as one does; signals reach a run that has several; the environment is read."""

import importlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from rsbdali import distributed
from rsbdali.distributed import World
from rsbdali.errors import DeviceError

SCRIPT = Path(__file__).with_name("run_toy.py")


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port: int = server.getsockname()[1]
        return port


@pytest.fixture
def start() -> Iterator[Callable[..., list[subprocess.Popen[str]]]]:
    """As `launch`; what still runs when the test is over is ended."""
    processes: list[subprocess.Popen[str]] = []

    def launch_more(*arguments: object, **options: int) -> list[subprocess.Popen[str]]:
        started = launch(*arguments, **options)  # type: ignore[arg-type]
        processes.extend(started)
        return started

    yield launch_more
    for process in processes:
        process.kill()
        process.communicate()


def launch(folder: Path, steps: int, *pairs: str, world_size: int = 1) -> list[subprocess.Popen[str]]:
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(world_size)}
    return [
        subprocess.Popen(
            [sys.executable, str(SCRIPT), str(folder), str(steps), *pairs],
            env={**os.environ, **common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for rank in range(world_size)
    ]  # fmt: skip


def finish(processes: list[subprocess.Popen[str]]) -> list[str]:
    outputs = [process.communicate(timeout=120)[0] for process in processes]
    for process, output in zip(processes, outputs, strict=True):
        assert process.returncode == 0, output
    return outputs


def test_two_processes_train_as_one_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, start: Callable[..., list[subprocess.Popen[str]]]
) -> None:
    pairs = ("epochs=1", "opt=sgd", "lr=0.1", "mix_groups=4", "clip_grad=1.0", "dist_bn=reduce")
    one, two = tmp_path / "one", tmp_path / "two"
    processes = start(two, 2, *pairs, world_size=2)
    monkeypatch.syspath_prepend(SCRIPT.parent)
    assert importlib.import_module("run_toy").main(one, 2, *pairs) == 0
    outputs = finish(processes)
    assert "epoch 1/1" in outputs[0]  # rank 0 talks
    assert outputs[1] == ""  # rank 1 does not
    alone, shared = (torch.load(folder / "state.pt", weights_only=True) for folder in (one, two))
    for name, value in alone["state_dict"].items():
        if "running" in name or "num_batches" in name:
            continue  # each rank sees half of the groups: running statistics are averaged, not equal
        # gradients are summed in another order
        torch.testing.assert_close(shared["state_dict"][name], value, rtol=1e-4, atol=1e-6, msg=name)
    assert alone["last"]["n"] == shared["last"]["n"] == 40
    assert (two / "model_best.pth.tar").exists()


def test_a_signal_to_one_rank_stops_all_at_the_same_step(
    tmp_path: Path, start: Callable[..., list[subprocess.Popen[str]]]
) -> None:
    processes = start(tmp_path, 100_000, "epochs=1", world_size=2)
    metrics = tmp_path / "metrics.jsonl"
    deadline = time.monotonic() + 60
    while not (metrics.exists() and metrics.stat().st_size):
        assert time.monotonic() < deadline
        assert processes[0].poll() is None, processes[0].communicate()[0]
        os.sched_yield()
    processes[1].send_signal(signal.SIGUSR1)
    outputs = [process.communicate(timeout=60)[0] for process in processes]
    assert [process.returncode for process in processes] == [138, 138], outputs
    position = torch.load(tmp_path / "last.pth.tar", weights_only=True)["rsbdali"]["position"]
    assert position["epoch"] == 0
    assert position["step"] > 0


def test_world_from_the_environment() -> None:
    assert World.from_env({}) == World(0, 1, 0)
    env = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "MASTER_ADDR": "a", "MASTER_PORT": "1"}
    assert World.from_env(env) == World(3, 4, 1)
    with pytest.raises(DeviceError, match="RANK, MASTER_ADDR is not: start with torchrun"):
        World.from_env({"WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_PORT": "1"})
    with pytest.raises(DeviceError, match="WORLD_SIZE='two'"):
        World.from_env({"WORLD_SIZE": "two"})


def test_devices_of_a_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    second = World(1, 2, 1)
    assert distributed.local_device("cuda:3", World()) == "cuda:3"
    assert distributed.local_device("cpu", second) == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert distributed.local_device("auto", second) == distributed.local_device("cuda", second) == "cuda:1"
    with pytest.raises(DeviceError, match="each process takes its own GPU"):
        distributed.local_device("cuda:0", second)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(DeviceError, match="process 1 of this node has no GPU: 1 here"):
        distributed.local_device("auto", second)


def test_a_single_process_needs_no_group() -> None:
    world = World()
    with distributed.process_group(world, torch.device("cpu")):
        assert not torch.distributed.is_initialized()
        assert distributed.sum_(torch.ones(2), world).tolist() == [1, 1]
        assert distributed.from_primary("text", world) == "text"
        assert distributed.primary_first(lambda first: first, world) is True
