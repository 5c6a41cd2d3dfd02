"""LAMB against timm's: on the CPU, by the kernels in Triton's interpreter, and compiled for each GPU."""

import copy
from collections.abc import Callable

import pytest
import timm
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from timm.optim import create_optimizer_v2

from helpers import triton_tools
from rsbdali.errors import DeviceError, RecipeError
from rsbdali.ops import lamb_kernels
from rsbdali.ops.lamb import Lamb, lamb_bytes
from rsbdali.ops.lamb_launch import CHUNK, KernelStep, Tensors, tensor_table

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
SHAPES = [(3, 5, 3, 3), (7,), (1,), (4, 6, 1, 1), (CHUNK + 9,), (2, CHUNK)]


def timms(model: torch.nn.Module, **more: object) -> timm.optim.Lamb:
    return create_optimizer_v2(model, opt="lamb", **{"lr": 5e-3, "weight_decay": 0.02, **more})


def ours(model: torch.nn.Module, **more: object) -> Lamb:
    return Lamb.of(timms(model, **more))


class Weights(torch.nn.Module):
    """Parameters without a forward pass: tests hand them gradients."""

    def __init__(self, shapes: list[tuple[int, ...]], device: torch.device = CPU) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        for i, shape in enumerate(shapes):
            layout = torch.channels_last if len(shape) == 4 else torch.contiguous_format
            values = torch.randn(shape, generator=generator).to(device, memory_format=layout)
            self.register_parameter(f"weight{i}", torch.nn.Parameter(values))


def feed(seed: int, *models: torch.nn.Module, scale: float = 1.0, size: float = 1.0) -> None:
    """The same gradients for each model, in the parameters' memory order."""
    generator = torch.Generator().manual_seed(seed)
    for params in zip(*(model.parameters() for model in models), strict=True):
        grad = torch.randn(params[0].shape, generator=generator) * size
        for p in params:
            p.grad = torch.empty_like(p).copy_(grad * scale)


def assert_equal(model: torch.nn.Module, oracle: torch.nn.Module, rtol: float = 1e-5) -> None:
    # the same formula in another order of float32 operations
    for (name, p), q in zip(model.named_parameters(), oracle.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=rtol, atol=rtol / 10, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("groups", [True, False], ids=["groups", "one_group"])
def test_equals_timms_over_60_steps_of_training(groups: bool) -> None:
    """In float64: training makes much of a last bit (in float32 4e-3 on a weight, after these 60 steps)."""
    torch.manual_seed(0)
    model = timm.create_model("test_resnet", num_classes=5).double().to(memory_format=torch.channels_last)
    oracle = copy.deepcopy(model)
    more = {} if groups else {"filter_bias_and_bn": False}
    pairs = (model, ours(model, **more)), (oracle, timms(oracle, **more))
    for step in range(60):
        generator = torch.Generator().manual_seed(step)
        images = torch.randn(4, 3, 32, 32, dtype=torch.float64, generator=generator)
        label_N = torch.randint(5, (4,), generator=generator)
        for net, optimizer in pairs:
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(net(images), label_N).backward()
            optimizer.step()
    assert_equal(model, oracle, rtol=1e-8)


@pytest.mark.parametrize("size", [1e-6, 1.0, 100.0], ids=["tiny", "plain", "clipped"])
def test_equals_timms_over_50_steps_of_given_gradients(size: float) -> None:
    model, oracle = Weights(SHAPES), Weights(SHAPES)
    optimizer, other = ours(model), timms(oracle)
    for step in range(50):
        feed(step, model, oracle, size=size)
        for group, theirs in zip(optimizer.param_groups, other.param_groups, strict=True):
            group["lr"] = theirs["lr"] = 1e-3 * (step + 1)
        optimizer.step()
        other.step()
    assert_equal(model, oracle)


def test_gradients_stay_as_they_are() -> None:
    model = Weights(SHAPES)
    feed(0, model, size=100)
    before = [p.grad.clone() for p in model.parameters()]
    ours(model).step()
    for p, grad in zip(model.parameters(), before, strict=True):
        assert torch.equal(p.grad, grad)


@pytest.mark.parametrize("back", [False, True], ids=["from_timm", "to_timm"])
def test_a_run_goes_on_in_the_other_optimizer(back: bool) -> None:
    model, oracle = Weights(SHAPES), Weights(SHAPES)
    first, second = (ours, timms) if back else (timms, ours)
    start, whole = first(model), timms(oracle)
    for step in range(5):
        feed(step, model, oracle)
        start.step()
        whole.step()
    rest = second(model)
    rest.load_state_dict(copy.deepcopy(start.state_dict()))
    assert rest.state_dict().keys() == start.state_dict().keys()
    assert set(rest.param_groups[0]) == set(whole.param_groups[0])
    for step in range(5, 10):
        feed(step, model, oracle)
        rest.step()
        whole.step()
    assert rest.param_groups[0]["step"] == 10
    assert_equal(model, oracle)


def test_moments_of_another_memory_format_are_turned() -> None:
    model, oracle = Weights(SHAPES), Weights(SHAPES)
    optimizer, other = ours(model), timms(oracle)
    feed(0, model, oracle)
    optimizer.step()
    other.step()
    state = copy.deepcopy(optimizer.state_dict())
    for moments in state["state"].values():
        for name in moments:
            moments[name] = moments[name].contiguous()
    optimizer.load_state_dict(state)
    feed(1, model, oracle)
    model.weight0.grad = model.weight0.grad.contiguous()
    assert model.weight0.grad.stride() != model.weight0.stride()
    optimizer.step()
    other.step()
    assert_equal(model, oracle)


def test_parameters_without_gradient_stay() -> None:
    model, oracle = Weights(SHAPES), Weights(SHAPES)
    optimizer, other = ours(model), timms(oracle)
    for step in range(3):
        feed(step, model, oracle)
        for net in (model, oracle):
            net.weight0.grad = net.weight1.grad = None
            if step == 1:
                net.zero_grad()
        optimizer.step()
        other.step()
    assert torch.equal(model.weight0, Weights(SHAPES).weight0)
    assert [g["step"] for g in optimizer.param_groups] == [g["step"] for g in other.param_groups]
    assert_equal(model, oracle)


@pytest.mark.parametrize("unscale_first", [False, True])
def test_scaled_gradients_are_unscaled_and_overflow_is_skipped(unscale_first: bool) -> None:
    check_scaler(CPU, unscale_first)


def check_scaler(device: torch.device, unscale_first: bool) -> None:
    model, oracle = Weights(SHAPES, device), Weights(SHAPES, device)
    optimizer, other = ours(model), timms(oracle)
    scaler, timm_scaler = (torch.amp.GradScaler(device.type, init_scale=1024.0) for _ in range(2))
    for step in range(4):
        scale = scaler.scale(torch.ones((), device=device)).item()
        assert timm_scaler.scale(torch.ones((), device=device)).item() == scale
        feed(step, model, oracle, scale=scale)
        if step == 1:
            model.weight1.grad[0] = oracle.weight1.grad[0] = float("inf")
            before = [p.detach().clone() for p in model.parameters()]
        for each, used in ((optimizer, scaler), (other, timm_scaler)):
            if unscale_first:
                used.unscale_(each)
            used.step(each)
            used.update()
        if step == 1:
            assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))
    assert scaler.get_scale() == 512.0
    assert [float(g["step"]) for g in optimizer.param_groups] == [3.0, 3.0]
    assert_equal(model, oracle)


def test_the_step_is_asked_for_neither_scale_nor_overflow_by_the_host() -> None:
    """GradScaler's own way reads the overflow flag; a fused optimizer's way does not."""
    model = Weights(SHAPES)
    feed(0, model)
    scaler = torch.amp.GradScaler("cpu")
    scaler.scale(torch.ones(()))
    scaler._maybe_opt_step = None  # type: ignore[method-assign,assignment]
    scaler.step(ours(model))


def test_a_copy_goes_its_own_way() -> None:
    model = Weights(SHAPES)
    optimizer = ours(model)
    feed(0, model)
    optimizer.step()
    twin = copy.deepcopy(optimizer)
    feed(1, model)
    optimizer.step()
    assert twin.param_groups[0]["step"] == 1
    assert twin.state_dict().keys() == optimizer.state_dict().keys()


def test_other_variants_are_refused() -> None:
    model = Weights(SHAPES)
    with pytest.raises(RecipeError, match="trust_clip=False only, not True"):
        Lamb.of(timms(model, trust_clip=True))
    with pytest.raises(RecipeError, match="one betas and eps"):
        Lamb([{"params": [model.weight0]}, {"params": [model.weight1], "eps": 1e-8}])


def test_an_odd_tensor_does_not_slow_the_others() -> None:
    """Four addresses, a length and a group in; by four where all of that divides."""
    rows = [(0, 16, 32, 48, 8, 0), (0, 16, 32, 48, 10, 0), (0, 20, 32, 48, 8, 1), (64, 16, 32, 0, 4, 1)]
    assert tensor_table(rows)[:, 6].tolist() == [1, 0, 0, 1]
    assert tensor_table(rows)[:, :6].tolist() == [list(row) for row in rows]
    # ten classes, and what DDP's bucket has behind the bias of ten
    bucket = torch.zeros(10 + 40)
    grads = bucket[:10], bucket[10:], torch.zeros(40)
    step = KernelStep(CPU, 1)
    step.prepare([Tensors(*(torch.zeros(len(g)), g, torch.zeros(len(g)), torch.zeros(len(g))), 0) for g in grads])
    assert step._table_T7[:, 6].tolist() == [0, 0, 1]


@pytest.mark.parametrize("which", range(4))
@pytest.mark.parametrize(
    ("change", "says"),
    [(torch.Tensor.double, "is float64 on cpu"), (lambda t: t.to("meta"), "is float32 on meta")],
    ids=["type", "device"],
)
def test_kernels_refuse_what_they_would_misread(which: int, change: Callable[..., torch.Tensor], says: str) -> None:
    tensors = [torch.zeros(2, 6) for _ in range(4)]
    tensors[which] = change(tensors[which])
    name = ("parameter", "gradient", "first moment", "second moment")[which]
    with pytest.raises(DeviceError, match=rf"float32 on cpu: the {name} of shape \(2, 6\) {says}"):
        KernelStep(CPU, 1).prepare([Tensors(*tensors, 0)])


def test_sparse_gradients_and_parameters_with_gaps_are_refused() -> None:
    embedding = torch.nn.Embedding(5, 3, sparse=True)
    embedding(torch.tensor([1, 2])).sum().backward()
    with pytest.raises(DeviceError, match=r"one of shape \(5, 3\) is sparse"):
        Lamb(embedding.parameters()).step()
    memory = torch.ones(4, 6)
    part = torch.nn.Parameter(memory[:, :3])
    part.grad = torch.ones(4, 3)
    with pytest.raises(DeviceError, match=r"one of shape \(4, 3\) has gaps"):
        Lamb([part]).step()
    assert torch.equal(memory, torch.ones(4, 6))


def test_floor_in_bytes() -> None:
    assert lamb_bytes(Weights([(10, 2), (5,)]).parameters()) == 7 * 4 * 25


TYPES = {
    "table": "*i64",
    "chunks": "*i32",
    "first_chunk_T1": "*i32",
    "num_chunks": "i32",
    "num_groups": "i32",
    "max_norm": "fp32",
}
CONSTANTS = {
    "CHUNK": CHUNK,
    "BETA2": 0.999,
    "TAKE1": 0.1,
    "TAKE2": 0.001,
    "LOG_BETA1": -0.1,
    "LOG_BETA2": -0.001,
    "EPS": 1e-6,
    "BLOCK": 256,
}


@pytest.mark.parametrize("capability", [70, 80, 90, 100])
@pytest.mark.parametrize("name", ["grad_squares", "step_scalars", "moments", "step_sizes", "apply"])
def test_lamb_kernels_compile(name: str, capability: int) -> None:
    kernel = getattr(lamb_kernels, f"{name}_kernel")
    constants = {argument: CONSTANTS[argument] for argument in kernel.arg_names if argument in CONSTANTS}
    types = {argument: TYPES.get(argument, "*fp32") for argument in kernel.arg_names if argument not in constants}
    stages = triton_tools.compiled(kernel, capability, types, constants, num_warps=8)
    assert stages["cubin"]
    if "CHUNK" in constants:  # the streams are read 16 bytes at a time, those of odd tensors 4
        streams = {"grad_squares": 1, "moments": 4, "apply": 3}[name]
        loads = CHUNK // (8 * 32 * 4)  # of each of 8 × 32 threads
        assert stages["ptx"].count("ld.global.v4.b32") == loads * streams
        assert stages["ptx"].count("ld.global.b32") >= 4 * loads * streams


def check_given(device: torch.device, shapes: list[tuple[int, ...]], steps: int, size: float, turn: bool) -> None:
    """Gradients that are given, some in another memory order, some missing, against timm's own step."""
    model, oracle = Weights(shapes, device), Weights(shapes)
    optimizer, other = ours(model), timms(oracle)
    assert optimizer.is_fused
    for step in range(steps):
        feed(step, model, oracle, size=size)
        if turn:
            model.weight0.grad = model.weight0.grad.contiguous()
        if step == 1:
            model.weight1.grad = oracle.weight1.grad = None
        for group, theirs in zip(optimizer.param_groups, other.param_groups, strict=True):
            group["lr"] = theirs["lr"] = 1e-3 * (step + 1)
        optimizer.step()
        other.step()
    assert_equal(model.to("cpu"), oracle)


def check_resumed(device: torch.device) -> None:
    """To timm's and back, in the middle of a run."""
    model, oracle = Weights(SHAPES[:4], device), Weights(SHAPES[:4], device)
    optimizer, other = ours(model), timms(oracle)
    for step in range(4):
        feed(step, model, oracle)
        optimizer.step()
        other.step()
        state = copy.deepcopy(optimizer.state_dict())
        optimizer.load_state_dict(copy.deepcopy(other.state_dict()))
        other.load_state_dict(state)
    assert [float(g["step"]) for g in optimizer.param_groups] == [4.0, 4.0]
    assert_equal(model, oracle)


def check_long_and_odd() -> None:
    check_given(CPU, SHAPES, 3, 1.0, turn=True)


def check_resume() -> None:
    check_resumed(CPU)


def check_overflow() -> None:
    check_scaler(CPU, unscale_first=False)
    check_scaler(CPU, unscale_first=True)


SMALL = st.lists(st.integers(1, 5), min_size=1, max_size=4).map(tuple)
LONG = st.tuples(st.integers(CHUNK - 1, 2 * CHUNK + 1))


@settings(max_examples=12, deadline=None, derandomize=True, database=None, phases=[Phase.generate, Phase.shrink])
@given(st.lists(SMALL | LONG, min_size=2, max_size=4), st.sampled_from([1e-3, 1.0, 50.0]), st.booleans())
def check_shapes(shapes: list[tuple[int, ...]], size: float, turn: bool) -> None:
    check_given(CPU, shapes, 2, size, turn)


CHECKS = [check_long_and_odd, check_resume, check_overflow, check_shapes]


@pytest.fixture(scope="module")
def interpreted() -> dict[str, str]:
    return triton_tools.interpret(__file__)


@triton_tools.needs_ranges
@pytest.mark.parametrize("check", [check.__name__ for check in CHECKS])
def test_lamb_kernels_interpreted(interpreted: dict[str, str], check: str) -> None:
    assert not interpreted[check], interpreted[check]


@pytest.mark.gpu
@needs_gpu
def test_lamb_kernels_on_the_gpu() -> None:
    check_given(GPU, [*SHAPES, (512, 512, 3, 3)], 50, 1.0, turn=True)
    check_resumed(GPU)
    check_scaler(GPU, unscale_first=False)
    check_scaler(GPU, unscale_first=True)


@pytest.mark.gpu
@needs_gpu
def test_lamb_without_kernels_on_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RSBDALI_KERNELS", "reference")
    check_scaler(GPU, unscale_first=False)


@pytest.mark.gpu
@needs_gpu
def test_lamb_never_waits_for_the_gpu() -> None:
    model = Weights(SHAPES, GPU)
    optimizer, scaler = ours(model), torch.amp.GradScaler("cuda")
    scaler.scale(torch.ones((), device=GPU))
    feed(0, model)
    grads = [p.grad for p in model.parameters()]
    scaler.step(optimizer)
    scaler.update()
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(3):
            for p, grad in zip(model.parameters(), grads, strict=True):
                p.grad = grad.clone()  # somewhere else each time
            scaler.step(optimizer)
            scaler.update()
    finally:
        torch.cuda.set_sync_debug_mode(before)


if __name__ == "__main__":
    triton_tools.report(CHECKS)
