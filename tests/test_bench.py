"""The bench measures what it says: real short runs over small trees, no timing asserted."""

import dataclasses
import json
import math
import os
import re
import subprocess
import sys
import tarfile
import types
import xml.etree.ElementTree as ET
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from helpers.common import Tree
from rsbdali.bench import loader as bench
from rsbdali.bench.material import enough_images
from rsbdali.bench.measure import meter
from rsbdali.bench.race import peers
from rsbdali.bench.race.candidate import CandidateFailed, build
from rsbdali.bench.race.feeds import FeedSpec, check_batch
from rsbdali.bench.race.model_step import measure_model
from rsbdali.bench.race.peers import PEERS, missing, spdl, turboloader
from rsbdali.bench.race.peers.feed import PlainMix, image_paths
from rsbdali.bench.race.race import start
from rsbdali.bench.race.stages import GPU_MODES
from rsbdali.bench.report.figures import STAGES, LoaderFigures, cpu_ratio, overlap, ratio, ratios, stage_breakdown
from rsbdali.bench.report.html import page
from rsbdali.bench.report.presence import Presence, busy_warning
from rsbdali.data.index import ImageIndex
from rsbdali.environment import machine_record
from rsbdali.errors import DataError, DeviceError, RecipeError
from rsbdali.recipe import Recipe

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


def a_round(images: int = 100, seconds: float = 1.0, cpu_s: float = 0.5, busy_s: float = 0.5) -> meter.Round:
    return meter.Round(
        images=images,
        seconds=seconds,
        cpu_s=cpu_s,
        wait_s=(seconds,),
        memory_bytes=1 << 20,
        cores=2,
        busy_s=busy_s,
        load=3.0,
    )


def cpu_rounds(*us: float) -> tuple[meter.Round, ...]:
    """Rounds of a million images a second, each with so many CPU microseconds an image."""
    return tuple(a_round(1_000_000, cpu_s=each) for each in us)


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
        assert 0 <= result["others_share"] <= 1
        assert result["cpu_share"] >= 0
        assert result["load"] >= 0
        assert result["rounds"][0]["cores"] == len(os.sched_getaffinity(0))
    assert record["ratio_to"]["timm"] > 0
    assert "warning" in record
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
    recipe = Recipe.load("a1", {**SMALL, "aug_repeats_mode": "decode_once"})
    monkeypatch.setattr(bench, "missing", lambda name: f"{name} is not installed")
    report = bench.run(options(root, recipe=recipe, batch_size=6, peers=("torchvision",)))
    assert [r.name for r in report.results] == ["rsbdali-across_ranks", "rsbdali-decode_once"]
    assert report.ratio_to.keys() == {"across_ranks"}
    assert report.skipped == {"torchvision": "torchvision is not installed"}  # said, not faked


def test_every_stage_runs(image_tree: Tree) -> None:
    root = image_tree()
    ImageIndex.load(root, cache_dir=root.parent / "cache")
    for stage in (*STAGES[:-1], "decode-cpu-full"):  # the last one is the whole loader, in the runs above
        feed = build(spec(root, f"stage:{stage}"))
        assert len(feed.deliver()) == 4
        assert len(feed.deliver()) == 4
        feed.close()


def test_every_peer_runs(image_tree: Tree) -> None:
    """In one process of their own: warnings of the peers' libraries are not this test's."""
    root = image_tree()
    ImageIndex.load(root, cache_dir=root.parent / "cache")
    # timm is in a run above, and not every peer is installed wherever this runs
    kinds = [kind for kind in PEERS if kind != "timm" and not missing(kind)]
    code = (
        "import json, sys; from rsbdali.bench.race.candidate import build; from rsbdali.bench.race.feeds import *\n"
        "for s in [FeedSpec(**each) for each in json.loads(sys.argv[1])]:\n"
        "    f = build(s); x = f.deliver(); assert len(x) == 4; check_batch(x, s); f.deliver(); f.close()\n"
    )
    plain = json.dumps([dataclasses.asdict(spec(root, kind)) for kind in kinds])
    subprocess.run([sys.executable, "-c", code, plain], check=True)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_stages_on_a_gpu_count_its_time(image_tree: Tree) -> None:
    report = bench.run(options(image_tree(), device="cuda", stages=True, peers=("timm", "dali-basic")))
    assert report.skipped == {}
    gpu_us = {s.name: s.gpu_us for s in report.stages}
    assert gpu_us["read"] == 0
    assert (gpu_us["decode"] or 0) > 0


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("mode", [*(name for name, mode in GPU_MODES.items() if not mode.roi), "decode-cpu"])
def test_decode_modes_on_a_gpu(image_tree: Tree, mode: str) -> None:
    feed = build(dataclasses.replace(spec(image_tree(), f"stage:{mode}"), device="cuda"))
    assert len(feed.deliver()) == len(feed.deliver()) == 4
    feed.close()


def test_mistakes_are_one_line(tmp_path: Path, image_tree: Tree) -> None:
    with pytest.raises(RecipeError, match="--peers tim: unknown; known are timm"):
        bench.run(options(tmp_path, peers=("tim",)))
    with pytest.raises(RecipeError, match="no such model, did you mean 'resnet"):
        bench.run(options(tmp_path, against="resnet5"))
    with pytest.raises(RecipeError, match="must be even"):
        bench.run(options(tmp_path, batch_size=3))
    with pytest.raises(DataError, match="no such folder"):
        bench.run(options(tmp_path / "nowhere"))


def test_a_contestant_that_fails_gives_its_last_words(image_tree: Tree) -> None:
    why = r"^rsbdali: global_batch_size=64 is larger than an epoch of 12 images"
    with ExitStack() as stack, pytest.raises(CandidateFailed, match=why):
        start([spec(image_tree(), "rsbdali", global_batch_size="64")], {}, stack, lambda _: None)


def test_model_step_is_measured() -> None:
    recipe = Recipe.load("a3", {**SMALL, "model": "test_resnet"})
    figures = measure_model(recipe, batch_size=4, device="cpu", seconds=0.01)
    assert 0 < figures.min <= figures.median <= figures.max
    assert (figures.name, figures.batch_size, figures.dtype) == ("test_resnet", 4, "float32")


def test_check_batch_refuses_what_is_no_batch(tmp_path: Path) -> None:
    asked, good = spec(tmp_path, "timm"), torch.randn(4, 3, 32, 32).clamp(-1.5, 2)
    check_batch(good, asked)
    for bad in (good[:2], good * 30, torch.zeros_like(good), torch.full_like(good, float("nan"))):
        with pytest.raises(RuntimeError, match=r"expected|not normalized"):
            check_batch(bad, asked)


def test_plain_mix_normalizes(tmp_path: Path) -> None:
    recipe = Recipe.load("a3", {"mixup": "0", "cutmix": "0"})
    gray = torch.full((2, 3, 8, 8), 128, dtype=torch.uint8)
    expected = (128 / 255 - torch.tensor(recipe.mean)) / torch.tensor(recipe.std)
    mixed = PlainMix(recipe, torch.device("cpu"))(gray)
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


def test_ratio_by_cpu_time_pairs_the_rounds() -> None:
    assert cpu_ratio(cpu_rounds(10, 40, 20), cpu_rounds(30, 40, 40)) == pytest.approx(2.0)  # of 3, 1 and 2
    assert cpu_ratio(cpu_rounds(10, 0), cpu_rounds(30, 40)) is None  # shorter than the kernel's tick
    pairs = {"a": (cpu_rounds(1), cpu_rounds(3)), "b": (cpu_rounds(0), cpu_rounds(3))}
    assert ratios(pairs) == ({"a": 1.0, "b": 1.0}, {"a": pytest.approx(3.0)})


@pytest.mark.parametrize(
    ("ours", "theirs", "said"),
    [
        ((100, 120), (90, 99), False),
        ((90, 99), (100, 120), False),
        ((100, 120), (90, 100), True),
        ((100,), (10,), True),
    ],
)
def test_rounds_overlap(ours: tuple[int, ...], theirs: tuple[int, ...], said: bool) -> None:
    assert overlap([a_round(n) for n in ours], [a_round(n) for n in theirs]) is said


def test_ladder_takes_differences_and_says_which_are_noise() -> None:
    stages = [
        LoaderFigures(name="stage:read", rounds=cpu_rounds(90, 100, 80)),
        LoaderFigures(name="stage:decode", rounds=cpu_rounds(1190, 1200, 1180)),
        LoaderFigures(name="stage:crop+resize", rounds=cpu_rounds(1230, 1240, 1179)),  # 40, 40 and -1 by round
        LoaderFigures(name="stage:RandAugment", rounds=cpu_rounds(1216, 1210, 1220)),
    ]
    stages = stage_breakdown(stages, [0.0, 40.0, 39.0, 50.0])
    assert [(s.name, s.below_noise) for s in stages] == [
        ("read", False),
        ("decode", False),
        ("crop+resize", True),
        ("RandAugment", True),
    ]
    assert [s.cpu_us for s in stages] == pytest.approx([90, 1100, 40, -14])
    assert [s.gpu_us for s in stages] == [0.0, 40.0, -1.0, 11.0]
    assert [s.cumulative_cpu_us for s in stages] == pytest.approx([90, 1190, 1230, 1216])


def test_cores_that_are_busy_are_counted_from_the_kernels_ticks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # user nice system idle iowait irq softirq steal guest guest_nice
    lines = ["cpu 9 9 9 9 9 9 9 9 9 9", "cpu0 100 10 20 999 999 1 2 3 50 5", "cpu1 200 0 0 9 9 0 0 0 0 0", "ctxt 5"]
    (tmp_path / "stat").write_text("\n".join(lines))
    monkeypatch.setattr(meter, "PROC", tmp_path)
    tick = 1 / os.sysconf("SC_CLK_TCK")
    assert meter.busy_s({0}) == pytest.approx(136 * tick)
    assert meter.busy_s({0, 1, 7}) == pytest.approx(336 * tick)


def test_presence_is_a_share_of_wall_clock_times_cores() -> None:
    # two rounds of 1 s on 2 cores: 2 s of 4 are the candidate's, others had 0.4 s
    found = Presence.of([a_round(cpu_s=1.5, busy_s=1.7), a_round(cpu_s=0.5, busy_s=0.7)])
    assert (found.cpu_share, found.others_share, found.load) == pytest.approx((0.5, 0.1, 3.0))
    assert Presence.of([a_round(cpu_s=0.5, busy_s=0.0)]).others_share == 0  # a kernel that does not tell


def test_a_busy_machine_is_a_warning() -> None:
    def beside(others: float) -> Presence:
        return Presence(cpu_share=0.5, others_share=others, load=4.2)

    assert busy_warning({"rsbdali": beside(0.09), "timm": beside(0.0)}) == ""
    said = busy_warning({"rsbdali": beside(0.09), "timm": beside(0.34)})
    assert said.startswith("the machine was busy with something else: other programs had 34% of the cores' time beside")
    assert "beside timm (load 4.2)" in said
    assert "had 12% to 34% of the cores' time throughout" in busy_warning({"a": beside(0.12), "b": beside(0.34)})


def test_what_is_missing_is_said_by_what_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    there = {"spdl.io": True, "spdl.dataloader": False}
    monkeypatch.setattr(peers, "_is_installed", lambda module: there[module])
    assert peers.missing("spdl") == "not installed: spdl_core"
    there["spdl.dataloader"] = True
    assert peers.missing("spdl") is None
    monkeypatch.undo()
    assert not peers._is_installed("no_such_package.module")
    assert missing("timm") is None


def test_the_filters_of_spdl_crop_what_was_drawn() -> None:
    recipe, rng = Recipe.load("a3"), np.random.default_rng(0)
    ratios_seen, texts = [], [spdl.filters(recipe, rng) for _ in range(200)]
    for text in texts:
        names = {"iw": 500, "ih": 375, "sqrt": math.sqrt, "min": min}
        expressions = dict(re.findall(r"(\w)='([^']*)'", text))
        width, height = (eval(expressions[side], names) for side in "wh")
        left, top = (eval(expressions[side], {**names, "ow": width, "oh": height}) for side in "xy")
        assert 0 <= left <= left + width <= 500
        assert 0 <= top <= top + height <= 375
        if width < 500 and height < 375:  # not cut to the image
            assert 0.08 <= width * height / (500 * 375) <= 1.0001
            ratios_seen.append(width / height)
        assert ",scale=w=160:h=160:flags=bilinear," in text
        assert text.endswith("format=pix_fmts=rgb24")
    assert 0.75 - 1e-3 <= min(ratios_seen) < 0.8
    assert 1.28 < max(ratios_seen) <= 4 / 3 + 1e-3
    assert 60 < sum(",hflip," in text for text in texts) < 140
    assert "flags=bicubic" in spdl.filters(Recipe.load("a3", {"train_interpolation": "bicubic"}), rng)


def test_spdl_without_ffmpeg_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fail() -> None:
        raise RuntimeError('Failed to import libspdl. "libavutil.so.61: cannot open" and so on')

    io = types.ModuleType("spdl.io")
    io.utils = types.SimpleNamespace(get_ffmpeg_versions=fail)  # type: ignore[attr-defined]
    dataloader = types.ModuleType("spdl.dataloader")
    dataloader.DataLoader = None  # type: ignore[attr-defined]
    root = types.ModuleType("spdl")
    root.io = io  # type: ignore[attr-defined]
    for name, module in {"spdl": root, "spdl.io": io, "spdl.dataloader": dataloader}.items():
        monkeypatch.setitem(sys.modules, name, module)
    with pytest.raises(DeviceError, match="no shared libraries of FFmpeg"):
        spdl.build(spec(tmp_path, "spdl"))


def test_the_tar_of_turboloader_holds_the_bytes_of_some_images(image_tree: Tree, tmp_path: Path) -> None:
    index = ImageIndex.load(image_tree())
    root, _ = enough_images(index, 2, tmp_path / "scratch")  # links
    paths, archive = image_paths(str(root)), tmp_path / "cache" / "some.tar"
    turboloader.pack(paths, archive, 20, seed=0)
    with tarfile.open(archive) as tar:
        members = tar.getmembers()
        assert all(member.isfile() for member in members)
        assert len({member.name for member in members}) == len(members) == 20
        for member in members:
            assert tar.extractfile(member).read() == Path(paths[int(Path(member.name).stem)]).read_bytes()  # type: ignore[union-attr]
    turboloader.pack(paths[:3], archive, 20, seed=0)
    with tarfile.open(archive) as tar:
        assert len(tar.getmembers()) == 3


def test_page_is_well_formed_and_escapes() -> None:
    result = {
        "name": "<b>",
        "images_per_s": {"median": 10.0, "min": 9.0, "max": 11.0},
        "cpu_us_per_image": 100.0,
        "cpu_share": 0.5,
        "others_share": 0.25,
        "load": 2.5,
        "wait_ms_per_batch": {"median": 1.0, "min": 1.0, "max": 2.0},
        "memory_mib": 5.0,
        "note": "x & y",
    }
    decode = {"name": "decode", "cpu_us": 5.0, "below_noise": False, "cumulative_cpu_us": 5.0, "images_per_s": 9.0}
    resize = {
        "name": "crop+resize",
        "cpu_us": -14.0,
        "below_noise": True,
        "cumulative_cpu_us": 4.0,
        "images_per_s": 8.0,
    }
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
            "cpu_ratio_to": {"<b>": 1.75},
            "warning": "busy & loud",
            "stages": [decode | {"gpu_us": None}, resize | {"gpu_us": -1.0}],
            "model": None,
            "verdict": "a < b",
        }
    )
    for part in text.split("<svg")[1:]:
        ET.fromstring("<svg" + part.split("</svg>")[0] + "</svg>")
    assert "<b>" not in text.replace("<body>", "")
    assert "A &lt; b" in text
    assert "Busy &amp; loud" in text
    shown = re.sub(r"<[^>]*>", "", text)
    assert "rsbdali is 2.00 ×" in shown
    assert "rsbdali is 1.75 ×" in shown
    assert "belowthe noise, GPU below the noise" in shown  # the first word stands in an element of its own
    assert not re.search(r"-14 ?µs", shown)
    assert "50%<td>2.5<td>" in text
