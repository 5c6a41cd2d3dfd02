"""The first stop signal is a request, the second ends the process."""

import os
import signal
import subprocess
import sys
import threading

import pytest
import torch

from rsbdali.distributed import World
from rsbdali.late import LateSum
from rsbdali.signals import STOP_SIGNALS, StopRequest, from_row

STUBBORN = """
import os, signal, sys
from rsbdali.signals import StopRequest
with StopRequest() as stop:
    os.kill(os.getpid(), signal.{first})
    print(stop.signal.name, flush=True)
    os.kill(os.getpid(), signal.{second})
    print("still here")
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


@pytest.mark.parametrize(("first", "second"), [("SIGTERM", "SIGTERM"), ("SIGINT", "SIGTERM"), ("SIGUSR1", "SIGINT")])
def test_a_second_one_ends_the_process(first: str, second: str) -> None:
    code = STUBBORN.format(first=first, second=second)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout.split() == [first]
    assert done.returncode == -getattr(signal, second)


def test_another_thread_catches_none() -> None:
    seen = []

    def work() -> None:
        with StopRequest() as stop:
            seen.append(stop.signal)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [None]


def test_late_numbers_come_one_push_late() -> None:
    late = LateSum(torch.device("cpu"), World())
    value_K = torch.tensor([1.0, 2.0])
    assert late.push(value_K) is None
    value_K += 5  # what was pushed is not touched by what comes after
    assert late.push(value_K) == [1.0, 2.0]
    assert late.flush() == [6.0, 7.0]
    assert late.flush() is None


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_late_numbers_of_a_gpu() -> None:
    device = torch.device("cuda", 0)
    late = LateSum(device, World())
    assert late.push(torch.ones(2, device=device)) is None
    assert late.push(torch.full((2,), 3.0, device=device)) == [1.0, 1.0]
    assert late.flush() == [3.0, 3.0]
