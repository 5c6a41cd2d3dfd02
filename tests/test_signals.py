"""The first stop signal is a request, its echo the same, the second one ends the process."""

import os
import signal
import subprocess
import sys
import threading

import pytest
import torch

from helpers.fake_cuda import FakeCuda
from rsbdali.distributed.deferred_all_reduce import DeferredAllReduce
from rsbdali.distributed.launch import exit_code
from rsbdali.distributed.world import World
from rsbdali.training.signals import STOP_SIGNALS, StopRequest, from_row

STUBBORN = """
import os, signal, sys
from rsbdali.training import signals
signals.REPEAT_S = {repeat}
with signals.StopRequest() as stop:
    os.kill(os.getpid(), signal.{first})
    print(stop.signal.name, flush=True)
    os.kill(os.getpid(), signal.{second})
    if not {repeat}:
        os.read(os.pipe()[0], 1)  # a call that returns to Python never
    print("still here", stop.signal.name)
"""


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_a_signal_is_noted_and_handlers_are_put_back(number: signal.Signals) -> None:
    before = [signal.getsignal(s) for s in STOP_SIGNALS]
    with StopRequest() as stop:
        assert from_row(stop.as_row()) is None
        os.kill(os.getpid(), number)
        assert stop.signal is number
        assert from_row(stop.as_row()) is number
    assert [signal.getsignal(s) for s in STOP_SIGNALS] == before


def stubborn(first: str, second: str, repeat: float) -> tuple[str, int]:
    code = STUBBORN.format(first=first, second=second, repeat=repeat)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert not done.stderr
    return done.stdout, done.returncode


@pytest.mark.parametrize(
    ("first", "second", "code"), [("SIGTERM", "SIGTERM", 143), ("SIGINT", "SIGTERM", 143), ("SIGUSR1", "SIGINT", 130)]
)
def test_a_second_one_ends_the_process_though_it_hangs(first: str, second: str, code: int) -> None:
    assert stubborn(first, second, 0) == (f"{first}\n", code)


def test_what_a_launcher_passes_on_is_no_second_request() -> None:
    assert stubborn("SIGINT", "SIGTERM", 3600) == ("SIGINT\nstill here SIGINT\n", 0)


def test_exit_codes() -> None:
    assert [exit_code(number) for number in STOP_SIGNALS] == [130, 143, 143]
    assert exit_code(signal.SIGHUP) == 129  # of the launcher, which hands it on to ranks that do not catch it


def test_another_thread_catches_none() -> None:
    seen = []

    def work() -> None:
        with StopRequest() as stop:
            seen.append(stop.signal)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [None]


def test_late_numbers_come_one_call_late() -> None:
    late = DeferredAllReduce(torch.device("cpu"), World())
    value_K = torch.tensor([1.0, 2.0])
    assert late.submit(value_K) is None
    value_K += 5  # what was pushed is not touched by what comes after
    assert late.submit(value_K) == [1.0, 2.0]
    assert late.result() == [6.0, 7.0]
    assert late.result() is None


def test_late_numbers_of_a_gpu_wait_without_spinning(monkeypatch: pytest.MonkeyPatch) -> None:
    """One wait a push, for the push before, by an event that lets the core sleep."""
    cuda = FakeCuda(monkeypatch)
    made, make, empty = [], torch.cuda.Event, torch.empty
    monkeypatch.setattr(torch.cuda, "Event", lambda **more: made.append(more) or make(**more))
    monkeypatch.setattr(torch, "empty", lambda *shape, pin_memory, **more: empty(*shape, **more))
    late = DeferredAllReduce(torch.device("cuda", 0), World())
    assert late.submit(torch.ones(2)) is None
    assert late.submit(torch.full((2,), 3.0)) == [1.0, 1.0]
    assert cuda.diary == [("record", "model", 1), ("wait for host", "", 1), ("record", "model", 2)]
    assert made == [{"blocking": True}] * 2


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_late_numbers_of_a_gpu() -> None:
    device = torch.device("cuda", 0)
    late = DeferredAllReduce(device, World())
    assert late.submit(torch.ones(2, device=device)) is None
    assert late.submit(torch.full((2,), 3.0, device=device)) == [1.0, 1.0]
    assert late.result() == [3.0, 3.0]
