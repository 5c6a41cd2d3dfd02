"""The host's side of LAMB's kernels: tables of addresses, made again only when an address changed, and the launches.

The host neither reads the device nor waits for it. In a CUDA graph addresses stay the same: call `prepare` before the
capture, and `set_rates` before each replay.

Legend: T tensors, C chunks, G parameter groups.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch

from rsbdali.errors import DeviceError

CHUNK = 4096
"""Values of one program of the kernels: 16 kB from each stream."""


class Tensors(NamedTuple):
    """One parameter and what belongs to it; of one shape, p, m and v dense.

    Attributes:
        param: p.
        grad: g, in any memory order.
        exp_avg: m, in p's memory order.
        exp_avg_sq: v, in p's memory order.
        group: number of its parameter group.
    """

    param: torch.Tensor
    grad: torch.Tensor
    exp_avg: torch.Tensor
    exp_avg_sq: torch.Tensor
    group: int

    @property
    def key(self) -> tuple[Any, ...]:
        """Equal as long as the kernels' tables hold for it."""
        m, v = self.exp_avg.data_ptr(), self.exp_avg_sq.data_ptr()
        return self.param.data_ptr(), self.grad.data_ptr(), m, v, self.grad.stride(), self.group


@dataclass(frozen=True)
class Constants:
    """What is compiled into the kernels or fixed for a run."""

    betas: tuple[float, float]
    eps: float
    max_norm: float


def same_order(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether two tensors of one shape hold their values in the same order; an axis of length 1 has no say."""
    return all(n == 1 or i == j for n, i, j in zip(a.shape, a.stride(), b.stride(), strict=True))


def tensor_table(rows: Sequence[tuple[int, ...]]) -> np.ndarray:
    """The kernels' table of tensors.

    Args:
        rows: four addresses, length in values and parameter group of each tensor.

    Returns:
        int64 (T, 7): the rows, and 1 where all of a tensor's values may be read by four: 16 bytes a load.
    """
    table_T6 = np.array(rows, np.int64).reshape(-1, 6)
    wide_T = ~(table_T6[:, :4] % 16).any(axis=1) & (table_T6[:, 4] % 4 == 0)
    return np.column_stack([table_T6, wide_T])


class KernelStep:
    """LAMB's step by kernels, over one set of tensors at a time.

    Args:
        device: of all tensors.
        num_groups: G.
    """

    def __init__(self, device: torch.device, num_groups: int) -> None:
        self._device = device
        self._key: list[tuple[Any, ...]] = []
        self._rates: list[list[float]] = []
        self._rates_G2 = torch.zeros(num_groups, 2, dtype=torch.float32, device=device)
        self._scalars_G2 = torch.zeros(num_groups, 2, dtype=torch.float32, device=device)
        self._common = torch.zeros(2, dtype=torch.float32, device=device)
        self._one = torch.ones((), dtype=torch.float32, device=device)
        self._zero = torch.zeros((), dtype=torch.float32, device=device)
        self._copies: list[tuple[torch.Tensor, int]] = []

    def set_rates(self, rates: Sequence[tuple[float, float]]) -> None:
        """Learning rate and weight decay of each group; sent to the device when they changed."""
        now = [list(rate) for rate in rates]
        if now != self._rates:
            self._rates = now
            self._rates_G2.copy_(self._sent(np.array(now, np.float32)), non_blocking=True)

    def prepare(self, tensors: Sequence[Tensors]) -> None:
        """Make the tables for these tensors, unless they still hold.

        Raises:
            DeviceError: a tensor is not float32, or not on the device: the kernels would read other memory than its.
            RuntimeError: they have to be made anew inside the capture of a CUDA graph.
        """
        key = [each.key for each in tensors]
        if key == self._key:
            return
        if self._device.type == "cuda" and torch.cuda.is_current_stream_capturing():
            raise RuntimeError("the gradients moved after Lamb.prepare: prepare it right before the capture")
        for each in tensors:
            self._refuse_others(each)
        self._key = key
        grads = self._staged(tensors)
        rows = [
            (t.param.data_ptr(), g.data_ptr(), t.exp_avg.data_ptr(), t.exp_avg_sq.data_ptr(), g.numel(), t.group)
            for t, g in zip(tensors, grads, strict=True)
        ]
        table_T7 = tensor_table(rows)
        chunks_T = -(-table_T7[:, 4] // CHUNK)
        first_T1 = np.concatenate([[0], np.cumsum(chunks_T)]).astype(np.int32)
        tensor_C = np.repeat(np.arange(len(rows)), chunks_T)
        chunks_C2 = np.stack([tensor_C, np.arange(first_T1[-1]) - first_T1[tensor_C]], axis=1).astype(np.int32)
        self._table_T7, self._first_T1 = self._sent(table_T7), self._sent(first_T1)
        self._chunks_C2 = self._sent(chunks_C2)
        self._sums_C = torch.empty(len(chunks_C2), dtype=torch.float32, device=self._device)
        self._squares_C2 = torch.empty(len(chunks_C2), 2, dtype=torch.float32, device=self._device)
        self._sizes_T = torch.empty(len(rows), dtype=torch.float32, device=self._device)

    def launch(
        self,
        tensors: Sequence[Tensors],
        steps_G: torch.Tensor,
        constants: Constants,
        grad_scale: torch.Tensor | None = None,
        found_inf: torch.Tensor | None = None,
    ) -> None:
        """Make one step over the tensors last prepared.

        Args:
            tensors: the same.
            steps_G: float32, steps done, on the device; counted up by the step.
            constants: of all groups.
            grad_scale: float32 scalar on the device that the gradients were multiplied by.
            found_inf: float32 scalar on the device; anything but 0 makes the step do nothing.
        """
        from rsbdali.ops import lamb_kernels as k  # Triton is not there on every machine that trains on the CPU

        if not tensors:
            return
        for buffer, at in self._copies:
            buffer.copy_(tensors[at].grad)
        beta1, beta2 = constants.betas
        chunks, count = self._chunks_C2, len(self._chunks_C2)
        each_chunk = {"CHUNK": CHUNK, "num_warps": 8}
        shared = self._common, self._scalars_G2, self._rates_G2
        scale = self._one if grad_scale is None else grad_scale
        inf = self._zero if found_inf is None else found_inf
        with torch.cuda.device_of(steps_G):
            k.grad_squares_kernel[(count,)](self._table_T7, chunks, self._sums_C, **each_chunk)
            k.step_scalars_kernel[(1,)](
                self._sums_C,
                count,
                steps_G,
                len(steps_G),
                scale,
                inf,
                *shared[:2],
                constants.max_norm,
                LOG_BETA1=math.log(beta1),
                LOG_BETA2=math.log(beta2),
                EPS=constants.eps,
                BLOCK=1024,
            )
            k.moments_kernel[(count,)](
                self._table_T7,
                chunks,
                *shared,
                self._squares_C2,
                BETA2=beta2,
                TAKE1=1 - beta1,
                TAKE2=1 - beta2,
                **each_chunk,
            )
            k.step_sizes_kernel[(len(tensors),)](
                self._table_T7, self._first_T1, *shared[1:], self._squares_C2, self._sizes_T, BLOCK=256
            )
            k.apply_kernel[(count,)](self._table_T7, chunks, *shared, self._sizes_T, **each_chunk)

    def _refuse_others(self, each: Tensors) -> None:
        names = "parameter", "gradient", "first moment", "second moment"
        for name, tensor in zip(names, (each.param, each.grad, each.exp_avg, each.exp_avg_sq), strict=True):
            if tensor.dtype is not torch.float32 or tensor.device != self._device:
                raise DeviceError(
                    f"LAMB's kernels take float32 on {self._device}: the {name} of shape {tuple(tensor.shape)} is "
                    f"{str(tensor.dtype).removeprefix('torch.')} on {tensor.device} (RSBDALI_KERNELS=reference does "
                    "without them)"
                )

    def _staged(self, tensors: Sequence[Tensors]) -> list[torch.Tensor]:
        """The gradients in their parameters' memory order: themselves, or buffers that each step fills."""
        grads: list[torch.Tensor] = []
        self._copies = []
        for at, each in enumerate(tensors):
            fits = same_order(each.param, each.grad)
            grads.append(each.grad if fits else torch.empty_like(each.param))
            if not fits:
                self._copies.append((grads[-1], at))
        return grads

    def _sent(self, array: np.ndarray) -> torch.Tensor:
        tensor = torch.from_numpy(array)
        if self._device.type == "cuda":
            tensor = tensor.pin_memory()  # the allocator keeps it until the copy is done
        return tensor.to(self._device, non_blocking=True)
