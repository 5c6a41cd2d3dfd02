"""The arguments of `rsbdali.train` besides recipe, data and resume, for type checkers and editors."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, TypedDict

from rsbdali.loader.decode_mode import DecodeMode
from rsbdali.training.nonfinite import OnNan


class TrainArguments(TypedDict, total=False):
    """Fields of `TrainOptions`, then keys of `Recipe`; a test holds them to be these and no others."""

    output: str | Path
    experiment: str | None
    checkpoint_every: str | None
    on_nan: OnNan
    initial_checkpoint: str | Path | None
    pretrained: bool
    device: str
    workers: int | None
    decode: DecodeMode
    hw_decoder_load: float | None
    tuned: bool
    deterministic: bool
    torch_compile: str
    cuda_graph: bool
    max_bad_images: int | None
    val_labels: str | Path | None
    class_map: str | Path | None
    eval_batch_size: int | None
    affinity: bool
    rank_timeout: float
    prepare: Callable[[], object] | None
    loggers: Sequence[str]

    model: str
    drop: float
    drop_path: float
    zero_init_last: bool
    img_size: int | tuple[int, int]
    test_img_size: int | tuple[int, int]
    crop_pct: float
    crop_mode: Literal["center", "squash", "border"]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    epochs: int
    global_batch_size: int
    micro_batch_size: int | None
    opt: str
    lr: float | Literal["auto"]
    min_lr: float
    weight_decay: float
    warmup_epochs: int
    warmup_lr: float
    clip_grad: float | None
    smoothing: float
    bce_loss: bool
    bce_target_thresh: float | None
    scale: tuple[float, float]
    ratio: tuple[float, float]
    train_crop_mode: Literal["rrc", "rkrc"]
    hflip: float
    vflip: float
    train_interpolation: Literal["random", "bilinear", "bicubic"]
    interpolation: Literal["bilinear", "bicubic"]
    aa: str | None
    color_jitter: float | tuple[float, float, float] | tuple[float, float, float, float] | None
    color_jitter_prob: float | None
    grayscale_prob: float
    gaussian_blur_prob: float
    aug_repeats: int
    aug_repeats_mode: Literal["across_ranks", "decode_once"]
    reprob: float
    remode: Literal["const", "rand", "pixel"]
    recount: int
    mixup: float
    cutmix: float
    mixup_prob: float
    mixup_switch_prob: float
    mixup_mode: Literal["batch", "pair", "elem"]
    mixup_off_epoch: int
    mix_groups: int
    seed: int
    amp_dtype: Literal["auto", "float16", "bfloat16", "float32"]
    dist_bn: Literal["reduce", "broadcast", "none"]
    model_ema: bool
    model_ema_decay: float
    eval_every: int
    checkpoint_hist: int
    log_interval: int
