"""`bench.timm_lines`: the nine lines, how they are made small, and what is read of a run; train.py is a stand-in."""

from pathlib import Path
from typing import Any

import pytest

from rsbdali.bench import timm_lines
from rsbdali.bench.timm_lines import LINES, Outcome, command, main, run, small_arguments
from rsbdali.errors import DataError

TRAINS = """
import sys
from pathlib import Path
words = sys.argv
folder = Path(words[words.index("--output") + 1]) / words[words.index("--experiment") + 1]
folder.mkdir()
(folder / "summary.csv").write_text("epoch,train_loss,eval_loss\\n0,3,3\\n1,2.25,2.5\\n")
"""
REFUSES = (
    "import sys; print('noise\\nrsbdali: error: num_aug_splits=3 cannot be honored', file=sys.stderr); sys.exit(2)"
)


def test_nine_lines_keep_their_augmentation_and_get_small() -> None:
    assert len(LINES) == 9
    for model in LINES:
        words = small_arguments(model)
        assert "--reprob" in words
        assert "--amp" not in words
        assert words[words.index("--model") + 1].startswith("test_")
        assert words[len(words) - 1 - words[::-1].index("--epochs") + 1] == "2"  # the last one counts
    assert sum("--aug-splits" in small_arguments(model) for model in LINES) == 1


def test_command_is_the_plug_for_ours_and_torchrun_for_ranks() -> None:
    script = Path("train.py")
    assert command(script, ["-b", "8"], ours=False, ranks=1)[1:] == ["train.py", "-b", "8"]
    assert command(script, [], ours=True, ranks=1)[1:] == ["-m", "rsbdali.integrations.timm", "train.py"]
    assert command(script, [], ours=True, ranks=2)[-3:] == ["rsbdali.bench.timm_cpu_ranks", "ours", "train.py"]


def test_losses_and_reasons_are_read(tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(TRAINS)
    assert run(script, "seresnet34", tmp_path, ours=False) == Outcome(2.25, 2.5)
    script.write_text(REFUSES)
    said = run(script, "resnet50", tmp_path, ours=False).said
    assert said == "rsbdali: error: num_aug_splits=3 cannot be honored"
    script.write_text("")
    assert run(script, "resnet50", tmp_path, ours=False).said == "ended without a word"


@pytest.mark.parametrize(
    ("model", "ours", "status"),
    [
        ("seresnet34", Outcome(1.0, 2.0), 0),
        ("seresnet34", Outcome(said="rsbdali: error: x"), 1),
        ("resnet50", Outcome(said="rsbdali: error: x"), 0),
        ("resnet50", Outcome(1.0, 2.0), 1),
    ],
)
def test_table_and_exit_status(
    model: str,
    ours: Outcome,
    status: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    script = tmp_path / "train.py"
    script.write_text("")

    def stand_in(*_: Any, ours_: Outcome = ours, **options: Any) -> Outcome:
        return ours_ if options["ours"] else Outcome(1.5, 2.5)

    monkeypatch.setattr(timm_lines, "run", stand_in)
    assert main(script, tmp_path, [model], 1) == status
    shown = capsys.readouterr().out
    for word in ("1.500 / 2.500", "--reprob 0.", str(ours)):
        assert word in shown


def test_a_script_that_is_not_there() -> None:
    with pytest.raises(DataError, match=r"it is train\.py of timm's repository"):
        main(Path("nowhere.py"), Path(), [], 1)
