"""A learning rate that is known at one batch, scaled to another by the rule that timm's train.py has (`lr: auto`).

timm 1.0.31, train.py: the rate grows with the root of the batch for optimizers whose name holds 'ada' or 'lamb', and
with the batch itself for all others.
"""

AUTO = "auto"
FAR = 2.0  # from so many times the scaled rate on, or such a part of it, a rate is far from it


def scaled(lr: float, opt: str, batch: int, reference_batch: int) -> float:
    """The rate for `batch` rows an optimizer step, of one for `reference_batch`, by timm's rule for the optimizer."""
    ratio = batch / reference_batch
    return lr * (ratio**0.5 if any(part in opt.lower() for part in ("ada", "lamb")) else ratio)


def distance(lr: float, fitting: float) -> str:
    """How far a rate is from the fitting one, in words; nothing where it is near, or 0."""
    if lr <= 0 or 1 / FAR <= lr / fitting <= FAR:
        return ""
    return f"{lr / fitting:.1f} times" if lr > fitting else f"1 / {fitting / lr:.1f} of"
