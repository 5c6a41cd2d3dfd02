"""Tuned settings in use: by the loader, `create_loader`, a run and its resume; and one search for real."""

import io
import json
import logging
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from helpers.common import CPU, TINY, Tree
from rsbdali import create_loader
from rsbdali.bench import tune
from rsbdali.bench.race.candidate import serve
from rsbdali.bench.race.feeds import FeedSpec
from rsbdali.cli.main import cli
from rsbdali.data.index import ImageIndex
from rsbdali.distributed.world import World
from rsbdali.errors import RsbdaliError
from rsbdali.integrations import create_loader as integration
from rsbdali.loader import TrainLoader, tuned
from rsbdali.loader.tuned import LoaderSettings
from rsbdali.recipe import Recipe
from rsbdali.training import session
from rsbdali.training import train as training
from rsbdali.training.loader_settings import with_tuned
from rsbdali.training.options import TrainOptions

SMALL = Recipe.load(
    "a3",
    {
        **TINY,
        "epochs": 2,
        "global_batch_size": 8,
        "mix_groups": 1,
        "warmup_epochs": 0,
    },
)
FOUND = LoaderSettings(threads=1, chunk=3, prefetch=4)


@pytest.fixture
def kept() -> Path:
    return tuned.keep(FOUND, tuned.machine_key(SMALL, CPU), {})


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The arguments of each training loader that is made."""
    seen: list[dict[str, Any]] = []

    class Seen(TrainLoader):
        def __init__(self, *args: Any, **arguments: Any) -> None:
            seen.append(arguments)
            super().__init__(*args, **arguments)

    for module in (session, integration):
        monkeypatch.setattr(module, "TrainLoader", Seen)
    return seen


def test_batches_do_not_depend_on_what_is_tuned(image_tree: Tree) -> None:
    index = ImageIndex.load(image_tree())
    batches = []
    for settings in ({}, {"chunk": 1}, {"chunk": 3, "prefetch": 1, "num_threads": 3}, {"chunk": 500}):
        with closing(TrainLoader(index, SMALL, device="cpu", **{"num_threads": 2, **settings})) as loader:
            batches.append(torch.cat([batch.images for batch in loader]))
    assert all(torch.equal(batches[0], other) for other in batches[1:])


def test_a_process_switches_its_feed(image_tree: Tree, tmp_path: Path) -> None:
    root = image_tree()
    ImageIndex.load(root, cache_dir=tmp_path / "cache")
    spec: dict[str, Any] = {
        "kind": "rsbdali",
        "root": str(root),
        "cache_dir": str(tmp_path / "cache"),
        "recipe": SMALL.to_dict(),
        "batch_size": 8,
        "workers": 1,
        "device": "cpu",
    }
    round_ = {"do": "round", "seconds": 0.01, "warm_up": 1}
    requests = [
        spec,
        round_,
        {"do": "switch", "spec": {**spec, "prefetch": 1, "chunk": 2, "decode": "graph"}},
        round_,
    ]
    threads, answers = torch.get_num_threads(), io.StringIO()
    try:
        serve(io.StringIO("".join(json.dumps(each) + "\n" for each in requests)), answers)
    finally:
        torch.set_num_threads(threads)
    ready, first, switched, second = map(json.loads, answers.getvalue().splitlines())
    assert (ready, switched) == ({"note": ""}, {})
    assert first["images"] >= 16
    assert second["images"] >= 16
    assert FeedSpec(**spec).chunk is None


def test_create_loader_takes_what_is_tuned_and_says_so(
    image_tree: Tree, kept: Path, made: list[dict[str, Any]], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "rsbdali")
    root = image_tree()
    arguments: dict[str, Any] = {"recipe": SMALL, "is_training": True, "device": "cpu", "tuned": True}
    create_loader(root, **arguments).close()
    create_loader(root, num_workers=2, prefetch=1, decode="cpu", **arguments).close()
    create_loader(root, **{**arguments, "tuned": False}).close()
    assert [each["hw_decoder_load"] for each in made] == [None] * 3
    names = "num_threads", "prefetch", "chunk", "decode"
    found = [tuple(each.get(name) for name in names) for each in made]
    assert found == [(1, 4, 3, "auto"), (2, 1, 3, "cpu"), (None, 2, None, "auto")]
    assert caplog.text.count("loader tuned for this machine: 1 thread, 3 images a call, 4 batches ahead") == 2
    kept.unlink()
    with pytest.raises(RsbdaliError, match="nothing is tuned here for a3 at 32 × 32 px"):
        create_loader(root, **arguments)


def run_options(image_tree: Tree, tmp_path: Path) -> dict[str, Any]:
    """Of a run of one epoch in out/run."""
    image_tree(per_class=2, split="val")
    return {
        "recipe": SMALL.with_overrides({"epochs": 1}),
        "data": image_tree().parent,
        "output": tmp_path / "out",
        "experiment": "run",
        "device": "cpu",
    }


def test_a_run_takes_what_is_tuned_and_records_it_and_its_resume_takes_it(
    image_tree: Tree, kept: Path, made: list[dict[str, Any]], tmp_path: Path
) -> None:
    options = run_options(image_tree, tmp_path)
    training.train(TrainOptions(**options, tuned=True))
    content = torch.load(tmp_path / "out/run/last.pth.tar", weights_only=True)
    assert content["rsbdali"]["tuned"] == FOUND.to_dict()
    fact = f"# tuned: {FOUND}\n"
    assert fact in (tmp_path / "out/run/args.yaml").read_text()
    kept.unlink()
    training.train(TrainOptions(**{**options, "recipe": SMALL}, resume="auto"))
    assert fact in (tmp_path / "out/run/args.yaml").read_text()
    assert [(each["num_threads"], each["chunk"], each["prefetch"]) for each in made] == [(1, 3, 4)] * 2


SHARED = LoaderSettings(threads=1, chunk=31, prefetch=2, decode="gpu", hw_decoder_load=0.9)


@pytest.mark.parametrize(
    ("given", "taken"),
    [
        ({}, ("gpu", 0.9)),
        ({"hw_decoder_load": 0.0}, ("gpu", 0.0)),
        ({"decode": "gpu"}, ("gpu", 0.9)),
        ({"decode": "cpu"}, ("cpu", None)),
        ({"decode": "gpu-roi", "hw_decoder_load": 0.3}, ("gpu-roi", 0.3)),
    ],
)
def test_the_jpeg_engines_share_is_as_tuned_unless_it_is_given(
    given: dict[str, Any], taken: tuple[str, float | None], tmp_path: Path
) -> None:
    tuned.keep(SHARED, tuned.machine_key(SMALL, CPU), {})
    options = with_tuned(TrainOptions(recipe=SMALL, data=tmp_path, **given), SHARED, None)
    assert (options.decode, options.hw_decoder_load) == taken
    arguments: dict[str, Any] = {"num_threads": None, "prefetch": None, "decode": "auto", "hw_decoder_load": None}
    found = integration._tuned(SMALL, CPU, World(), {**arguments, **given})
    assert (found.get("decode", given.get("decode")), found["hw_decoder_load"]) == taken


def test_a_run_records_the_jpeg_engines_share_and_its_resume_takes_it(
    image_tree: Tree, made: list[dict[str, Any]], tmp_path: Path
) -> None:
    """On a CPU, where the share is recorded and not used."""
    tuned.keep(replace(SHARED, decode="cpu"), tuned.machine_key(SMALL, CPU), {})
    options = run_options(image_tree, tmp_path)
    training.train(TrainOptions(**options, tuned=True))
    content = torch.load(tmp_path / "out/run/last.pth.tar", weights_only=True)["rsbdali"]
    assert (content["hw_decoder_load"], content["tuned"]["hw_decoder_load"]) == (0.9, 0.9)
    training.train(TrainOptions(**{**options, "recipe": SMALL}, resume="auto"))
    content = torch.load(tmp_path / "out/run/last.pth.tar", weights_only=True)["rsbdali"]
    assert content["hw_decoder_load"] == 0.9
    assert [each["hw_decoder_load"] for each in made] == [0.9, 0.9]


def test_the_command_searches_and_keeps(image_tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    only = LoaderSettings(threads=1, chunk=4, prefetch=1)
    monkeypatch.setattr(tune, "grid", lambda *_, **__: [only])
    words = ["tune", "--data", str(image_tree().parent), "--set", "img_size=32", "--batch-size", "4"]
    done = CliRunner().invoke(cli, [*words, "--device", "cpu", "--minutes", "0.0001"], standalone_mode=False)
    assert done.exception is None, done.output
    assert "kept in" in done.output
    assert tuned.find(Recipe.load("a3", {"img_size": 32}), CPU) == only
