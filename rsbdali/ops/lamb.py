"""LAMB (You et al. 2019, arXiv 1904.00962) as timm's `Lamb` computes it, in less time and without waiting.

    CPU                     blocks that stay in the cache (lamb_cpu.py)
    GPU with kernels        five launches over all tensors, no wait for the GPU (lamb_launch.py, lamb_kernels.py)
    GPU without             timm's own step

    g ← g / max(1, ‖all g‖ / max_grad_norm)          m ← β₁ m + (1 − β₁) g          v ← β₂ v + (1 − β₂) g²
    u = (m / (1 − β₁ᵗ)) / (√(v / (1 − β₂ᵗ)) + eps) + weight_decay · p               p ← p − lr · (‖p‖ / ‖u‖) · u

The trust ratio ‖p‖/‖u‖ is 1 where there is no weight decay, or where one of the norms is 0. Gradients stay as they are.
"""

import inspect
import math
from collections.abc import Callable, Iterable
from typing import Any

import timm.optim
import torch

from rsbdali.errors import DeviceError, RecipeError
from rsbdali.ops import lamb_cpu
from rsbdali.ops.backend import use_kernels
from rsbdali.ops.lamb_launch import Constants, KernelStep, Tensors, same_order

FIXED = {
    "bias_correction": True,
    "grad_averaging": True,
    "trust_clip": False,
    "always_adapt": False,
    "caution": False,
    "decoupled_decay": False,
    "corrected_weight_decay": False,
}
"""timm's settings that are not to be changed here, and their values."""


def lamb_bytes(params: Iterable[torch.Tensor]) -> int:
    """Bytes that a LAMB step cannot do without: read p, g, m, v, and write p, m, v, once each."""
    return sum(7 * p.numel() * p.element_size() for p in params)


class Lamb(timm.optim.Lamb):
    """timm's `Lamb` with its default behavior; state and parameter groups carry the same names.

    With a `torch.amp.GradScaler` on its device the step takes unscaling upon itself and skips an overflow without
    asking the GPU (torch's protocol for fused optimizers).

    Args:
        params: parameters or parameter groups (timm's own groups will do), dense, and float32 on one GPU.
        lr: learning rate.
        betas: decay of the moments.
        eps: added to the denominator.
        weight_decay: of groups that do not say.
        max_grad_norm: bound of the global gradient norm; None: none.

    Raises:
        RecipeError: a group asks for a variant of LAMB that is not this one.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.01,
        max_grad_norm: float | None = 1.0,
    ) -> None:
        super().__init__(params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, max_grad_norm=max_grad_norm)
        self._begin()

    @classmethod
    def of(cls, other: timm.optim.Lamb) -> "Lamb":
        """The same optimizer as one of timm's that has not stepped yet."""
        known = ("lr", "betas", "eps", "weight_decay", "max_grad_norm")
        groups = [dict(group) for group in other.param_groups]
        return cls(groups, **{name: other.defaults[name] for name in known})

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._begin()

    def _begin(self) -> None:
        """Check the groups; forget all that depends on where tensors are in memory."""
        for group in self.param_groups:
            for name, value in FIXED.items():
                if group[name] != value:
                    raise RecipeError(f"this Lamb has {name}={value} only, not {group[name]}: use timm.optim.Lamb")
            if (group["betas"], group["eps"]) != (self.defaults["betas"], self.defaults["eps"]):
                raise RecipeError("this Lamb takes one betas and eps for all parameter groups")
        self._kernels: KernelStep | None = None
        self._steps_G: torch.Tensor | None = None
        self._scratch: torch.Tensor | None = None

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        device: torch.device = self.param_groups[0]["params"][0].device
        return device

    @property
    def is_fused(self) -> bool:
        """Whether steps are made by the kernels, so that a CUDA graph can hold them."""
        return use_kernels(self.device)

    @property
    def _step_supports_amp_scaling(self) -> bool:
        return self.is_fused or self.device.type == "cpu"

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Make one step, as timm's `Lamb.step`.

        Raises:
            DeviceError: a parameter or a gradient is not dense, or the kernels run and one is not float32 on the
                device; nothing was changed then.
        """
        if not self._step_supports_amp_scaling:
            # not super().step: torch has wrapped it with the step hooks, which are this method's already
            return inspect.unwrap(timm.optim.Lamb.step)(self, closure)
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if self.is_fused:
            kernels, tensors = self.prepare()
            constants = Constants(self.defaults["betas"], self.defaults["eps"], self._max_norm)
            assert self._steps_G is not None
            kernels.launch(tensors, self._steps_G, constants, self._given("grad_scale"), self._given("found_inf"))
        else:
            self._step_blocks()
        return loss

    @torch.no_grad()
    def prepare(self) -> tuple[KernelStep, list[Tensors]]:
        """Send the device the rates and addresses of the next step; `step` does it by itself.

        Call it before a CUDA graph captures the step, once the gradients are where they will stay.
        """
        if self._kernels is None:
            self._kernels = KernelStep(self.device, len(self.param_groups))
            steps = [float(group.get("step", 0.0)) for group in self.param_groups]
            self._steps_G = torch.tensor(steps, dtype=torch.float32, device=self.device)
            for group, step in zip(self.param_groups, self._steps_G.unbind(), strict=True):
                group["step"] = step  # counted on the device, seen by state_dict
        tensors = self._tensors()
        self._kernels.prepare(tensors)
        self.send_rates()
        return self._kernels, tensors

    @property
    def kernels(self) -> KernelStep | None:
        """What a captured step runs on; another object, or none, once the state was loaded anew."""
        return self._kernels

    def send_rates(self) -> None:
        """Send the device the groups' learning rates, where they changed: before a captured step is replayed."""
        assert self._kernels is not None
        self._kernels.set_rates([(float(g["lr"]), float(g["weight_decay"])) for g in self.param_groups])

    @property
    def _max_norm(self) -> float:
        bound = self.defaults["max_grad_norm"]
        return math.inf if bound is None else float(bound)

    def _given(self, name: str) -> torch.Tensor | None:
        """A tensor that GradScaler left here for this step."""
        tensor: torch.Tensor | None = getattr(self, name, None)
        return tensor

    def _tensors(self) -> list[Tensors]:
        self._refuse_sparse()
        return [
            Tensors(p, p.grad, *self._moments(p), number)
            for number, group in enumerate(self.param_groups)
            for p in group["params"]
            if p.grad is not None
        ]

    def _refuse_sparse(self) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None and p.grad.layout is not torch.strided:
                    raise DeviceError(f"LAMB takes dense gradients only, and one of shape {tuple(p.shape)} is sparse")

    def _moments(self, param: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        state = self.state[param]
        for name in ("exp_avg", "exp_avg_sq"):
            old = state.get(name)
            if old is None or not same_order(old, param):  # the latter if loaded from a run in another memory format
                new = torch.zeros_like(param, memory_format=torch.preserve_format)
                if not same_order(new, param):  # the strides of dense memory are preserved, and no others
                    raise DeviceError(f"LAMB takes dense parameters only: one of shape {tuple(param.shape)} has gaps")
                state[name] = new if old is None else new.copy_(old)
        return state["exp_avg"], state["exp_avg_sq"]

    def _step_blocks(self) -> None:
        scale, found_inf = self._given("grad_scale"), self._given("found_inf")
        if found_inf is not None and found_inf.item():
            return
        tensors = self._tensors()
        for group in self.param_groups:
            group.setdefault("step", torch.zeros((), dtype=torch.float32, device="cpu")).add_(1)
        if not tensors:
            return
        unscale = 1.0 if scale is None else 1.0 / scale.item()
        norm = lamb_cpu.grad_norm(tensors) * unscale
        scalars = [self._scalars(group, unscale / max(1.0, norm / self._max_norm)) for group in self.param_groups]
        largest = max(each.param.numel() for each in tensors)
        if self._scratch is None or len(self._scratch) < largest or self._scratch.dtype != tensors[0].param.dtype:
            self._scratch = torch.empty(largest, dtype=tensors[0].param.dtype, device=self.device)
        for each in tensors:
            lamb_cpu.update(each, scalars[each.group], self._scratch)

    def _scalars(self, group: dict[str, Any], factor: float) -> lamb_cpu.Scalars:
        beta1, beta2 = group["betas"]
        step = float(group["step"])
        root2 = math.sqrt(1 - beta2**step)
        return lamb_cpu.Scalars(
            factor=factor,
            betas=(beta1, beta2),
            damping=group["eps"] * root2,
            scale=root2 / (1 - beta1**step),
            weight_decay=float(group["weight_decay"]),
            lr=float(group["lr"]),
        )
