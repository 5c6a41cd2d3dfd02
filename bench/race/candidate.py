"""One candidate in its own process: its CPU time and memory are its own, and a crash of it ends nothing else.

The process reads a `FeedSpec` and then requests, one JSON line each, from its standard input, and answers each by one
JSON line. Between its rounds it is paused: the whole process group is stopped, so that no prefetching of its own runs
while another is measured. It does not outlive the bench, however that ends.
"""

import contextlib
import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from typing import Any, TextIO

import torch

from rsbdali.bench.measure import meter
from rsbdali.bench.measure.gpu_time import gpu_us_per_image
from rsbdali.bench.measure.timing import finisher
from rsbdali.bench.race.feeds import Feed, FeedSpec, RsbdaliFeed, check_batch
from rsbdali.bench.race.out_of_memory import OUT_OF_MEMORY, out_of_memory
from rsbdali.errors import RsbdaliError

CLOSE_S = 20.0
# First the kernel is asked to end it with its parent (PR_SET_PDEATHSIG, SIGKILL): a bench that is killed cannot clean
# up, and a candidate that it left would hold GPU memory.
PROGRAM = (
    "import ctypes; ctypes.CDLL(None).prctl(1, 9); "
    "from rsbdali.bench.race.candidate import serve_standard_streams as serve; serve()"
)


class CandidateFailed(RsbdaliError):
    """A candidate's process ended or refused; the message is its name and its last line.

    Attributes:
        reason: the last line alone.
    """

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"{name}: {reason}")
        self.reason = reason


class Candidate:
    """The side of the bench: starts a candidate's process and sends it requests.

    Args:
        spec: what it is to do. It starts on it at once; `ready` waits until it can be measured.

    Attributes:
        note: from `ready` on: what a reader of its figures should know; may be empty.
    """

    def __init__(self, spec: FeedSpec) -> None:
        self.name = spec.kind
        self._stderr = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115 - closed by close
        self._process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            text=True,
            process_group=0,
        )
        self.note = ""
        self._send(dataclasses.asdict(spec))

    def ready(self) -> None:
        """Wait until its first batch was made and checked; then it is frozen.

        Raises:
            CandidateFailed: it could not start, or its first batch is no normalized batch.
        """
        self.note = self._answer()["note"]

    def switch(self, spec: FeedSpec) -> None:
        """Close the feed and build another one in the same process, which costs less than a new process does."""
        self._ask({"do": "switch", "spec": dataclasses.asdict(spec)})

    def round(self, seconds: float, warm_up: int | None = None) -> meter.Round:
        """Thaw, take `warm_up` batches (None: enough for any feed), measure for `seconds`, freeze."""
        answer = self._ask({"do": "round", "seconds": seconds, "warm_up": warm_up})
        return meter.Round(**answer | {"wait_s": tuple(answer["wait_s"])})

    def gpu_us_per_image(self) -> float:
        """Microseconds an image that kernels and copies of this process keep the GPU busy."""
        return float(self._ask({"do": "gpu"})["gpu_us_per_image"])

    def close(self) -> None:
        """End the process and all of its children."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._signal(signal.SIGCONT)
        with contextlib.suppress(BrokenPipeError):  # a request that a dead process never read
            self._process.stdin.close()
        try:
            self._process.wait(CLOSE_S)
        except subprocess.TimeoutExpired:
            self._signal(signal.SIGKILL)
            self._process.wait()
        self._process.stdout.close()
        self._stderr.close()

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        self._signal(signal.SIGCONT)
        self._send(request)
        return self._answer()

    def _send(self, request: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it has ended, and gives no answer
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise CandidateFailed(self.name, self._last_words())
        self._signal(signal.SIGSTOP)
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _last_words(self) -> str:
        code = self._process.wait()
        self._stderr.seek(0)
        said = self._stderr.read()
        if out_of_memory(said):
            return OUT_OF_MEMORY
        lines = [line.strip() for line in said.splitlines() if line.strip()]
        if not lines:
            return f"ended with status {code} and said nothing"
        return re.sub(r"^rsbdali\.errors\.\w+: ", "", lines[-1])  # one of our own errors is its message alone

    def _signal(self, number: signal.Signals) -> None:
        if self._process.poll() is None:
            os.killpg(self._process.pid, number)


def build(spec: FeedSpec) -> Feed:
    """The feed of a spec."""
    if spec.kind == "rsbdali" or spec.kind.startswith("rsbdali-"):
        return RsbdaliFeed(spec)
    # imported here: each brings its own libraries, and a candidate's process loads only what it needs
    if spec.kind.startswith("stage:"):
        from rsbdali.bench.race.stages import build_stage

        return build_stage(spec)
    from rsbdali.bench.race.peers import build_peer

    return build_peer(spec)


def serve(requests: TextIO, answers: TextIO) -> None:
    """The side of the candidate: build the feed, then answer requests until the other side hangs up."""

    def answer(values: dict[str, Any]) -> None:
        answers.write(json.dumps(values) + "\n")
        answers.flush()

    spec = FeedSpec(**json.loads(requests.readline()))
    feed = open_feed(spec)
    if not spec.kind.startswith("stage:"):  # the first stages have no batch to show
        check_batch(feed.deliver(), spec)
    answer({"note": feed.note})
    for line in requests:
        request = json.loads(line)
        if request["do"] == "round":
            answer(dataclasses.asdict(_round(feed, spec, request["seconds"], request["warm_up"])))
        elif request["do"] == "switch":
            feed.close()
            spec = FeedSpec(**request["spec"])
            feed = open_feed(spec)
            answer({})
        else:
            answer({"gpu_us_per_image": gpu_us_per_image(feed.deliver, feed.ready)})
    feed.close()


def open_feed(spec: FeedSpec) -> Feed:
    """The feed of a spec, and torch with as many threads as it has."""
    torch.set_num_threads(spec.workers)
    return build(spec)


def _round(feed: Feed, spec: FeedSpec, seconds: float, warm_up: int | None = None) -> meter.Round:
    def deliver() -> int:
        return len(feed.deliver())

    finish = finisher(torch.device(spec.device))
    return meter.measure(deliver, seconds=seconds, warm_up=warm_up or feed.ready + 1, finish=finish)


def serve_standard_streams() -> None:
    """`serve` as a program."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # a library that prints must not break the protocol
    serve(sys.stdin, answers)
