"""The AMP dtype by GPU, and a kernel policy that is put back."""

import pytest
import torch

from rsbdali.training.precision import amp_dtype, kernel_policy, warn_if_emulated

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


@pytest.mark.parametrize(
    ("capability", "dtype"),
    [
        ((6, 1), torch.float32),
        ((7, 0), torch.float16),
        ((7, 5), torch.float16),
        ((8, 0), torch.bfloat16),
        ((8, 9), torch.bfloat16),
        ((9, 0), torch.bfloat16),
        ((10, 0), torch.bfloat16),
    ],
)
def test_auto_picks_by_gpu(capability: tuple[int, int], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert amp_dtype("auto", GPU) is dtype


def test_cpu_and_explicit_choices() -> None:
    assert amp_dtype("auto", CPU) is torch.float32
    assert amp_dtype("bfloat16", CPU) is torch.bfloat16
    assert amp_dtype("float16", GPU) is torch.float16


@pytest.mark.parametrize(
    ("capability", "dtype", "says"),
    [
        ((7, 5), "bfloat16", "amp_dtype=bfloat16 on sm_75, which has no bfloat16 of its own: slow; auto takes float16"),
        ((6, 0), "bfloat16", "sm_60, which has no bfloat16 of its own: slow; auto takes float32"),
        ((8, 0), "bfloat16", ""),
        ((7, 0), "float16", ""),
    ],
)
def test_bfloat16_is_warned_of_below_sm_80(
    capability: tuple[int, int],
    dtype: str,
    says: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    warn_if_emulated(getattr(torch, dtype), GPU)
    warn_if_emulated(getattr(torch, dtype), CPU)
    assert len(caplog.records) == bool(says)
    assert says in caplog.text


@pytest.mark.parametrize("deterministic", [False, True])
def test_policy_is_logged_and_put_back(deterministic: bool, caplog: pytest.LogCaptureFixture) -> None:
    def now() -> tuple[object, ...]:
        return (
            torch.get_float32_matmul_precision(),
            torch.backends.cudnn.benchmark,
            torch.are_deterministic_algorithms_enabled(),
        )

    before = now()
    with caplog.at_level("INFO"), kernel_policy(CPU, deterministic=deterministic):
        assert torch.are_deterministic_algorithms_enabled() is deterministic
    assert now() == before
    on = "on" if deterministic else "off"
    assert f"Kernels: TF32 off, cudnn.benchmark off, deterministic {on}" in caplog.text
