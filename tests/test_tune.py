"""The search behind `rsbdali tune` on planted speeds, what it searches, and where what it found is kept."""

import dataclasses
import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from helpers.common import CPU
from rsbdali.bench import tune, tune_regret
from rsbdali.bench.measure.meter import Round
from rsbdali.bench.race.feeds import FeedSpec
from rsbdali.bench.race.knobs import decode_modes, default_settings, grid, knobs, spec_of
from rsbdali.bench.race.successive_halving import LEAST_FINAL, Halving, is_shown, search
from rsbdali.bench.tune import Tuned, TuneOptions, lines, score, searched_on
from rsbdali.distributed.world import World
from rsbdali.errors import CheckpointError, RsbdaliError
from rsbdali.loader import tuned
from rsbdali.loader.tuned import LoaderSettings
from rsbdali.recipe import Recipe
from rsbdali.training.loader_settings import tuned_settings
from rsbdali.training.options import TrainOptions

A3 = Recipe.load("a3")
SOME = LoaderSettings(threads=3, chunk=8, prefetch=4)


class Racers:
    """Candidates 0, 1, 2, … of planted speeds; a round takes a second of the test's own clock, or as long as is given.

    Args:
        speeds: images a second of each.
        noise: of each round, as a share.
        drift: the machine's speed by the time in seconds.
        cost: seconds of a round, by its number from 0 and the candidate.
    """

    def __init__(
        self,
        speeds: list[float],
        noise: float = 0.0,
        drift: Callable[[float], float] = lambda _: 1.0,
        seed: int = 0,
        cost: Callable[[int, int], float] = lambda *_: 1.0,
    ) -> None:
        self.speeds, self.noise, self.drift, self.cost, self.now = speeds, noise, drift, cost, 0.0
        self.rng = np.random.default_rng(seed)
        self.measured: list[int] = []

    def measure(self, candidate: int) -> float:
        self.now += self.cost(len(self.measured), candidate)
        self.measured.append(candidate)
        return self.speeds[candidate] * self.drift(self.now) * (1 + self.noise * self.rng.standard_normal())

    def search(self, seconds: float) -> Halving[int]:
        return search(range(len(self.speeds)), self.measure, seconds=seconds, clock=lambda: self.now)


def test_the_fastest_wins_and_all_were_measured() -> None:
    racers = Racers([100, 101, 99, 150, 98, 97, 120, 60, 100, 100, 100, 100])
    found = racers.search(seconds=60)
    assert (found.winner, found.best, found.margin, found.noise) == (3, 3, 1.5, 0)
    assert set(racers.measured) == set(range(12))
    assert racers.measured[:12] == [*range(12)]  # interleaved
    assert 50 <= racers.now <= 75
    assert set(found.final) >= {0, 3}
    assert all(len(rounds) >= LEAST_FINAL for rounds in found.final.values())


def test_the_slower_half_is_measured_less() -> None:
    racers = Racers([float(100 + k) for k in range(24)])
    racers.search(seconds=120)
    counts = np.bincount(racers.measured)
    assert counts[1:9].max() < counts[23] / 3


def test_a_machine_that_slows_down_slows_all() -> None:
    assert Racers([100, 120, 90, 110, 80, 70], drift=lambda t: 1 / (1 + t / 20)).search(seconds=60).winner == 1


def test_where_no_difference_is_shown_the_default_stays() -> None:
    kept = [Racers([100.0] * 12, noise=0.05, seed=seed).search(seconds=120).winner for seed in range(20)]
    assert kept.count(0) >= 18
    found = Racers([120, 100, 100, 100]).search(seconds=20)
    assert (found.winner, found.best, found.margin) == (0, 0, 1.0)


def test_a_difference_is_found_in_noise() -> None:
    won = [Racers([100.0] * 11 + [130.0], noise=0.05, seed=seed).search(seconds=120).winner for seed in range(20)]
    assert won.count(11) >= 18


@pytest.mark.parametrize("count", [1, 2, 3, 4, 50])
def test_any_number_of_candidates_and_no_time(count: int) -> None:
    racers = Racers([float(k + 1) for k in range(count)])
    found = racers.search(seconds=0.001)
    tried = min(count, 3)
    assert [*found.scores] == [*range(tried)]
    assert [*found.untried] == [*range(tried, count)]
    assert found.best == tried - 1
    assert racers.now == tried * LEAST_FINAL + (3 if count > 3 else 0)


@pytest.mark.parametrize("seconds", [20, 30, 45, 60, 90, 120, 300])
def test_a_search_keeps_to_its_time(seconds: float) -> None:
    racers = Racers([float(100 + k) for k in range(36)], cost=lambda _, candidate: 0.5 + candidate % 3 / 2)
    found = racers.search(seconds)
    assert racers.now <= seconds * 1.05
    assert {*found.scores} | {*found.untried} == {*range(36)}
    assert racers.measured[: len(found.scores)] == [*range(len(found.scores))]  # interleaved
    assert found.whole_s == pytest.approx(83, rel=0.2)  # 36 + 18 + 9 + 5 rounds, and five of the last three
    assert bool(found.untried) == (seconds < 90)
    assert found.best == max(found.scores)


def test_a_slow_first_round_does_not_end_the_search() -> None:
    racers = Racers([float(100 + k) for k in range(36)], cost=lambda number, _: 1.0 if number else 30.0)
    found = racers.search(seconds=150)
    assert not found.untried
    assert found.whole_s == pytest.approx(83)


def test_shown_is_nine_of_ten_rounds() -> None:
    assert is_shown([1.1] * 5)
    assert not is_shown([1.1] * 4)
    assert not is_shown([1.1] * 4 + [0.99])
    assert is_shown([1.1] * 9 + [0.99])


def test_the_grid_holds_the_default_first_and_no_two_alike() -> None:
    found = grid(8, "cpu", 128, allow_pixels=False)
    assert found[0] == default_settings(8) == LoaderSettings(threads=8, chunk=31, prefetch=2)
    assert len(set(found)) == len(found)
    assert {each.threads for each in found} == {4, 6, 8, 12}
    assert {each.decode for each in found} == {"auto"}
    # 12 threads share 128 images: none gets 16
    assert {each.chunk for each in found if each.threads == 12} == {4, 8, 31}
    assert {each.threads for each in grid(1, "cpu", 128, allow_pixels=False)} == {1, 2}


def test_pixels_change_only_where_the_user_lets_them() -> None:
    assert [knob.changes_pixels for knob in knobs(2, "cpu", allow_pixels=False)] == [False] * 3
    marked = {knob.name: str(knob) for knob in knobs(2, "cuda:0", allow_pixels=True)}
    assert "speed only" in marked["threads"]
    assert "changes pixels): gpu, cpu" in marked["decode"]
    assert decode_modes("cpu", gpu_decodes=True) == ("auto",)
    assert {each.hw_decoder_load for each in grid(2, "cuda", 64, allow_pixels=True)} == {None}
    assert grid(2, "cuda", 64, allow_pixels=False, jpeg_engine=True) == grid(2, "cuda", 64, allow_pixels=False)
    on_gpu = grid(2, "cuda", 64, allow_pixels=True)
    assert {each.decode for each in on_gpu} == {"auto", "gpu", "cpu"}  # auto: the default
    # calls to DALI have chunks where the CPU decodes
    assert {each.chunk for each in on_gpu if each.decode != "cpu"} == {31}
    assert {each.chunk for each in on_gpu if each.decode == "cpu"} == {4, 8, 16, 31}


def test_the_share_of_a_jpeg_engine_is_searched_where_the_gpu_decodes() -> None:
    knob = knobs(2, "cuda:0", allow_pixels=True, jpeg_engine=True)[-1]
    assert knob.name == "hw_decoder_load"
    assert str(knob).endswith("changes pixels): 0, 0.3, DALI's own, 0.9, 1")
    found = grid(2, "cuda:0", 64, allow_pixels=True, jpeg_engine=True)
    assert len(found) == len(set(found))
    loads = {mode: {each.hw_decoder_load for each in found if each.decode == mode} for mode in ("auto", "gpu", "cpu")}
    assert loads == {"auto": {None}, "gpu": {0.0, 0.3, None, 0.9, 1.0}, "cpu": {None}}


@pytest.mark.parametrize(
    ("capability", "engine"), [((7, 0), False), ((8, 0), True), ((8, 6), False), ((9, 0), True), ((10, 0), True)]
)
def test_the_card_says_whether_it_has_a_jpeg_engine(
    capability: tuple[int, int], engine: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    spec = FeedSpec(kind="rsbdali", root="", cache_dir="", recipe={}, batch_size=4, workers=1, device="cuda:0")
    options = TuneOptions(data=Path("d"), recipe=A3, allow_pixels=True)
    assert searched_on(spec, options)["jpeg_engine"] is engine
    assert not searched_on(dataclasses.replace(spec, device="cpu"), options)["jpeg_engine"]


def test_a_gpu_that_cannot_decode_for_the_recipe_is_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = FeedSpec(kind="rsbdali", root="", cache_dir="", recipe={}, batch_size=4, workers=1, device="cuda:0")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (8, 0))
    monkeypatch.setattr("rsbdali.bench.tune.missing_compiler", lambda: None)
    blurs = A3.with_overrides({"gaussian_blur_prob": 0.5})
    tried = {}
    for name, recipe in (("a3", A3), ("blurs", blurs)):
        searched = searched_on(spec, TuneOptions(data=Path("d"), recipe=recipe, allow_pixels=True))
        tried[name] = {each.decode for each in grid(rows=64, **searched)}
        assert (knobs(**searched)[-1].name == "hw_decoder_load") == (name == "a3")
    assert tried == {"a3": {"auto", "gpu", "cpu"}, "blurs": {"auto", "cpu"}}


def test_a_beginning_of_the_grid_has_all_values() -> None:
    first = grid(8, "cuda", 128, allow_pixels=True, jpeg_engine=True)[:24]
    assert {each.threads for each in first} == {4, 6, 8, 12}
    assert {each.prefetch for each in first} == {1, 2, 4}
    assert {each.hw_decoder_load for each in first} == {0.0, 0.3, None, 0.9, 1.0}
    assert grid(8, "cuda", 128, allow_pixels=True, jpeg_engine=True)[:24] == first


def test_a_spec_takes_the_settings() -> None:
    spec = FeedSpec(kind="rsbdali", root="", cache_dir="", recipe={}, batch_size=4, workers=1, device="cpu")
    found = spec_of(spec, dataclasses.replace(SOME, decode="cpu"))
    assert (found.workers, found.chunk, found.prefetch, found.decode) == (3, 8, 4, "cpu")
    assert spec_of(spec, dataclasses.replace(SOME, decode="gpu", hw_decoder_load=0.0)).hw_decoder_load == 0


def a_round(rate: float, cpu_us: float, cores: int = 2) -> Round:
    return Round(
        images=100,
        seconds=100 / rate,
        cpu_s=cpu_us * 1e-4,
        wait_s=(1.0,),
        memory_bytes=1,
        cores=cores,
        busy_s=cpu_us * 1e-4,
        load=1.0,
    )


def test_scores_by_the_clock_and_by_cpu_time() -> None:
    assert score(a_round(400, 2500), 2, "clock") == pytest.approx(400)
    assert score(a_round(400, 2500), 2, "cpu") == pytest.approx(800)  # two cores, 2.5 ms an image
    assert score(a_round(400, 2500), 1, "cpu") == pytest.approx(400)
    assert score(a_round(400, 2500), 9, "cpu") == pytest.approx(800)  # there are no more cores


def test_settings_are_kept_for_a_machine_and_a_size(cache_home: Path) -> None:
    with pytest.raises(RsbdaliError, match=r"nothing is tuned here for a3 at 160 × 160 px on \d+ cores \(cpu\)"):
        tuned.find(A3, CPU)
    path = tuned.keep(SOME, tuned.machine_key(A3, CPU), {"images_per_s": 1.0})
    assert path.is_relative_to(cache_home / "rsbdali" / "tuned")
    assert tuned.find(A3, CPU) == SOME
    assert tuned.find(A3.with_overrides({"lr": 1.0, "model": "resnet18"}), CPU) == SOME
    hint = r"nothing is tuned here for a3 at 128 × 128 px .*tune --recipe a3 --set img_size=128 --data DATA`"
    with pytest.raises(RsbdaliError, match=hint):
        tuned.find(A3.with_overrides({"img_size": 128}), CPU)
    other = dataclasses.replace(SOME, threads=1, decode="cpu")
    tuned.keep(other, tuned.machine_key(A3, CPU), {})
    assert tuned.find(A3, CPU) == other
    assert str(other) == "1 thread, 8 images a call, 4 batches ahead, decode cpu"
    shared = dataclasses.replace(SOME, decode="gpu", hw_decoder_load=0.9)
    tuned.keep(shared, tuned.machine_key(A3, CPU), {})
    assert tuned.find(A3, CPU) == shared
    assert str(shared).endswith("decode gpu, hw_decoder_load 0.9")


def test_a_file_of_an_earlier_version_says_nothing_of_the_jpeg_engine() -> None:
    earlier = {key: value for key, value in SOME.to_dict().items() if key != "hw_decoder_load"}
    assert LoaderSettings.of(earlier) == SOME


def test_the_share_of_the_jpeg_engine_goes_with_the_mode_it_was_tuned_for() -> None:
    shared = dataclasses.replace(SOME, decode="gpu", hw_decoder_load=0.9)
    assert [shared.load_for(mode, None) for mode in ("gpu", "gpu-roi", "cpu")] == [0.9, None, None]
    assert shared.load_for("gpu", 0.0) == 0


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "is no JSON"),
        ("[]", "holds no settings"),
        ("{}", "holds no settings"),
        ('{"settings": {"threads": 1, "chunk": 4, "prefetch": 2}}', "holds no settings"),
        ('{"settings": {"threads": 0, "chunk": 4, "prefetch": 2, "decode": "auto"}}', "has threads 0"),
        ('{"settings": {"threads": 1, "chunk": 32, "prefetch": 2, "decode": "auto"}}', "has chunk 32"),
        ('{"settings": {"threads": 1, "chunk": 4, "prefetch": true, "decode": "auto"}}', "has prefetch True"),
        ('{"settings": {"threads": 1, "chunk": 4, "prefetch": 2, "decode": 3}}', "holds no settings"),
        (
            '{"settings": {"threads": 1, "chunk": 4, "prefetch": 2, "decode": "gpu", "hw_decoder_load": 1.5}}',
            "has hw_decoder_load 1.5, expected 0 to 1 or none",
        ),
    ],
)
def test_a_damaged_file_is_named(text: str, words: str) -> None:
    path = tuned.keep(SOME, tuned.machine_key(A3, CPU), {})
    path.write_text(text)
    with pytest.raises(RsbdaliError, match=f"{path} {words}.*run `rsbdali tune` again"):
        tuned.find(A3, CPU)


def chosen(recorded: Mapping[str, Any] | None, *, use_tuned: bool = False) -> LoaderSettings | None:
    record = None if recorded is None else SimpleNamespace(tuned=recorded)
    saved = SimpleNamespace(path=Path("last.pth.tar"), record=record)
    return tuned_settings(TrainOptions(recipe=A3, data=Path("d"), tuned=use_tuned), saved, World(), CPU)


def test_a_resumed_run_keeps_what_it_was_begun_with(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "rsbdali")
    begun = dataclasses.replace(SOME, decode="cpu")
    assert chosen(begun.to_dict()) == begun
    assert chosen(begun.to_dict(), use_tuned=True) == begun  # also on another machine, where nothing is tuned
    assert "loader tuned for the run that goes on: 3 threads, 8 images a call, 4 batches ahead" in caplog.text
    assert chosen({}) is None
    assert chosen(None) is None


def test_a_run_takes_what_is_tuned_for_this_machine(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "rsbdali")
    with pytest.raises(RsbdaliError, match="nothing is tuned here"):
        chosen(None, use_tuned=True)
    tuned.keep(SOME, tuned.machine_key(A3, CPU), {})
    assert chosen(None, use_tuned=True) == chosen({}, use_tuned=True) == SOME
    assert "loader tuned for this machine: 3 threads" in caplog.text
    assert chosen(None) is None


def test_damaged_settings_in_a_checkpoint_are_refused() -> None:
    with pytest.raises(CheckpointError, match=r"last\.pth\.tar is damaged: its rsbdali\.tuned has threads 0"):
        chosen(SOME.to_dict() | {"threads": 0})


def test_ranks_that_share_the_cores_do_not_go_beyond_their_share() -> None:
    assert SOME.threads_of(World(), 2) == 3  # more threads than cores may be best
    two = World(rank=0, size=2, local_rank=0, local_size=2)
    assert SOME.threads_of(two, 2) == 2
    assert SOME.threads_of(two, 8) == 3


class FakeBench:
    """As `tune.Bench`: rounds of planted speeds in no time."""

    def __init__(self, spec: FeedSpec, by: str = "clock") -> None:
        self.rounds: dict[LoaderSettings, list[Round]] = {}
        self.rng, self.is_closed = np.random.default_rng(0), False

    def ready(self) -> None:
        pass

    def close(self) -> None:
        self.is_closed = True

    def measure(self, settings: LoaderSettings, seconds: float) -> float:
        rate = 100 * settings.threads + 10 * settings.prefetch + float(self.rng.normal(0, 1))
        self.rounds.setdefault(settings, []).append(a_round(rate, 1000.0))
        return rate


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> TuneOptions:
    spec = FeedSpec(kind="rsbdali", root="", cache_dir="", recipe={}, batch_size=64, workers=2, device="cpu")
    monkeypatch.setattr(tune, "default_threads", lambda: 2)
    for module in (tune, tune_regret):
        monkeypatch.setattr(module, "Bench", FakeBench)
        monkeypatch.setattr(module, "make_spec", lambda *_: spec)
        monkeypatch.setattr(module, "machine_record", dict)
    return TuneOptions(data=tmp_path, recipe=A3, device="cpu")


def test_tune_keeps_the_winner_and_says_how_sure_it_is(planted: TuneOptions) -> None:
    said: list[str] = []
    result = tune.run(planted, said.append)
    best = result.found.best
    assert (best.threads, best.prefetch) == (3, 4)
    assert tuned.find(A3, CPU) == best
    measured = json.loads(result.file.read_text())["measured"]
    assert (measured["tried"], measured["untried"]) == (36, 0)
    assert measured["by_default"] == pytest.approx(340 / 220, rel=0.02)
    assert any("speed only): 1, 2, 3" in line for line in said)
    assert any("changes pixels): as it is" in line for line in said)
    text = "\n".join(lines(result, planted))
    assert "fastest: 3 threads" in text
    assert "× the defaults (1.5" in text
    assert "noise of its rounds" in text
    assert "--tuned" in text
    assert "not tried" not in text


def test_tune_says_what_it_did_not_try(planted: TuneOptions) -> None:
    result = tune.run(dataclasses.replace(planted, minutes=1e-9))
    assert len(result.found.scores) == 3
    found = dataclasses.replace(result.found, whole_s=200.0)
    text = "\n".join(lines(dataclasses.replace(result, found=found), planted))
    assert "not tried for lack of time: 33 of 36 settings; --minutes 3.4 tries all" in text
    measured = json.loads(result.file.read_text())["measured"]
    assert (measured["tried"], measured["untried"]) == (3, 33)


def test_tune_says_where_nothing_is_gained(planted: TuneOptions) -> None:
    one, two = default_settings(2), dataclasses.replace(SOME, chunk=4)

    def shown(ratios: list[float], winner: LoaderSettings, best: LoaderSettings) -> str:
        final = {one: [100.0] * 5, two: [100 * ratio for ratio in ratios]}
        rounds = {each: [a_round(100, 1000.0)] * 5 for each in final}
        return "\n".join(lines(Tuned(Halving(final, final, winner, best, ratios), rounds, Path("f"), None), planted))

    kept = shown([1.1, 0.9, 1.1, 1.1, 1.0], one, two)
    assert "no difference from the defaults is shown, so they stay: 2 threads, 31 images a call, 2 batches" in kept
    assert "1.10 × the defaults (0.90 to 1.10)" in kept
    assert "the defaults are the fastest: 2 threads" in shown([1.0] * 5, one, one)


def test_tune_against_a_model(planted: TuneOptions, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tune, "_model", lambda *_: 50.0)
    options = dataclasses.replace(planted, against="resnet18")
    assert "resnet18 takes 50: data will not hold training back" in "\n".join(lines(tune.run(options), options))


def test_minutes_must_be_positive(planted: TuneOptions) -> None:
    with pytest.raises(RsbdaliError, match="--minutes 0: must be positive"):
        tune.run(dataclasses.replace(planted, minutes=0))


def test_regret_is_measured_side_by_side(planted: TuneOptions) -> None:
    regret = tune_regret.measure(planted, runs=3, rounds=3, by="clock")
    assert (regret.best.threads, regret.best.prefetch, regret.settings) == (3, 4, 36)
    assert len(regret.regrets) == 3
    assert abs(regret.median) < 0.05
    assert regret.default == pytest.approx(340 / 220 - 1, rel=0.1)
    text = "\n".join(tune_regret.lines(regret, "clock"))
    assert "median of 3 searches, at most 5%" in text
    record = tune_regret.record(regret, planted, "clock")
    assert json.loads(json.dumps(record))["best"]["threads"] == 3
