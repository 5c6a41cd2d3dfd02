"""The environment is read, a rank finds its device, and a single process needs no group."""

from collections.abc import Callable
from datetime import timedelta
from types import SimpleNamespace

import pytest
import torch

from rsbdali.distributed import affinity, collectives, devices, neighbors, process_group
from rsbdali.distributed.devices import default_threads
from rsbdali.distributed.world import World
from rsbdali.errors import DeviceError, LostRankError


def test_world_from_the_environment() -> None:
    assert World.from_env({}) == World(0, 1, 0)
    env = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "MASTER_ADDR": "a", "MASTER_PORT": "1"}
    assert World.from_env(env) == World(3, 4, 1, None)
    assert World.from_env({**env, "LOCAL_WORLD_SIZE": "2"}) == World(3, 4, 1, 2)
    with pytest.raises(DeviceError, match="RANK, MASTER_ADDR is not: start with torchrun"):
        World.from_env({"WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_PORT": "1"})
    with pytest.raises(DeviceError, match="WORLD_SIZE='two'"):
        World.from_env({"WORLD_SIZE": "two"})


def test_devices_of_a_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    second = World(1, 2, 1)
    assert devices.local_device("cuda:3", World()) == "cuda:3"
    assert devices.local_device("cpu", second) == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert devices.local_device("auto", second) == devices.local_device("cuda", second) == "cuda:1"
    with pytest.raises(DeviceError, match="each process takes its own GPU"):
        devices.local_device("cuda:0", second)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(DeviceError, match="process 1 of this node has no GPU: 1 here"):
        devices.local_device("auto", second)


def test_a_rank_is_where_its_launcher_says() -> None:
    assert World.of(0, 1, {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1"}) == World()
    assert World.of(3, 4, {}) == World(3, 4, None, None)
    assert World.of(3, 4, {"LOCAL_RANK": "1"}) == World(3, 4, 1, None)
    env = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}
    assert World.of(3, 4, env) == World(3, 4, 1, 2)
    assert World.of(2, 4, env) == World(2, 4, None, None)  # the environment is another rank's
    step = {"SLURM_STEP_ID": "0", "SLURM_NTASKS": "4", "SLURM_PROCID": "3", "SLURM_LOCALID": "1", "SLURM_NODEID": "1"}
    nodes = {"SLURM_JOB_NODELIST": "n[1-2]", "SLURM_TASKS_PER_NODE": "2(x2)", "SLURM_JOB_ID": "7"}
    assert World.of(3, 4, {**step, **nodes}) == World(3, 4, 1, 2)


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """`gpus(count, current=0)`: as if there were that many."""

    def pretend(count: int, current: int = 0) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        monkeypatch.setattr(torch.cuda, "current_device", lambda: current)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda i: SimpleNamespace(uuid=f"GPU-{i}"))

    return pretend


def test_auto_without_launcher_or_group_is_the_current_device(gpus: Callable[..., None]) -> None:
    for rank, count, current in ((0, 4, 0), (1, 4, 1), (3, 4, 3), (1, 1, 0)):
        gpus(count, current)
        assert devices.local_device("auto", World.of(rank, 4, {})) == f"cuda:{current}"
    gpus(4)
    with pytest.raises(DeviceError, match=r"on rank 1 is cuda:0, which rank 0 may have too.* torch.cuda.set_device"):
        devices.local_device("auto", World.of(1, 4, {}))
    gpus(0)
    assert devices.local_device("auto", World.of(1, 4, {})) == "auto"  # the CPU


def test_auto_in_a_group_without_launcher(gpus: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    store, here, world = torch.distributed.HashStore(), affinity.machine(), World.of(1, 3, {})
    monkeypatch.setattr(neighbors, "_store", lambda world: store)
    # what the two others left: rank 0 is here, rank 2 on another machine
    for rank, machine in ((0, here), (2, "elsewhere")):
        store.set(f"rsbdali/gpu/{rank}", f"{machine} GPU-0")
        store.set(f"rsbdali/machine/{rank}", machine)
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(10)))
    assert default_threads(world) == 5
    gpus(2, current=1)
    assert devices.local_device("auto", world) == "cuda:1"
    gpus(2, current=0)
    with pytest.raises(DeviceError, match=r"on rank 1 is cuda:0, which rank 0 has too.* device='cuda:N'"):
        devices.local_device("auto", world)
    assert devices.find_device("cpu", world) == torch.device("cpu")
    monkeypatch.setattr(neighbors, "joined", lambda world: True)
    store.set("rsbdali/gpu/0", f"{here} GPU-of-0")
    gpus(1)
    assert devices.local_device("auto", World(1, 3, 1, 2)) == "cuda:0"  # each sees its own alone
    store.delete_key("rsbdali/machine/2")
    with pytest.raises(DeviceError, match=r"not all 3 ranks made a loader within 0.01 s"):
        neighbors.notes("machine", here, world, timedelta(milliseconds=10))


def test_threads_without_launcher_or_group(gpus: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(16)))
    for count, threads in ((0, 2), (2, 8), (16, 2)):
        gpus(count)
        assert default_threads(World.of(3, 8, {})) == threads


def test_a_single_process_needs_no_group() -> None:
    world = World()
    with process_group.process_group(world, torch.device("cpu")):
        assert not torch.distributed.is_initialized()
        assert World.current() == world
        assert collectives.all_reduce_sum(torch.ones(2), world).tolist() == [1, 1]
        assert collectives.broadcast_object("text", world) == "text"
        assert collectives.from_all("text", world) == ["text"]
        assert collectives.rank_zero_first(lambda first: first, world) is True
        with pytest.raises(DeviceError, match="mine"):
            collectives.on_all_ranks(_fail, world)


def test_ranks_with_gpus_wait_for_each_other_by_gloo(monkeypatch: pytest.MonkeyPatch) -> None:
    """NCCL for steps, with their timeout; beside it gloo for what may take long: indexing, downloads, saves."""
    made: list[tuple[object, ...]] = []
    used: list[object] = []
    dist, minutes = torch.distributed, timedelta(minutes=1)
    monkeypatch.setattr(torch.cuda, "set_device", lambda _: None)
    monkeypatch.setattr(dist, "init_process_group", lambda backend, **k: made.append((backend, k["timeout"] / minutes)))
    monkeypatch.setattr(
        dist, "new_group", lambda timeout, backend: made.append((backend, timeout / minutes)) or "gloo's"
    )
    monkeypatch.setattr(dist, "destroy_process_group", lambda: None)
    monkeypatch.setattr(dist, "barrier", lambda group: used.append(group))
    monkeypatch.setattr(dist, "broadcast_object_list", lambda box, src, group: used.append(group))
    monkeypatch.setattr(dist, "all_gather_object", lambda box, value, group: used.append(group))
    monkeypatch.setattr(dist, "all_reduce", lambda tensor: used.append("default"))
    world = World(0, 2, 0)
    with process_group.process_group(world, torch.device("cuda", 0), timedelta(minutes=2)):
        collectives.barrier(world)
        collectives.broadcast_object(1, world)
        collectives.from_all(1, world)
        collectives.all_reduce_sum(torch.ones(1), world)
    assert made == [("nccl", 2), ("gloo", 30)]
    assert used == ["gloo's"] * 3 + ["default"]


def _fail() -> None:
    raise DeviceError("mine")


def test_only_errors_about_ranks_become_lost_ranks() -> None:
    gloo = "[/src/gloo/transport/tcp/pair.cc:561] Connection closed by peer [10.0.0.1]:6. This is typically. Check."
    with (
        pytest.raises(
            LostRankError, match=r"^rank 1 of 2: another process .* \(Connection closed by peer \[10.0.0.1\]:6\)$"
        ),
        process_group._lost_ranks_named(World(1, 2, 1)),
    ):
        raise RuntimeError(gloo)
    with pytest.raises(LostRankError), process_group._lost_ranks_named(World(1, 2, 1)):
        raise torch.distributed.DistBackendError("NCCL error")
    with pytest.raises(RuntimeError, match="shapes"), process_group._lost_ranks_named(World(1, 2, 1)):
        raise RuntimeError("shapes do not fit")


def test_threads_are_shared_by_the_ranks_of_a_node(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(10)))
    assert default_threads() == 10
    env = {"RANK": "0", "WORLD_SIZE": "8", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "4", "MASTER_ADDR": "a"}
    for key, value in {**env, "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(key, value)
    assert default_threads() == 2
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "16")
    assert default_threads() == 1
