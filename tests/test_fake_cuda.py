"""Step, losses, averaged weights and evaluation on fake CUDA tensors: a GPU's shapes and devices, no values.

A tensor on the wrong device is an error there, and so is reading a value (`.item()`, `bool()`), for which a host would
wait. Replaced are: autograd's engine asks the driver for its streams, so `backward` only gives out gradients;
Triton's kernels only check that all their tensors are on the device. The late reading of the loss has tests of its own.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import timm
import torch
from timm.utils import ModelEmaV3, model_ema
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from helpers import fakes
from helpers.fake_cuda import allow_cuda_autocast, needs_no_driver
from rsbdali.distributed.world import World
from rsbdali.ops import backend, bce_kernel, lamb_kernels
from rsbdali.ops.lamb import Lamb
from rsbdali.recipe import Recipe
from rsbdali.training import evaluate as evaluation
from rsbdali.training import step as steps
from rsbdali.training.optim import create_optimizer
from rsbdali.training.step import TrainStep

GPU = torch.device("cuda", 0)
pytestmark = needs_no_driver
ROWS, CLASSES = 8, 10  # the bias of ten classes is odd to LAMB's kernels
LAMB = ["grad_squares_kernel", "step_scalars_kernel", "moments_kernel", "step_sizes_kernel", "apply_kernel"]


class Kernel:
    """Stands for a Triton kernel: counts launches, and wants all tensors on the GPU and that to be the current one."""

    def __init__(self, gpu: "FakeGpu") -> None:
        self.launches, self._gpu = 0, gpu

    def __getitem__(self, grid: object) -> Callable[..., None]:
        def launch(*arguments: object, **_: object) -> None:
            assert self._gpu.is_current, "launched without a device guard"
            assert {tensor.device for tensor in arguments if isinstance(tensor, torch.Tensor)} == {GPU}
            self.launches += 1

        return launch


class FakeGpu:
    """Everything that a machine without a GPU lacks for a step over fake tensors.

    Attributes:
        kernels: by name.
        submitted: what the host reads late, one tensor a step.
    """

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.is_current, self.submitted = False, list[torch.Tensor]()
        self.kernels = {name: Kernel(self) for name in (*LAMB, "bce_kernel", "scale_kernel")}
        gpu = self

        class Late:
            def __init__(self, *_: object) -> None: ...

            def submit(self, value_K: torch.Tensor) -> None:
                gpu.submitted.append(value_K)

        allow_cuda_autocast(patch)
        patch.delenv(backend.VARIABLE, raising=False)
        patch.setattr(backend, "missing_compiler", lambda: None)
        for name, kernel in self.kernels.items():
            patch.setattr(lamb_kernels if name in LAMB else bce_kernel, name, kernel)
        patch.setattr(torch.cuda, "device_of", self._guard)
        patch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
        patch.setattr(torch.Tensor, "data_ptr", lambda tensor: 16 * id(tensor))
        # timm's averaged weights copy the model, at which torch 2.14 crashes for fake buffers, and ask for a generator
        # on the GPU, for a rounding that is not used
        patch.setattr(model_ema, "deepcopy", lambda _: make_model())
        patch.setattr(torch, "Generator", lambda **_: SimpleNamespace(manual_seed=lambda _: None))
        patch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor)
        patch.setattr(steps, "DeferredAllReduce", Late)
        patch.setattr(evaluation, "DeferredAllReduce", Late)

    @contextmanager
    def _guard(self, tensor: torch.Tensor) -> Iterator[None]:
        assert tensor.device == GPU
        self.is_current = True
        yield
        self.is_current = False


def batch(recipe: Recipe, group: int) -> SimpleNamespace:
    label_N = torch.empty(ROWS, dtype=torch.int64, device=GPU)
    shape = (ROWS, 3, *recipe.train_size)
    images = torch.empty(shape, dtype=torch.float16, device=GPU, memory_format=torch.channels_last)
    lam_N = torch.empty(ROWS, device=GPU)
    labels = {"label_N": label_N, "partner_label_N": label_N, "lam_N": lam_N}
    return SimpleNamespace(images=images, **labels, epoch=0, step=0, group=group)


def make_model(name: str = "test_resnet") -> torch.nn.Module:
    with torch.device(GPU):
        return timm.create_model(name, num_classes=CLASSES, drop_path_rate=0.1)


def train(patch: pytest.MonkeyPatch, *, updates: int = 1, **values: object) -> TrainStep:
    """Some steps; the dtype is the recipe's."""
    recipe = fakes.recipe(global_batch_size=2 * ROWS, **{"amp_dtype": "bfloat16", "clip_grad": 1.0, **values})
    model = make_model()
    dtype = getattr(torch, recipe.amp_dtype)

    def backward(loss: torch.Tensor) -> None:
        assert loss.device == GPU
        assert loss.dtype is torch.float32
        assert loss.grad_fn is not None
        for parameter in model.parameters():
            parameter.grad = torch.empty_like(parameter)

    patch.setattr(torch.Tensor, "backward", backward)
    scaler = torch.amp.GradScaler("cuda", enabled=dtype is torch.float16)
    ema = ModelEmaV3(model, decay=0.9)
    place = {"device": GPU, "amp_dtype": dtype, "world": World()}
    step = TrainStep(model, create_optimizer(model, recipe), scaler, recipe, ema=ema, **place)
    for update in range(1, updates + 1):
        step([batch(recipe, group) for group in range(2)], update=update, flags=lambda: [0.0, 1.0])
    return step


def evaluate(patch: pytest.MonkeyPatch) -> evaluation.EvalResult:
    counted = list[torch.Tensor]()

    def read(total_4: torch.Tensor, _: World) -> SimpleNamespace:
        counted.append(total_4)
        return SimpleNamespace(tolist=lambda: [1.0, 3.0, 8.0, 4.0])  # the one place where it waits

    patch.setattr(evaluation.collectives, "all_reduce_sum", read)
    batches = [batch(fakes.recipe(), group) for group in range(2)]
    result = evaluation.evaluate(make_model(), batches, device=GPU, amp_dtype=torch.float16)
    assert [(total_4.device, total_4.dtype) for total_4 in counted] == [(GPU, torch.float64)]
    return result


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeGpu]:
    with FakeTensorMode(allow_non_fake_inputs=True):
        yield FakeGpu(monkeypatch)


@pytest.mark.parametrize(("dtype", "bce"), [("float32", False), ("bfloat16", True), ("float16", True)])
def test_a_step_stays_on_the_gpu_and_nothing_is_read(
    gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch, dtype: str, bce: bool
) -> None:
    step = train(monkeypatch, updates=2, amp_dtype=dtype, bce_loss=bce)
    assert [(late.device, tuple(late.shape)) for late in gpu.submitted] == [(GPU, (4,))] * 2
    assert [gpu.kernels[name].launches for name in LAMB] == [2] * 5
    assert gpu.kernels["bce_kernel"].launches == (4 if bce else 0)
    assert step.ema is not None
    tensors = [*step.ema.module.state_dict().values(), *step.model.state_dict().values()]
    tensors += [value for state in step.optimizer.state.values() for value in state.values()]
    assert {tensor.device for tensor in tensors} == {GPU}


@pytest.mark.parametrize("opt", ["sgd", "lamb"])
def test_a_step_without_kernels(gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch, opt: str) -> None:
    monkeypatch.setenv(backend.VARIABLE, "reference")
    train(monkeypatch, opt=opt)
    assert {kernel.launches for kernel in gpu.kernels.values()} == {0}
    assert len(gpu.submitted) == 1


def test_the_gradient_of_the_fused_loss(gpu: FakeGpu) -> None:
    residual_NC, grad_output = torch.empty(ROWS, CLASSES, device=GPU), torch.empty((), device=GPU)
    grad_NC, *rest = bce_kernel._FusedBCE.backward(SimpleNamespace(saved_tensors=(residual_NC,)), grad_output)
    assert (grad_NC.device, grad_NC.shape, rest) == (GPU, (ROWS, CLASSES), [None] * 5)
    assert gpu.kernels["scale_kernel"].launches == 1


def test_an_evaluation_reads_one_sum_at_its_end(gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch) -> None:
    assert evaluate(monkeypatch) == evaluation.EvalResult(25, 75, 2, 4)
    assert [late.device for late in gpu.submitted] == [GPU] * 2


PLANTS = {"item": lambda: torch.ones((), device=GPU).item(), "cpu": lambda: torch.ones(3, device=GPU) + torch.ones(3)}
ERRORS = {"item": (DataDependentOutputException, "_local_scalar_dense"), "cpu": (RuntimeError, "devices")}
PLACES: dict[str, tuple[Any, str, Callable[[pytest.MonkeyPatch], object]]] = {
    "loss": (steps, "bce_loss", train),
    "optimizer": (Lamb, "prepare", train),
    "averages": (ModelEmaV3, "update", train),
    "evaluation": (evaluation, "_count", evaluate),
}


@pytest.mark.parametrize("plant", PLANTS)
@pytest.mark.parametrize("place", PLACES)
def test_a_planted_fault_is_seen(gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch, place: str, plant: str) -> None:
    owner, name, run = PLACES[place]
    original = getattr(owner, name)

    def spoilt(*arguments: Any, **more: Any) -> Any:
        PLANTS[plant]()
        return original(*arguments, **more)

    monkeypatch.setattr(owner, name, spoilt)
    error, says = ERRORS[plant]
    with pytest.raises(error, match=says):
        run(monkeypatch)
