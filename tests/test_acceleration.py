"""torch.compile and CUDA graphs give the plain step's losses and weights; what cannot work is refused in one line."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import timm
import torch
from torch.nn.parallel import DistributedDataParallel

from helpers import fakes
from rsbdali.cli.training import train
from rsbdali.distributed.world import World
from rsbdali.errors import DeviceError, RecipeError
from rsbdali.recipe import Recipe
from rsbdali.runs import checkpoint
from rsbdali.training.acceleration import COMPILE_MODES, Acceleration, compiled, make_step
from rsbdali.training.cuda_graph import PLAIN_STEPS, CudaGraphTrainStep
from rsbdali.training.model import create_model
from rsbdali.training.optim import create_optimizer
from rsbdali.training.step import TrainStep

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


class FakeRecording:
    """Work done again at each replay, with a graph's effects: gradients and result stay where they are."""

    def __init__(self, work: Callable[[], Any], parameters: list[torch.nn.Parameter]) -> None:
        self._work, self._parameters, self._replayed = work, parameters, False
        self._sets_gradients = all(p.grad is None for p in parameters)
        self.out = torch.full((), float("nan"))
        if self._sets_gradients:  # a capture leaves them allocated, without content
            for p in parameters:
                p.grad = torch.full_like(p, float("nan"))

    def replay(self) -> None:
        if self._sets_gradients:
            for p in self._parameters:
                p.grad.zero_()
        out = self._work()
        if out is not None:
            self.out.copy_(out)


class FakeRecorder:
    """Captures nothing and replays by doing the work, on the CPU."""

    def __init__(self, model: torch.nn.Module) -> None:
        self._parameters, self.recorded, self.plain = list(model.parameters()), 0, 0

    @contextmanager
    def aside(self) -> Iterator[None]:
        self.plain += 1
        yield

    def record(self, work: Callable[[], Any]) -> FakeRecording:
        self.recorded += 1
        return FakeRecording(work, self._parameters)


def tiny(classes: int) -> torch.nn.Module:
    """One convolution: the compiler takes seconds for it."""
    torch.manual_seed(0)
    layers = torch.nn.Conv2d(3, 8, 3, 2), torch.nn.BatchNorm2d(8), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1)
    return torch.nn.Sequential(*layers, torch.nn.Flatten(), torch.nn.Linear(8, classes))


def parts(model: torch.nn.Module, recipe: Recipe, device: torch.device, dtype: torch.dtype) -> tuple[Any, ...]:
    model = model.to(device, memory_format=torch.channels_last).train()
    scaler = torch.amp.GradScaler(device.type, enabled=dtype is torch.float16, init_scale=2.0**10)
    return model, create_optimizer(model, recipe), scaler


def run(
    make: Callable[..., TrainStep],
    recipe: Recipe,
    steps: int,
    dtype: torch.dtype = torch.float32,
    device: torch.device = CPU,
    then: Callable[[int, TrainStep], None] = lambda s, step: None,
    model: torch.nn.Module | None = None,
) -> tuple[list[float], torch.nn.Module]:
    """Losses and model of a few steps whose learning rate changes on the way."""
    net = create_model(recipe, fakes.CLASSES) if model is None else model
    model, optimizer, scaler = parts(net, recipe, device, dtype)
    ema = timm.utils.ModelEmaV3(model, decay=0.9)
    more = {"device": device, "amp_dtype": dtype, "world": World(), "ema": ema}
    step = make(model, optimizer, scaler, recipe, **more)
    loader, losses = fakes.FakeTrainLoader(recipe), []
    for s in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * (s + 1)
        groups = [loader.batch(0, s, g) for g in range(2)]
        for batch in groups:
            for name in ("images", "label_N", "partner_label_N", "lam_N"):
                setattr(batch, name, getattr(batch, name).to(device))
        losses.append(step(groups, update=s + 1))
        then(s, step)
    losses.append(step.last_result())
    return [result.loss for result in losses if result], ema.module


def assert_same_weights(model: torch.nn.Module, oracle: torch.nn.Module, tolerance: float) -> None:
    for (name, a), b in zip(model.state_dict().items(), oracle.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance, msg=lambda t, name=name: f"{name}: {t}")


def test_compiled_steps_give_the_plain_losses() -> None:
    recipe = fakes.recipe(micro_batch_size=8, global_batch_size=16)

    def make(model: torch.nn.Module, *args: Any, **more: Any) -> TrainStep:
        step = make_step(model, *args, acceleration=Acceleration(torch_compile="default"), **more)
        assert step.model is not model
        assert step._bare is model
        assert checkpoint.clean(step.model.state_dict()).keys() == model.state_dict().keys()
        return step

    losses, model = run(make, recipe, 6, model=tiny(fakes.CLASSES))
    expected, oracle = run(TrainStep, recipe, 6, model=tiny(fakes.CLASSES))
    # Inductor sums in another order, and LAMB's first steps follow the sign of the smallest gradients
    assert losses == pytest.approx(expected, rel=1e-4)
    assert model.state_dict().keys() == oracle.state_dict().keys()


def test_compile_goes_around_ddp() -> None:
    """As in timm; accumulation still finds DDP's no_sync, and the averaged weights the model itself."""
    recipe, model = fakes.recipe(micro_batch_size=8), tiny(fakes.CLASSES)
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        inner = DistributedDataParallel(model)
        args = parts(model, recipe, CPU, torch.float32)[1:]
        step = TrainStep(compiled(inner, "default"), *args, recipe, device=CPU, amp_dtype=torch.float32, world=World())
        assert step._ddp is inner
        assert step._bare is model
        with step._sync(is_last=False):
            assert not inner.require_backward_grad_sync
        with step._sync(is_last=True):
            assert inner.require_backward_grad_sync
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize(
    ("dtype", "more"), [(torch.float32, {}), (torch.float16, {}), (torch.float32, {"drop_path": 0.3, "drop": 0.2})]
)
def test_captured_steps_equal_plain_ones(dtype: torch.dtype, more: dict[str, Any]) -> None:
    """Drop path among them: each replay comes behind the reseeding of its own pass, from which a GPU's kernels draw."""
    recipe = fakes.recipe(micro_batch_size=8, clip_grad=0.5, **more)
    recorders = []

    def graphed(model: torch.nn.Module, *args: Any, **more: Any) -> TrainStep:
        recorders.append(FakeRecorder(model))
        return CudaGraphTrainStep(model, *args, recorder=recorders[0], **more)

    losses, model = run(graphed, recipe, 7, dtype)
    expected, oracle = run(TrainStep, recipe, 7, dtype)
    assert losses == expected
    assert_same_weights(model, oracle, 0)
    assert (recorders[0].plain, recorders[0].recorded) == (PLAIN_STEPS, 3)


def test_the_update_is_captured_anew_after_its_state_was_loaded() -> None:
    recipe = fakes.recipe()
    recorders = []

    def graphed(model: torch.nn.Module, *args: Any, **more: Any) -> TrainStep:
        recorders.append(FakeRecorder(model))
        return CudaGraphTrainStep(model, *args, recorder=recorders[0], **more)

    def reload(s: int, step: TrainStep) -> None:
        if s == 4:
            step.optimizer.load_state_dict(copy.deepcopy(step.optimizer.state_dict()))

    losses, _ = run(graphed, recipe, 7, then=reload)
    expected, _ = run(TrainStep, recipe, 7)
    assert losses == expected
    assert recorders[0].recorded == 4


@pytest.mark.parametrize(
    ("values", "options", "error", "says"),
    [
        ({}, {"device": CPU}, DeviceError, "--cuda-graph needs a GPU: the device is cpu"),
        ({}, {"world": World(0, 2, 0)}, DeviceError, "one process: there are 2"),
        ({"opt": "sgd"}, {}, RecipeError, "needs opt=lamb"),
        ({"micro_batch_size": 6}, {}, RecipeError, "set micro_batch_size to a divisor of 16"),
        ({}, {"torch_compile": "reduce-overhead"}, RecipeError, "captures CUDA graphs itself"),
        ({}, {"kernels": "reference"}, DeviceError, "take RSBDALI_KERNELS out"),
    ],
)
def test_a_cuda_graph_that_cannot_be_is_refused(
    monkeypatch: pytest.MonkeyPatch,
    values: dict[str, Any],
    options: dict[str, Any],
    error: type[Exception],
    says: str,
) -> None:
    monkeypatch.setenv("RSBDALI_KERNELS", options.get("kernels", ""))
    acceleration = Acceleration(cuda_graph=True, torch_compile=options.get("torch_compile", "off"))
    with pytest.raises(error, match=says):
        acceleration.check(fakes.recipe(**values), options.get("device", GPU), options.get("world", World()))


@pytest.mark.parametrize("mode", ["reduce-overhead", "max-autotune"])
@pytest.mark.parametrize(
    ("values", "world", "passes"),
    [
        ({}, World(), 4),
        ({}, World(0, 2, 0), 2),
        ({"micro_batch_size": "256"}, World(0, 4, 0), 2),
        ({"micro_batch_size": "500"}, World(0, 8, 0), 1),
        ({"mix_groups": "1", "micro_batch_size": "512"}, World(), 4),
    ],
)
def test_compiled_passes_that_hold_cuda_graphs_are_not_added_up(
    mode: str, values: dict[str, str], world: World, passes: int
) -> None:
    recipe = Recipe.load("a3", values)
    if passes == 1:
        Acceleration(torch_compile=mode).check(recipe, GPU, world)
        return
    with pytest.raises(
        RecipeError, match=rf"--torch-compile {mode} holds CUDA graphs.* here a step takes {passes} passes"
    ):
        Acceleration(torch_compile=mode).check(recipe, GPU, world)


def test_what_can_be_is_not_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RSBDALI_KERNELS", raising=False)
    Acceleration(cuda_graph=True, torch_compile="default").check(fakes.recipe(micro_batch_size=8), GPU, World())
    for name in ("a1", "a2", "a3"):
        Acceleration(cuda_graph=True).check(Recipe.load(name), GPU, World())
    # a compiled pass that holds CUDA graphs, one a step; on the CPU it holds none
    for mode in ("reduce-overhead", "max-autotune"):
        Acceleration(torch_compile=mode).check(Recipe.load("a3"), GPU, World(3, 4, 3))
        Acceleration(torch_compile=mode).check(fakes.recipe(mix_groups=1), GPU, World())
        Acceleration(torch_compile=mode).check(Recipe.load("a3"), CPU, World())
    Acceleration(torch_compile="max-autotune-no-cudagraphs").check(Recipe.load("a3"), GPU, World())
    Acceleration(torch_compile="max-autotune").check(fakes.recipe(drop_path=0.1, opt="sgd"), CPU, World(0, 2, 0))


def test_unknown_modes_and_missing_compilers(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RecipeError, match="torch_compile='fast': expected off, default"):
        Acceleration(torch_compile="fast").check(fakes.recipe(), CPU, World())
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(DeviceError, match=r"needs a C\+\+ compiler"):
        Acceleration(torch_compile="default").check(fakes.recipe(), CPU, World())


def test_the_command_line_knows_the_modes() -> None:
    option = next(p for p in train.params if p.name == "torch_compile")
    assert tuple(option.type.choices) == COMPILE_MODES


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("mode", ["off", "default"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("drop", [0.0, 0.2])
def test_cuda_graphs_equal_plain_steps(dtype: torch.dtype, mode: str, drop: float) -> None:
    recipe = fakes.recipe(micro_batch_size=8, clip_grad=0.5, drop=drop, drop_path=drop)

    def switched(cuda_graph: bool) -> Callable[..., TrainStep]:
        return lambda *a, **k: make_step(*a, acceleration=Acceleration(cuda_graph=cuda_graph, torch_compile=mode), **k)

    losses, _ = run(switched(True), recipe, 8, dtype, GPU)
    expected, _ = run(switched(False), recipe, 8, dtype, GPU)
    # cuDNN may add up in another order from run to run, the more so in 16 bits
    assert losses == pytest.approx(expected, rel=1e-3 if dtype is torch.float32 else 3e-2)
