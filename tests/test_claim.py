"""Who gets a run's folder: one process at a time, whatever became of the one before."""

import errno
import fcntl
import os
import signal
import socket
import subprocess
import sys
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from rsbdali.errors import RsbdaliError
from rsbdali.recipe import Recipe
from rsbdali.runs import claim
from rsbdali.runs.claim import LOCK, claimed
from rsbdali.runs.folder import LAST

# claims, says which folder, and holds it until its input ends
HOLD = """
import sys
from pathlib import Path
from rsbdali.errors import RsbdaliError
from rsbdali.recipe import Recipe
from rsbdali.runs.claim import claimed
output, experiment, resume = sys.argv[1:]
sys.stdin.read(1)
try:
    with claimed(Path(output), experiment or None, Recipe.load("a3"), resume=resume or None) as folder:
        (folder / "args.yaml").touch()
        print(folder.name, flush=True)
        sys.stdin.read()
except RsbdaliError as error:
    print(error, flush=True)
"""


def hold(output: Path, experiment: str = "", resume: str = "") -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", HOLD, str(output), experiment, resume]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def go(*processes: "subprocess.Popen[str]") -> list[str]:
    """What each says once all have been asked to begin."""
    for process in processes:
        assert process.stdin is not None
        process.stdin.write(".")
        process.stdin.flush()
    return [process.stdout.readline().strip() for process in processes if process.stdout]


def end(*processes: "subprocess.Popen[str]") -> None:
    for process in processes:
        process.communicate(timeout=60)


def take(output: Path, experiment: str | None = None, resume: str | None = None) -> AbstractContextManager[Path]:
    return claimed(output, experiment, Recipe.load("a3"), resume=resume)


def test_four_at_once_make_four_folders_and_a_killed_one_blocks_none(tmp_path: Path) -> None:
    runs = [hold(tmp_path / "out") for _ in range(4)]
    names = go(*runs)
    assert sorted(names) == ["a3-resnet50", "a3-resnet50-2", "a3-resnet50-3", "a3-resnet50-4"]
    last = names.index("a3-resnet50-4")
    said = (
        rf"a3-resnet50-4 is in use: process {runs[last].pid} on .* trains there since 20.*, or name another experiment"
    )
    with pytest.raises(RsbdaliError, match=said), take(tmp_path / "out", resume="auto"):
        pass
    runs[last].send_signal(signal.SIGKILL)
    end(*runs)
    assert [(tmp_path / "out" / name / LOCK).exists() for name in names] == [k == last for k in range(4)]
    with take(tmp_path / "out", resume="auto") as folder:
        assert folder.name == "a3-resnet50-4"
        assert f"process: {os.getpid()}\n" in (folder / LOCK).read_text()
    assert not (folder / LOCK).exists()


def test_a_second_run_of_the_same_name_is_refused(tmp_path: Path) -> None:
    with take(tmp_path, "mine") as folder:
        (folder / LAST).touch()
        for resume in (None, "auto", str(folder / LAST)):
            with pytest.raises(RsbdaliError, match=f"mine is in use: process {os.getpid()} on"):
                take(tmp_path, "mine", resume).__enter__()
        assert (folder / LOCK).read_text().startswith("host: ")  # who was refused has changed nothing
    with pytest.raises(RsbdaliError, match="mine holds a run already: go on with --resume "):
        take(tmp_path, "mine").__enter__()
    with take(tmp_path, "mine", "auto") as again:
        assert again == folder


def test_a_run_that_could_not_begin_leaves_no_folder(tmp_path: Path) -> None:
    with pytest.raises(RsbdaliError, match="too large"), take(tmp_path / "out"):
        raise RsbdaliError("the batch is too large")
    assert list((tmp_path / "out").iterdir()) == []
    (tmp_path / "out/mine").mkdir()
    with take(tmp_path / "out", "mine"):
        pass
    assert (tmp_path / "out/mine").exists()  # that was another run's


def test_a_lock_that_is_removed_while_it_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its holder ended between our open and our lock: what we have locked is a file that no other process will see."""
    real, calls = fcntl.flock, []

    def removed_meanwhile(file: object, operation: int) -> None:
        real(file, operation)  # type: ignore[arg-type]
        if not calls:
            (tmp_path / "mine" / LOCK).unlink()
        calls.append(operation)

    monkeypatch.setattr(fcntl, "flock", removed_meanwhile)
    with take(tmp_path, "mine"):
        assert len(calls) == 2
        with pytest.raises(RsbdaliError, match="is in use"):
            take(tmp_path, "mine").__enter__()


@pytest.fixture
def no_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(file: object, operation: int) -> None:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    monkeypatch.setattr(fcntl, "flock", refuse)


@pytest.mark.usefixtures("no_locks")
def test_without_locks_the_text_counts_while_its_process_lives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    run = hold(tmp_path, "mine")
    assert go(run) == ["mine"]
    with pytest.raises(RsbdaliError, match=f"mine is in use: process {run.pid} on"):
        take(tmp_path, "mine").__enter__()
    text = (tmp_path / "mine" / LOCK).read_text()
    with monkeypatch.context() as elsewhere:  # a process of another host, which cannot be asked
        elsewhere.setattr(claim.socket, "gethostname", lambda: "elsewhere")
        with take(tmp_path, "mine"):
            pass
    assert f"process {run.pid}" in caplog.messages[-1]
    assert "has left no word of its end" in caplog.messages[-1]
    run.kill()
    end(run)
    (tmp_path / "mine" / LOCK).write_text(text)
    with take(tmp_path, "mine", "auto"):
        assert "knows no locks (Operation not supported)" in caplog.messages[-1]


def gone() -> int:
    """Number of a process that was."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


@pytest.mark.usefixtures("no_locks")
@pytest.mark.parametrize(
    "change", ["another process took its number", "cut", "cut, of a process that is gone", "binary", "this one"]
)
def test_without_locks_a_damaged_text_blocks_no_run(tmp_path: Path, change: str) -> None:
    (tmp_path / "mine").mkdir()
    text = "".join(f"{key}: {value}\n" for key, value in claim._this_process().items())
    contents = {
        "another process took its number": text.replace(f"process: {os.getpid()}", "process: 1").encode(),
        "cut": text[:20].encode(),
        "cut, of a process that is gone": f"host: {socket.gethostname()}\nprocess: {gone()}\n".encode(),
        "binary": b"\xff\0" * 5000,
        "this one": text.encode(),
    }
    (tmp_path / "mine" / LOCK).write_bytes(contents[change])
    with take(tmp_path, "mine"):
        assert f"process: {os.getpid()}\n" in (tmp_path / "mine" / LOCK).read_text()


@pytest.mark.parametrize("name", ["a3-resnet50-²", "a3-resnet50-", "a3-resnet50x", "a3-resnet50-2a"])
def test_other_names_are_no_numbers(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    with take(tmp_path) as folder:
        assert folder.name == "a3-resnet50"
