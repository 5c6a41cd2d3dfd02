"""A run loses a node in mid-epoch and goes on with those that are left: the same batches, the same losses."""

import json
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from helpers import elastic

EPOCHS, STEPS, GROUPS = 2, 4, 4


def test_torchrun_forms_anew_with_the_agents_that_are_left(image_tree: Callable[..., Path], tmp_path: Path) -> None:
    image_tree(classes=2, per_class=32)
    data = image_tree(classes=2, per_class=2, split="val").parent
    alone, shared = tmp_path / "alone", tmp_path / "shared"
    with elastic.run(0, alone, data) as one:
        one[0].join(120)
        assert one[0].exitcode == 0, (alone / "0.txt").read_text()
    with elastic.run(4, shared, data) as agents:
        for process in agents:
            process.join(120)
        said = [(shared / f"{number}.txt").read_text() for number in range(4)]
        assert [process.exitcode for process in agents] == [0, 0, 0, -signal.SIGKILL], said

    expected, found = batches(alone), batches(shared)
    assert sorted(expected) == [(e, s, g) for e in range(EPOCHS) for s in range(STEPS) for g in range(GROUPS)]
    for place, by_world in expected.items():
        assert set(found[place].values()) == set(by_world.values()), place
        assert "4" in found[place] or place >= elastic.END
        assert "3" in found[place] or place < elastic.SAVED
    assert found.keys() == expected.keys()
    assert "3 ranks own 2, 1, 1 of 4 groups: as fast as 2" in "".join(said)
    assert losses(shared) == pytest.approx(losses(alone), rel=1e-4)  # gradients are summed in another order


def batches(folder: Path) -> dict[tuple[int, ...], dict[str, str]]:
    """Hashes of the batches that ranks got, by (epoch, step, group) and number of ranks."""
    found: dict[tuple[int, ...], dict[str, str]] = {}
    for file in folder.glob("batches-*.txt"):
        for line in file.read_text().splitlines():
            *place, world, digest = line.split()
            of_place = found.setdefault(tuple(map(int, place)), {})
            assert of_place.setdefault(world, digest) == digest, line
    return found


def losses(folder: Path) -> list[float]:
    rows = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    return [row["loss"] for row in rows if row["kind"] == "step"]
