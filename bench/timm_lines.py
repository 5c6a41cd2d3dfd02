"""The nine command lines of timm's training page, made small, by timm's own train.py with its loader and with ours.

    python -m rsbdali.bench.timm_lines TRAIN_PY --data DEMO            # DEMO: rsbdali demo-data DEMO
    python -m rsbdali.bench.timm_lines TRAIN_PY --data DEMO --only seresnet34 --ranks 2

TRAIN_PY is train.py of timm's repository (github.com/huggingface/pytorch-image-models), which its package lacks. Each
line keeps its flags of augmentation, optimizer and schedule; model, images, epochs and batch are small, and a CPU
trains it in one process. The two losses of a line come from different draws: they are shown side by side, and are not
equal.
"""

import argparse
import csv
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from rsbdali.errors import DataError

# https://huggingface.co/docs/timm/training_script: model, and what follows of its line
EFFICIENTNET = (
    "--sched step --epochs 450 --decay-epochs 2.4 --decay-rate {decay} --opt rmsproptf --opt-eps .001 -j 8 "
    "--warmup-lr 1e-6 --weight-decay 1e-5 --drop {drop} --drop-path 0.2 "
)
AVERAGED = "--model-ema --model-ema-decay 0.9999 --aa rand-m9-mstd0.5 --remode pixel --amp "
LINES = {
    "seresnet34": (
        "--sched cosine --epochs 150 --warmup-epochs 5 --lr 0.4 --reprob 0.5 --remode pixel --batch-size 256 --amp -j 4"
    ),
    "efficientnet_b2": EFFICIENTNET.format(decay=0.97, drop=0.3) + AVERAGED + "-b 128 --reprob 0.2 --lr .016",
    "mixnet_xl": (
        EFFICIENTNET.format(decay=0.969, drop=0.3) + AVERAGED + "-b 128 --reprob 0.3 --lr .016 --dist-bn reduce"
    ),
    "seresnext26t_32x4d": (
        "--lr 0.1 --warmup-epochs 5 --epochs 160 --weight-decay 1e-4 --sched cosine --reprob 0.4 --remode pixel -b 112"
    ),
    "efficientnet_b0": EFFICIENTNET.format(decay=0.97, drop=0.2) + AVERAGED + "-b 384 --reprob 0.2 --lr .048",
    "resnet50": (
        "-b 64 --sched cosine --epochs 200 --lr 0.05 --amp --remode pixel --reprob 0.6 --aug-splits 3 "
        "--aa rand-m9-mstd0.5-inc1 --resplit --split-bn --jsd --dist-bn reduce"
    ),
    "efficientnet_es": (
        EFFICIENTNET.format(decay=0.97, drop=0.2)
        + "-b 128 --aa rand-m9-mstd0.5 --remode pixel --reprob 0.2 --amp --lr .064"
    ),
    "mobilenetv3_large_100": (
        EFFICIENTNET.format(decay=0.973, drop=0.2) + AVERAGED + "-b 512 --reprob 0.2 --lr .064 --lr-noise 0.42 0.9"
    ),
    "resnext50_32x4d": (
        "--lr 0.6 --warmup-epochs 5 --epochs 240 --weight-decay 1e-4 --sched cosine --reprob 0.4 --recount 3 "
        "--remode pixel --aa rand-m7-mstd0.5-inc1 -b 192 -j 6 --amp --dist-bn reduce"
    ),
}
ALONE = "--amp"  # left out: float16 is not for a CPU
SMALL = "--device cpu --img-size 32 --epochs 2 --warmup-epochs 0 -b 16 -j 1 --lr 0.02 --num-classes 10 --val-split val"
REFUSED = "resnet50"  # its splits
FAILED = 1


@dataclass(frozen=True)
class Outcome:
    """How a run of train.py ended.

    Attributes:
        train_loss: of the last epoch; None where it did not train.
        eval_loss: likewise.
        said: the last line of its stderr where it did not.
    """

    train_loss: float | None = None
    eval_loss: float | None = None
    said: str = ""

    def __str__(self) -> str:
        return self.said or f"{self.train_loss:.3f} / {self.eval_loss:.3f}"


def small_arguments(model: str) -> list[str]:
    """A line's flags with a model of timm's own tests, and what a CPU needs behind them, where the last one counts."""
    tiny = "test_resnet" if "res" in model else "test_efficientnet"
    kept = [word for word in shlex.split(LINES[model]) if word != ALONE]
    return ["--model", tiny, *kept, *shlex.split(SMALL)]


def command(script: Path, arguments: Sequence[str], *, ours: bool, ranks: int) -> list[str]:
    """What starts train.py with timm's loader or ours, on one rank or several of a CPU."""
    if ranks > 1:
        launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
        return [*launch, "-m", "rsbdali.bench.timm_cpu_ranks", "ours" if ours else "theirs", str(script), *arguments]
    module = ["-m", "rsbdali.integrations.timm"] if ours else []
    return [sys.executable, *module, str(script), *arguments]


def run(script: Path, model: str, data: Path, *, ours: bool, ranks: int = 1) -> Outcome:
    """Train one line; its output goes to a folder that is removed."""
    with tempfile.TemporaryDirectory() as folder:
        output = ["--data-dir", str(data), "--output", folder, "--experiment", "line"]
        words = command(script, [*small_arguments(model), *output], ours=ours, ranks=ranks)
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        summary = Path(folder) / "line/summary.csv"
        if done.returncode or not summary.exists():
            return Outcome(said=_reason(done.stderr))
        with summary.open(newline="") as file:
            last = list(csv.DictReader(file))[-1]
        return Outcome(float(last["train_loss"]), float(last["eval_loss"]))


def _reason(stderr: str) -> str:
    """Our own line where there is one, else the last."""
    lines = [line for line in stderr.splitlines() if line.strip()]
    ours = [line for line in lines if line.startswith("rsbdali: error: ")]
    return (ours or lines or ["ended without a word"])[-1]


def main(script: Path, data: Path, only: list[str], ranks: int) -> int:
    """Run the lines and print the table; the exit status: 1 where ours trains others than the eight."""
    if not script.is_file():
        raise DataError(f"{script}: no such script; it is train.py of timm's repository")
    table = Table("line", "flags", "timm's loader: loss train / eval", "ours", title=f"{ranks} rank(s) on the CPU")
    failed = False
    for model in only or LINES:
        theirs = run(script, model, data, ours=False, ranks=ranks)
        ours = run(script, model, data, ours=True, ranks=ranks)
        failed |= bool(ours.said) != (model == REFUSED)
        table.add_row(model, _told(model), str(theirs), str(ours))
    Console(width=160).print(table)
    return FAILED if failed else 0


def _told(model: str) -> str:
    """The flags that say something of the batches."""
    words = shlex.split(LINES[model])
    named = ("--aa", "--reprob", "--recount", "--aug-splits")
    return " ".join(f"{word} {words[k + 1]}" for k, word in enumerate(words) if word in named)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("script", type=Path, metavar="TRAIN_PY")
    parser.add_argument("--data", type=Path, default=Path("output/demo-data"), help="default: output/demo-data")
    parser.add_argument("--only", action="append", default=[], choices=LINES, help="this line, as often as you like")
    parser.add_argument("--ranks", type=int, default=1, help="processes of each run (gloo)")
    sys.exit(main(**vars(parser.parse_args())))
