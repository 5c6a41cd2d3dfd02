"""The bench measures what it says: real short runs over small trees, no timing asserted."""

import dataclasses
import json
import os
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from rich.console import Console

from rsbdali.bench import loader as bench
from rsbdali.bench.material import enough_images
from rsbdali.bench.measure import meter
from rsbdali.bench.race.contestant import Contestant, ContestantFailed
from rsbdali.bench.race.feeds import FeedSpec, check_batch
from rsbdali.bench.race.model_step import measure_model
from rsbdali.bench.race.peers import PEERS, PlainMix
from rsbdali.bench.report.figures import RUNGS, ladder, ratio
from rsbdali.bench.report.html import page
from rsbdali.data.index import ImageIndex
from rsbdali.environment import machine_record
from rsbdali.errors import DataError, RecipeError
from rsbdali.recipe import Recipe

Tree = Callable[..., Path]
SMALL = {"img_size": "32", "test_img_size": "32"}


def options(data: Path, **values: object) -> bench.BenchOptions:
    chosen = Recipe.load("a3", SMALL)
    base = bench.BenchOptions(data=data, recipe=chosen, batch_size=4, workers=1, device="cpu", seconds=0.05, rounds=1)
    return dataclasses.replace(base, **values)  # type: ignore[arg-type]


def spec(root: Path, kind: str, **recipe: str) -> FeedSpec:
    chosen = Recipe.load("a3", {**SMALL, "global_batch_size": "4", "mix_groups": "1", **recipe})
    return FeedSpec(
        kind=kind,
        root=str(root),
        cache_dir=str(root.parent / "cache"),
        recipe=chosen.to_dict(),
        batch_size=4,
        workers=1,
        device="cpu",
    )


def a_round(images: int = 100, seconds: float = 1.0, cpu_s: float = 0.5) -> meter.Round:
    return meter.Round(images=images, seconds=seconds, cpu_s=cpu_s, wait_s=(seconds,), memory_bytes=1 << 20)


def test_a_run_writes_json_and_a_page(image_tree: Tree, tmp_path: Path) -> None:
    image_tree()
    json_file, html_file, said = tmp_path / "out" / "r.json", tmp_path / "r.html", list[str]()
    chosen = options(tmp_path / "data", peers=("timm",), json=json_file, report=html_file)
    report = bench.run(chosen, said.append)

    record = json.loads(json_file.read_text())
    assert [r["name"] for r in record["results"]] == ["rsbdali", "timm"]
    assert record["skipped"] == {}
    for result in record["results"]:
        assert 0 < result["images_per_s"]["min"] <= result["images_per_s"]["median"] <= result["images_per_s"]["max"]
        assert result["cpu_us_per_image"] >= 0
        assert result["memory_mib"] > 0
    assert record["ratio_to"]["timm"] > 0
    assert {"cpu", "cores", "ram_gib", "gpu", "versions", "commit", "command", "date"} <= set(record["machine"])
    assert record["config"]["times_tiled"] == 22  # 12 images; 64 batches of 4 are 256
    assert any("each is read 22 times" in line for line in said)
    assert "timm" in record["verdict"]
    assert "http" not in html_file.read_text().replace("http-equiv", "")
    console = Console(record=True, width=140, file=open(os.devnull, "w"))  # noqa: SIM115 - lives as long as the test
    bench.print_report(console, report)
    console.file.close()
    assert "rsbdali" in console.export_text()


def test_both_modes_of_repeats_are_compared(image_tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    root = image_tree()  # the folder of class folders itself
    recipe = Recipe.load("a1", {**SMALL, "aug_repeats_mode": "local"})
    monkeypatch.setattr(bench, "missing", lambda name: f"{name} is not installed")
    report = bench.run(options(root, recipe=recipe, batch_size=6, peers=("torchvision",)))
    assert [r.name for r in report.results] == ["rsbdali-spread", "rsbdali-local"]
    assert report.ratio_to.keys() == {"spread"}
    assert report.skipped == {"torchvision": "torchvision is not installed"}  # said, not faked


def test_every_rung_of_the_ladder_and_every_peer_runs(image_tree: Tree) -> None:
    root = image_tree()
    ImageIndex.load(root, cache_dir=root.parent / "cache")
    for kind in (*PEERS, *(f"stage:{name}" for name in RUNGS)):
        if kind in ("timm", "stage:on device"):  # in the runs above
            continue
        code = (
            "import json, sys; from rsbdali.bench.race.contestant import build; from rsbdali.bench.race.feeds import *;"
            "s = FeedSpec(**json.loads(sys.argv[1])); f = build(s); x = f.deliver(); assert len(x) == 4;"
            "s.kind.startswith('stage:') or check_batch(x, s); f.deliver(); f.close()"
        )
        if kind.startswith("stage:"):
            from rsbdali.bench.race.contestant import build

            feed = build(spec(root, kind))
            assert len(feed.deliver()) == 4
            assert len(feed.deliver()) == 4
            feed.close()
        else:  # warnings of the peers' own are not this test's
            plain = json.dumps(dataclasses.asdict(spec(root, kind)))
            subprocess.run([sys.executable, "-c", code, plain], check=True)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_stages_on_a_gpu_count_its_time(image_tree: Tree) -> None:
    report = bench.run(options(image_tree(), device="cuda", stages=True, peers=("timm", "dali-basic")))
    assert report.skipped == {}
    gpu_us = {s.name: s.gpu_us for s in report.stages}
    assert gpu_us["read"] == 0
    assert (gpu_us["decode"] or 0) > 0


def test_mistakes_are_one_line(tmp_path: Path, image_tree: Tree) -> None:
    with pytest.raises(RecipeError, match="--peers tim: unknown; known are timm"):
        bench.run(options(tmp_path, peers=("tim",)))
    with pytest.raises(RecipeError, match="no such model; near: resnet"):
        bench.run(options(tmp_path, against="resnet5"))
    with pytest.raises(RecipeError, match="must be even"):
        bench.run(options(tmp_path, batch_size=3))
    with pytest.raises(DataError, match="no such folder"):
        bench.run(options(tmp_path / "nowhere"))


def test_a_contestant_that_fails_gives_its_last_words(image_tree: Tree) -> None:
    with pytest.raises(ContestantFailed, match=r"^rsbdali: global_batch_size=64 is larger than an epoch of 12 images"):
        Contestant(spec(image_tree(), "rsbdali", global_batch_size="64"))


def test_model_step_is_measured() -> None:
    recipe = Recipe.load("a3", {**SMALL, "model": "test_resnet"})
    figures = measure_model(recipe, batch_size=4, device="cpu", seconds=0.01)
    assert 0 < figures.min <= figures.median <= figures.max
    assert (figures.name, figures.batch_size, figures.dtype) == ("test_resnet", 4, "float32")


def test_check_batch_refuses_what_is_no_batch(tmp_path: Path) -> None:
    asked, good = spec(tmp_path, "timm"), torch.randn(4, 3, 32, 32).clamp(-1.5, 2)
    check_batch(good, asked)
    for bad in (good[:2], good * 30, torch.zeros_like(good), torch.full_like(good, float("nan"))):
        with pytest.raises(RuntimeError, match=r"expected|not normalised"):
            check_batch(bad, asked)


def test_plain_mix_normalises(tmp_path: Path) -> None:
    recipe = Recipe.load("a3", {"mixup": "0", "cutmix": "0"})
    grey = torch.full((2, 3, 8, 8), 128, dtype=torch.uint8)
    expected = (128 / 255 - torch.tensor(recipe.mean)) / torch.tensor(recipe.std)
    mixed = PlainMix(recipe, torch.device("cpu"))(grey)
    torch.testing.assert_close(mixed[0, :, 0, 0], expected)


def test_tiling_links_every_image_equally_often(image_tree: Tree, tmp_path: Path) -> None:
    index = ImageIndex.load(image_tree())
    root, copies = enough_images(index, 2, tmp_path / "scratch")
    tiled = ImageIndex.load(root)
    assert len(tiled) == len(index) * copies >= 128
    assert tiled.classes == index.classes
    assert enough_images(tiled, 2, tmp_path / "other") == (root, 1)


def test_cpu_time_and_memory_count_children() -> None:
    spin = "import time\nend = time.process_time() + 0.3\nwhile time.process_time() < end: pass\ninput()"
    before, memory = meter.cpu_s(os.getpid()), meter.memory_bytes(os.getpid())
    with subprocess.Popen([sys.executable, "-c", f"print(1, flush=True)\n{spin}"], stdin=-1, stdout=-1) as child:
        assert child.stdout is not None
        child.stdout.readline()
        assert child.pid in meter.tree(os.getpid())
        assert meter.memory_bytes(os.getpid()) > memory
        child.communicate(b"\n")
    # the child is reaped now: its time has moved to this process's account
    assert meter.cpu_s(os.getpid()) - before > 0.25


def test_a_round_counts_what_is_delivered_after_the_warm_up() -> None:
    batches = iter(range(100))
    done = meter.measure(lambda: next(batches) * 0 + 8, seconds=1e-9, warm_up=3, finish=lambda: None)
    assert (done.images, len(done.wait_s), next(batches)) == (16, 2, 5)


def test_ratio_pairs_the_rounds() -> None:
    ours = a_round(300), a_round(100), a_round(200)
    theirs = a_round(100), a_round(50), a_round(200)
    assert ratio(ours, theirs) == pytest.approx(2.0)  # of 3, 2 and 1


def test_ladder_takes_differences() -> None:
    stages = ladder(["read", "decode"], [90.0, 1190.0], [11000.0, 1700.0], [0.0, 40.0])
    assert [(s.name, s.cpu_us, s.gpu_us) for s in stages] == [("read", 90.0, 0.0), ("decode", 1100.0, 40.0)]


def test_page_is_well_formed_and_escapes() -> None:
    result = {
        "name": "<b>",
        "images_per_s": {"median": 10.0, "min": 9.0, "max": 11.0},
        "cpu_us_per_image": 100.0,
        "wait_ms_per_batch": {"median": 1.0, "min": 1.0, "max": 2.0},
        "memory_mib": 5.0,
        "note": "x & y",
    }
    stage = {"name": "decode", "cpu_us": 5.0, "cumulative_cpu_us": 5.0, "images_per_s": 9.0, "gpu_us": None}
    config = {
        "recipe": "a3",
        "train_size": [160, 160],
        "batch_size": 4,
        "workers": 1,
        "device": "cpu",
        "rounds": 1,
        "seconds": 1.0,
        "images": 3,
        "times_tiled": 2,
        "page_cache": "warm",
    }
    text = page(
        {
            "machine": machine_record(),
            "config": config,
            "results": [result],
            "skipped": {"y": "<no>"},
            "ratio_to": {"<b>": 2.0},
            "stages": [stage],
            "model": None,
            "verdict": "a < b",
        }
    )
    for part in text.split("<svg")[1:]:
        ET.fromstring("<svg" + part.split("</svg>")[0] + "</svg>")
    assert "<b>" not in text.replace("<body>", "")
    assert "A &lt; b" in text
