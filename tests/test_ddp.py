"""Several ranks train as one does: the same batches, the same losses; one that is lost or asked to stop ends all."""

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers import ranks, run_toy
from rsbdali.data.index import ImageIndex
from rsbdali.errors import LostRankError
from rsbdali.loader import TrainLoader
from rsbdali.recipe import Recipe

TOY = ("epochs=2", "opt=sgd", "lr=0.1", "mix_groups=4", "clip_grad=1.0", "dist_bn=reduce")
GROUPS, STEPS = 4, 2


def losses(folder: Path) -> list[float]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [row["loss"] for row in rows if row["kind"] == "step"]


def wait_for_steps(folder: Path, process: Any) -> None:
    metrics, deadline = folder / "metrics.jsonl", time.monotonic() + 100
    while not (metrics.exists() and metrics.stat().st_size):
        assert time.monotonic() < deadline
        process.join(0.05)
        assert process.exitcode is None


def compare_states(alone: dict[str, Any], shared: dict[str, Any], atol: float = 1e-6) -> None:
    for name, value in alone["state_dict"].items():
        if "running" in name or "num_batches" in name:
            continue  # each rank sees some of the groups: running statistics are averaged, not equal
        # gradients are summed in another order
        torch.testing.assert_close(shared["state_dict"][name], value, rtol=1e-4, atol=atol, msg=name)
    assert alone["last"]["n"] == shared["last"]["n"] == 40


@pytest.fixture
def alone(tmp_path: Path) -> Path:
    """Folder of the toy's run by one process."""
    assert run_toy.main(tmp_path / "one", 2, *TOY) == 0
    return tmp_path / "one"


@pytest.mark.parametrize("size", [2, 3])  # three own 2, 1, 1 of the four groups
def test_ranks_train_as_one_does(tmp_path: Path, alone: Path, size: int) -> None:
    folder = tmp_path / "several"
    with ranks.Ranks(tmp_path, size, ranks.toy, folder, 2, *TOY) as several:
        assert several.codes() == [0] * size, several.texts()
        texts = several.texts()
    assert "epoch 1/2" in texts[0]  # rank 0 prints
    assert texts[1:] == [""] * (size - 1)  # the others do not
    # BatchNorm sees a mix group at a time in any world, so the losses are those of one process but for rounding
    assert losses(folder) == pytest.approx(losses(alone), rel=1e-4)
    states = [torch.load(path / "state.pt", weights_only=True) for path in (alone, folder)]
    # thirds are rounded from the first step on, and in the fourth a ReLU or two is on the other side of zero
    compare_states(*states, atol=1e-6 if size == 2 else 5e-5)
    assert (folder / "model_best.pth.tar").exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_to_one_rank_stops_all_at_the_same_step(tmp_path: Path, number: signal.Signals) -> None:
    with ranks.Ranks(tmp_path, 2, ranks.toy, tmp_path, 100_000, "epochs=1") as two:
        wait_for_steps(tmp_path, two.processes[0])
        two.send(1, number)
        assert two.codes() == [143, 143], two.texts()
    position = torch.load(tmp_path / "last.pth.tar", weights_only=True)["rsbdali"]["position"]
    assert position["epoch"] == 0
    assert position["step"] > 0


def test_a_rank_that_is_killed_ends_the_others(tmp_path: Path) -> None:
    with ranks.Ranks(tmp_path, 2, ranks.toy, tmp_path, 100_000, "epochs=1") as two:
        wait_for_steps(tmp_path, two.processes[0])
        two.send(1, signal.SIGKILL)
        assert two.codes(timeout=60) == [LostRankError.exit_code, -signal.SIGKILL], two.texts()
        text = two.texts()[0]
    assert "Error: rank 0 of 2: another process of the run ended or does not answer" in text
    assert "--resume auto (Connection closed by peer" in text or "--resume auto (Read error" in text
    assert "Traceback" not in text


@pytest.fixture
def reported(tmp_path: Path) -> list[dict[str, Any]]:
    """What two ranks found in `ranks.collectives`, and rank 0's last words."""
    with ranks.Ranks(tmp_path, 2, ranks.collectives, tmp_path) as two:
        two.processes[0].join(60)
        assert two.processes[0].exitcode == LostRankError.exit_code, two.texts()
        found = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
        found[0]["last words"] = two.texts()[0].strip().splitlines()[-1]
    return found


def test_what_ranks_do_together(reported: list[dict[str, Any]]) -> None:
    assert [found["current"] for found in reported] == [True, True]
    assert [found["here"] for found in reported] == [2, 2]
    assert [found["all"] for found in reported] == [[0, 10], [0, 10]]
    assert [found["sum"] for found in reported] == [[3.0], [3.0]]
    assert [found["first"] for found in reported] == [[True, []], [False, ["turn0"]]]

    of_0 = ["DataError", "mistake of rank 0", False, 2]
    heard_of_0 = ["RsbdaliError", "rank 0: mistake of rank 0", True, 2]
    of_1 = ["DataError", "mistake of rank 1", False, 2]
    heard_of_1 = ["RsbdaliError", "rank 1: mistake of rank 1", True, 2]
    assert reported[0]["failures"] == [of_0, heard_of_1, of_0, ["made"]]
    assert reported[1]["failures"] == [heard_of_0, of_1, heard_of_0, ["made"]]

    mine = os.sched_getaffinity(0)
    shares = [set(found["cores"]) for found in reported]
    assert shares[0] | shares[1] == mine
    assert len(mine) == 1 or not shares[0] & shares[1]
    for found, share in zip(reported, shares, strict=True):
        assert found["threads"] == found["threads left"] == len(share)
        assert set(found["cores left"]) == mine

    # rank 1 is there but silent: rank 0 has waited for the three seconds of its timeout
    assert reported[0]["last words"].startswith(
        "Error: rank 0 of 2: another process of the run ended or does not answer"
    )
    assert "Timed out waiting 3000ms" in reported[0]["last words"]


def test_ddp_global_batches_are_the_same_for_every_world(image_tree: Callable[..., Path]) -> None:
    index = ImageIndex.load(image_tree(classes=3, per_class=8))
    values = {"img_size": 32, "global_batch_size": 8, "mix_groups": GROUPS, "aug_repeats": 0}
    recipe = Recipe.load("a3", values)
    alone = global_batches(index, recipe, world_size=1)
    assert len(alone) == 2 * STEPS * GROUPS
    for world_size in (2, 3, 4):
        shared = global_batches(index, recipe, world_size)
        assert shared.keys() == alone.keys()
        for place, (images, *labels) in alone.items():
            assert shared[place][0].contiguous().numpy().tobytes() == images.contiguous().numpy().tobytes(), place
            for mine, theirs in zip(labels, shared[place][1:], strict=True):
                assert torch.equal(mine, theirs), place
    assert len({images.contiguous().numpy().tobytes() for images, *_ in alone.values()}) == len(alone)


def global_batches(
    index: ImageIndex, recipe: Recipe, world_size: int
) -> dict[tuple[int, int, int], tuple[torch.Tensor, ...]]:
    """Images, labels, partners' labels and λ of two epochs' first steps, by (epoch, step, group)."""
    found = {}
    for rank in range(world_size):
        loader = TrainLoader(index, recipe, rank=rank, world_size=world_size, device="cpu", num_threads=1)
        for epoch in (0, 1):
            loader.set_epoch(epoch)
            for _, b in zip(range(STEPS * loader.groups_per_step), loader, strict=False):
                batch = b.images.clone(), b.label_N, b.partner_label_N, b.lam_N
                assert b.group % world_size == rank  # where W divides the groups: position p to rank p mod W, as timm
                found[b.epoch, b.step, b.group] = batch
        loader.close()
    return found
