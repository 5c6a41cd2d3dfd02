"""The doctor judges machines that are not at hand by pure functions, and this one by looking."""

import io
from pathlib import Path

import pytest
from rich.console import Console

from rsbdali.tools.doctor import checks, gpu
from rsbdali.tools.doctor.findings import Finding, Level

PLAIN = ["sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120"]


def test_this_machine_is_examined() -> None:
    findings = checks.examine()
    assert {"torch", "DALI", "decode on CPU", "CPU", "memory", "open files"} <= {f.topic for f in findings}
    assert all(f.text for f in findings)
    assert checks.can_train(findings)


def test_exit_code_and_last_line() -> None:
    good = Finding(Level.GOOD, "CPU", "4 cores [all]")
    bad = Finding(Level.FATAL, "DALI", "not installed", "pip install")
    out = io.StringIO()
    assert checks.print_findings(Console(file=out, width=100), [good]) == 0
    assert "4 cores [all]" in out.getvalue()
    assert "can train, on its CPU only" in out.getvalue()
    assert checks.print_findings(Console(file=out, width=100), [good, bad]) == 1
    assert "→ pip install" in out.getvalue()
    assert "cannot train" in out.getvalue()


@pytest.mark.parametrize("capability", [(7, 5), (8, 0), (8, 9), (9, 0), (10, 0), (12, 0)])
def test_gpus_with_code_are_fine(capability: tuple[int, int]) -> None:
    assert gpu.judge_architecture("card", "GPU 0", capability, PLAIN) is None


def test_machine_code_of_another_major_version_does_not_count() -> None:
    assert gpu.judge_architecture("card", "GPU 0", (9, 0), ["sm_80", "sm_86"]) is not None
    assert gpu.judge_architecture("card", "GPU 0", (8, 0), ["sm_86"]) is not None
    assert gpu.judge_architecture("card", "GPU 0", (9, 0), ["sm_80", "compute_80"]) is None  # compiled at load


@pytest.mark.parametrize(
    ("capability", "fix"),
    [((7, 0), "torch>=2.7.1,<2.11"), ((6, 1), "too old"), ((13, 0), "--upgrade torch")],
)
def test_gpus_without_code_get_a_remedy(capability: tuple[int, int], fix: str) -> None:
    finding = gpu.judge_architecture("Tesla V100", "GPU 0", capability, PLAIN)
    assert finding is not None
    assert finding.level is Level.FATAL
    assert fix in finding.fix


@pytest.mark.parametrize(
    ("driver", "built_for", "visible", "level", "said"),
    [
        (None, "13.0", None, Level.NOTE, "runs on the CPU"),
        ("550.1", None, None, Level.WARNING, "CPU build"),
        ("550.1", "13.0", "", Level.WARNING, "CUDA_VISIBLE_DEVICES"),
        ("550.1", "13.0", None, Level.WARNING, "too old"),
    ],
)
def test_why_there_is_no_gpu(
    driver: str | None, built_for: str | None, visible: str | None, level: Level, said: str
) -> None:
    finding = gpu.judge_no_gpu(driver, built_for, "the driver is too old" if driver else "", visible)
    assert finding.level is level
    assert said in finding.text
    assert checks.can_train([finding])  # on the CPU


def test_decode_failures_name_the_cause() -> None:
    assert gpu.judge_decode("decode on CPU", 0, "exactly\n", "").text == "exactly"
    crashed = gpu.judge_decode("decode on GPU", -11, "", "")
    assert "killed by signal 11" in crashed.text
    assert "--device cpu" in crashed.fix
    assert "last words" in gpu.judge_decode("decode on CPU", 1, "", "Traceback\nlast words\n").text


def test_limits_of_cores_and_files() -> None:
    assert checks.judge_cpu("chip", 16, 16, None).level is Level.GOOD
    assert checks.judge_cpu("chip", 16, 4, None).level is Level.NOTE
    quota = checks.judge_cpu("chip", 16, 16, 2.5)
    assert (quota.level, "--workers 2" in quota.fix) == (Level.WARNING, True)
    assert checks.judge_open_files(-1, -1).level is Level.GOOD
    assert checks.judge_open_files(1024, 2048).fix == "ulimit -n 2048"


def test_container_quota_is_read_in_both_versions(tmp_path: Path) -> None:
    assert checks.cpu_quota(tmp_path) is None
    old = tmp_path / "cpu"
    old.mkdir()
    (old / "cpu.cfs_period_us").write_text("100000")
    (old / "cpu.cfs_quota_us").write_text("-1")
    assert checks.cpu_quota(tmp_path) is None
    (old / "cpu.cfs_quota_us").write_text("150000")
    assert checks.cpu_quota(tmp_path) == 1.5
    (tmp_path / "cpu.max").write_text("400000 100000\n")
    assert checks.cpu_quota(tmp_path) == 4.0
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert checks.cpu_quota(tmp_path) is None
